"""Watching files for changes: inotify(7)."""

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import Final

from orlop.linux._libc import libc, oserror

# sys/inotify.h
IN_MODIFY: Final = 0x02
IN_IGNORED: Final = 0x8000
_EVENT: Final = struct.Struct("iIII")
_BUFFER: Final = 4096

libc.inotify_init1.argtypes = [ctypes.c_int]
libc.inotify_init1.restype = ctypes.c_int
libc.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]
libc.inotify_add_watch.restype = ctypes.c_int
libc.inotify_rm_watch.argtypes = [ctypes.c_int, ctypes.c_int]
libc.inotify_rm_watch.restype = ctypes.c_int


def init() -> int:
    """A close-on-exec, non-blocking descriptor to read events from: inotify_init1(2). Raises OSError: EMFILE."""
    fd = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if fd < 0:
        raise oserror("inotify_init1")
    return fd


def add_watch(fd: int, path: str | os.PathLike[str], mask: int) -> int:
    """Watch `path` for the events in `mask`: inotify_add_watch(2). Raises OSError: ENOENT, EACCES, ENOSPC."""
    watch = int(libc.inotify_add_watch(fd, os.fsencode(path), mask))
    if watch < 0:
        raise oserror("inotify_add_watch", path)
    return watch


def rm_watch(fd: int, watch: int) -> None:
    """Watch no longer: inotify_rm_watch(2). Raises OSError: EINVAL if the watch has gone with its file."""
    if libc.inotify_rm_watch(fd, watch) < 0:
        raise oserror("inotify_rm_watch")


def read(fd: int) -> Iterator[tuple[int, int]]:
    """The events that wait, as (watch, mask); none if there are none."""
    try:
        data = os.read(fd, _BUFFER)
    except BlockingIOError:
        return
    at = 0
    while at + _EVENT.size <= len(data):
        watch, mask, _cookie, length = _EVENT.unpack_from(data, at)
        yield watch, mask
        at += _EVENT.size + length
