"""Layers unpacked ahead, by real workers into real snapshots: the same trees, and nothing left behind."""

import asyncio
import contextlib
import functools
import gzip
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, ParamSpec

import pytest

from orlop.base.errdefs import OrlopError
from orlop.core.diff import Applied, LayerBlob
from orlop.core.diff.ahead import PREFIX, Ahead
from orlop.core.diff.workers import Pool
from orlop.core.metadata import Database
from orlop.core.metadata.trash import Trash
from orlop.core.mount import Mount
from orlop.core.mount.perform import temp_mount
from orlop.core.snapshots.stores import Stores
from orlop.oci import media_types
from orlop.plugins.content.local import LocalStore
from orlop.plugins.diff.walking import Walking
from orlop.plugins.snapshots.erofs import Erofs, verdict
from orlop.plugins.snapshots.overlayfs import Overlayfs, options_here
from orlop.testing.content import NAMESPACE, write_blob
from tests.root.layers import archive, directory, file, hardlink, tree

pytestmark = pytest.mark.root

DEADLINE_S = 20
LAYERS = (
    (directory("usr"), file("usr/one", b"1"), directory("opt"), file("opt/one"), directory("etc", mode=0o700, uid=7)),
    (directory("usr"), file("usr/two", b"2"), file("usr/.wh.one", b""), hardlink("usr/again", "usr/two")),
    (directory("opt"), file("opt/.wh..wh..opq", b""), file("opt/three", b"3" * 300_000)),
    (file("etc/four", b"4"),),  # its directory is only below, with an owner of its own
    (directory("usr"), file("usr/five", b"5")),
)


class Counting(Pool):
    """Remembers which jobs it did: whether alone."""

    def __init__(self) -> None:
        super().__init__(4)
        self.alone: list[bool] = []

    async def run(self, request, fd, *, tell=None):
        self.alone.append(request["alone"])
        return await super().run(request, fd, tell=tell)


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
async def host(root: Path, *, atonce: int = 4, kind: type[Overlayfs | Erofs] = Overlayfs) -> AsyncIterator[Host]:
    os.mkdir(root)
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
                pool = Counting()
                stack.push_async_callback(pool.close)
                differ = Walking(content, snapshots, pool, {}, db=db, atonce=atonce)
                try:
                    yield Host(root, content, snapshots, pool, differ)
                finally:
                    if differ.ahead is not None:
                        await differ.ahead.close()
        finally:
            content.close()


def _blobs() -> list[bytes]:
    return [gzip.compress(archive(*entries), 1) for entries in LAYERS]


async def _until(condition) -> None:
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


@looped
async def test_layers_come_out_as_if_unpacked_in_their_turn(tmp_path):
    seen = []
    for name, atonce in (("ahead", 4), ("in-turn", 0)):
        async with host(tmp_path / name, atonce=atonce) as here:
            blobs = await here.image(_blobs())
            applied = [await here.unpack(number, blob) for number, blob in enumerate(blobs)]
            seen.append((here.trees(), [(one.digest, one.size, one.usage_bytes, one.usage_inodes) for one in applied]))
            alone = here.pool.alone
            if atonce:
                # All but the lowest were tried; the fourth says that it depends on what is below, and is done again.
                assert alone.count(True) == 4
                assert alone.count(False) == 2
                await here.ahead.close()
                assert here.spares() == []
            else:
                assert alone == [False] * 5
    assert seen[0] == seen[1]


@looped
async def test_images_come_out_as_if_made_in_their_turn(tmp_path):
    if not (works := verdict(tmp_path)):
        pytest.skip(works.reason)
    seen = []
    for name, atonce in (("ahead", 4), ("in-turn", 0)):
        async with host(tmp_path / name, atonce=atonce, kind=Erofs) as here:
            blobs = await here.image(_blobs())
            applied = [await here.unpack(number, blob) for number, blob in enumerate(blobs)]
            mounts = await here.snapshots.view(NAMESPACE, "view", "layer-4")
            with temp_mount(mounts, str(tmp_path)) as merged:
                found = {path: (*one[:4], *one[5:]) for path, one in tree(merged).items()}
            seen.append((found, [(one.digest, one.size, one.usage_bytes, one.usage_inodes) for one in applied]))
            assert here.pool.alone.count(True) == (4 if atonce else 0)
            assert here.pool.alone.count(False) == (2 if atonce else 5)
            assert len(list(here.room.glob("*/layer.erofs"))) == 5
            if atonce:
                await here.ahead.close()
            assert here.spares() == []
    assert seen[0] == seen[1]


