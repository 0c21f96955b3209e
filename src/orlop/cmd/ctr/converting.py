"""`ctr images convert`: an image in another form."""

import click

from orlop.base.errdefs import InvalidArgumentError, UnimplementedError
from orlop.cmd.cli import App, GoCommand, pass_app


@click.command(cls=GoCommand)
@click.argument("source", metavar="SOURCE", default="")
@click.argument("target", metavar="TARGET", default="")
@click.option("--uncompress", is_flag=True, help="Make compressed layers plain tars.")
@click.option("--gzip", is_flag=True, help="Compress layers with gzip.")
@click.option("--zstd", is_flag=True, help="Compress layers with zstd.")
@click.option("--oci", is_flag=True, help="Make Docker's media types OCI's.")
@click.option("--docker", is_flag=True, help="Make OCI's media types Docker's.")
@click.option("--erofs", default="", hidden=True, help="Of containerd 2.3: layers as EROFS images.")
@click.option("--erofs-compressors", default="", hidden=True, help="Of containerd 2.3.")
@click.option("--erofs-mkfs-options", default="", hidden=True, help="Of containerd 2.3.")
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
    erofs: str,
    erofs_compressors: str,
    erofs_mkfs_options: str,
    platforms: tuple[str, ...],
    all_platforms: bool,
) -> None:
    """Convert an image and print the digest of the result.

    For example: ctr images convert --uncompress --oci example.com/foo:orig example.com/foo:converted
    """
    from orlop.client.convert import ConvertOptions, LayerForm, MediaFamily

    if erofs or erofs_compressors or erofs_mkfs_options:
        raise UnimplementedError(
            "converting layers to EROFS", hint="the erofs snapshotter makes an image mountable while it is unpacked"
        )
    if uncompress + gzip + zstd > 1:
        raise InvalidArgumentError("--uncompress, --gzip and --zstd exclude each other")
    if oci and docker:
        raise InvalidArgumentError("--oci and --docker exclude each other")
    layers = LayerForm.UNCOMPRESSED if uncompress else LayerForm.GZIP if gzip else LayerForm.ZSTD if zstd else None
    options = ConvertOptions(
        layers=layers or LayerForm.KEEP,
        family=MediaFamily.OCI if oci else MediaFamily.DOCKER if docker else MediaFamily.KEEP,
        platforms=platforms,
        all_platforms=all_platforms,
    )
    click.echo(app.client.images.convert(source, target, options).target.digest)
