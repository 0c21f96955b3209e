"""A differ with a content store and snapshots, without the daemon: real workers, real overlays."""

import asyncio
import contextlib
import functools
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, ParamSpec

from orlop.core.diff import Applied, LayerBlob
from orlop.core.diff.ahead import PREFIX, Ahead
from orlop.core.diff.workers import Pool
from orlop.core.metadata import Database
from orlop.core.metadata.trash import Trash
from orlop.core.mount import Mount
from orlop.core.snapshots.stores import Stores
from orlop.oci import media_types
from orlop.plugins.content.local import LocalStore
from orlop.plugins.diff.walking import Walking
from orlop.plugins.snapshots.erofs import Erofs
from orlop.plugins.snapshots.overlayfs import Overlayfs, options_here
from orlop.testing.content import NAMESPACE, write_blob
from tests.root.layers import tree

DEADLINE_S = 20


class Counting(Pool):
    """Remembers which jobs it did: whether alone; and how many of those whose blob was coming ran at once, at most."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.alone: list[bool] = []
        self.most_coming = 0
        self._coming = 0

    async def run(self, request, fd, *, tell=None, coming=None):
        self.alone.append(request["alone"])
        self._coming += coming is not None
        self.most_coming = max(self.most_coming, self._coming)
        try:
            return await super().run(request, fd, tell=tell, coming=coming)
        finally:
            self._coming -= coming is not None


class Host:
    """A differ with a content store and snapshots of overlayfs."""

    def __init__(self, root: Path, content: LocalStore, snapshots: Stores, pool: Counting, differ: Walking) -> None:
        self.room = root / "snapshots"
        self.content = content
        (self.snapshots,) = snapshots.values()
        self.pool = pool
        self.differ = differ

    @property
    def ahead(self) -> Ahead:
        assert self.differ.ahead is not None
        return self.differ.ahead

    async def image(self, layers: Sequence[bytes]) -> list[LayerBlob]:
        """Content of an image, labelled as clients do."""
        blobs = [
            LayerBlob(
                media_type=media_types.OCI_LAYER_GZIP, digest=str(await write_blob(self.content, data)), size=len(data)
            )
            for data in layers
        ]
        listed = [{"mediaType": one.media_type, "digest": one.digest, "size": one.size} for one in blobs]
        config = {"mediaType": media_types.OCI_CONFIG, "digest": f"sha256:{'0' * 64}", "size": 2}
        body = {"schemaVersion": 2, "mediaType": media_types.OCI_MANIFEST, "config": config, "layers": listed}
        manifest = await write_blob(self.content, json.dumps(body).encode())
        labels = {f"containerd.io/gc.ref.content.l.{number}": one.digest for number, one in enumerate(blobs)}
        await self.content.update(NAMESPACE, manifest, labels, ["labels"])
        return blobs

    async def prepare(self, number: int) -> list[Mount]:
        return await self.snapshots.prepare(NAMESPACE, f"extract-{number}", f"layer-{number - 1}" if number else "")

    async def unpack(self, number: int, blob: LayerBlob) -> Applied:
        applied = await self.differ.apply(NAMESPACE, blob, await self.prepare(number))
        await self.snapshots.commit(NAMESPACE, f"layer-{number}", f"extract-{number}")
        return applied

    def trees(self) -> list[dict[str, tuple]]:
        """What the snapshots hold, each in its own directory, marks of overlayfs among it."""
        homes = sorted((path for path in self.room.iterdir() if path.name.isdecimal()), key=lambda one: int(one.name))
        return [{**_timeless(tree(home / "fs")), "opaque": _opaque(home / "fs")} for home in homes]

    def spares(self) -> list[Path]:
        return list(self.room.glob(f"{PREFIX}*"))


def _timeless(found: dict[str, tuple]) -> dict[str, tuple]:
    """Without the times of whiteouts, which are those of their making."""
    return {path: (*one[:4], 0, *one[5:]) if one[0].startswith("0o20") else one for path, one in found.items()}


def _opaque(root: Path) -> tuple[str, ...]:
    marked = [path for path in sorted(root.rglob("*")) if path.is_dir() and not path.is_symlink()]
    return tuple(str(path.relative_to(root)) for path in marked if "trusted.overlay.opaque" in os.listxattr(path))


@contextlib.asynccontextmanager
async def host(
    root: Path,
    *,
    atonce: int = 4,
    arriving: bool = False,
    pool_size: int = 4,
    kind: type[Overlayfs | Erofs] = Overlayfs,
) -> AsyncIterator[Host]:
    os.makedirs(root, exist_ok=True)
    snapshotter = kind(root / "snapshots", options=options_here(root))
    with (
        Database(root / "meta.db") as db,
        Trash(root, db) as trash,
        contextlib.closing(snapshotter) if isinstance(snapshotter, Erofs) else contextlib.nullcontext(),
        Stores(db, trash, {"only": snapshotter}) as snapshots,
    ):
        content = LocalStore(root / "content", db, trash)
        try:
            async with contextlib.AsyncExitStack() as stack:
                pool = Counting(pool_size)
                stack.push_async_callback(pool.close)
                differ = Walking(content, snapshots, pool, {}, db=db, atonce=atonce, arriving=arriving)
                try:
                    yield Host(root, content, snapshots, pool, differ)
                finally:
                    if differ.arriving is not None:
                        differ.arriving.close()
                    if differ.ahead is not None:
                        await differ.ahead.close()
        finally:
            content.close()


async def until(condition) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what it looks at tells nobody
            await asyncio.sleep(0.01)


P = ParamSpec("P")


def looped(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Let pytest run a test that is a coroutine."""

    @functools.wraps(test)
    def run(*arguments: P.args, **named: P.kwargs) -> None:
        asyncio.run(test(*arguments, **named))

    return run
