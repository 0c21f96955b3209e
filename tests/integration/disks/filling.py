"""Disks that are full, or nearly: made so by a file that takes what is free; and daemons that live on a disk."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tools.daemons import Orlopd

FILLER: Final = "filler"
_PIECES: Final = (1 << 20, 64 << 10, 4 << 10, 512, 1)


@contextlib.contextmanager
def filled(target: Path, *, room: int = 0) -> Iterator[None]:
    """While the block runs, the file system at `target` has `room` bytes left, to the block."""
    filler = target / FILLER
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        size = 0
        for piece in _PIECES:
            with contextlib.suppress(_Full):
                while True:
                    size += _write(fd, bytes(piece), size)
        os.fsync(fd)
        os.ftruncate(fd, max(size - room, 0))
        os.fsync(fd)
        yield
    finally:
        os.close(fd)
        filler.unlink()


class _Full(Exception):
    """Nothing more fits."""


def _write(fd: int, data: bytes, at: int) -> int:
    try:
        return os.pwrite(fd, data, at)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _Full from error


@contextlib.contextmanager
def daemon_on(disk: Path, directory: Path, part: str) -> Iterator[Orlopd]:
    """A daemon whose `root` or `state`, whichever `part` names, is on the disk that is mounted at `disk`."""
    directory.mkdir()
    (directory / part).symlink_to(disk)
    with Orlopd(directory) as running:
        yield running
