"""`ctr images import` and `export`."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import IO, Any

import click

from orlop.cmd.cli import App, GoCommand, pass_app
from orlop.cmd.ctr.images import snapshotter_option


@click.command("import", cls=GoCommand)
@click.argument("source", metavar="ARCHIVE|-")
@click.option("--base-name", default="", help="Base name for images that have only a tag; filters those with others.")
@click.option("--digests", is_flag=True, help="Name images by digest as well.")
@click.option("--skip-digest-for-named", is_flag=True, help="With --digests, only those that have no name.")
@click.option("--index-name", default="", help="Keep the archive's index as an image of this name.")
@click.option("--all-platforms", is_flag=True, help="Import content for all platforms.")
@click.option("--platform", help="Import content for this platform.")
@click.option("--no-unpack", is_flag=True, help="Do not unpack the images.")
@click.option("--local", is_flag=True, hidden=True, help="Accepted for newer clients' sake: importing is always local.")
@snapshotter_option
@pass_app
def import_(
    app: App,
    source: str,
    base_name: str,
    digests: bool,
    skip_digest_for_named: bool,
    index_name: str,
    all_platforms: bool,
    platform: str | None,
    no_unpack: bool,
    local: bool,
    snapshotter: str,
) -> None:
    """Import images from an archive: an OCI layout, or what docker save writes."""
    from orlop.core.transfer.naming import Naming

    naming = Naming(base_name=base_name, digests=digests, skip_named=skip_digest_for_named, index_name=index_name)
    with _source(source) as file:
        found = app.client.import_(file, naming=naming, platform=platform, all_platforms=all_platforms)
    for image in found:
        if no_unpack:
            click.echo(f"{image.name} ({image.target.digest})")
            continue
        click.echo(f"unpacking {image.name} ({image.target.digest})...", nl=False)
        image.unpack(snapshotter=snapshotter)
        click.echo("done")


@click.command(cls=GoCommand)
@click.argument("target", metavar="ARCHIVE|-")
@click.argument("names", nargs=-1, metavar="IMAGE...")
@click.option("--skip-manifest-json", is_flag=True, help="Leave Docker's manifest.json out.")
@click.option("--skip-non-distributable", is_flag=True, help="Leave non-distributable layers out.")
@click.option("--platform", help="Export content for this platform.")
@click.option("--all-platforms", is_flag=True, help="Export content for all platforms.")
@click.option("--oci-ref-name", hidden=True, help="Of 2017: the image to export, when none is given otherwise.")
@click.option("--manifest", hidden=True, help="Of 2017: digest of the manifest to export.")
@click.option("--manifest-type", hidden=True, help="Of 2017: its media type.")
@pass_app
def export(
    app: App,
    target: str,
    names: tuple[str, ...],
    skip_manifest_json: bool,
    skip_non_distributable: bool,
    platform: str | None,
    all_platforms: bool,
    oci_ref_name: str | None,
    manifest: str | None,
    manifest_type: str | None,
) -> None:
    """Export images into one OCI archive, which docker load reads too."""
    wanted = list(names)
    if manifest:
        wanted.append(_named_manifest(app, manifest, manifest_type, oci_ref_name))
    elif oci_ref_name and not wanted:
        wanted.append(oci_ref_name)
    if not wanted:
        raise click.UsageError("please provide both an output file and an image reference to export")
    with _target(target) as file:
        app.client.export(
            file,
            wanted,
            platform=platform,
            all_platforms=all_platforms,
            docker_manifest=not skip_manifest_json,
            skip_nondistributable=skip_non_distributable,
        )


def _named_manifest(app: App, digest: str, media_type: str | None, name: str | None) -> str:
    """A name for a bare manifest, so that it can be exported like any image."""
    from orlop.oci.digest import Digest
    from orlop.oci.image import Descriptor
    from orlop.oci.media_types import OCI_MANIFEST

    info = app.client.content.info(digest)
    reference = name or f"export@{digest}"
    target = Descriptor(media_type=media_type or OCI_MANIFEST, digest=Digest.parse(digest), size=info.size_bytes)
    app.client.images.create(reference, target, replace=True)
    return reference


def _source(path: str) -> AbstractContextManager[IO[bytes]]:
    if path == "-":
        return nullcontext(sys.stdin.buffer)
    opened: IO[bytes] = open(path, "rb")  # noqa: SIM115 - the caller's with statement closes it
    return opened


def _target(path: str) -> AbstractContextManager[IO[bytes]]:
    if path == "-":
        return nullcontext(sys.stdout.buffer)
    return _Whole(path)


class _Whole(AbstractContextManager[IO[bytes]]):
    """A file that is there when it is whole: a failed export leaves none."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: Any = None  # an open file, once entered

    def __enter__(self) -> IO[bytes]:
        self._file = open(f"{self._path}.part", "wb")
        opened: IO[bytes] = self._file
        return opened

    def __exit__(self, kind: object, *_exc: object) -> None:
        import os

        self._file.close()
        if kind is None:
            os.replace(f"{self._path}.part", self._path)
        else:
            os.unlink(f"{self._path}.part")
