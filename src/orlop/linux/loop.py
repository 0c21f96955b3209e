"""Loop devices: a file as a block device, loop(4)."""

import errno
import fcntl
import os
import struct
from typing import Final, NamedTuple

# linux/loop.h
LO_FLAGS_READ_ONLY: Final = 1
LO_FLAGS_AUTOCLEAR: Final = 4
LO_FLAGS_PARTSCAN: Final = 8
LO_FLAGS_DIRECT_IO: Final = 16

_LOOP_SET_FD: Final = 0x4C00
_LOOP_CLR_FD: Final = 0x4C01
_LOOP_SET_STATUS64: Final = 0x4C04
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_SET_DIRECT_IO: Final = 0x4C08
_LOOP_CONFIGURE: Final = 0x4C0A
_LOOP_CTL_GET_FREE: Final = 0x4C82

# struct loop_info64: device, inode, rdevice, offset, sizelimit; number, encrypt type and key size, flags; file name,
# crypt name, encrypt key; init[2]
_INFO: Final = struct.Struct("=5Q4I64s64s32s2Q")
# struct loop_config: fd, block_size, info, reserved[8]
_CONFIG: Final = struct.Struct(f"=2I{_INFO.size}s64x")
_NAME_SIZE: Final = 64

CONTROL: Final = "/dev/loop-control"


class LoopInfo(NamedTuple):
    """What a loop device is made from.

    `device` and `inode` are the backing file's, as stat(2) has them; `file_name` is its name as it was given, cut to 63
    bytes.
    """

    device: int
    inode: int
    flags: int
    file_name: str


def loop_ctl_get_free() -> int:
    """The number of a device that nobody uses, made if need be; somebody else may take it first: LOOP_CTL_GET_FREE.

    Raises:
        OSError: EACCES or ENOENT where loop devices are not to be had; ENOSPC.
    """
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    finally:
        os.close(control)


def loop_configure(loop_fd: int, backing_fd: int, *, flags: int = 0, file_name: str = "") -> None:
    """Put the file behind `backing_fd` behind the device: LOOP_CONFIGURE, or what it replaced in 5.8.

    Raises:
        OSError: EBUSY if the device is in use already.
    """
    name = os.fsencode(file_name)[: _NAME_SIZE - 1]
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
    try:
        fcntl.ioctl(loop_fd, _LOOP_CONFIGURE, _CONFIG.pack(backing_fd, 0, info))
        return
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTTY):
            raise
    fcntl.ioctl(loop_fd, _LOOP_SET_FD, backing_fd)
    try:
        fcntl.ioctl(loop_fd, _LOOP_SET_STATUS64, info)
        if flags & LO_FLAGS_DIRECT_IO:
            fcntl.ioctl(loop_fd, _LOOP_SET_DIRECT_IO, 1)
    except BaseException:
        loop_clr_fd(loop_fd)
        raise


def loop_get_status(loop_fd: int) -> LoopInfo:
    """What is behind the device: LOOP_GET_STATUS64. Raises OSError: ENXIO if nothing is."""
    fields = _INFO.unpack(fcntl.ioctl(loop_fd, _LOOP_GET_STATUS64, bytes(_INFO.size)))
    name = os.fsdecode(fields[9].partition(b"\0")[0])
    return LoopInfo(device=_device(fields[0]), inode=fields[1], flags=fields[8], file_name=name)


def loop_set_flags(loop_fd: int, *, set_: int = 0, clear: int = 0) -> None:
    """Change flags of a device in use, autoclear above all: LOOP_SET_STATUS64. Raises OSError: ENXIO if it is not."""
    fields = list(_INFO.unpack(fcntl.ioctl(loop_fd, _LOOP_GET_STATUS64, bytes(_INFO.size))))
    fields[8] = fields[8] & ~clear | set_
    fcntl.ioctl(loop_fd, _LOOP_SET_STATUS64, _INFO.pack(*fields))


def loop_clr_fd(loop_fd: int) -> None:
    """Take the file away from the device, at once or with its last user: LOOP_CLR_FD. Raises OSError: ENXIO."""
    fcntl.ioctl(loop_fd, _LOOP_CLR_FD, 0)


def _device(kernel: int) -> int:
    """A device number as stat(2) shows it, from the kernel's own encoding (new_encode_dev in linux/kdev_t.h)."""
    return os.makedev((kernel & 0xFFF00) >> 8, kernel & 0xFF | (kernel >> 12) & 0xFFF00)
