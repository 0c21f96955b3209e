"""Layers that are no files of this machine: unpacked from a pipe as they are read."""

import asyncio
import gzip
import os
from pathlib import Path

import pytest

from orlop.base.errdefs import DataLossError, InvalidArgumentError, UnavailableError
from orlop.core.content import Reader
from orlop.core.diff import Applied, LayerBlob
from orlop.core.diff.apply import Plan, apply
from orlop.core.diff.workers import Pool
from orlop.core.mount import Mount
from tests.root.layers import archive, digest, file

pytestmark = pytest.mark.root


class Elsewhere:
    """A blob that is given in parts; see `orlop.core.content.Reader`."""

    fd: int | None = None

    def __init__(self, data: bytes, *, part: int = 50_000, ends: int | None = None) -> None:
        self.data = data
        self.size = len(data)
        self.part = part
        self.ends = self.size if ends is None else ends
        self.asked = asyncio.Event()

    async def read_at(self, offset: int, length: int) -> bytes:
        self.asked.set()
        await asyncio.sleep(0)
        return self.data[offset : min(offset + min(length, self.part), self.ends)]

    def close(self) -> None:
        return


class Gone(Elsewhere):
    """One whose store goes away after the first part."""

    async def read_at(self, offset: int, length: int) -> bytes:
        if offset:
            raise UnavailableError("proxy plug-in far at /run/far.sock: Read: it has gone")
        return await super().read_at(offset, length)


class Stuck(Elsewhere):
    """One whose store says nothing more after the first part."""

    async def read_at(self, offset: int, length: int) -> bytes:
        if offset:
            await asyncio.Event().wait()
        return await super().read_at(offset, length)


BIG = archive(*(file(f"f{at}", os.urandom(100_000)) for at in range(20)))


def unpack(blob: Reader, directory: Path, *, timeout_s: float | None = None) -> Applied:
    async def run() -> Applied:
        plan = Plan.of([Mount(type="bind", source=str(directory), options=("rw", "rbind"))])
        async with Pool(1) as pool, asyncio.timeout(timeout_s):
            return await apply(pool, blob, LayerBlob(media_type="", digest="sha256:0"), plan)

    directory.mkdir()
    before = set(os.listdir("/proc/self/fd"))
    try:
        return asyncio.run(run())
    finally:
        assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("blob", [BIG, gzip.compress(BIG, 1), archive()], ids=["plain", "gzip", "empty"])
@pytest.mark.parametrize("part", [1 << 20, 70_001])
def test_a_layer_from_elsewhere_is_unpacked(tmp_path, blob, part):
    applied = unpack(Elsewhere(blob, part=part), tmp_path / "tree")
    plain = gzip.decompress(blob) if blob.startswith(b"\x1f\x8b") else blob
    assert (applied.digest, applied.size) == (digest(plain), len(plain))
    assert len(list((tmp_path / "tree").iterdir())) == (20 if len(plain) == len(BIG) else 0)


@pytest.mark.parametrize("ends", [0, 1000, 200_000, len(BIG) - 512])
def test_one_that_ends_too_early_is_lost_data_and_no_shorter_archive(tmp_path, ends):
    with pytest.raises(DataLossError, match=rf"content sha256:0: ends at {ends} of {len(BIG)} bytes"):
        unpack(Elsewhere(BIG, ends=ends), tmp_path / "tree")


def test_a_store_that_goes_away_is_the_reason_and_not_the_archive(tmp_path):
    with pytest.raises(UnavailableError, match="it has gone"):
        unpack(Gone(gzip.compress(BIG, 1)), tmp_path / "tree")


def test_a_store_that_is_stuck_holds_nobody_who_gives_up(tmp_path):
    with pytest.raises(TimeoutError):
        unpack(Stuck(BIG), tmp_path / "tree", timeout_s=1)


def test_a_bad_archive_stays_a_bad_archive(tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"layer sha256:0: extract"):
        unpack(Elsewhere(b"\x1f\x8b\x08" + os.urandom(3_000_000)), tmp_path / "tree")
