"""Mounting: mount(2), umount2(2), pivot_root(2) and the calls of the new mount API (fsopen(2) and its kin, Linux 5.2).

Raw calls only; options as words and lists of mounts are `orlop.core.mount`'s.
"""

import ctypes
import errno
import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from orlop.linux._libc import (
    SYS_fsconfig,
    SYS_fsmount,
    SYS_fsopen,
    SYS_mount_setattr,
    SYS_move_mount,
    SYS_open_tree,
    libc,
    oserror,
    syscall,
)

_Path = str | bytes | os.PathLike[str]

# linux/mount.h
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_SYNCHRONOUS: Final = 16
MS_REMOUNT: Final = 32
MS_MANDLOCK: Final = 64
MS_DIRSYNC: Final = 128
MS_NOSYMFOLLOW: Final = 256
MS_NOATIME: Final = 1024
MS_NODIRATIME: Final = 2048
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_SILENT: Final = 32768
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24
MS_LAZYTIME: Final = 1 << 25

MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
MNT_EXPIRE: Final = 4
UMOUNT_NOFOLLOW: Final = 8

OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
FSOPEN_CLOEXEC: Final = 1
FSMOUNT_CLOEXEC: Final = 1
_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_SET_FD: Final = 5
_FSCONFIG_CMD_CREATE: Final = 6

MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR__ATIME: Final = 0x70
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR_NODIRATIME: Final = 0x80
MOUNT_ATTR_IDMAP: Final = 0x100000
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000

# linux/fcntl.h
AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000

_PAGE_SIZE: Final = os.sysconf("SC_PAGE_SIZE")

_mount = libc.mount
_mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_mount.restype = ctypes.c_int
_umount2 = libc.umount2
_umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_umount2.restype = ctypes.c_int
_pivot_root = libc.pivot_root
_pivot_root.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
_pivot_root.restype = ctypes.c_int


class _mount_attr(ctypes.Structure):  # noqa: N801 - the kernel's name
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class MountInfo(NamedTuple):
    """One line of /proc/PID/mountinfo, proc_pid_mountinfo(5); paths with their escapes undone."""

    mount_id: int
    parent_id: int
    root: str
    mount_point: str
    options: tuple[str, ...]
    fs_type: str
    source: str
    super_options: str


def mount(source: _Path, target: _Path, fstype: str = "", flags: int = 0, data: str | bytes = "") -> None:
    """Attach a file system, or change a mount: mount(2).

    Raises:
        OSError: E2BIG if `data` does not fit the page that the kernel copies (it would cut the string silently); EPERM
            without CAP_SYS_ADMIN; ENODEV for an unknown `fstype`; EINVAL for options the file system refuses; ENOENT.
    """
    raw = os.fsencode(data)
    if len(raw) >= _PAGE_SIZE:
        raise OSError(errno.E2BIG, f"mount: {len(raw)} bytes of options do not fit a page", os.fspath(target))
    if _mount(os.fsencode(source), os.fsencode(target), fstype.encode() or None, flags, raw or None) < 0:
        raise oserror("mount", target)


def umount2(target: _Path, flags: int = 0) -> None:
    """Detach the mount at `target`: umount2(2).

    Raises:
        OSError: EINVAL if `target` is no mount point; EBUSY if it is in use and MNT_DETACH is not in `flags`; ENOENT;
            EPERM without CAP_SYS_ADMIN.
    """
    if _umount2(os.fsencode(target), flags) < 0:
        raise oserror("umount2", target)


def pivot_root(new_root: _Path, put_old: _Path) -> None:
    """Make `new_root` the root mount of this mount namespace and put the old one at `put_old`: pivot_root(2).

    Raises:
        OSError: EINVAL if `new_root` is no mount point or propagation is shared; EBUSY; EPERM.
    """
    if _pivot_root(os.fsencode(new_root), os.fsencode(put_old)) < 0:
        raise oserror("pivot_root", new_root)


def fsopen(fstype: str) -> int:
    """A new file system context, as a close-on-exec descriptor: fsopen(2).

    Raises:
        OSError: ENODEV for an unknown file system; EPERM; ENOSYS before Linux 5.2.
    """
    fd = syscall(SYS_fsopen, fstype.encode(), FSOPEN_CLOEXEC)
    if fd < 0:
        raise oserror("fsopen", fstype)
    return fd


def fsconfig_flag(fs_fd: int, key: str) -> None:
    """Set an option without value: fsconfig(2). Raises OSError; `fs_messages()` has the kernel's words."""
    if syscall(SYS_fsconfig, fs_fd, _FSCONFIG_SET_FLAG, key.encode(), None, 0) < 0:
        raise oserror(f"fsconfig {key}")


