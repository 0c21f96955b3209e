"""Attributes of the calling process or thread: prctl(2)."""

import ctypes
import signal
from typing import Final

from orlop.linux._libc import libc, oserror

# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_KEEPCAPS: Final = 8
_PR_SET_NAME: Final = 15
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

_prctl = libc.prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_prctl.restype = ctypes.c_int


def set_child_subreaper(on: bool = True) -> None:
    """Orphans below this process become its children, to be waited for: PR_SET_CHILD_SUBREAPER."""
    _call("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, int(on))


def get_child_subreaper() -> bool:
    """Whether this process is a sub-reaper."""
    value = ctypes.c_int()
    _call("PR_GET_CHILD_SUBREAPER", _PR_GET_CHILD_SUBREAPER, ctypes.addressof(value))
    return bool(value.value)


def set_no_new_privs() -> None:
    """No exec of this thread or its children gains privileges any more; cannot be undone: PR_SET_NO_NEW_PRIVS."""
    _call("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def set_pdeathsig(signum: int = signal.SIGKILL) -> None:
    """Be sent `signum` when the *thread* that made this process ends: PR_SET_PDEATHSIG. Check the parent afterwards."""
    _call("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, signum)


def set_dumpable(on: bool) -> None:
    """Whether others of our uid may trace this process and read its /proc files: PR_SET_DUMPABLE."""
    _call("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, int(on))


def set_keepcaps(on: bool = True) -> None:
    """Keep permitted capabilities when the uid leaves 0: PR_SET_KEEPCAPS."""
    _call("PR_SET_KEEPCAPS", _PR_SET_KEEPCAPS, int(on))


def set_name(name: str) -> None:
    """The thread's name in ps and top, cut to 15 bytes: PR_SET_NAME."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _call("PR_SET_NAME", _PR_SET_NAME, ctypes.addressof(buffer))


def bounding_has(capability: int) -> bool:
    """Whether `capability` is in the bounding set. Raises OSError: EINVAL for one that the kernel does not know."""
    return _call("PR_CAPBSET_READ", _PR_CAPBSET_READ, capability) == 1


def bounding_drop(capability: int) -> None:
    """Take `capability` out of the bounding set for good: PR_CAPBSET_DROP. Raises OSError: EPERM, EINVAL if unknown."""
    _call("PR_CAPBSET_DROP", _PR_CAPBSET_DROP, capability)


def ambient_clear() -> None:
    """Empty the ambient set: PR_CAP_AMBIENT_CLEAR_ALL."""
    _call("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def _call(name: str, option: int, argument: int) -> int:
    result = int(_prctl(option, argument, 0, 0, 0))
    if result < 0:
        raise oserror(f"prctl {name}")
    return result
