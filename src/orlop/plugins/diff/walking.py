"""The differ for tar layers, uncompressed, gzip or zstd; its work is done in unpack workers."""

from collections.abc import Mapping, Sequence
from typing import Final

from orlop.base.errdefs import UnimplementedError
from orlop.base.platforms import default_string
from orlop.core.content import LocalStore
from orlop.core.diff import Applied, LayerBlob
from orlop.core.diff.apply import apply
from orlop.core.diff.workers import Pool
from orlop.core.kinds import CONTENT, DIFFER, METADATA, SNAPSHOTS
from orlop.core.mount import Mount
from orlop.core.plugin import Context, Registration
from orlop.core.snapshots import Usage
from orlop.core.snapshots.stores import Stores
from orlop.oci import media_types

# Encrypted layers and the like go through stream processors, which are not there yet.
_TAR_SUFFIXES: Final = ("", "gzip", "zstd")


class Walking:
    """Implements `orlop.core.diff.Differ` on the local content store."""

    def __init__(self, content: LocalStore, snapshots: Stores, pool: Pool) -> None:
        self._content = content
        self._snapshots = snapshots
        self._pool = pool

    async def apply(self, namespace: str, layer: LayerBlob, mounts: Sequence[Mount], *, sync: bool = False) -> Applied:
        _check(layer.media_type)
        await self._content.info(namespace, layer.digest)
        applied = await apply(self._pool, self._content.blob_path(layer.digest), layer, mounts, sync=sync)
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
        raise UnimplementedError("diff: make a layer")


def _check(media_type: str) -> None:
    """Refuse what is no tar layer. An empty media type is taken for one; the bytes tell the compression."""
    if not media_type or media_type == media_types.OCTET_STREAM:
        return
    _, suffixes = media_types.parse(media_type)
    if not media_types.is_layer(media_type) or any(suffix not in _TAR_SUFFIXES for suffix in suffixes):
        raise UnimplementedError(f"apply a layer: media type {media_type}")


def _init(context: Context) -> Walking:
    pool = Pool()
    context.on_close(pool.close)
    context.platforms.append(default_string())
    return Walking(context.get(CONTENT), context.get(SNAPSHOTS), pool)


REGISTRATION: Final = Registration(kind=DIFFER, id="walking", requires=(METADATA, CONTENT, SNAPSHOTS), init=_init)
