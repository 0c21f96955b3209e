"""A process of a task: init, or one that was added by Exec. What it is, how it ended, what is known of it on disk."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from orlop.base import failpoints
from orlop.base.errdefs import FailedPreconditionError, NotFoundError
from orlop.base.phases import clock
from orlop.linux import pidfd
from orlop.shim import keeper, reaper, records
from orlop.shim.reaper import Exit
from orlop.shim.records import Record
from orlop.shim.sinks import Paths
from orlop.shim.stdio import ProcessIO

_log = logging.getLogger(__name__)


class Process:
    """One process.

    Attributes:
        record: what lies on disk; its `status` is the state.
        io: its stdio, None until it has one.
        exit: how it ended, None before.
        starting: a start is under way; the exit is told after it.
        running_since_ns, ended_ns: when the runtime had started it and when its exit was seen, on `phases.clock`; 0
            for what this supervisor has not seen.
    """

    def __init__(self, bundle: str, record: Record) -> None:
        self.bundle = bundle
        self.record = record
        self.io: ProcessIO | None = None
        self.exit: Exit | None = None
        self.starting = False
        self.running_since_ns = 0
        self.ended_ns = 0
        self.pausing = False
        self.process_file = ""
        self._waiters: list[asyncio.Future[Exit]] = []
        self._keeper: keeper.Keeper | None = None
        self._pidfd = -1

    @property
    def exec_id(self) -> str:
        return self.record.exec_id

    @property
    def name(self) -> str:
        """As events and State name it: the exec's id, or the container's for init."""
        return self.record.exec_id or self.record.container

    @property
    def pid(self) -> int:
        return self.record.pid

    @property
    def status(self) -> str:
        return self.record.status

    @property
    def paths(self) -> Paths:
        one = self.record
        return Paths(stdin=one.stdin, stdout=one.stdout, stderr=one.stderr, terminal=one.terminal)

    def save(self) -> None:
        """Write the record. Raises OSError when that fails: then nothing must be told that only it would remember."""
        records.write(self.bundle, self.record)

    def began(self, pid: int, status: str) -> None:
        """The runtime has made the process: keep what must be kept and write it down."""
        self.record.pid = pid
        self.record.start_time = reaper.start_time(pid)
        if self.record.status != records.STOPPED:
            self.record.status = status
        if self.io is not None:
            self.io.on_kept_changed = self.renew_keeper
            self._start_keeper()
        self.save()

    def restart(self) -> None:
        """What the runtime had made has gone again, and no record tells of it: this is created, and not made."""
        self.close()
        self.record.pid = self.record.start_time = 0
        self.record.keeper = {}
        self.record.status = records.CREATED

    def set_status(self, status: str) -> None:
        """Enter a state; one that has stopped stays so."""
        if self.record.status != records.STOPPED:
            self.record.status = status
            self.save()

    def found(self, status: str) -> None:
        """It is in this state, whatever its record says, which stays as it was where the disk is full: a successor asks
        the runtime and the cgroup."""
        if self.record.status in (records.STOPPED, status):
            return
        self.record.status = status
        try:
            self.save()
        except OSError as error:
            _log.warning("record of %s not written: %s", self.name, error)

    def ended(self, exit_: Exit) -> None:
        """The process has ended: write it down first, then tell those who wait."""
        self.exit = exit_
        self.ended_ns = clock()
        self.record.status = records.STOPPED
        self.record.exit_status = exit_.status
        self.record.exited_at_ns = exit_.at_ns
        self.record.exit_known = exit_.known
        try:
            self.save()
        except OSError as error:
            # The bundle has gone or the disk is full. Who waits must hear all the same.
            _log.warning("record of %s not written: %s", self.name, error)
        if self.io is not None:
            self.io.ended()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(exit_)

    async def wait(self) -> Exit:
        """How it ended, when it has."""
        if self.exit is not None:
            return self.exit
        waiter: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def send_signal(self, signum: int) -> None:
        """Signal the process.

        Raises:
            NotFoundError: it has ended, or is an init that is still to be restored from a checkpoint.
            FailedPreconditionError: it is an exec that was never started.
        """
        if self.exit is not None:
            raise NotFoundError("process already finished")
        if not self.pid and not self.exec_id:
            raise NotFoundError("no such container")
        if not self.pid:
            raise FailedPreconditionError("process not created")
        try:
            if self._pidfd >= 0:
                pidfd.pidfd_send_signal(self._pidfd, signum)
            else:
                # Ours to reap and not reaped yet, so the pid is nobody else's.
                os.kill(self.pid, signum)
        except ProcessLookupError as error:
            raise NotFoundError("process already finished") from error
        failpoints.reach("shim.kill.signalled")

    def resize(self, width: int, height: int) -> None:
        """Tell a terminal its size; without a terminal nothing happens."""
        if self.io is not None and self.io.console is not None:
            self.io.console.resize(width, height)

    def close_stdin(self) -> None:
        """The client will write no more."""
        if self.io is not None:
            self.io.close_stdin()
            if not self.record.stdin_closed:
                self.record.stdin_closed = True
                self.save()

    def close(self) -> None:
        """Let go of stdio and keeper."""
        if self.io is not None:
            self.io.on_kept_changed = lambda: None
            self.io.close()
        self._end_keeper()
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    # ---- keepers

    def renew_keeper(self) -> None:
        """Hold what is still to be held and no more."""
        old, self._keeper = self._keeper, None
        self._start_keeper()
        if old is not None:
            old.end()
        try:
            self.save()
        except OSError as error:
            _log.warning("record of %s not written: %s", self.name, error)

    def _start_keeper(self) -> None:
        self.record.keeper = {}
        if self.io is None or not self.io.kept:
            return
        try:
            title = f"{self.record.container} {self.record.exec_id}".strip()
            self._keeper = keeper.start(title, self.io.kept, self.bundle)
        except OSError as error:
            # The container lives without; it is only a crash of this supervisor that it would not survive.
            _log.warning("no keeper for %s: %s", self.name, error)
            return
        one = self._keeper
        self.record.keeper = {"pid": one.pid, "start_time": one.start_time, "fds": one.fds}

    def _end_keeper(self) -> None:
        if self._keeper is not None:
            self._keeper.end()
            self._keeper = None

    # ---- adoption

    def adopt_keeper(self) -> dict[str, int]:
        """Descriptors that the keeper of a killed supervisor has held; it goes on holding them."""
        found: dict[str, Any] = self.record.keeper
        if not found:
            return {}
        self._keeper = keeper.Keeper(int(found["pid"]), int(found["start_time"]), found["fds"])
        return self._keeper.fetch()

    def watch_by_pidfd(self, handle: int, callback: Callable[[Exit], None]) -> None:
        """Call `callback` when a process that is not our child has ended."""
        loop = asyncio.get_running_loop()
        self._pidfd = handle

        def readable() -> None:
            loop.remove_reader(handle)
            callback(foreign_exit(self.pid, handle))

        loop.add_reader(handle, readable)


def foreign_exit(pid: int, handle: int) -> Exit:
    """How a process ended that somebody else waits for: from its zombie, else from its pidfd, else unknown."""
    status = pidfd.zombie_status(pid)
    if status is None:
        status = pidfd.exit_status(handle)
    if status is None:
        return Exit(pid, 255, time.time_ns(), known=False)
    code = os.waitstatus_to_exitcode(status)
    return Exit(pid, 128 - code if code < 0 else code, time.time_ns())
