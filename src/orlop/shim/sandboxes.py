"""The sandbox API of the supervisor: groups of its tasks, such as the containers of a pod.

A sandbox of ours is a name and a life, without a process of its own: its containers share what their specs say. It is
created, started, stopped and shut down; stopping kills the tasks that belong to it (the daemon has put the sandbox's id
into the file `sandbox` of their bundles), and ends every wait.

    <state>/s/<hex>.sandboxes/<id>    the record, for the successor of a supervisor that was killed

A record is written beside and renamed, before the client is told what it says; one of another boot is never trusted.

Source: containerd's api/runtime/sandbox/v1 for what each call promises; its runc shim's answers are as empty as can be.
"""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Final

from orlop.api.runtime.sandbox.v1 import sandbox_pb2 as pb
from orlop.base import failpoints, identifiers
from orlop.base.errdefs import AlreadyExistsError, FailedPreconditionError, NotFoundError, OrlopError
from orlop.base.rpc import Call
from orlop.shim.paths import Place
from orlop.shim.task import Task

NAME_FILE: Final = "sandbox"
READY: Final = "SANDBOX_READY"
NOT_READY: Final = "SANDBOX_NOTREADY"
_STOP_LIMIT_S: Final = 10.0
_SIZE_LIMIT: Final = 1 << 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One sandbox; times in nanoseconds since the epoch, 0 for what has not happened."""

    boot: str
    id: str
    bundle: str = ""
    netns: str = ""
    created_at_ns: int = 0
    started_at_ns: int = 0
    exited_at_ns: int = 0


class Sandboxes:
    """The sandboxes of one supervisor.

    Args:
        tasks: the supervisor's tasks at this moment.
    """

    def __init__(self, place: Place, boot: str, tasks: Callable[[], Iterable[Task]]) -> None:
        self._directory = place.sandboxes
        self._boot = boot
        self._tasks = tasks
        self._records: dict[str, Record] = {}
        self._ends: dict[str, asyncio.Future[Record]] = {}
        for record in self._read_all():
            self._keep(record)

    def __len__(self) -> int:
        return len(self._records)

    def get(self, sandbox_id: str) -> Record:
        """Raises NotFoundError."""
        try:
            return self._records[sandbox_id]
        except KeyError:
            raise NotFoundError(f"sandbox {sandbox_id}") from None

    def create(self, sandbox_id: str, *, bundle: str, netns: str) -> None:
        """Raises AlreadyExistsError, InvalidArgumentError."""
        identifiers.validate(sandbox_id)
        if sandbox_id in self._records:
            raise AlreadyExistsError(f"sandbox {sandbox_id}")
        self._write(Record(boot=self._boot, id=sandbox_id, bundle=bundle, netns=netns, created_at_ns=time.time_ns()))

    def start(self, sandbox_id: str) -> Record:
        """Start it, once.

        Raises:
            NotFoundError
            FailedPreconditionError: it was started or stopped before.
        """
        record = self.get(sandbox_id)
        if record.started_at_ns or record.exited_at_ns:
            raise FailedPreconditionError(f"sandbox {sandbox_id}: it was started before")
        return self._write(replace(record, started_at_ns=time.time_ns()))

    async def stop(self, sandbox_id: str, limit_s: float) -> None:
        """Kill its tasks and end it; one that has ended is fine.

        Raises:
            NotFoundError
            FailedPreconditionError: a task has not ended within `limit_s`; the sandbox has not, either.
        """
        record = self.get(sandbox_id)
        if record.exited_at_ns:
            return
        members = list(self._members(sandbox_id))
        results = await asyncio.gather(*(_end(task, limit_s) for task in members), return_exceptions=True)
        left = [task.container for task, result in zip(members, results, strict=True) if result is not None]
        if left:
            raise FailedPreconditionError(f"sandbox {sandbox_id}: tasks that do not end: {', '.join(left)}")
        self._end(sandbox_id)

    async def wait(self, sandbox_id: str) -> Record:
        """Return when it has ended, or was removed. Raises NotFoundError."""
        self.get(sandbox_id)
        return await asyncio.shield(self._ends[sandbox_id])

    def remove(self, sandbox_id: str) -> None:
        """Forget it; one that is not there is fine. Whoever waits is told that it has ended."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._directory}/{sandbox_id}")
            failpoints.reach("shim.sandbox.removed")
        record = self._records.pop(sandbox_id, None)
        if record is not None:
            end = self._ends.pop(sandbox_id)
            if not end.done():
                end.set_result(replace(record, exited_at_ns=time.time_ns()))

    def _end(self, sandbox_id: str) -> None:
        record = self._records.get(sandbox_id)
        if record is not None and not record.exited_at_ns:
            self._write(replace(record, exited_at_ns=time.time_ns()))

    def _members(self, sandbox_id: str) -> Iterator[Task]:
        for task in self._tasks():
            try:
                with open(f"{task.bundle}/{NAME_FILE}", encoding="utf-8", errors="replace") as file:
                    found = file.read(256)
            except OSError:  # of no sandbox, or being deleted
                continue
            if found == sandbox_id:
                yield task

    def _keep(self, record: Record) -> None:
        self._records[record.id] = record
        end = self._ends.setdefault(record.id, asyncio.get_running_loop().create_future())
        if record.exited_at_ns and not end.done():
            end.set_result(record)

    def _write(self, record: Record) -> Record:
        place = f"{self._directory}/{record.id}"
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(f"{self._directory}/.{record.id}", flags, 0o600)
        try:
            os.write(fd, json.dumps(asdict(record)).encode())
        finally:
            os.close(fd)
        failpoints.reach("shim.sandbox.written")
        os.rename(f"{self._directory}/.{record.id}", place)
        failpoints.reach("shim.sandbox.renamed")
        self._keep(record)
        return record

    def _read_all(self) -> Iterator[Record]:
        try:
            names = sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return
        for name in names:
            record = _read(f"{self._directory}/{name}")
            if record is not None and record.boot == self._boot and record.id == name and _is_wanted(record):
                yield record
                continue
            with contextlib.suppress(OSError):  # half written, of another boot, or given up by the daemon
                os.unlink(f"{self._directory}/{name}")


