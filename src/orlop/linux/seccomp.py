"""A small seccomp filter: system calls that are allowed, all others fail or kill: seccomp(2).

The filter is classic BPF: check the architecture, then compare the call's number with each allowed one. There is no
filtering by arguments.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable
from typing import Final

from orlop.linux._libc import oserror, syscall

# linux/audit.h, by os.uname().machine
_AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NR_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
# linux/seccomp.h, linux/filter.h
_SECCOMP_SET_MODE_FILTER: Final = 1
_SECCOMP_FILTER_FLAG_TSYNC: Final = 1
SECCOMP_RET_KILL_PROCESS: Final = 0x80000000
SECCOMP_RET_ERRNO: Final = 0x00050000
_SECCOMP_RET_ALLOW: Final = 0x7FFF0000
_LD_W_ABS: Final = 0x20
_JEQ_K: Final = 0x15
_JGE_K: Final = 0x35
_RET_K: Final = 0x06
_INSN: Final = struct.Struct("<HBBI")
_X32_BIT: Final = 0x40000000


class _sock_fprog(ctypes.Structure):  # noqa: N801 - the kernel's name
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def supported() -> bool:
    """Whether this module knows the machine's architecture; the kernel may still refuse."""
    return os.uname().machine in _AUDIT_ARCH


def build_filter(allowed: Iterable[int], otherwise: int = SECCOMP_RET_KILL_PROCESS) -> bytes:
    """The BPF program that allows these call numbers of this machine and answers `otherwise` to the rest.

    Raises:
        NotImplementedError: on an architecture of which the numbers are not known here.
    """
    machine = os.uname().machine
    if machine not in _AUDIT_ARCH:
        raise NotImplementedError(f"seccomp filters for {machine}")
    code = [
        _INSN.pack(_LD_W_ABS, 0, 0, 4),  # seccomp_data.arch
        _INSN.pack(_JEQ_K, 1, 0, _AUDIT_ARCH[machine]),
        _INSN.pack(_RET_K, 0, 0, SECCOMP_RET_KILL_PROCESS),
        _INSN.pack(_LD_W_ABS, 0, 0, 0),  # seccomp_data.nr
        _INSN.pack(_JGE_K, 0, 1, _X32_BIT),  # x32 calls carry this bit; none is allowed
        _INSN.pack(_RET_K, 0, 0, otherwise),
    ]
    for number in sorted(set(allowed)):
        code += [_INSN.pack(_JEQ_K, 0, 1, number), _INSN.pack(_RET_K, 0, 0, _SECCOMP_RET_ALLOW)]
    code.append(_INSN.pack(_RET_K, 0, 0, otherwise))
    return b"".join(code)


def install(program: bytes) -> None:
    """Put every thread of this process under `program` for good; `prctl.set_no_new_privs()` must come first.

    Raises:
        OSError: EINVAL for a malformed program or a kernel without filters; EACCES without no_new_privs or
            CAP_SYS_ADMIN; ESRCH if a thread cannot be synchronised.
    """
    fprog = _sock_fprog(len(program) // _INSN.size, program)
    number = _NR_SECCOMP[os.uname().machine]
    result = syscall(number, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, ctypes.byref(fprog))
    if result < 0:
        raise oserror("seccomp")
    if result > 0:  # the id of a thread that has a filter of its own
        raise OSError(errno.ESRCH, f"seccomp: thread {result} cannot be synchronised")
