"""Programs of a hundred bytes, made here: for what needs a process but nothing of an interpreter or a C library."""

import os
import struct
from typing import Final

_LOAD_ADDRESS: Final = 0x400000
# By machine: e_machine of elf(5), and machine code.
_SLEEP: Final = {
    "x86_64": (62, bytes.fromhex("b822000000 0f05 ebf7")),  # 1: mov eax, SYS_pause; syscall; jmp 1
    "aarch64": (
        183,
        struct.pack(
            "<7I",
            0xD2800000,  # 1: mov x0, #0      fds
            0xD2800001,  #    mov x1, #0      nfds
            0xD2800002,  #    mov x2, #0      timeout: none
            0xD2800003,  #    mov x3, #0      signal mask
            0xD2800928,  #    mov x8, #73     ppoll
            0xD4000001,  #    svc #0
            0x17FFFFFA,  #    b 1
        ),
    ),
}
_EXIT: Final = {
    "x86_64": (62, bytes.fromhex("31ff b8e7000000 0f05")),  # xor edi, edi; mov eax, SYS_exit_group; syscall
    "aarch64": (183, struct.pack("<3I", 0xD2800000, 0xD2800BC8, 0xD4000001)),  # mov x0, #0; mov x8, #94; svc #0
}


def sleeper() -> bytes:
    """A program that sleeps until it is killed; empty where there is none for this machine."""
    return _for_this_machine(_SLEEP)


def quitter() -> bytes:
    """A program that ends at once with status 0; empty where there is none for this machine."""
    return _for_this_machine(_EXIT)


def _for_this_machine(programs: dict[str, tuple[int, bytes]]) -> bytes:
    found = programs.get(os.uname().machine) if struct.calcsize("P") == 8 else None
    return _executable(*found) if found else b""


def _executable(machine: int, code: bytes) -> bytes:
    """A static 64-bit little-endian executable that consists of `code`. Source: elf(5)."""
    header_size, segment_size = 64, 56
    start = header_size + segment_size
    size = start + len(code)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        2,  # ET_EXEC
        machine,
        1,
        _LOAD_ADDRESS + start,
        header_size,
        0,
        0,
        header_size,
        segment_size,
        1,
        0,
        0,
        0,
    )
    # One segment, readable and executable, from the beginning of the file.
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 0x1000)
    return header + segment + code
