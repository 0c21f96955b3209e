"""The C library and raw system calls, under the kernel's names.

Only what the modules of this room share: the library handle, `syscall()` for calls that libc lacks, and the one way to
turn a failed call into an `OSError`. Constants and structures stand in the module that uses them, with their header.

The numbers from 424 on are the same on every architecture (Linux unified them in 5.1).
"""

import ctypes
import os
from typing import Any, Final

libc: Final = ctypes.CDLL(None, use_errno=True)

_syscall = libc.syscall
_syscall.restype = ctypes.c_long

# asm-generic/unistd.h
SYS_open_tree: Final = 428
SYS_move_mount: Final = 429
SYS_fsopen: Final = 430
SYS_fsconfig: Final = 431
SYS_fsmount: Final = 432
SYS_openat2: Final = 437
SYS_pidfd_getfd: Final = 438
SYS_mount_setattr: Final = 442


def syscall(number: int, *arguments: Any) -> int:
    """Call the kernel by number; the GIL is released meanwhile.

    Args:
        number: of the call on this machine.
        arguments: integers, `bytes` (passed as NUL-terminated strings), None (NULL) or ctypes pointers. Any because
            ctypes has no common type for what can be passed.

    Returns:
        What the kernel returned, or -1; then `ctypes.get_errno()` says why.
    """
    return int(_syscall(ctypes.c_long(number), *map(_word, arguments)))


def oserror(call: str, path: str | bytes | os.PathLike[str] | None = None) -> OSError:
    """The error of the call that has just failed: `[Errno 22] umount2: Invalid argument: '/mnt'`."""
    number = ctypes.get_errno()
    text = f"{call}: {os.strerror(number)}"
    if path is None:
        return OSError(number, text)
    return OSError(number, text, os.fspath(path))


def _word(value: Any) -> Any:
    # Without a type, ctypes passes an int as 32 bits and leaves the upper half of the register to chance.
    if isinstance(value, int):
        return ctypes.c_long(value)
    if isinstance(value, bytes):
        return ctypes.c_char_p(value)
    if value is None:
        return ctypes.c_void_p(None)
    return value
