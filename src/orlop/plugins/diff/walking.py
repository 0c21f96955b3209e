"""The differ for tar layers, uncompressed, gzip or zstd, and for images of EROFS; its work is done in workers."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orlop.base.errdefs import FailedPreconditionError, OrlopError, ResourceExhaustedError, UnimplementedError
from orlop.base.platforms import default_string
from orlop.base.quoting import quote
from orlop.base.settling import settle
from orlop.core.content import Reader, WatchedStore
from orlop.core.content.arrival import Arrival
from orlop.core.diff import Applied, LayerBlob
from orlop.core.diff.ahead import Ahead, move_image, move_tree, room_for_image
from orlop.core.diff.apply import Plan, apply
from orlop.core.diff.arriving import Arriving
from orlop.core.diff.compare import compare
from orlop.core.diff.extract import Limits
from orlop.core.diff.processors import StreamProcessor, chain
from orlop.core.diff.workers import JobError, Pool
from orlop.core.kinds import CONTENT, DIFFER, METADATA, MOUNT_MANAGER, SNAPSHOTS
from orlop.core.metadata import Database
from orlop.core.metadata.quotas import BYTES
from orlop.core.mount import Mount
from orlop.core.mount.manager import MountManager
from orlop.core.plugin import Context, Registration
from orlop.core.snapshots import Usage
from orlop.core.snapshots.layer_rows import Filled
from orlop.core.snapshots.layers import Shared
from orlop.core.snapshots.origin import Origin
from orlop.core.snapshots.stores import Stores
from orlop.oci.image import MAX_MANIFEST_SIZE, decode_manifest
from orlop.oci.media_types import OCI_LAYER, is_file_system


@dataclass(slots=True)
class Config:
    """The plug-in's section of the configuration.

    Attributes:
        unpack_ahead: unpack the layers above one that is asked for beside it; see `orlop.core.diff.ahead`.
        unpack_arriving: unpack layers while they arrive, if that is what the last ones came for; see
            `orlop.core.diff.arriving`. Not without `unpack_ahead`.
        erofs_layers: take layers that are images of EROFS, which the kernel then reads as they came.
    """

    unpack_ahead: bool = True
    unpack_arriving: bool = True
    erofs_layers: bool = True


class Walking:
    """Implements `orlop.core.diff.Differ` on a content store."""

    def __init__(
        self,
        content: WatchedStore,
        snapshots: Stores,
        pool: Pool,
        processors: Mapping[str, StreamProcessor],
        manager: MountManager | None = None,
        *,
        db: Database,
        atonce: int = 0,
        arriving: bool = False,
        erofs_layers: bool = True,
    ) -> None:
        """`atonce` is how many layers are unpacked ahead at the same time; `arriving` whether while they arrive too."""
        self._content = content
        self._db = db
        self._manager = manager
        self._snapshots = snapshots
        self._pool = pool
        self._processors = processors
        self._erofs_layers = erofs_layers
        self.arriving: Arriving | None = None
        self.ahead = Ahead(self._unpack_alone, self._layers, self._is_here, atonce=atonce) if atonce else None
        if self.ahead is not None:
            ahead = self.ahead
            content.on_labelled = lambda namespace, info: ahead.labelled(namespace, info.digest, info.labels)
            content.on_blob = ahead.arrived
            if arriving:
                self.arriving = Arriving(ahead, self._unpack_arriving, snapshots.last_room, atonce=pool.size)
                content.on_arrival = self.arriving.begin
                content.on_removed = self._removed
                self._loop = asyncio.get_running_loop()

    async def apply(
        self,
        namespace: str,
        layer: LayerBlob,
        mounts: Sequence[Mount],
        *,
        sync: bool = False,
        payloads: Mapping[str, bytes] | None = None,
    ) -> Applied:
        await self._content.info(namespace, layer.digest)
        whole = is_file_system(layer.media_type)
        if whole and not self._erofs_layers:
            raise FailedPreconditionError(f"layer {layer.digest} is a file system, which erofs_layers = false refuses")
        steps = [] if whole else chain(layer.media_type, self._processors)
        # What comes out of a stream processor may be for its caller only.
        shared = None if sync or steps else await self._snapshots.shared(namespace, mounts)
        try:
            if shared is not None:
                return await self._common(namespace, layer, shared)
            image = _place(layer, self._snapshots.image(mounts))
            applied = None if sync or steps else await self._taken(namespace, layer, mounts, image)
            if applied is None:
                async with (
                    self._performed(namespace, mounts) as left,
                    self._within_quota(namespace) as limits,
                    self._opened(namespace, layer.digest) as blob,
                ):
                    applied = await apply(
                        self._pool,
                        blob,
                        layer,
                        Plan.of(left),
                        sync=sync,
                        limits=limits,
                        steps=steps,
                        payloads=payloads,
                        image=image,
                        whole=whole,
                    )
        except OrlopError:
            if self.ahead is not None:
                self.ahead.failed(namespace, layer)
            raise
        # What went through other programs cannot be unpacked again from here, and so is synced at its commit.
        if applied.usage_bytes is not None and applied.usage_inodes is not None and not steps:
            usage = Usage(size=applied.usage_bytes, inodes=applied.usage_inodes)
            self._snapshots.note_applied(mounts, usage, _origin(layer, applied))
        return applied

    def _removed(self, namespace: str, digest: str) -> None:
        """A blob has gone; told on any thread."""
        if self.ahead is not None and digest in self.ahead.adopted:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and what was unpacked with it
                self._loop.call_soon_threadsafe(self.ahead.drop, namespace, digest)

    async def compare(
        self,
        namespace: str,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        *,
        media_type: str,
        ref: str,
        labels: Mapping[str, str],
        source_date_epoch: int | None,
        lease: str,
    ) -> LayerBlob:
        return await compare(
            self._pool,
            self._content,
            namespace,
            lower,
            upper,
            media_type=media_type,
            ref=ref,
            labels=labels,
            source_date_epoch=source_date_epoch,
            lease=lease,
        )

    async def _common(self, namespace: str, layer: LayerBlob, shared: Shared) -> Applied:
        """The layer as the snapshot's own, unpacked now or before, by us or for others."""

        async def unpack(mounts: Sequence[Mount]) -> Filled:
            image = _place(layer, self._snapshots.image_of(mounts))
            applied = await self._taken(namespace, layer, mounts, image)
            if applied is None:
                async with self._within_quota(namespace) as limits, self._opened(namespace, layer.digest) as blob:
                    whole = is_file_system(layer.media_type)
                    plan = Plan.of(mounts)
                    applied = await apply(self._pool, blob, layer, plan, limits=limits, image=image, whole=whole)
            return Filled(
                diff_id=applied.digest,
                size=applied.size,
                usage=Usage(size=applied.usage_bytes or 0, inodes=applied.usage_inodes or 0),
            )

        filled = await shared.fill(layer.digest, layer.media_type, unpack)
        usage = filled.usage
        return Applied(digest=filled.diff_id, size=filled.size, usage_bytes=usage.size, usage_inodes=usage.inodes)

    async def _taken(self, namespace: str, layer: LayerBlob, mounts: Sequence[Mount], image: str) -> Applied | None:
        """The layer put in place, if it was unpacked ahead; from now on those above it are."""
        if self.ahead is None or (room := self._snapshots.room_beside(mounts)) is None:
            return None
        if self._snapshots.makes_images(room) != bool(image):
            return None
        plan = Plan.of(mounts)
        await self.ahead.reached(namespace, layer, room, stacked=plan.overlay)
        if plan.directory is None or (plan.overlay and plan.marks != Plan.marks_alone):
            return None
        target = plan.directory
        return await self.ahead.take(
            namespace,
            layer,
            room,
            lambda spare: move_image(spare, target, image) if image else move_tree(spare, target),
            lowest=not plan.overlay,
        )

    async def _unpack_alone(self, namespace: str, layer: LayerBlob, directory: Path) -> Applied:
        plan, image = await self._alone(directory)
        async with self._within_quota(namespace) as limits, self._opened(namespace, layer.digest) as blob:
            return await apply(self._pool, blob, layer, plan, limits=limits, image=image)

    async def _unpack_arriving(self, arrival: Arrival, directory: Path) -> Applied:
        plan, image = await self._alone(directory)
        layer = LayerBlob(media_type=OCI_LAYER, digest="that arrives")
        async with self._within_quota(arrival.namespace) as limits:
            with arrival.told() as coming:
                return await apply(self._pool, arrival, layer, plan, limits=limits, image=image, coming=coming)

    async def _alone(self, directory: Path) -> tuple[Plan, str]:
        """How a layer gets into a spare directory, and where as an image."""
        image = ""
        if self._snapshots.makes_images(directory.parent):
            directory, image = await settle(asyncio.to_thread(room_for_image, directory))
        return Plan(mounts=(), directory=os.fspath(directory), overlay=True, alone=True), image

    @contextlib.asynccontextmanager
    async def _within_quota(self, namespace: str) -> AsyncIterator[Limits | None]:
        """What a layer may take of the namespace's quota of bytes: all that is left now. The snapshot's commit counts.

        Raises:
            ResourceExhaustedError: that is not enough.
        """
        found = None
        if self._db.quotas.limit(self._db, namespace, BYTES):
            found = await self._db.write(lambda tx: tx.quotas.bytes_in_use(tx, namespace))
        if found is None:
            yield None
            return
        limit, used = found
        try:
            yield Limits(usage=max(limit - used, 0))
        except ResourceExhaustedError as error:
            if not isinstance(error.__cause__, JobError) or error.__cause__.message["kind"] != "limit":
                raise
            raise ResourceExhaustedError(
                f"namespace {quote(namespace)}: quota {BYTES}: limit {limit}, in use {used}: {error.text}",
                hint="remove what is not needed, or have the quota raised on root's socket",
            ) from error

    @contextlib.asynccontextmanager
    async def _opened(self, namespace: str, digest: str) -> AsyncIterator[Reader]:
        reader = await self._content.reader(namespace, digest)
        try:
            yield reader
        finally:
            reader.close()

    async def _layers(self, namespace: str, digest: str) -> Sequence[LayerBlob]:
        try:
            async with self._opened(namespace, digest) as blob:
                if blob.size > MAX_MANIFEST_SIZE:
                    return ()
                manifest = decode_manifest(await blob.read_at(0, blob.size), what=f"manifest {digest}")
        except (OrlopError, OSError):
            return ()  # whoever unpacks it will be told
        return [
            LayerBlob(media_type=one.media_type, digest=str(one.digest), size=one.size, annotations=one.annotations)
            for one in manifest.layers
        ]

    def _is_here(self, namespace: str, layer: LayerBlob) -> bool:
        try:
            return not chain(layer.media_type, self._processors) and bool(self._content.find(namespace, layer.digest))
        except OrlopError:  # no layer that anybody here knows
            return False

    def _performed(
        self, namespace: str, mounts: Sequence[Mount]
    ) -> contextlib.AbstractAsyncContextManager[Sequence[Mount]]:
        if self._manager is None:
            return contextlib.nullcontext(mounts)
        return self._manager.performed(namespace, mounts)


