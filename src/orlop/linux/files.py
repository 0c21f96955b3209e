"""What the standard library lacks for files: syncfs(2), sync_file_range(2), renameat2(2), reflinks (FICLONE)."""

import ctypes
import fcntl
import os
from typing import Final

from orlop.linux._libc import libc, oserror

# linux/fs.h: _IOW(0x94, 9, int)
FICLONE: Final = 0x40049409

_syncfs = libc.syncfs
_syncfs.argtypes = [ctypes.c_int]
_syncfs.restype = ctypes.c_int
# linux/fs.h
SYNC_FILE_RANGE_WRITE: Final = 2

_sync_file_range = libc.sync_file_range
_sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_sync_file_range.restype = ctypes.c_int
# linux/fs.h, linux/fcntl.h
RENAME_EXCHANGE: Final = 1 << 1
AT_FDCWD: Final = -100

_renameat2 = libc.renameat2
_renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
_renameat2.restype = ctypes.c_int


def syncfs(path: str | os.PathLike[str]) -> None:
    """Write out the whole file system that holds the directory `path`: syncfs(2).

    Raises:
        OSError: EIO, ENOSPC or EDQUOT if something could not be written since the last call (Linux 5.8); ENOENT.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _syncfs(fd) < 0:
            raise oserror("syncfs", path)
    finally:
        os.close(fd)


def sync_file_range(fd: int, offset: int, length: int, flags: int) -> None:
    """Begin to write a part of a file out, or wait for that; nothing is durable before an fsync(2): sync_file_range(2).

    Raises:
        OSError: ESPIPE for what is no file; EIO, ENOSPC. An error that is met later is kept for fsync(2).
    """
    if _sync_file_range(fd, offset, length, flags) < 0:
        raise oserror("sync_file_range")


def reflink(source_fd: int, target_fd: int) -> None:
    """Let the file behind `target_fd` share all extents of the other: ioctl_ficlone(2).

    Raises:
        OSError: EOPNOTSUPP or ENOTTY where the file system cannot; EXDEV; EINVAL for a file that cannot be shared.
    """
    fcntl.ioctl(target_fd, FICLONE, source_fd)


def exchange(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> None:
    """Let two names of one file system swap what they name, at once: renameat2(2) with RENAME_EXCHANGE.

    Raises:
        OSError: ENOENT if either is not there; EXDEV; EINVAL where the file system cannot.
    """
    if _renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) < 0:
        raise oserror("renameat2", one)
