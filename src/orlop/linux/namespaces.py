"""Linux namespaces: unshare(2) and setns(2), which `os` has from Python 3.12 on only.

Neither may be called in a process that has threads (see ARCHITECTURE.md): a small helper does it alone.
"""

import ctypes
from typing import Final

from orlop.linux._libc import libc, oserror

# linux/sched.h
CLONE_NEWTIME: Final = 0x00000080
CLONE_FS: Final = 0x00000200
CLONE_FILES: Final = 0x00000400
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

_unshare = libc.unshare
_unshare.argtypes = [ctypes.c_int]
_unshare.restype = ctypes.c_int
_setns = libc.setns
_setns.argtypes = [ctypes.c_int, ctypes.c_int]
_setns.restype = ctypes.c_int


def unshare(flags: int) -> None:
    """Give the calling thread Linux namespaces of its own: unshare(2).

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN or where a sandbox forbids it; EINVAL for CLONE_NEWUSER in a process with
            threads; ENOSPC beyond the limit in /proc/sys/user.
    """
    if _unshare(flags) < 0:
        raise oserror(f"unshare {flags:#x}")


def setns(fd: int, nstype: int = 0) -> None:
    """Enter the Linux namespace behind `fd` (or, for a pidfd, those in `nstype`): setns(2).

    Raises:
        OSError: EINVAL if `fd` is of another type, or for a mount namespace while the file system state is shared with
            other threads; EPERM; ESRCH if the pidfd's process is gone.
    """
    if _setns(fd, nstype) < 0:
        raise oserror(f"setns {nstype:#x}")
