"""Signals that the C library keeps to itself."""

import os
from typing import Final

from orlop.linux._libc import oserror, syscall

# asm/unistd.h: rt_sigaction has no common number.
_SYS_rt_sigaction: Final = {"x86_64": 13, "aarch64": 134, "riscv64": 134, "ppc64le": 173, "s390x": 174}
_SIGSET_SIZE: Final = 8
# SIGCANCEL and SIGSETXID of glibc.
INTERNAL: Final = (32, 33)


def reset_internal() -> None:
    """Give the C library's own signals their default disposition, past the library, which refuses it.

    glibc's posix_spawn(3) leaves them ignored in the child, and exec hands that on for ever. Call this while there is
    one thread; the library installs its handlers again when it needs them. A machine whose number is not known here is
    left as it is.
    """
    number = _SYS_rt_sigaction.get(os.uname().machine)
    if number is None:
        return
    default = bytes(32)
    for signum in INTERNAL:
        if syscall(number, signum, default, None, _SIGSET_SIZE) < 0:
            raise oserror(f"rt_sigaction {signum}")
