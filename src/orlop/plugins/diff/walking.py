"""The differ for tar layers, uncompressed, gzip or zstd; its work is done in workers."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Final

from orlop.base.platforms import default_string
from orlop.core.content import LocalStore
from orlop.core.diff import Applied, LayerBlob
from orlop.core.diff.apply import apply
from orlop.core.diff.compare import compare
from orlop.core.diff.processors import StreamProcessor, chain
from orlop.core.diff.workers import Pool
from orlop.core.kinds import CONTENT, DIFFER, METADATA, MOUNT_MANAGER, SNAPSHOTS
from orlop.core.mount import Mount
from orlop.core.mount.manager import MountManager
from orlop.core.plugin import Context, Registration
from orlop.core.snapshots import Usage
from orlop.core.snapshots.stores import Stores


class Walking:
    """Implements `orlop.core.diff.Differ` on the local content store."""

    def __init__(
        self,
        content: LocalStore,
        snapshots: Stores,
        pool: Pool,
        processors: Mapping[str, StreamProcessor],
        manager: MountManager | None = None,
    ) -> None:
        self._content = content
        self._manager = manager
        self._snapshots = snapshots
        self._pool = pool
        self._processors = processors

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
        steps = chain(layer.media_type, self._processors)
        path = self._content.blob_path(layer.digest)
        async with self._performed(namespace, mounts) as left:
            applied = await apply(self._pool, path, layer, left, sync=sync, steps=steps, payloads=payloads)
        if applied.usage_bytes is not None and applied.usage_inodes is not None:
            usage = Usage(size=applied.usage_bytes, inodes=applied.usage_inodes)
            self._snapshots.note_applied(mounts, usage)
        return applied

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

    def _performed(
        self, namespace: str, mounts: Sequence[Mount]
    ) -> contextlib.AbstractAsyncContextManager[Sequence[Mount]]:
        if self._manager is None:
            return contextlib.nullcontext(mounts)
        return self._manager.performed(namespace, mounts)


def _init(context: Context) -> Walking:
    pool = Pool()
    context.on_close(pool.close)
    context.platforms.append(default_string())
    manager = next(iter(context.all(MOUNT_MANAGER).values()), None)
    return Walking(context.get(CONTENT), context.get(SNAPSHOTS), pool, context.daemon.stream_processors, manager)


REGISTRATION: Final = Registration(
    kind=DIFFER, id="walking", requires=(METADATA, CONTENT, SNAPSHOTS, MOUNT_MANAGER), init=_init
)
