"""Layers unpacked while they arrive, by real workers: only when they will be asked for, and right."""

import asyncio
import gzip
import itertools
import os
import random
from collections.abc import Sequence

import pytest

from orlop.base.errdefs import FailedPreconditionError
from orlop.core.content import Reader, Writer
from orlop.core.content.arrival import Arrival
from orlop.core.diff import LayerBlob, arriving
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.plugins.snapshots.erofs import Erofs, verdict
from orlop.testing.content import NAMESPACE
from tests.root.layers import archive, directory, file
from tests.root.unpacking import Host, host, looped, until

pytestmark = pytest.mark.root

PART = 1 << 16
_SEEDS = itertools.count(1000)
SOME = (directory("usr"), file("usr/one", b"1"), directory("etc", mode=0o700, uid=7), file("etc/mine"))


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch):
    monkeypatch.setattr(arriving, "MIN_SIZE", 1)


def layer(*entries: bytes, seed: int = 0) -> bytes:
    """A layer that takes several writes, and is another one for each seed."""
    filler = random.Random(seed).randbytes(3 * PART)
    return gzip.compress(archive(*entries, directory("filler"), file(f"filler/{seed}", filler)), 1, mtime=0)


async def begin(here: Host, data: bytes, *, total: int | None = None) -> Writer:
    return await here.content.writer(NAMESPACE, Digest.of(data), total=len(data) if total is None else total)


async def half_sent(here: Host, data: bytes) -> Writer:
    """One whose unpacking has begun."""
    writer = await begin(here, data)
    await writer.write(data[:PART])
    await until(here.spares)
    return writer


async def send(writer: Writer, data: bytes) -> None:
    for at in range(writer.status().offset, len(data), PART):
        await writer.write(data[at : at + PART])
        await asyncio.sleep(0)


async def bring(here: Host, data: bytes) -> LayerBlob:
    """A blob, sent in pieces as a client of `images import` does: nothing is said of it but its length."""
    writer = await begin(here, data)
    try:
        await send(writer, data)
        info = await writer.commit(size=len(data))
    finally:
        await writer.close()
    return LayerBlob(media_type=media_types.OCI_LAYER_GZIP, digest=str(info.digest), size=len(data))


async def learn(here: Host) -> None:
    """Have a layer unpacked for the namespace; afterwards, what arrives is."""
    blob = await bring(here, layer(file("learn"), seed=next(_SEEDS)))
    await here.differ.apply(NAMESPACE, blob, await here.snapshots.prepare(NAMESPACE, "extract-learn"))
    await here.snapshots.remove(NAMESPACE, "extract-learn")
    here.pool.alone.clear()


async def bring_and_unpack(here: Host, layers: Sequence[bytes]) -> list[tuple]:
    blobs = [await bring(here, data) for data in layers]
    applied = [await here.unpack(number, blob) for number, blob in enumerate(blobs)]
    return [(one.digest, one.size, one.usage_bytes, one.usage_inodes) for one in applied]


@looped
async def test_trees_are_as_if_unpacked_afterwards(tmp_path):
    layers = [
        layer(*SOME),
        layer(directory("usr"), file("usr/two"), file("usr/.wh.one", b""), seed=1),
        layer(file("etc/of-below"), seed=2),  # its directory is only below: this one is done in its turn
        layer(directory("etc"), file("etc/.wh..wh..opq", b""), seed=3),
    ]
    seen = []
    for name in ("arriving", "afterwards"):
        async with host(tmp_path / name, arriving=name == "arriving") as here:
            await learn(here)
            applied = await bring_and_unpack(here, layers)
            seen.append((applied, here.trees()))
            assert (here.pool.alone.count(True), here.pool.alone.count(False)) == {
                "arriving": (4, 1),
                "afterwards": (0, 4),
            }[name]
    assert seen[0] == seen[1]


@looped
async def test_images_too(tmp_path):
    if not (works := verdict(tmp_path)):
        pytest.skip(works.reason)
    async with host(tmp_path / "host", arriving=True, kind=Erofs) as here:
        await learn(here)
        await bring_and_unpack(here, [layer(*SOME), layer(directory("usr"), file("usr/two"), seed=1)])
        assert here.pool.alone == [True, True]
        assert len(list(here.room.glob("*/layer.erofs"))) == 2


@looped
async def test_the_lowest_layer_has_no_marks(tmp_path):
    """What deletes something is another tree where there is nothing below."""
    data = layer(*SOME, file("usr/.wh.nothing", b""))
    async with host(tmp_path / "host", arriving=True) as here:
        await learn(here)
        await bring_and_unpack(here, [data])
        assert here.pool.alone == [True, False]
        assert not any("nothing" in path for path in here.trees()[-1])


