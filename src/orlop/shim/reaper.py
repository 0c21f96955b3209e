"""The single reaper: the one place that waits for child processes.

The supervisor is a sub-reaper, so containers whose OCI runtime has ended become its children. Their exits overtake
everything: a container's init may end before `runc create` has returned and told its pid. So while somebody expects a
process whose pid it does not know yet (`expecting()`), exits that nobody has claimed are kept; at other times they are
those of orphans and are forgotten.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

_log = logging.getLogger(__name__)


class Exit(NamedTuple):
    """How a process ended: `status` 0-255, or 128 plus the signal that killed it; `at_ns` since the epoch.

    `known` is False where nobody could tell the status any more; then `status` is 255.
    """

    pid: int
    status: int
    at_ns: int
    known: bool = True


Callback = Callable[[Exit], None]


class Reaper:
    """Waits for all children of this process and hands each exit to the one who watches that pid."""

    def __init__(self) -> None:
        self._watched: dict[int, Callback] = {}
        self._unclaimed: dict[int, Exit] = {}
        self._expecting = 0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Reap from now on, whenever SIGCHLD comes."""
        loop.add_signal_handler(signal.SIGCHLD, self.reap)
        self.reap()

    @contextlib.contextmanager
    def expecting(self) -> Iterator[None]:
        """Keep exits that nobody claims, for a `watch()` inside the block."""
        self._expecting += 1
        try:
            yield
        finally:
            self._expecting -= 1
            if not self._expecting:
                self._unclaimed.clear()

    def watch(self, pid: int, callback: Callback) -> None:
        """Call `callback` once, when `pid` has ended; at once if it already has (inside `expecting()`)."""
        ended = self._unclaimed.pop(pid, None)
        if ended is not None:
            callback(ended)
        else:
            self._watched[pid] = callback

    def unwatch(self, pid: int) -> None:
        """Forget `pid`; it is still reaped."""
        self._watched.pop(pid, None)

    def future(self, pid: int) -> asyncio.Future[Exit]:
        """The exit of a child that was spawned since the loop last ran."""
        future: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.watch(pid, lambda ended: None if future.done() else future.set_result(ended))
        return future

    def reap(self) -> None:
        """Collect every child that has ended by now."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                return
            if found is None:
                return
            killed = found.si_code != os.CLD_EXITED
            ended = Exit(found.si_pid, found.si_status + 128 if killed else found.si_status, time.time_ns())
            callback = self._watched.pop(ended.pid, None)
            if callback is not None:
                self._hand_over(callback, ended)
            elif self._expecting:
                self._unclaimed[ended.pid] = ended

    @staticmethod
    def _hand_over(callback: Callback, ended: Exit) -> None:
        try:
            callback(ended)
        except Exception:
            # One task's trouble must not keep the exits of all others from being seen.
            _log.exception("handling the exit of process %d failed", ended.pid)


def start_time(pid: int) -> int:
    """When a process was started, in clock ticks since boot: with the boot id it tells two users of one pid apart.

    Returns:
        0 if there is no such process. Source: proc_pid_stat(5), field 22.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except OSError:
        return 0


def boot_id() -> str:
    """The kernel's random id of this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
