"""Files as block devices, for as long as somebody uses them.

A device is set up with *autoclear*: the kernel takes it away when its last descriptor is closed and its last mount is
undone, also when this process is killed. `keep` turns that off, for a device that is handed on by name; `let_go` turns
it on again.

Source: setupLoop in containerd's core/mount/losetup_linux.go.
"""

import contextlib
import errno
import os
import random
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from orlop.base.errdefs import ResourceExhaustedError
from orlop.core.mount.perform import as_error
from orlop.linux import loop

_ATTEMPTS: Final = 100


class Device(NamedTuple):
    """A loop device: its path, and a descriptor that holds it."""

    path: str
    fd: int


@contextlib.contextmanager
def attached(source: str, *, readonly: bool = False, direct: bool = False) -> Iterator[Device]:
    """A loop device of the file `source`; on leaving it goes, unless it is mounted or kept.

    Raises:
        OrlopError: of the class that the kernel's errno stands for; the text names the file.
        ResourceExhaustedError: each free device was taken by somebody else meanwhile.
    """
    flags = os.O_RDONLY if readonly else os.O_RDWR
    try:
        backing_fd = os.open(source, flags | os.O_CLOEXEC)
    except OSError as error:
        raise as_error(f"could not open backing file: {source}", error) from error
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, backing_fd)
        device = _set_up(source, backing_fd, flags, direct=direct)
        undo.callback(os.close, device.fd)
        yield device


def keep(device: Device) -> None:
    """Let the device stay until `let_go`."""
    loop.loop_set_flags(device.fd, clear=loop.LO_FLAGS_AUTOCLEAR)


def let_go(path: str) -> None:
    """Let the device at `path` go with its last user."""
    with _opened(path) as fd:
        loop.loop_set_flags(fd, set_=loop.LO_FLAGS_AUTOCLEAR)


def backing(path: str) -> str:
    """Which file is behind the device at `path`, by device and inode number; empty if none is."""
    try:
        with _opened(path) as fd:
            info = loop.loop_get_status(fd)
    except OSError:
        return ""
    return f"{info.device}:{info.inode}"


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _set_up(source: str, backing_fd: int, flags: int, *, direct: bool) -> Device:
    wanted = loop.LO_FLAGS_AUTOCLEAR
    wanted |= loop.LO_FLAGS_READ_ONLY if flags == os.O_RDONLY else 0
    wanted |= loop.LO_FLAGS_DIRECT_IO if direct else 0
    for attempt in range(_ATTEMPTS):
        try:
            path = f"/dev/loop{loop.loop_ctl_get_free()}"
            device_fd = os.open(path, flags | os.O_CLOEXEC)
        except OSError as error:
            raise as_error(f"loop device for {source}", error) from error
        try:
            loop.loop_configure(device_fd, backing_fd, flags=wanted, file_name=source)
            return Device(path, device_fd)
        except OSError as error:
            os.close(device_fd)
            if error.errno != errno.EBUSY:
                raise as_error(f"loop device {path} for {source}", error) from error
        time.sleep(random.random() * attempt / 100)  # several take the same free one: they had better part
    raise ResourceExhaustedError(f"loop device for {source}: each free one was taken by somebody else")
