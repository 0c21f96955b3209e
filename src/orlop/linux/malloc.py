"""How the C library's allocator keeps what is freed: mallopt(3) of glibc."""

from typing import Final

from orlop.linux._libc import libc

# malloc.h
M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3

KEPT: Final = 16 << 20
_LARGEST: Final = 4 << 20


def keep_freed() -> None:
    """Let the heaps keep up to `KEPT` bytes of what is freed, and have blocks of up to 4 MiB lie in them.

    Whoever handles bytes in pieces of a megabyte gives each back to the kernel else and has it zeroed again for the
    next, or not, as chance has it. With another C library this does nothing.
    """
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, _LARGEST)
        mallopt(M_TRIM_THRESHOLD, KEPT)