@looped
async def test_an_image_is_not_put_where_something_is(tmp_path):
    if not (works := verdict(tmp_path)):
        pytest.skip(works.reason)
    async with host(tmp_path / "host", kind=Erofs) as here:
        blobs = await here.image(_blobs())
        await here.unpack(0, blobs[0])
        mounts = await here.prepare(1)
        (upper,) = (option.partition("=")[2] for option in mounts[0].options if option.startswith("upperdir="))
        os.chown(upper, 5, 5)  # the image made ahead has another root
        await here.differ.apply(NAMESPACE, blobs[1], mounts)
        assert here.pool.alone.count(False) == 2
        await here.snapshots.commit(NAMESPACE, "layer-1", "extract-1")
        mounts = await here.prepare(2)
        (upper,) = (option.partition("=")[2] for option in mounts[0].options if option.startswith("upperdir="))
        (Path(upper) / "mine").touch()
        await here.differ.apply(NAMESPACE, blobs[2], mounts)
        assert {"mine", "opt"} <= set(os.listdir(upper))


@looped
async def test_who_stops_half_way_leaves_nothing(tmp_path):
    async with host(tmp_path / "host") as here:
        blobs = await here.image(_blobs())
        await here.unpack(0, blobs[0])
        await _until(lambda: here.spares() or True in here.pool.alone)
        await here.ahead.close()
        assert here.spares() == []


@looped
async def test_what_nobody_asks_for_is_removed_after_a_while(tmp_path, monkeypatch):
    async with host(tmp_path / "host") as here:
        monkeypatch.setattr(here.ahead, "_patience_s", 0.3)
        blobs = await here.image(_blobs())
        await here.unpack(0, blobs[0])
        await _until(lambda: here.pool.alone.count(True) >= 1)
        await _until(lambda: not here.spares())
        await here.unpack(1, blobs[1])  # in the usual way
        assert here.trees()[1]["usr/two"]


@looped
async def test_what_a_killed_daemon_left_is_swept(tmp_path):
    async with host(tmp_path / "host") as here:
        left = here.room / f"{PREFIX}0000-1"
        (left / "usr").mkdir(parents=True)
        (left / "usr/file").touch()
        mine = here.room / f"{PREFIX}{here.ahead._token}-1"
        mine.mkdir()
        here.ahead.sweep([here.room])
        assert here.spares() == [mine]
        mine.rmdir()


@looped
async def test_a_damaged_layer_is_told_in_its_turn(tmp_path):
    async with host(tmp_path / "host") as here:
        good = _blobs()
        blobs = await here.image([good[0], good[1][:-20], good[4]])
        await here.unpack(0, blobs[0])
        with pytest.raises(OrlopError, match=r"the gzip stream (ends too early|is damaged)"):
            await here.unpack(1, blobs[1])


@looped
async def test_a_cancelled_caller_stops_the_work_and_can_come_again(tmp_path):
    async with host(tmp_path / "host") as here:
        blobs = await here.image([gzip.compress(archive(directory("d"), file("d/f", bytes(1 << 22))))] * 1 + _blobs())
        await here.unpack(0, blobs[0])
        mounts = await here.prepare(1)
        applying = asyncio.create_task(here.differ.apply(NAMESPACE, blobs[1], mounts))
        await asyncio.sleep(0)
        applying.cancel()
        await asyncio.wait([applying])
        await here.snapshots.remove(NAMESPACE, "extract-1")
        await here.unpack(1, blobs[1])
        assert "usr/one" in here.trees()[1]


@looped
async def test_layers_that_come_later_begin_when_they_are_there(tmp_path):
    async with host(tmp_path / "host") as here:
        data = _blobs()
        blobs = await here.image(data)
        await here.content.delete(NAMESPACE, blobs[4].digest)
        await here.unpack(0, blobs[0])
        await _until(lambda: here.pool.alone.count(True) == 3)
        await write_blob(here.content, data[4])
        await _until(lambda: here.pool.alone.count(True) == 4)


@looped
async def test_clients_that_apply_each_layer_on_its_own_get_none(tmp_path):
    async with host(tmp_path / "host") as here:
        blobs = await here.image(_blobs())
        for number, blob in enumerate(blobs[:3]):
            mounts = await here.snapshots.prepare(NAMESPACE, f"extract-{number}")
            await here.differ.apply(NAMESPACE, blob, mounts)
        await here.ahead.close()
        assert here.pool.alone.count(False) == 3
        assert here.spares() == []


@looped
async def test_a_directory_that_holds_something_is_not_written_over(tmp_path):
    async with host(tmp_path / "host") as here:
        blobs = await here.image(_blobs())
        await here.unpack(0, blobs[0])
        mounts = await here.prepare(1)
        (upper,) = (option.partition("=")[2] for option in mounts[0].options if option.startswith("upperdir="))
        (Path(upper) / "mine").touch()
        await here.differ.apply(NAMESPACE, blobs[1], mounts)
        assert {"mine", "usr"} <= set(os.listdir(upper))
