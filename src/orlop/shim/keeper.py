"""Keepers: processes that hold descriptors beyond a supervisor's death, and do nothing else.

A pty master or the write end of a container's stdin that only the supervisor held would close with it, and the
container would be hung up on or meet an end of file. A keeper inherits duplicates and sleeps; the successor fetches
them with pidfd_getfd(2). It is a program of a hundred bytes in an anonymous file, because a container with an open
stdin has one: a few pages of memory instead of an interpreter's megabytes. Where the kernel forbids such files, or on
a processor for which there is no program here, `sleep` does the same.
"""

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence

from orlop.linux import pidfd
from orlop.shim import elf, reaper
from orlop.shim.spawn import spawn


class Keeper:
    """A running keeper: its pid and start time, which tell it from a later process of the same pid."""

    __slots__ = ("fds", "pid", "start_time")

    def __init__(self, pid: int, start_time: int, fds: Mapping[str, int]) -> None:
        self.pid = pid
        self.start_time = start_time
        self.fds = dict(fds)

    def fetch(self) -> dict[str, int]:
        """Close-on-exec duplicates of what the keeper holds, by name; empty if the keeper has gone."""
        with contextlib.suppress(OSError), contextlib.ExitStack() as undo:
            handle = self._open()
            undo.callback(os.close, handle)
            return {name: pidfd.pidfd_getfd(handle, fd) for name, fd in self.fds.items()}
        return {}

    def end(self) -> None:
        """Let go of everything; a keeper that has gone is success."""
        with contextlib.suppress(OSError), contextlib.ExitStack() as undo:
            handle = self._open()
            undo.callback(os.close, handle)
            pidfd.pidfd_send_signal(handle, signal.SIGKILL)

    def _open(self) -> int:
        handle = pidfd.pidfd_open(self.pid)
        if reaper.start_time(self.pid) != self.start_time:
            os.close(handle)
            raise ProcessLookupError(f"keeper {self.pid} has gone")
        return handle


def start(title: str, fds: Mapping[str, int], bundle: str = "") -> Keeper:
    """Start a keeper that holds duplicates of `fds` under the same numbers; `title` is what ps shows.

    Args:
        bundle: whose it is, for who finds the process: in its environment, as ORLOP_BUNDLE.

    Raises:
        OSError: no process can be started.
    """
    argv = [f"orlop-keeper {title}"]
    numbers = tuple(fds.values())
    program = _program()
    if program >= 0:
        try:
            pid = _spawn_file(program, argv, numbers, {"ORLOP_BUNDLE": bundle})
            return Keeper(pid, reaper.start_time(pid), fds)
        except OSError:
            pass  # vm.memfd_noexec or a security module forbids it: then sleep(1)
        finally:
            os.close(program)
    pid = spawn(["sleep", "infinity"], env={"PATH": "/usr/bin:/bin"}, pass_fds=numbers, new_session=True)
    return Keeper(pid, reaper.start_time(pid), fds)


def _spawn_file(program: int, argv: Sequence[str], fds: Sequence[int], env: Mapping[str, str]) -> int:
    return spawn(argv, executable=f"/proc/{os.getpid()}/fd/{program}", env=env, pass_fds=fds, new_session=True)


def _program() -> int:
    """An anonymous file with the program, or -1."""
    program = elf.sleeper()
    if not program:
        return -1
    try:
        fd = os.memfd_create("orlop-keeper", os.MFD_CLOEXEC)
        os.write(fd, program)
    except OSError:
        return -1
    return fd
