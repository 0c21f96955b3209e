"""Subvolumes of btrfs, by the ioctls of linux/btrfs.h; btrfs-subvolume(8) tells what they are.

Subvolumes are named by the directory that holds them and their name in it.
"""

import ctypes
import errno
import fcntl
import os
import struct
from typing import Final

BTRFS_SUPER_MAGIC: Final = 0x9123683E
# Each subvolume's own directory has this inode number.
BTRFS_FIRST_FREE_OBJECTID: Final = 256
BTRFS_SUBVOL_RDONLY: Final = 1 << 1

_BTRFS_IOC_INO_LOOKUP: Final = 0xD0009412
_BTRFS_IOC_SNAP_DESTROY: Final = 0x5000940F
_BTRFS_IOC_SUBVOL_CREATE: Final = 0x5000940E
_BTRFS_IOC_SNAP_CREATE_V2: Final = 0x50009417
_BTRFS_IOC_SUBVOL_GETFLAGS: Final = 0x80089419
_BTRFS_IOC_SUBVOL_SETFLAGS: Final = 0x4008941A

# struct btrfs_ioctl_vol_args: fd, name; struct btrfs_ioctl_vol_args_v2: fd, transid, flags, unused[4], name
_ARGS: Final = struct.Struct("=q4088s")
# struct btrfs_ioctl_ino_lookup_args: treeid, objectid, name
_LOOKUP: Final = struct.Struct("=QQ4080x")
_ARGS_V2: Final = struct.Struct("=qQQ32x4040s")
_NAME_LIMIT: Final = 255

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def is_btrfs(path: str) -> bool:
    """Whether `path` lies on btrfs: statfs(2). Raises OSError."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs begins with f_type, a long
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), buffer) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return int.from_bytes(buffer.raw[:4], "little") == BTRFS_SUPER_MAGIC


def is_subvolume(path: str) -> bool:
    """Whether `path` is the directory of a subvolume, on a file system known to be btrfs."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    return status.st_ino == BTRFS_FIRST_FREE_OBJECTID


def create(directory: str, name: str) -> None:
    """An empty subvolume. Raises OSError: EEXIST, ENOSPC, ENOTTY where the file system is no btrfs."""
    _ioctl(directory, name, _BTRFS_IOC_SUBVOL_CREATE, _ARGS.pack(0, _encoded(name)))


def snapshot(source: str, directory: str, name: str, *, read_only: bool) -> None:
    """A subvolume with the files of the subvolume `source`, sharing their extents. Raises OSError as `create`."""
    fd = os.open(source, _OPEN)
    try:
        flags = BTRFS_SUBVOL_RDONLY if read_only else 0
        _ioctl(directory, name, _BTRFS_IOC_SNAP_CREATE_V2, _ARGS_V2.pack(fd, 0, flags, _encoded(name)))
    finally:
        os.close(fd)


def destroy(directory: str, name: str) -> None:
    """Delete a subvolume with all its files, read-only ones too.

    Raises:
        OSError: ENOENT; ENOTEMPTY if there is a subvolume in it; EPERM if it is the default one; EBUSY while mounted
            on some kernels.
    """
    _ioctl(directory, name, _BTRFS_IOC_SNAP_DESTROY, _ARGS.pack(0, _encoded(name)))


def subvolume_id(path: str) -> int:
    """The number of the subvolume that the directory `path` lies in: what `subvolid=` mounts. Raises OSError."""
    fd = os.open(path, _OPEN)
    try:
        buffer = bytearray(_LOOKUP.pack(0, BTRFS_FIRST_FREE_OBJECTID))
        fcntl.ioctl(fd, _BTRFS_IOC_INO_LOOKUP, buffer)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from error
    finally:
        os.close(fd)
    number: int = _LOOKUP.unpack(buffer)[0]
    return number


def set_read_only(path: str, read_only: bool) -> None:
    """Forbid or allow writing to a subvolume. Raises OSError: EBUSY while a file in it is open for writing."""
    fd = os.open(path, _OPEN)
    try:
        flags = struct.unpack("=Q", fcntl.ioctl(fd, _BTRFS_IOC_SUBVOL_GETFLAGS, bytes(8)))[0]
        wanted = flags | BTRFS_SUBVOL_RDONLY if read_only else flags & ~BTRFS_SUBVOL_RDONLY
        if wanted != flags:
            fcntl.ioctl(fd, _BTRFS_IOC_SUBVOL_SETFLAGS, struct.pack("=Q", wanted))
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from error
    finally:
        os.close(fd)


def _ioctl(directory: str, name: str, request: int, argument: bytes) -> None:
    fd = os.open(directory, _OPEN)
    try:
        fcntl.ioctl(fd, request, bytearray(argument))  # immutable ones may have 1024 bytes at most
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), os.path.join(directory, name)) from error
    finally:
        os.close(fd)


def _encoded(name: str) -> bytes:
    encoded = os.fsencode(name)
    if len(encoded) > _NAME_LIMIT:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
    return encoded
