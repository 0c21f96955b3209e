"""`ctr apply` and `ctr rootfs`, of 2017: layers onto directories and into snapshots."""

import sys

import click

from orlop.cmd.cli import App, GoCommand, LazyGroup, pass_app
from orlop.cmd.ctr.images import snapshotter_option


@click.command(cls=GoCommand)
@click.argument("directory")
@pass_app
def apply(app: App, directory: str) -> None:
    """Apply a layer from standard input onto a directory, and print its size and digest.

    The bytes go through the daemon's content store and its differ, so that they are unpacked as safely as any layer.
    """
    import os

    from orlop.base.errdefs import NotFoundError
    from orlop.core.leases import unique_id
    from orlop.core.mount import Mount
    from orlop.core.transfer import CHUNK_BYTES
    from orlop.oci.digest import Digest, new_hash
    from orlop.oci.image import Descriptor
    from orlop.oci.media_types import DOCKER_LAYER

    if not os.path.isdir(directory):
        raise NotFoundError(f"directory {directory}")
    client = app.client
    lease = client.leases.create("")
    try:
        held = client.with_lease(lease.id)
        state = new_hash()
        with held.content.writer(f"apply-{unique_id()}") as writer:
            while chunk := sys.stdin.buffer.read(CHUNK_BYTES):
                state.update(chunk)
                writer.write(chunk)
            size = writer.offset
            digest = writer.commit(size=size, expected=f"sha256:{state.hexdigest()}")
        # Docker's plain layer type leaves the compression open: the differ looks at the bytes.
        layer = Descriptor(media_type=DOCKER_LAYER, digest=Digest.parse(digest), size=size)
        here = Mount(type="bind", source=os.path.abspath(directory), options=("rw", "rbind"))
        applied = held.diff.apply(layer, [here])
        click.echo(f"{applied.size} {applied.digest}")
    finally:
        client.leases.delete(lease.id)


@click.group(cls=LazyGroup)
def rootfs() -> None:
    """Root file systems of images."""


@rootfs.command(cls=GoCommand)
@click.argument("digest")
@snapshotter_option
@pass_app
def unpack(app: App, digest: str, snapshotter: str) -> None:
    """Unpack the layers of an image, given the digest of its manifest or index, and print the chain id."""
    click.echo(f"unpacked chain id: {unpack_digest(app, digest, snapshotter)}")


def unpack_digest(app: App, digest: str, snapshotter: str, *, sync: bool = False) -> str:
    """Unpack an image that may have no name, as `Image.unpack`; returns the ChainID."""
    from datetime import UTC, datetime

    from orlop.client.channel import drive
    from orlop.client.images import Image, ImageRecord
    from orlop.oci import media_types
    from orlop.oci.digest import Digest
    from orlop.oci.image import Descriptor, decode_shape

    blob = app.client.content.read(Digest.parse(digest))
    shape = decode_shape(blob, what=digest)
    media_type = shape.media_type or (media_types.OCI_INDEX if shape.is_index else media_types.OCI_MANIFEST)
    now = datetime.now(UTC)
    record = ImageRecord(
        name=digest,
        target=Descriptor(media_type=media_type, digest=Digest.parse(digest), size=len(blob)),
        created_at=now,
        updated_at=now,
    )
    return drive(Image(app.client.session, record).unpack(snapshotter=snapshotter, sync=sync))