async def _end(task: Task, limit_s: float) -> None:
    """Kill a task and wait until it has ended; raises TimeoutError, or what the runtime says while it still runs."""
    if task.init.exit is not None:
        return
    async with asyncio.timeout(limit_s):
        try:
            await task.kill("", 9, True)
        except OrlopError:
            if task.init.exit is None:
                raise
        await task.init.wait()


def _is_wanted(record: Record) -> bool:
    """A daemon that has removed the bundle knows nothing of it any more, and would never shut it down."""
    return not record.bundle or os.path.isdir(record.bundle)


def _read(path: str) -> Record | None:
    known = {one.name for one in fields(Record)}
    try:
        with open(path, "rb") as file:
            loaded = json.loads(file.read(_SIZE_LIMIT))
        return Record(**{name: value for name, value in loaded.items() if name in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


class SandboxService:
    """containerd.runtime.sandbox.v1.Sandbox; one method per RPC.

    Args:
        touch: called when a sandbox has gone.
    """

    def __init__(self, sandboxes: Sandboxes, touch: Callable[[], None]) -> None:
        self._sandboxes = sandboxes
        self._touch = touch

    def create_sandbox(self, _call: Call, request: pb.CreateSandboxRequest) -> pb.CreateSandboxResponse:
        self._sandboxes.create(request.sandbox_id, bundle=request.bundle_path, netns=request.netns_path)
        return pb.CreateSandboxResponse()

    def start_sandbox(self, _call: Call, request: pb.StartSandboxRequest) -> pb.StartSandboxResponse:
        record = self._sandboxes.start(request.sandbox_id)
        answer = pb.StartSandboxResponse()
        answer.created_at.FromNanoseconds(record.created_at_ns)
        return answer

    def platform(self, _call: Call, request: pb.PlatformRequest) -> pb.PlatformResponse:
        from orlop.base import platforms

        self._sandboxes.get(request.sandbox_id)
        here = platforms.default()
        answer = pb.PlatformResponse()
        answer.platform.os, answer.platform.architecture, answer.platform.variant = (
            here.os,
            here.architecture,
            here.variant,
        )
        return answer

    async def stop_sandbox(self, _call: Call, request: pb.StopSandboxRequest) -> pb.StopSandboxResponse:
        limit_s = float(request.timeout_secs) or _STOP_LIMIT_S
        await asyncio.shield(asyncio.ensure_future(self._sandboxes.stop(request.sandbox_id, limit_s)))
        return pb.StopSandboxResponse()

    async def wait_sandbox(self, _call: Call, request: pb.WaitSandboxRequest) -> pb.WaitSandboxResponse:
        record = await self._sandboxes.wait(request.sandbox_id)
        answer = pb.WaitSandboxResponse()
        answer.exited_at.FromNanoseconds(record.exited_at_ns)
        return answer

    def sandbox_status(self, _call: Call, request: pb.SandboxStatusRequest) -> pb.SandboxStatusResponse:
        record = self._sandboxes.get(request.sandbox_id)
        ready = record.started_at_ns and not record.exited_at_ns
        answer = pb.SandboxStatusResponse(sandbox_id=record.id, state=READY if ready else NOT_READY)
        if request.verbose and record.netns:
            answer.info["netns"] = record.netns
        answer.created_at.FromNanoseconds(record.created_at_ns)
        if record.exited_at_ns:
            answer.exited_at.FromNanoseconds(record.exited_at_ns)
        return answer

    def ping_sandbox(self, _call: Call, request: pb.PingRequest) -> pb.PingResponse:
        self._sandboxes.get(request.sandbox_id)
        return pb.PingResponse()

    async def shutdown_sandbox(self, _call: Call, request: pb.ShutdownSandboxRequest) -> pb.ShutdownSandboxResponse:
        """Ends and forgets it; a second time, and for one that never was, there is nothing to do."""
        with contextlib.suppress(NotFoundError):
            await asyncio.shield(asyncio.ensure_future(self._sandboxes.stop(request.sandbox_id, _STOP_LIMIT_S)))
        self._sandboxes.remove(request.sandbox_id)
        self._touch()
        return pb.ShutdownSandboxResponse()

    def sandbox_metrics(self, _call: Call, request: pb.SandboxMetricsRequest) -> pb.SandboxMetricsResponse:
        """None: no process is the sandbox's own, and its tasks have their own."""
        self._sandboxes.get(request.sandbox_id)
        return pb.SandboxMetricsResponse()
