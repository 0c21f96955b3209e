"""A disk that remembers how it was written and flushed, so that each loss of power in its past can be played.

    with RecordingDisk(directory, 64 << 20) as disk:
        … disk.target …, disk.position() …
    history = disk.history()
    for cut, image in history.images(cuts, path):
        with mounted(image, target):      # replays the journal, as after a boot
            …

The file system lies on a loop device over a file that is served by ourselves (`fuse_file.py`). The loop driver turns
the flushes of the block layer into fsync, and so the log of a disk has writes and flushes as a real disk would see
them. What a disk holds after a loss of power is all that was flushed, and any part of what was not: a `Cut` says where
in the log the power goes, and which part that is.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Final, Literal, Self

from tools import peers, residue
from tools.fuse_file import LoopDevice, run, serve

Kind = Literal["ext4", "xfs"]

_MODULE: Final = "tools.recording_disk"
_MAKERS: Final[dict[Kind, tuple[str, ...]]] = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
}
# offset and length of a write, whose bytes follow; a flush has the length 0
_RECORD: Final = struct.Struct("=QQ")
_POSITION: Final = struct.Struct("=Q")
SECTOR_BYTES: Final = 512
"""What a disk writes wholly or not at all."""
PAGE_BYTES: Final = 4096


class Kept(StrEnum):
    """What reaches the disk of the writes since the last flush."""

    NOTHING = "nothing"
    ALL = "all"
    SOME = "some"  # each or not, whatever the order
    TORN = "torn"  # as SOME, and of some only the beginning, the end or single sectors


@dataclass(frozen=True, slots=True, order=True)
class Cut:
    """A loss of power.

    Attributes:
        position: records of the log that were made before.
        kept: what of the unflushed ones is on the disk.
        seed: of the choice, for those that choose.
    """

    position: int
    kept: Kept
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.position}:{self.kept}" + (f":{self.seed}" if self.seed else "")


@dataclass(frozen=True, slots=True)
class _Write:
    """A record of the log; `at` is where in it the bytes begin."""

    offset: int
    length: int
    at: int

    @property
    def is_flush(self) -> bool:
        return self.length == 0


class RecordingDisk:
    """A mounted file system below `directory`, which is gone when the context ends; its log stays.

    Attributes:
        target: where it is mounted.
    """

    def __init__(self, directory: Path, size_bytes: int, kind: Kind = "ext4", *, options: str = "") -> None:
        self._log, self._position = directory / "log", directory / "position"
        self._size, self._kind, self._options = size_bytes, kind, options
        self._device = LoopDevice(directory, _MODULE, str(size_bytes), str(self._log), str(self._position))
        self.target = directory / "disk"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._position.write_bytes(bytes(mmap.PAGESIZE))
            device = stack.enter_context(self._device)
            program, *options = _MAKERS[self._kind]
            run(peers.locate(program) or program, *options, device.path)
            self.target.mkdir()
            stack.callback(self.target.rmdir)
            run("mount", *(("-o", self._options) if self._options else ()), device.path, self.target)
            stack.callback(self._unmount)
            run("sync", "-f", self.target)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def position(self) -> int:
        """How many records the log has by now."""
        with open(self._position, "rb") as file:
            (position,) = _POSITION.unpack(file.read(_POSITION.size))
        return int(position)

    def history(self) -> History:
        """What was recorded; to be asked for when nothing is written any more."""
        return History(self._log, self._size)

    def _unmount(self) -> None:
        residue.remove(residue.find(self.target))
        residue.unmount(os.fspath(self.target))


class History:
    """A log of writes and flushes, and the images that it can leave."""

    def __init__(self, log: Path, size_bytes: int) -> None:
        self._log = log
        self._size = size_bytes
        self._records = list(_records(log))

    def __len__(self) -> int:
        return len(self._records)

    def flushes(self, begin: int = 0) -> list[int]:
        """Positions right after each flush, from `begin` on."""
        return [number + 1 for number, one in enumerate(self._records) if one.is_flush and number + 1 >= begin]

    def flushed(self, position: int) -> int:
        """The position right after the last flush before `position`."""
        while position and not self._records[position - 1].is_flush:
            position -= 1
        return position

    def images(self, cuts: Iterable[Cut], path: Path) -> Iterator[tuple[Cut, Path]]:
        """For each cut, in the order of their positions, an image at `path`, which may be written to until the next."""
        base = path.with_name(f"{path.name}.flushed")
        at = 0
        try:
            with open(self._log, "rb") as log, open(base, "w+b", buffering=0) as flushed:
                flushed.truncate(self._size)
                for cut in sorted(cuts):
                    until = self.flushed(cut.position)
                    _apply(log, flushed.fileno(), ((one, None) for one in self._records[at:until]))
                    at = max(at, until)
                    path.unlink(missing_ok=True)  # the one before may still be written by a mount that is going
                    run("cp", "--sparse=always", base, path)
                    with open(path, "r+b", buffering=0) as image:
                        _apply(log, image.fileno(), _chosen(self._records[until : cut.position], cut))
                    yield cut, path
        finally:
            base.unlink(missing_ok=True)
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def mounted(image: Path, target: Path, *, options: str = "") -> Iterator[None]:
    """Mount an image as a machine does that comes up again: what is in its journal is replayed."""
    target.mkdir()
    try:
        run("mount", "-o", f"loop,{options}".rstrip(","), image, target)
        try:
            yield
        finally:
            residue.remove(residue.find(target))
            residue.unmount(os.fspath(target))
    finally:
        target.rmdir()


def _records(path: Path) -> Iterator[_Write]:
    end = path.stat().st_size
    with open(path, "rb") as log:
        at = 0
        while at < end:
            log.seek(at)
            offset, length = _RECORD.unpack(log.read(_RECORD.size))
            at += _RECORD.size
            yield _Write(offset, length, at)
            at += length


def _chosen(writes: list[_Write], cut: Cut) -> Iterator[tuple[_Write, list[tuple[int, int]] | None]]:
    """Writes that reach the disk, and the ranges of them that do; None for all of it."""
    choice = random.Random(f"{cut.position} {cut.seed}")
    for one in writes:
        if cut.kept is Kept.NOTHING or (cut.kept is not Kept.ALL and choice.random() < 0.5):
            continue
        # ext4 takes the block of its superblock for atomic: its checksum is in another sector than its times
        torn = cut.kept is Kept.TORN and one.length > SECTOR_BYTES and one.offset and choice.random() < 0.5
        yield one, _torn(one.length, choice) if torn else None


def _torn(length: int, choice: random.Random) -> list[tuple[int, int]]:
    unit = choice.choice((SECTOR_BYTES, PAGE_BYTES))
    starts = list(range(0, length, unit))
    middle = choice.randrange(len(starts))
    kept = choice.choice((starts[:middle], starts[middle:], [one for one in starts if choice.random() < 0.5]))
    return [(start, min(unit, length - start)) for start in kept]


def _apply(log: BinaryIO, target: int, writes: Iterable[tuple[_Write, list[tuple[int, int]] | None]]) -> None:
    for one, ranges in writes:
        for start, length in [(0, one.length)] if ranges is None else ranges:
            os.pwrite(target, os.pread(log.fileno(), length, one.at + start), one.offset + start)


class _Recorder:
    """Bytes in memory, and a log of how they came to be there; `position` is the page that tells how long it is."""

    def __init__(self, size_bytes: int, log: int, position: mmap.mmap) -> None:
        self.size_bytes = size_bytes
        self._data = os.memfd_create("disk")
        os.truncate(self._data, size_bytes)
        self._log = log
        self._position = position
        self._count = 0

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._data, length, offset)

    def write(self, offset: int, data: bytes) -> None:
        os.pwrite(self._data, data, offset)
        self._record(offset, data)

    def sync(self) -> None:
        self._record(0, b"")

    def _record(self, offset: int, data: bytes) -> None:
        os.writev(self._log, (_RECORD.pack(offset, len(data)), data))
        self._count += 1
        _POSITION.pack_into(self._position, 0, self._count)


def _main(target: str, size: str, log: str, position: str) -> None:
    with open(log, "wb", buffering=0) as written, open(position, "r+b") as file:
        with mmap.mmap(file.fileno(), mmap.PAGESIZE) as page:
            serve(target, _Recorder(int(size), written.fileno(), page))


if __name__ == "__main__":
    _main(*sys.argv[1:])
