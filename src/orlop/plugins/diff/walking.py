"""The differ for tar layers, uncompressed, gzip or zstd; its work is done in workers."""

from collections.abc import Mapping, Sequence
from typing import Final

from orlop.base.platforms import default_string
from orlop.core.content import LocalStore
from orlop.core.diff import Applied, LayerBlob
from orlop.core.diff.apply import apply
from orlop.core.diff.compare import compare
from orlop.core.diff.processors import StreamProcessor, chain
from orlop.core.diff.workers import Pool
from orlop.core.kinds import CONTENT, DIFFER, METADATA, SNAPSHOTS
from orlop.core.mount import Mount
from orlop.core.plugin import Context, Registration
from orlop.core.snapshots import Usage
from orlop.core.snapshots.stores import Stores


class Walking:
    """Implements `orlop.core.diff.Differ` on the local content store."""

    def __init__(
        self, content: LocalStore, snapshots: Stores, pool: Pool, processors: Mapping[str, StreamProcessor]
    ) -> None:
        self._content = content
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
        applied = await apply(self._pool, path, layer, mounts, sync=sync, steps=steps, payloads=payloads)
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


def _init(context: Context) -> Walking:
    pool = Pool()
    context.on_close(pool.close)
    context.platforms.append(default_string())
    return Walking(context.get(CONTENT), context.get(SNAPSHOTS), pool, context.daemon.stream_processors)


REGISTRATION: Final = Registration(kind=DIFFER, id="walking", requires=(METADATA, CONTENT, SNAPSHOTS), init=_init)
