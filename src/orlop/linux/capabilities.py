"""Capabilities of the calling thread: capget(2), capset(2), capabilities(7)."""

import ctypes
import errno
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from orlop.linux import prctl
from orlop.linux._libc import libc, oserror

_LINUX_CAPABILITY_VERSION_3 = 0x20080522


class Cap(IntEnum):
    """linux/capability.h, without the prefix CAP_."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    FOWNER = 3
    FSETID = 4
    KILL = 5
    SETGID = 6
    SETUID = 7
    SETPCAP = 8
    LINUX_IMMUTABLE = 9
    NET_BIND_SERVICE = 10
    NET_BROADCAST = 11
    NET_ADMIN = 12
    NET_RAW = 13
    IPC_LOCK = 14
    IPC_OWNER = 15
    SYS_MODULE = 16
    SYS_RAWIO = 17
    SYS_CHROOT = 18
    SYS_PTRACE = 19
    SYS_PACCT = 20
    SYS_ADMIN = 21
    SYS_BOOT = 22
    SYS_NICE = 23
    SYS_RESOURCE = 24
    SYS_TIME = 25
    SYS_TTY_CONFIG = 26
    MKNOD = 27
    LEASE = 28
    AUDIT_WRITE = 29
    AUDIT_CONTROL = 30
    SETFCAP = 31
    MAC_OVERRIDE = 32
    MAC_ADMIN = 33
    SYSLOG = 34
    WAKE_ALARM = 35
    BLOCK_SUSPEND = 36
    AUDIT_READ = 37
    PERFMON = 38
    BPF = 39
    CHECKPOINT_RESTORE = 40


class CapSets(NamedTuple):
    """The three sets of capset(2), as bit masks of 64 bits."""

    effective: int
    permitted: int
    inheritable: int


class _header(ctypes.Structure):  # noqa: N801 - __user_cap_header_struct
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _data(ctypes.Structure):  # noqa: N801 - __user_cap_data_struct
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


_Data2 = _data * 2
_capget = libc.capget
_capget.argtypes = [ctypes.POINTER(_header), ctypes.POINTER(_Data2)]
_capget.restype = ctypes.c_int
_capset = libc.capset
_capset.argtypes = [ctypes.POINTER(_header), ctypes.POINTER(_Data2)]
_capset.restype = ctypes.c_int


def mask(capabilities: Iterable[int]) -> int:
    """The bit mask of some capabilities."""
    return sum(1 << number for number in set(capabilities))


def capget() -> CapSets:
    """The calling thread's sets: capget(2)."""
    header, data = _header(_LINUX_CAPABILITY_VERSION_3, 0), _Data2()
    if _capget(ctypes.byref(header), ctypes.byref(data)) < 0:
        raise oserror("capget")
    low, high = data
    return CapSets(
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def capset(sets: CapSets) -> None:
    """Set the calling thread's sets: capset(2). Raises OSError: EPERM when a capability would be gained."""
    header, data = _header(_LINUX_CAPABILITY_VERSION_3, 0), _Data2()
    for half, part in enumerate(data):
        part.effective, part.permitted, part.inheritable = (bits >> 32 * half & 0xFFFFFFFF for bits in sets)
    if _capset(ctypes.byref(header), ctypes.byref(data)) < 0:
        raise oserror("capset")


def limit_to(capabilities: Iterable[int]) -> None:
    """Keep only these of the capabilities we have, in every set; nothing that is executed later gets more.

    The bounding set is emptied first (that needs CAP_SETPCAP, without which it is left), then ambient, inheritable and
    permitted. Cannot be undone.

    Raises:
        OSError: from the kernel; the process must then not go on with what it meant to do.
    """
    keep = mask(capabilities)
    if capget().effective >> Cap.SETPCAP & 1:
        for number in range(64):
            if keep >> number & 1:
                continue
            try:
                prctl.bounding_drop(number)
            except OSError as error:
                if error.errno != errno.EINVAL:  # EINVAL: beyond the last capability of this kernel
                    raise
                break
    prctl.ambient_clear()
    have = capget().permitted & keep
    capset(CapSets(effective=have, permitted=have, inheritable=0))
