"""Named places at which a test can end a process, fail a call or hold it: the crash matrix goes through all of them.

Code says `reach("content.commit.renamed")` right after (or, where the name says so, before) a write, sync, rename,
mount, spawn or commit. Without `ORLOP_FAILPOINTS` that is one test of a variable. With it, the variable names a
directory that only its owner may write to, and each passage is appended to `passed` there and looked up in `armed`:

    NAME ACTION [TIMES [PID...]]

ACTION is done when NAME is passed for the TIMES-th time (1 by default), by whatever process; who arms removes
`turns`, the count. ACTION is one of:

- `kill`: SIGKILL to each PID, and when all are dead, go on; `self`, the default, is the process that is here.
- `error`: OSError(EIO), as from a failing disk.
- `hold`: wait until `armed` is gone or names another point.

What was done is appended to `done`. Names are in `POINTS`; a name that is not there is refused while tests look.
"""

import contextlib
import errno
import fcntl
import os
import select
import signal
import time
from typing import Final

VARIABLE: Final = "ORLOP_FAILPOINTS"

POINTS: Final[dict[str, str]] = {}
"""Name -> what has just happened when it is passed. A test holds it against the places in the code."""

_HOLD_S: Final = 0.005


def reach(name: str) -> None:
    """Say that the place `name` is passed; does nothing unless a test asked for it.

    Raises:
        OSError: EIO, if the test wants the call to fail here.
    """
    if _directory_fd is not None:
        _passed(_directory_fd, name)


def descriptor() -> int:
    """The directory's descriptor, for a process that closes all others but those that it needs; -1 if there is none."""
    return -1 if _directory_fd is None else _directory_fd


def _passed(directory_fd: int, name: str) -> None:
    if name not in POINTS:
        raise LookupError(f"fail point {name} is not in the table")
    action = _turn(directory_fd, name)
    if action is None:
        return
    verb, victims = action
    if verb == "error":
        raise OSError(errno.EIO, f"fail point {name}")
    if verb == "hold":
        while _armed(directory_fd)[:1] == [name]:
            time.sleep(_HOLD_S)
        return
    for pid in [int(victim) for victim in victims if victim != "self"]:
        _kill(pid)
    if not victims or "self" in victims:
        os.kill(os.getpid(), signal.SIGKILL)


def _turn(directory_fd: int, name: str) -> tuple[str, list[str]] | None:
    """Record the passage; what is to be done if it is this one's turn."""
    lock_fd = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        _append(directory_fd, "passed", name)
        armed = _armed(directory_fd)
        if armed[:1] != [name]:
            return None
        times = int(armed[2]) if len(armed) > 2 else 1
        if _append(directory_fd, "turns", name) != times * (len(name) + 1):
            return None
        _append(directory_fd, "done", f"{name} {armed[1]}")
        return armed[1], armed[3:]
    finally:
        os.close(lock_fd)


def _append(directory_fd: int, file: str, line: str) -> int:
    """Returns the size of the file, bytes."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
    try:
        os.write(fd, f"{line}\n".encode())
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def _armed(directory_fd: int) -> list[str]:
    try:
        fd = os.open("armed", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    except FileNotFoundError:
        return []
    try:
        return os.read(fd, 4096).decode().split()
    finally:
        os.close(fd)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        pid_fd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pid_fd, signal.SIGKILL)
            select.select([pid_fd], [], [])
        finally:
            os.close(pid_fd)


def _open() -> int | None:
    path = os.environ.get(VARIABLE)
    return os.open(path, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC) if path else None


_directory_fd: Final = _open()
