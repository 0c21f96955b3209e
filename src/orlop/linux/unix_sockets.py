"""Sockets in the file system: whether somebody listens, and that nobody begins to."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator


def refuses(path: str | os.PathLike[str]) -> bool:
    """Whether nobody listens on what is there; so it is, too, with a file that is no socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except OSError as error:
            return error.errno == errno.ECONNREFUSED
    return False


@contextlib.contextmanager
def alone(path: str | os.PathLike[str]) -> Iterator[bool]:
    """Hold the lock of a socket, the file `<path>.lock`; False if somebody has it, who listens there or is about to.

    Raises:
        OSError: the file cannot be made.
    """
    lock = os.open(f"{os.fspath(path)}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(lock)
