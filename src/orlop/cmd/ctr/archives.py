"""`ctr images import` and `export`."""

import sys
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

import click

from orlop.cmd.cli import App, GoCommand, pass_app
from orlop.cmd.ctr.images import snapshotter_option
from orlop.cmd.ctr.moving import Steps, local_option, moved, parse_platforms
from orlop.cmd.units import parse_labels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orlop.client.sync import Client
    from orlop.core.transfer.ends import ImageStore
    from orlop.core.transfer.naming import Naming


@click.command("import", cls=GoCommand)
@click.argument("source", metavar="ARCHIVE|-")
@click.option("--base-name", default="", help="Base name for images that have only a tag; filters those with others.")
@click.option("--digests", is_flag=True, help="Name images by digest as well.")
@click.option("--skip-digest-for-named", is_flag=True, help="With --digests, only those that have no name.")
@click.option("--index-name", default="", help="Keep the archive's index as an image of this name.")
@click.option("--all-platforms", is_flag=True, help="Import content for all platforms.")
@click.option("--platform", help="Import content for this platform.")
@click.option("--no-unpack", is_flag=True, help="Do not unpack the images.")
@click.option("--compress-blobs", is_flag=True, help="Compress layers of a Docker archive that come plain.")
@click.option("--discard-unpacked-layers", is_flag=True, help="Let go of layers that are unpacked; implies --local.")
@click.option("--sync-fs", is_flag=True, help="With --local, what is unpacked is on disk when this ends.")
@click.option("--label", "labels", multiple=True, help="Label for the images.")
@local_option
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
    compress_blobs: bool,
    discard_unpacked_layers: bool,
    sync_fs: bool,
    labels: tuple[str, ...],
    local: bool,
    snapshotter: str,
) -> None:
    """Import images from an archive: an OCI layout, or what docker save writes."""
    from orlop.core.transfer.naming import Naming

    if skip_digest_for_named and not digests:
        raise click.UsageError("--skip-digest-for-named must be specified with --digests option")
    if discard_unpacked_layers and no_unpack:
        raise click.UsageError("--discard-unpacked-layers and --no-unpack are incompatible options")
    naming = Naming(base_name=base_name, digests=digests, skip_named=skip_digest_for_named, index_name=index_name)
    with _source(source) as file:
        if not (local or discard_unpacked_layers):
            store = _store(naming, platform, snapshotter, all_platforms=all_platforms, unpack=not no_unpack)
            store = replace(store, labels=parse_labels(labels))
            if _imported(app, file, store, compress=compress_blobs, unpacked=not no_unpack):
                return
        with _leased(app.client) as client:  # for layers that nothing else will hold when they are unpacked
            found = client.import_(
                file,
                naming=naming,
                platform=platform,
                all_platforms=all_platforms,
                compress=compress_blobs,
                discard_layers=discard_unpacked_layers,
            )
            for image in found:
                if labels:
                    client.images.label(image.name, parse_labels(labels))
                _say_imported(image.name, image.target.digest, unpacking=not no_unpack)
                if not no_unpack:
                    image.unpack(snapshotter=snapshotter, sync=sync_fs)
                    click.echo("done")


@contextmanager
def _leased(client: "Client") -> "Iterator[Client]":
    """The client with a lease that ends with the block."""
    from datetime import timedelta

    lease = client.leases.create(expires_in=timedelta(hours=24))
    try:
        yield client.with_lease(lease.id)
    finally:
        client.leases.delete(lease.id)


def _store(
    naming: "Naming", platform: str | None, snapshotter: str, *, all_platforms: bool, unpack: bool
) -> "ImageStore":
    from orlop.base.platforms import Platform
    from orlop.core.transfer.ends import ImageReference, ImageStore, UnpackConfiguration
    from orlop.core.transfer.naming import today

    platforms = parse_platforms((platform,) if platform else (), everything=all_platforms)
    reference = ImageReference(
        name=naming.base_name or today(),
        is_prefix=True,
        allow_overwrite=not naming.base_name,
        add_digest=naming.digests,
        skip_named_digest=naming.skip_named,
    )
    unpacks = tuple(UnpackConfiguration(platform=one, snapshotter=snapshotter) for one in platforms or (Platform(),))
    return ImageStore(
        name=naming.index_name,
        platforms=platforms,
        extra_references=(reference,),
        unpacks=unpacks if unpack else (),
    )


def _imported(app: App, file: IO[bytes], store: "ImageStore", *, compress: bool, unpacked: bool) -> bool:
    """Have the daemon import; False if it cannot, before anything was read."""
    from orlop.base.errdefs import NotFoundError
    from orlop.core.transfer.ends import ImageImportStream
    from orlop.core.transfer.progress import ignore

    steps = Steps(ignore, store.name)
    if not moved(app, ImageImportStream(source=file, force_compress=compress), store, steps):
        return False
    for name, digest in steps.saved:
        _say_imported(name, digest, unpacking=unpacked)
        if unpacked:
            click.echo("done")
    if not steps.saved:
        raise NotFoundError("an image with a name in the archive", hint="give one with --base-name or --index-name")
    return True


def _say_imported(name: str, digest: str, *, unpacking: bool) -> None:
    if unpacking:
        click.echo(f"unpacking {name} ({digest})...", nl=False)
    else:
        click.echo(f"{name} ({digest})")


@click.command(cls=GoCommand)
@click.argument("target", metavar="ARCHIVE|-")
@click.argument("names", nargs=-1, metavar="IMAGE...")
@click.option("--skip-manifest-json", is_flag=True, help="Leave Docker's manifest.json out.")
@click.option("--skip-non-distributable", is_flag=True, help="Leave non-distributable layers out.")
@click.option("--platform", "platform_", multiple=True, help="Export content for this platform.")
@click.option("--all-platforms", is_flag=True, help="Export content for all platforms.")
@local_option
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
    platform_: tuple[str, ...],
    all_platforms: bool,
    local: bool,
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
        if not local and _exported(
            app,
            file,
            wanted,
            platform_,
            all_platforms=all_platforms,
            docker_manifest=not skip_manifest_json,
            skip_nondistributable=skip_non_distributable,
        ):
            return
        app.client.export(
            file,
            wanted,
            platform=platform_[0] if platform_ else None,
            all_platforms=all_platforms,
            docker_manifest=not skip_manifest_json,
            skip_nondistributable=skip_non_distributable,
        )


def _exported(
    app: App,
    file: IO[bytes],
    names: list[str],
    specifiers: tuple[str, ...],
    *,
    all_platforms: bool,
    docker_manifest: bool,
    skip_nondistributable: bool,
) -> bool:
    """Have the daemon export; False if it cannot, before anything was written."""
    from orlop.base import platforms
    from orlop.client.transfer import FileSink
    from orlop.core.transfer.ends import ImageExportStream, ImageReference, ImageStore
    from orlop.core.transfer.progress import ignore

    store = ImageStore(name=names[0], extra_references=tuple(ImageReference(name=one) for one in names[1:]))
    archive = ImageExportStream(
        target=FileSink(file),
        platforms=tuple(platforms.parse(one) for one in specifiers),
        all_platforms=all_platforms,
        skip_compatibility_manifest=not docker_manifest,
        skip_non_distributable=skip_nondistributable,
    )
    return moved(app, store, archive, Steps(ignore, names[0]))


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