def fsconfig_string(fs_fd: int, key: str, value: str | bytes) -> None:
    """Set an option to a string of at most 255 bytes: fsconfig(2). Raises OSError; EINVAL for a longer one."""
    if syscall(SYS_fsconfig, fs_fd, _FSCONFIG_SET_STRING, key.encode(), os.fsencode(value), 0) < 0:
        raise oserror(f"fsconfig {key}", value)


def fsconfig_fd(fs_fd: int, key: str, fd: int) -> None:
    """Set an option to an open file, fsconfig(2); overlayfs takes layers so from Linux 6.13 on."""
    if syscall(SYS_fsconfig, fs_fd, _FSCONFIG_SET_FD, key.encode(), None, fd) < 0:
        raise oserror(f"fsconfig {key}")


def fsconfig_create(fs_fd: int) -> None:
    """Make the superblock from the options set so far: fsconfig(2)."""
    if syscall(SYS_fsconfig, fs_fd, _FSCONFIG_CMD_CREATE, None, None, 0) < 0:
        raise oserror("fsconfig create")


def fsmount(fs_fd: int, attributes: int = 0) -> int:
    """The mount of a created context, attached nowhere yet; it goes when its descriptor closes: fsmount(2)."""
    fd = syscall(SYS_fsmount, fs_fd, FSMOUNT_CLOEXEC, attributes)
    if fd < 0:
        raise oserror("fsmount")
    return fd


def fs_messages(fs_fd: int) -> str:
    """What the kernel has said about this context, joined by "; "; empty if nothing."""
    lines: list[str] = []
    while True:
        try:
            raw = os.read(fs_fd, 4096)
        except OSError:  # ENODATA: nothing more is queued
            return "; ".join(lines)
        lines.append(raw.decode(errors="replace").strip().removeprefix("e ").removeprefix("w "))


def open_tree(path: _Path, flags: int = OPEN_TREE_CLONE, dir_fd: int = AT_FDCWD) -> int:
    """A descriptor of the mount at `path`, or with OPEN_TREE_CLONE of an unattached copy of it: open_tree(2).

    Raises:
        OSError: ENOENT; EPERM without CAP_SYS_ADMIN (for a clone); EINVAL if it must not be cloned.
    """
    fd = syscall(SYS_open_tree, dir_fd, os.fsencode(path), flags | OPEN_TREE_CLOEXEC)
    if fd < 0:
        raise oserror("open_tree", path)
    return fd


def move_mount(mount_fd: int, target: _Path, dir_fd: int = AT_FDCWD) -> None:
    """Attach the mount behind `mount_fd` at `target`: move_mount(2). Raises OSError: ENOENT, ENOTDIR, EPERM, EINVAL."""
    if syscall(SYS_move_mount, mount_fd, b"", dir_fd, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH) < 0:
        raise oserror("move_mount", target)


def mount_setattr(
    path: _Path,
    *,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
    flags: int = 0,
    dir_fd: int = AT_FDCWD,
) -> None:
    """Change a mount's attributes, its id mapping among them: mount_setattr(2).

    With `MOUNT_ATTR_IDMAP` in `attr_set`, `userns_fd` names the user namespace whose mapping the mount takes; the mount
    must be unattached (`open_tree`, `fsmount`); pass `path=""` and `AT_EMPTY_PATH` to mean `dir_fd` itself.

    Raises:
        OSError: EINVAL if the file system cannot be id-mapped or the attribute is unknown; EPERM; ENOSYS before 5.12.
    """
    attr = _mount_attr(attr_set, attr_clr, propagation, userns_fd)
    if syscall(SYS_mount_setattr, dir_fd, os.fsencode(path), flags, ctypes.byref(attr), ctypes.sizeof(attr)) < 0:
        raise oserror("mount_setattr", path)


def mountinfo(path: str = "/proc/self/mountinfo") -> Iterator[MountInfo]:
    """The mounts of a process, in the order of the kernel's list; lines that this parser does not know are skipped."""
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.rstrip("\n").split(" ")
            try:
                dash = fields.index("-", 6)
                yield MountInfo(
                    mount_id=int(fields[0]),
                    parent_id=int(fields[1]),
                    root=_unescape(fields[3]),
                    mount_point=_unescape(fields[4]),
                    options=tuple(fields[5].split(",")),
                    fs_type=fields[dash + 1],
                    source=_unescape(fields[dash + 2]),
                    super_options=fields[dash + 3],
                )
            except (ValueError, IndexError):
                continue


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    head, *rest = text.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)
