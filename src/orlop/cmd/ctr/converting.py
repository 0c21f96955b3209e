"""`ctr images convert`: an image in another form."""

import click

from orlop.base.errdefs import InvalidArgumentError
from orlop.cmd.cli import App, GoCommand, pass_app


@click.command(cls=GoCommand)
@click.argument("source", metavar="SOURCE", default="")
@click.argument("target", metavar="TARGET", default="")
@click.option("--uncompress", is_flag=True, help="Make compressed layers plain tars.")
@click.option("--gzip", is_flag=True, help="Compress layers with gzip.")
@click.option("--zstd", is_flag=True, help="Compress layers with zstd.")
@click.option("--oci", is_flag=True, help="Make Docker's media types OCI's.")
@click.option("--docker", is_flag=True, help="Make OCI's media types Docker's.")
@click.option("--erofs", metavar="raw|zstd", help="Make layers images of EROFS, by mkfs.erofs; compressed or not.")
@click.option("--erofs-compressors", default="", help="Compress data in these images: mkfs.erofs -z.")
@click.option("--erofs-mkfs-options", default="", help="More arguments of mkfs.erofs, such as -Efragments,dedupe.")
@click.option("--platform", "platforms", multiple=True, help="Keep this platform.")
@click.option("--all-platforms", is_flag=True, help="Keep all platforms; all of them must be here.")
@pass_app
def convert(
    app: App,
    source: str,
    target: str,
    uncompress: bool,
    gzip: bool,
    zstd: bool,
    oci: bool,
    docker: bool,
    erofs: str | None,
    erofs_compressors: str,
    erofs_mkfs_options: str,
    platforms: tuple[str, ...],
    all_platforms: bool,
) -> None:
    """Convert an image and print the digest of the result.

    For example: ctr images convert --uncompress --oci example.com/foo:orig example.com/foo:converted
    """
    from orlop.client.convert import ConvertOptions, LayerForm, MediaFamily

    if erofs not in (None, "raw", "zstd"):
        raise InvalidArgumentError(f'unsupported erofs format "{erofs}", supported: raw, zstd')
    # As in containerd, --erofs beside --uncompress is --erofs.
    if uncompress + gzip + zstd > 1 or (erofs and (gzip or zstd)):
        raise InvalidArgumentError("--uncompress, --gzip, --zstd and --erofs exclude each other")
    if oci and docker:
        raise InvalidArgumentError("--oci and --docker exclude each other")
    if erofs and docker:
        raise InvalidArgumentError("--erofs and --docker exclude each other: Docker has no name for such layers")
    layers = LayerForm.UNCOMPRESSED if uncompress else LayerForm.GZIP if gzip else LayerForm.ZSTD if zstd else None
    if erofs:
        layers = LayerForm.EROFS_ZSTD if erofs == "zstd" else LayerForm.EROFS
    options = ConvertOptions(
        layers=layers or LayerForm.KEEP,
        erofs_compressors=erofs_compressors,
        erofs_mkfs_options=erofs_mkfs_options.split(),
        family=MediaFamily.OCI if oci else MediaFamily.DOCKER if docker else MediaFamily.KEEP,
        platforms=platforms,
        all_platforms=all_platforms,
    )
    click.echo(app.client.images.convert(source, target, options).target.digest)
