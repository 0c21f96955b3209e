"""Layers into snapshots: prepare, apply, commit, from the lowest layer up, each under its ChainID.

A layer that a snapshot exists for is not touched, and need not have come: a remote snapshotter answers Prepare, which
names what is wanted in the label `containerd.io/snapshot.ref`, with AlreadyExists. Nothing half done stays: an active
snapshot of a failed apply is removed. The caller holds a lease.

Source: containerd's core/unpack/unpacker.go and pkg/rootfs/apply.go.
"""

import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from orlop.base.errdefs import AlreadyExistsError, FailedPreconditionError, NotFoundError, OrlopError
from orlop.base.labels import GC_REF_SNAPSHOT, SNAPSHOT_REF, UNCOMPRESSED
from orlop.core.mount import Mount
from orlop.core.snapshots import UNPACK_KEY_PREFIX, inherited
from orlop.core.transfer import Snapshots, Stores
from orlop.core.transfer.progress import Callback, Progress, Status, ignore
from orlop.oci.chain import chain_ids
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor

_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer's blob and the digest its tar must have."""

    blob: Descriptor
    diff_id: Digest


class Arrivals(Protocol):
    """Layers on their way, where unpacking goes on beside the download."""

    def begin(self, position: int) -> None:
        """The layers from `position` on are needed, those below are not."""
        ...

    async def layer(self, position: int) -> None:
        """Wait until a layer's blob is in the content store."""
        ...


def pair(blobs: Sequence[Descriptor], diff_ids: Sequence[Digest], name: str) -> list[Layer]:
    """The layers of an image. Raises FailedPreconditionError if manifest and configuration disagree on their number."""
    if len(blobs) != len(diff_ids):
        raise FailedPreconditionError(
            f"image {name}: its manifest has {len(blobs)} layers and its configuration {len(diff_ids)} diff ids"
        )
    return [Layer(blob=blob, diff_id=diff_id) for blob, diff_id in zip(blobs, diff_ids, strict=True)]


async def unpack(
    stores: Stores,
    layers: Sequence[Layer],
    *,
    snapshotter: str,
    config: Digest | None = None,
    arrivals: Arrivals | None = None,
    progress: Callback = ignore,
) -> str:
    """Unpack layers and return the ChainID of the topmost, an empty string without layers.

    Args:
        config: the image configuration's digest; it gets the label that keeps the snapshot.
        arrivals: where the blobs come from while this runs; None if they are here.

    Raises:
        FailedPreconditionError: a layer's tar has another digest than its image says.
    """
    snapshots = stores.snapshots(snapshotter)
    chain = chain_ids([layer.diff_id for layer in layers])
    begun = False
    for position in range(await _first_missing(snapshots, layers, chain), len(layers)):
        layer, chain_id = layers[position], chain[position]
        prepared = await _prepare(snapshots, layer, chain_id, chain[position - 1] if position else "")
        if prepared is None:
            continue
        async with _removed_unless_kept(snapshots, prepared) as active:
            if arrivals is not None:
                if not begun:
                    arrivals.begin(position)
                    begun = True
                await arrivals.layer(position)
            await _fill(stores, snapshots, active, layer, chain_id, progress)
    top = str(chain[-1]) if chain else ""
    if config is not None and top:
        await stores.content.label(config, {f"{GC_REF_SNAPSHOT}.{snapshotter}": top})
    return top


async def _first_missing(snapshots: Snapshots, layers: Sequence[Layer], chain: Sequence[str]) -> int:
    """How many layers from the bottom are there. A snapshot cannot be without its parents, so look from the top."""
    for position in range(len(chain), 0, -1):
        name, parent = chain[position - 1], chain[position - 2] if position > 1 else ""
        if await snapshots.exists(name) and await _held(snapshots, layers[position - 1], name, parent):
            return position
    return 0


async def _held(snapshots: Snapshots, layer: Layer, chain_id: str, parent: str) -> bool:
    """Have a snapshot that is there in the caller's lease, as preparing it once more does; False if it has just gone.

    Nothing else may refer to it yet or any more, so the collector could take it before the next layer lies on it.
    """
    try:
        prepared = await _prepare(snapshots, layer, chain_id, parent)
    except NotFoundError:
        return False
    if prepared is None:
        return True
    await snapshots.remove(prepared.key)
    return False


@dataclass(slots=True)
class _Active:
    """An active snapshot for a layer; its key is emptied when it is committed."""

    key: str
    mounts: Sequence[Mount]


@contextlib.asynccontextmanager
async def _removed_unless_kept(snapshots: Snapshots, active: _Active) -> AsyncIterator[_Active]:
    try:
        yield active
    finally:
        if active.key:
            with contextlib.suppress(OrlopError):  # the first error tells; the collector takes what stays
                await snapshots.remove(active.key)


def _labels(layer: Layer, chain_id: str) -> dict[str, str]:
    return {**inherited(layer.blob.annotations), SNAPSHOT_REF: chain_id}


async def _prepare(snapshots: Snapshots, layer: Layer, chain_id: str, parent: str) -> _Active | None:
    """A snapshot to unpack into, or None if the layer's own is there."""
    for _ in range(_ATTEMPTS):
        key = f"{UNPACK_KEY_PREFIX}{time.time_ns() % 10**9}-{os.urandom(3).hex()} {chain_id}"
        try:
            return _Active(key, await snapshots.prepare(key, parent, labels=_labels(layer, chain_id)))
        except AlreadyExistsError:
            # A remote snapshotter, or someone else, has the layer already; else, by a very small chance, it is the key.
            if await snapshots.exists(chain_id):
                return None
    raise FailedPreconditionError(f"unpack layer {layer.blob.digest}: no free key for its snapshot")


async def _fill(
    stores: Stores, snapshots: Snapshots, active: _Active, layer: Layer, chain_id: str, progress: Callback
) -> None:
    def tell(status: Status, offset: int = 0) -> None:
        progress(
            Progress(
                ref=f"layer-{layer.blob.digest}",
                status=status,
                offset=offset,
                total=layer.blob.size,
                descriptor=layer.blob,
            )
        )

    tell(Status.UNPACKING)
    applied = await stores.applier.apply(layer.blob, active.mounts)
    if applied.digest != layer.diff_id:
        raise FailedPreconditionError(
            f"unpack layer {layer.blob.digest}: its content is {applied.digest}, the image says {layer.diff_id}"
        )
    # Before the commit: who finds the snapshot there does not come back to the blob.
    await stores.content.label(layer.blob.digest, {UNCOMPRESSED: layer.diff_id})
    with contextlib.suppress(AlreadyExistsError):  # someone else has unpacked the same layer meanwhile
        await snapshots.commit(chain_id, active.key, labels=_labels(layer, chain_id))
        active.key = ""
    tell(Status.UNPACKED, layer.blob.size)