@looped
async def test_it_begins_before_the_last_byte(tmp_path):
    data = layer(*SOME)
    async with host(tmp_path / "host", arriving=True) as here:
        await learn(here)
        writer = await begin(here, data)
        await writer.write(data[:PART])
        await until(lambda: any((spare / "usr/one").exists() for spare in here.spares()))
        await send(writer, data)
        await writer.commit()
        await writer.close()
        await here.unpack(0, LayerBlob(media_type=media_types.OCI_LAYER_GZIP, digest=Digest.of(data), size=len(data)))
        assert here.pool.alone == [True]


@looped
async def test_nothing_begins_before_somebody_unpacks(tmp_path):
    async with host(tmp_path / "host", arriving=True) as here:
        await bring(here, layer(*SOME))
        assert here.pool.alone == []


@looped
async def test_what_snapshots_say_of_the_time_before_the_start(tmp_path):
    root = tmp_path / "host"
    async with host(root, arriving=True) as here:
        await bring_and_unpack(here, [layer(*SOME)])
    async with host(root, arriving=True) as here:
        await bring(here, layer(*SOME, seed=1))
        await until(lambda: here.pool.alone == [True])


@looped
async def test_other_namespaces_have_other_habits(tmp_path):
    data = layer(*SOME)
    async with host(tmp_path / "host", arriving=True) as here:
        await learn(here)
        writer = await here.content.writer("other", "ref", total=len(data))
        await send(writer, data)
        await writer.close()
        assert here.pool.alone == []


@looped
async def test_who_gives_up_leaves_nothing(tmp_path):
    data = layer(*SOME)
    async with host(tmp_path / "host", arriving=True) as here:
        await learn(here)
        writer = await half_sent(here, data)
        await writer.close()
        await until(lambda: not here.spares())


@looped
async def test_who_gives_up_at_once_leaves_no_descriptor(tmp_path):
    async with host(tmp_path / "host", arriving=True) as here:
        await learn(here)
        opened = []

        def follow() -> Reader:
            opened.append(os.open("/dev/zero", os.O_RDONLY))
            return here.content.blobs.reader(opened[-1], 1)

        for _ in range(5):
            arrival = Arrival(NAMESPACE, 1 << 20, follow)
            assert here.differ.arriving is not None
            here.differ.arriving.begin(arrival)
            arrival.end(None)
        assert len(opened) == 5
        await until(lambda: not any(_is(fd, "/dev/zero") for fd in opened))
        assert not here.spares()


