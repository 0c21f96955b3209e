"""Layers into snapshots: prepare, apply, commit, from the lowest layer up, each under its ChainID.

A layer that a snapshot exists for is not touched. Nothing half done stays: an active snapshot of a failed apply is
removed. The caller holds a lease.

Source: ApplyLayers in containerd's pkg/rootfs/apply.go and Unpack in client/image.go.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from orlop.base.errdefs import AlreadyExistsError, FailedPreconditionError, NotFoundError, OrlopError
from orlop.base.labels import GC_REF_SNAPSHOT, UNCOMPRESSED
from orlop.client.content import Content
from orlop.client.diff import Diff
from orlop.client.progress import Callback, Progress, Status, ignore
from orlop.client.session import Session
from orlop.client.snapshots import Snapshots
from orlop.oci.chain import chain_ids
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor

_ATTEMPTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer's blob and the digest its tar must have."""

    blob: Descriptor
    diff_id: Digest


def pair(blobs: Sequence[Descriptor], diff_ids: Sequence[Digest], name: str) -> list[Layer]:
    """The layers of an image. Raises FailedPreconditionError if manifest and configuration disagree on their number."""
    if len(blobs) != len(diff_ids):
        raise FailedPreconditionError(
            f"image {name}: its manifest has {len(blobs)} layers and its configuration {len(diff_ids)} diff ids"
        )
    return [Layer(blob=blob, diff_id=diff_id) for blob, diff_id in zip(blobs, diff_ids, strict=True)]


async def unpack(
    session: Session,
    layers: Sequence[Layer],
    *,
    snapshotter: str,
    config: Digest | None = None,
    progress: Callback = ignore,
) -> str:
    """Unpack layers and return the ChainID of the topmost, an empty string without layers.

    Args:
        config: the image configuration's digest; it gets the label that keeps the snapshot.

    Raises:
        FailedPreconditionError: a layer's tar has another digest than its image says.
    """
    snapshots = Snapshots(session, snapshotter)
    chain = chain_ids([layer.diff_id for layer in layers])
    first = await _first_missing(snapshots, chain)
    for position in range(first, len(layers)):
        parent = chain[position - 1] if position else ""
        await _apply(session, snapshots, layers[position], chain_id=chain[position], parent=parent, progress=progress)
    top = str(chain[-1]) if chain else ""
    if config is not None and top:
        await Content(session).label(config, {f"{GC_REF_SNAPSHOT}.{snapshotter}": top})
    return top


async def is_unpacked(session: Session, diff_ids: Sequence[Digest], snapshotter: str) -> bool:
    """Whether the whole stack has its snapshot."""
    if not diff_ids:
        return True
    return await _exists(Snapshots(session, snapshotter), chain_ids(diff_ids)[-1])


async def _first_missing(snapshots: Snapshots, chain: Sequence[str]) -> int:
    """How many layers from the bottom are there. A snapshot cannot be without its parents, so look from the top."""
    for position in range(len(chain), 0, -1):
        if await _exists(snapshots, chain[position - 1]):
            return position
    return 0


async def _exists(snapshots: Snapshots, key: str) -> bool:
    try:
        await snapshots.stat(key)
    except NotFoundError:
        return False
    return True


async def _apply(
    session: Session, snapshots: Snapshots, layer: Layer, *, chain_id: str, parent: str, progress: Callback
) -> None:
    ref = f"layer-{layer.blob.digest}"
    progress(Progress(ref=ref, status=Status.UNPACKING, total=layer.blob.size))
    for _ in range(_ATTEMPTS):
        key = f"extract-{time.time_ns() % 10**9}-{os.urandom(3).hex()} {chain_id}"
        try:
            mounts = await snapshots.prepare(key, parent)
        except AlreadyExistsError:
            # Either the key, by a very small chance, or a remote snapshotter that has the layer already.
            if await _exists(snapshots, chain_id):
                return
            continue
        break
    else:
        raise FailedPreconditionError(f"unpack layer {layer.blob.digest}: no free key for its snapshot")
    try:
        applied = await Diff(session).apply(layer.blob, mounts)
        if applied.digest != layer.diff_id:
            raise FailedPreconditionError(
                f"unpack layer {layer.blob.digest}: its content is {applied.digest}, the image says {layer.diff_id}"
            )
        with contextlib.suppress(AlreadyExistsError):  # someone else has unpacked the same layer meanwhile
            await snapshots.commit(chain_id, key)
            key = ""
    finally:
        if key:
            with contextlib.suppress(OrlopError):  # the first error tells; the collector takes what stays
                await snapshots.remove(key)
    await Content(session).label(layer.blob.digest, {UNCOMPRESSED: layer.diff_id})
    progress(Progress(ref=ref, status=Status.UNPACKED, offset=layer.blob.size, total=layer.blob.size))
