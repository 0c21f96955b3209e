"""Opening inside a root: openat2(2), Linux 5.6."""

import ctypes
import os
from typing import Final

from orlop.linux._libc import SYS_openat2, oserror, syscall

# linux/openat2.h
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10
RESOLVE_CACHED: Final = 0x20


class _open_how(ctypes.Structure):  # noqa: N801 - the kernel's name
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(
    path: str | bytes | os.PathLike[str], flags: int, *, dir_fd: int, mode: int = 0, resolve: int = RESOLVE_IN_ROOT
) -> int:
    """Open `path` below `dir_fd`, close-on-exec; by default as if `dir_fd` were the root: openat2(2).

    Raises:
        OSError: ELOOP for a link that `resolve` forbids; EXDEV for a path that leaves `dir_fd` under RESOLVE_BENEATH;
            EAGAIN when a rename raced with "..": try again; ENOSYS before Linux 5.6; and those of open(2).
    """
    how = _open_how(flags | os.O_CLOEXEC, mode, resolve)
    fd = syscall(SYS_openat2, dir_fd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
    if fd < 0:
        raise oserror("openat2", path)
    return fd