def _is(fd: int, path: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == path
    except FileNotFoundError:
        return False


@looped
async def test_who_resumes_is_read_from_the_first_byte(tmp_path):
    data = layer(*SOME)
    async with host(tmp_path / "host", arriving=True) as here:
        await learn(here)
        writer = await begin(here, data)
        await writer.write(data[:PART])
        await writer.close()
        blob = await bring(here, data)
        await here.unpack(0, blob)
        assert "usr/one" in here.trees()[-1]
        assert here.pool.alone[-1]


@looped
async def test_who_begins_anew_is_read_anew(tmp_path):
    wrong, data = layer(*SOME, seed=1), layer(file("right"))
    async with host(tmp_path / "host", arriving=True) as here:
        await learn(here)
        writer = await begin(here, data)
        await writer.write(wrong[:PART])
        await writer.truncate()
        await send(writer, data)
        await writer.commit()
        await writer.close()
        await here.unpack(0, LayerBlob(media_type=media_types.OCI_LAYER_GZIP, digest=Digest.of(data), size=len(data)))
        assert "right" in here.trees()[-1]
        assert "usr" not in here.trees()[-1]


@looped
async def test_wrong_bytes_are_nobodys_layer(tmp_path):
    """Who announces a digest and sends other bytes must not have them unpacked for who has the right ones."""
    right, wrong = layer(file("right")), layer(file("wrong"))
    async with host(tmp_path / "host", arriving=True) as here:
        await learn(here)
        writer = await here.content.writer(NAMESPACE, "wrong", total=len(wrong), expected=Digest.of(right))
        await send(writer, wrong)
        with pytest.raises(FailedPreconditionError):
            await writer.commit(expected=Digest.of(right))
        await writer.close()
        await bring_and_unpack(here, [right])
        assert "right" in here.trees()[-1]
        await until(lambda: not here.spares())


@pytest.mark.parametrize("off", [-PART, PART])
@looped
async def test_a_length_that_was_not_the_announced_one(tmp_path, off):
    data = layer(*SOME)
    async with host(tmp_path / "host", arriving=True) as here:
        await learn(here)
        writer = await begin(here, data, total=len(data) + off)
        await send(writer, data)
        await writer.commit()
        await writer.close()
        await here.unpack(0, LayerBlob(media_type=media_types.OCI_LAYER_GZIP, digest=Digest.of(data), size=len(data)))
        assert "usr/one" in here.trees()[-1]
        assert here.pool.alone[-1] is False
        await until(lambda: not here.spares())


@looped
async def test_who_is_slow_takes_no_turn(tmp_path):
    data = layer(*SOME)
    async with host(tmp_path / "host", arriving=True, pool_size=1) as here:
        blob = await bring(here, layer(file("other")))
        await learn(here)
        writer = await half_sent(here, data)
        async with asyncio.timeout(20):
            await here.unpack(0, blob)
        assert here.pool.alone == [True, False]
        await writer.close()


@looped
async def test_more_layers_than_are_unpacked_at_once_wait(tmp_path):
    layers = [layer(*SOME, seed=seed) for seed in range(6)]
    async with host(tmp_path / "host", arriving=True, pool_size=2) as here:
        await learn(here)
        writers = [await begin(here, data) for data in layers]
        for writer, data in zip(writers, layers, strict=True):
            await writer.write(data[:PART])  # all of them are coming now
        await until(lambda: here.pool.alone == [True, True])
        for writer, data in zip(writers, layers, strict=True):
            await send(writer, data)
            await writer.commit()
            await writer.close()
        await until(lambda: here.pool.alone == [True] * 6)
        assert here.pool.most_coming == 2


@looped
async def test_those_that_wait_are_unpacked_when_they_have_come(tmp_path):
    layers = [layer(*SOME, seed=seed) for seed in range(4)]
    async with host(tmp_path / "host", arriving=True, pool_size=1) as here:
        await learn(here)
        slow = await begin(here, layers[0])
        await slow.write(layers[0][:PART])
        blobs = [await bring(here, data) for data in layers[1:]]
        assert here.pool.alone in ([], [True])
        await slow.close()
        await until(lambda: here.pool.alone == [True] * 4)
        for number, blob in enumerate(blobs):
            await here.unpack(number, blob)
        assert here.pool.alone == [True] * 4


@looped
async def test_what_has_come_waits_for_what_still_comes(tmp_path, monkeypatch):
    first, second = layer(*SOME, seed=1), layer(*SOME, seed=2)
    async with host(tmp_path / "host", arriving=True) as here:
        await learn(here)
        monkeypatch.setattr(here.ahead, "_patience_s", 0.3)
        blob = await bring(here, first)
        writer = await begin(here, second)
        for at in range(10):
            await writer.write(second[at * 100 : (at + 1) * 100])
            await asyncio.sleep(0.1)
        await here.unpack(0, blob)
        assert here.pool.alone == [True, True]
        await writer.close()


@looped
async def test_what_is_not_asked_for_is_not_done_again(tmp_path, monkeypatch):
    async with host(tmp_path / "host", arriving=True) as here:
        await learn(here)
        monkeypatch.setattr(here.ahead, "_patience_s", 0.2)
        await bring(here, layer(*SOME, seed=1))
        await until(here.spares)
        await until(lambda: not here.spares())
        await bring(here, layer(*SOME, seed=2))
        assert here.pool.alone == [True]
        await learn(here)
        await bring(here, layer(*SOME, seed=3))
        await until(lambda: here.pool.alone == [True])


@looped
async def test_what_is_removed_without_being_asked_for_is_not_done_again(tmp_path):
    async with host(tmp_path / "host", arriving=True) as here:
        await learn(here)
        blob = await bring(here, layer(*SOME, seed=1))
        await until(lambda: here.pool.alone == [True])
        await here.content.delete(NAMESPACE, blob.digest)
        await until(lambda: not here.spares())
        await bring(here, layer(*SOME, seed=2))
        assert here.pool.alone == [True]
        await until(lambda: not here.spares())


@looped
async def test_what_is_no_layer_is_not_unpacked(tmp_path):
    async with host(tmp_path / "host", arriving=True) as here:
        await learn(here)
        await bring(here, random.Random(5).randbytes(4 * PART))
        await until(lambda: not here.spares())
        assert here.pool.alone == []
        await bring(here, layer(*SOME))  # which is not held against the next
        await until(lambda: here.pool.alone == [True])


@looped
async def test_nothing_is_done_where_there_is_little_room(tmp_path, monkeypatch):
    monkeypatch.setattr(arriving, "ROOM", 1 << 60)
    async with host(tmp_path / "host", arriving=True) as here:
        await learn(here)
        await bring_and_unpack(here, [layer(*SOME)])
        assert here.pool.alone == [False]


@looped
async def test_a_daemon_that_stops_meanwhile_leaves_nothing(tmp_path):
    data = layer(*SOME)
    async with host(tmp_path / "host", arriving=True) as here:
        await learn(here)
        writer = await half_sent(here, data)
        assert here.differ.arriving is not None
        here.differ.arriving.close()
        await here.ahead.close()
        assert not here.spares()
        await send(writer, data)  # the writer goes on as if nothing was
        await writer.commit()
        await writer.close()
        assert not here.spares()