def _place(layer: LayerBlob, image: str | None) -> str:
    """Where the layer goes as an image, empty for nowhere. Raises UnimplementedError if it can go nowhere else."""
    if is_file_system(layer.media_type) and not image:
        raise UnimplementedError(f"layer {layer.digest} is a file system: only the erofs snapshotter takes it")
    return image or ""


def _origin(layer: LayerBlob, applied: Applied) -> Origin:
    return Origin(media_type=layer.media_type, digest=layer.digest, size_bytes=layer.size, diff_id=applied.digest)


def _init(context: Context) -> Walking:
    pool = Pool()
    context.on_close(pool.close)
    context.on_close(context.get(SNAPSHOTS).stop)
    atonce = pool.size - 1 if context.config.unpack_ahead else 0
    context.platforms.append(default_string())
    manager = next(iter(context.all(MOUNT_MANAGER).values()), None)
    snapshots: Stores = context.get(SNAPSHOTS)
    walking = Walking(
        context.get(CONTENT),
        snapshots,
        pool,
        context.daemon.stream_processors,
        manager,
        db=context.get(METADATA),
        atonce=atonce,
        arriving=context.config.unpack_arriving,
        erofs_layers=context.config.erofs_layers,
    )
    if walking.ahead is not None:
        sweeping = asyncio.create_task(asyncio.to_thread(walking.ahead.sweep, snapshots.rooms()))
        context.on_close(lambda: asyncio.wait([sweeping]))
        context.on_close(walking.ahead.close)
    if walking.arriving is not None:
        context.on_close(walking.arriving.close)
    return walking


REGISTRATION: Final = Registration(
    kind=DIFFER,
    id="walking",
    requires=(METADATA, CONTENT, SNAPSHOTS, MOUNT_MANAGER),
    config=Config,
    init=_init,
)
