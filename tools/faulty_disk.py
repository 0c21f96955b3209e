"""A disk that fails on command, for kernels without device mapper: an ext4 on a loop device over a file that is served
by ourselves (`fuse_file.py`), which answers EIO while it is told to.

    with FaultyDisk(directory, 64 << 20) as disk:
        … disk.target …
        with disk.failing(writes=True):
            …

The file system has no journal and goes on after errors, as a disk that comes back is to be found again; what was not
written in between is lost, which is the point.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from tools import residue
from tools.fuse_file import LoopDevice, run, serve

_READS, _WRITES = 0, 1
_MODULE: Final = "tools.faulty_disk"


class FaultyDisk:
    """A mounted file system below `directory`; all is gone when the context ends.

    Attributes:
        target: where it is mounted.
    """

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self._control = directory / "control"
        self._device = LoopDevice(directory, _MODULE, str(size_bytes), str(self._control))
        self.target = directory / "disk"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._control.write_bytes(bytes(mmap.PAGESIZE))
            stack.callback(self._control.unlink)
            device = stack.enter_context(self._device)
            run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", device.path)
            self.target.mkdir()
            stack.callback(self.target.rmdir)
            run("mount", "-o", "errors=continue", device.path, self.target)
            stack.callback(self._unmount)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def failing(self, *, reads: bool = False, writes: bool = False) -> Iterator[None]:
        """While the block runs, what the disk is asked for fails with EIO. What is in the page cache can be read."""
        self._fail(reads=reads, writes=writes)
        try:
            yield
        finally:
            self._fail(reads=False, writes=False)

    def forget(self, file: Path) -> None:
        """Take a file out of the page cache, so that reading it asks the disk."""
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)

    def _fail(self, *, reads: bool, writes: bool) -> None:
        with open(self._control, "r+b") as control:
            control.write(bytes((reads, writes)))

    def _unmount(self) -> None:
        self._fail(reads=False, writes=False)
        residue.remove(residue.find(self.target))
        residue.unmount(os.fspath(self.target))


class _Memory:
    """Bytes in memory, at first zeros; `failing` is the page that tells what fails."""

    def __init__(self, size_bytes: int, failing: mmap.mmap) -> None:
        self.size_bytes = size_bytes
        self._data = os.memfd_create("disk")
        os.truncate(self._data, size_bytes)
        self._failing = failing

    def read(self, offset: int, length: int) -> bytes:
        self._maybe_fail(_READS)
        return os.pread(self._data, length, offset)

    def write(self, offset: int, data: bytes) -> None:
        self._maybe_fail(_WRITES)
        os.pwrite(self._data, data, offset)

    def sync(self) -> None:
        self._maybe_fail(_WRITES)

    def _maybe_fail(self, what: int) -> None:
        if self._failing[what]:
            raise OSError(errno.EIO, "told to fail")


def _main(target: str, size: str, control: str) -> None:
    with open(control, "rb") as file, mmap.mmap(file.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ) as failing:
        serve(target, _Memory(int(size), failing))


if __name__ == "__main__":
    _main(*sys.argv[1:])
