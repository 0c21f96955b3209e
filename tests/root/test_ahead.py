"""Layers unpacked ahead, by real workers into real snapshots: the same trees, and nothing left behind."""

import asyncio
import gzip
import os
from pathlib import Path

import pytest

from orlop.base.errdefs import OrlopError
from orlop.core.diff.ahead import PREFIX
from orlop.core.mount.perform import temp_mount
from orlop.plugins.snapshots.erofs import Erofs, verdict
from orlop.testing.content import NAMESPACE, write_blob
from tests.root.layers import archive, directory, file, hardlink, tree
from tests.root.unpacking import host, looped, until

pytestmark = pytest.mark.root

LAYERS = (
    (directory("usr"), file("usr/one", b"1"), directory("opt"), file("opt/one"), directory("etc", mode=0o700, uid=7)),
    (directory("usr"), file("usr/two", b"2"), file("usr/.wh.one", b""), hardlink("usr/again", "usr/two")),
    (directory("opt"), file("opt/.wh..wh..opq", b""), file("opt/three", b"3" * 300_000)),
    (file("etc/four", b"4"),),  # its directory is only below, with an owner of its own
    (directory("usr"), file("usr/five", b"5")),
)


def _blobs() -> list[bytes]:
    return [gzip.compress(archive(*entries), 1) for entries in LAYERS]


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
        await until(lambda: here.spares() or True in here.pool.alone)
        await here.ahead.close()
        assert here.spares() == []


@looped
async def test_what_nobody_asks_for_is_removed_after_a_while(tmp_path, monkeypatch):
    async with host(tmp_path / "host") as here:
        monkeypatch.setattr(here.ahead, "_patience_s", 0.3)
        blobs = await here.image(_blobs())
        await here.unpack(0, blobs[0])
        await until(lambda: here.pool.alone.count(True) >= 1)
        await until(lambda: not here.spares())
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
        await until(lambda: here.pool.alone.count(True) == 3)
        await write_blob(here.content, data[4])
        await until(lambda: here.pool.alone.count(True) == 4)


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
