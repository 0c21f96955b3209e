"""The shim protocol: handlers of `containerd.task.v2.Task` and, with the same messages under other names, `v3.Task`.

Handlers check what they are given, call the task, and put the answer into a message; no logic lives here. Texts and
codes of errors are those of containerd-shim-runc-v2 where it has one.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable
from typing import Final, Protocol, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from orlop.api.runtime.task.v3 import shim_pb2
from orlop.api.types.runc.options import oci_pb2
from orlop.api.types.task import task_pb2
from orlop.base import identifiers
from orlop.base.errdefs import FailedPreconditionError, InvalidArgumentError, NotFoundError
from orlop.base.rpc import Call
from orlop.core.mount import Mount
from orlop.shim import metrics, options
from orlop.shim.process import Process
from orlop.shim.sinks import Paths
from orlop.shim.task import Request, Task
from orlop.version import __version__

_T = TypeVar("_T")

_STATES: Final = {
    "created": task_pb2.CREATED,
    "running": task_pb2.RUNNING,
    "paused": task_pb2.PAUSED,
    "stopped": task_pb2.STOPPED,
}
_ANSWER_LIMIT_S: Final = 600.0


class Tasks(Protocol):
    """The supervisor, as the service sees it."""

    def task(self, container: str) -> Task: ...

    async def create(self, request: Request) -> Task: ...

    async def delete(self, container: str) -> tuple[int, int, int]: ...

    def shut_down(self, now: bool) -> None: ...


class TaskService:
    """One method per RPC; see `orlop.base.rpc` for how they are called."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    async def create(self, _call: Call, request: shim_pb2.CreateTaskRequest) -> shim_pb2.CreateTaskResponse:
        identifiers.validate(request.id)
        bundle = _checked_bundle(request.bundle)
        task = await self._tasks.create(
            Request(
                container=request.id,
                bundle=bundle,
                rootfs=[
                    Mount(type=one.type, source=one.source, target=one.target, options=tuple(one.options))
                    for one in request.rootfs
                ],
                paths=_paths(request),
                options=options.parse(request.options),
                checkpoint=request.checkpoint,
                parent_checkpoint=request.parent_checkpoint,
            )
        )
        return shim_pb2.CreateTaskResponse(pid=task.init.pid)

    async def start(self, _call: Call, request: shim_pb2.StartRequest) -> shim_pb2.StartResponse:
        task = self._tasks.task(request.id)
        task.process(request.exec_id)
        with task.phases(request.exec_id)("start"):
            return shim_pb2.StartResponse(pid=await _to_the_end(task.start(request.exec_id)))

    async def delete(self, _call: Call, request: shim_pb2.DeleteRequest) -> shim_pb2.DeleteResponse:
        task = self._tasks.task(request.id)
        process = task.process(request.exec_id)
        with task.phases(request.exec_id)("delete"):
            if request.exec_id:
                exit_ = await _to_the_end(task.delete_exec(process))
                pid, status, at_ns = process.pid, exit_.status, exit_.at_ns
            else:
                pid, status, at_ns = await _to_the_end(self._tasks.delete(request.id))
        answer = shim_pb2.DeleteResponse(pid=pid, exit_status=status)
        _set_time(answer, at_ns)
        return answer

    def exec(self, _call: Call, request: shim_pb2.ExecProcessRequest) -> Empty:
        task = self._tasks.task(request.id)
        identifiers.validate(request.exec_id)
        task.add_exec(request.exec_id, _paths(request), request.spec.value)
        return Empty()

    def state(self, _call: Call, request: shim_pb2.StateRequest) -> shim_pb2.StateResponse:
        task = self._tasks.task(request.id)
        process = task.process(request.exec_id)
        record = process.record
        answer = shim_pb2.StateResponse(
            id=process.name,
            bundle=task.bundle,
            pid=record.pid,
            status=_status(process),
            stdin=record.stdin,
            stdout=record.stdout,
            stderr=record.stderr,
            terminal=record.terminal,
        )
        if process.exit is not None:
            answer.exit_status = process.exit.status
            _set_time(answer, process.exit.at_ns)
        return answer

    def wait(
        self, _call: Call, request: shim_pb2.WaitRequest
    ) -> shim_pb2.WaitResponse | Awaitable[shim_pb2.WaitResponse]:
        process = self._tasks.task(request.id).process(request.exec_id)
        if process.exit is not None:
            return _waited(process)
        return _wait(process)

    async def kill(self, _call: Call, request: shim_pb2.KillRequest) -> Empty:
        await _to_the_end(self._tasks.task(request.id).kill(request.exec_id, request.signal, request.all))
        return Empty()

    def pids(self, _call: Call, request: shim_pb2.PidsRequest) -> shim_pb2.PidsResponse:
        task = self._tasks.task(request.id)
        execs = {process.pid: process.exec_id for process in task.execs.values()}
        answer = shim_pb2.PidsResponse()
        for pid in task.cgroup.pids():
            info = answer.processes.add(pid=pid)
            if pid in execs:
                _pack(info.info, oci_pb2.ProcessDetails(exec_id=execs[pid]))
        return answer

    async def pause(self, _call: Call, request: shim_pb2.PauseRequest) -> Empty:
        await _to_the_end(self._tasks.task(request.id).pause())
        return Empty()

    async def resume(self, _call: Call, request: shim_pb2.ResumeRequest) -> Empty:
        await _to_the_end(self._tasks.task(request.id).resume())
        return Empty()

    async def checkpoint(self, _call: Call, request: shim_pb2.CheckpointTaskRequest) -> Empty:
        task = self._tasks.task(request.id)
        wanted = oci_pb2.CheckpointOptions()
        if request.options.type_url:
            wanted.ParseFromString(request.options.value)
        path = request.path or wanted.image_path
        if not path:
            raise InvalidArgumentError("checkpoint: no path for the image")
        # As long as it takes: a large container's memory is written to a disk.
        await asyncio.shield(task.checkpoint(path, wanted))
        return Empty()

    async def update(self, _call: Call, request: shim_pb2.UpdateTaskRequest) -> Empty:
        await _to_the_end(self._tasks.task(request.id).update(request.resources.value))
        return Empty()

    def resize_pty(self, _call: Call, request: shim_pb2.ResizePtyRequest) -> Empty:
        process = self._tasks.task(request.id).process(request.exec_id)
        if process.exec_id and process.exit is not None:
            raise FailedPreconditionError("cannot resize a stopped container")
        if max(request.width, request.height) > 0xFFFF:
            raise InvalidArgumentError(f"terminal size {request.width}x{request.height}")
        process.resize(request.width, request.height)
        return Empty()

    def close_io(self, _call: Call, request: shim_pb2.CloseIORequest) -> Empty:
        process = self._tasks.task(request.id).process(request.exec_id)
        if request.stdin:
            process.close_stdin()
        return Empty()

    def stats(self, _call: Call, request: shim_pb2.StatsRequest) -> shim_pb2.StatsResponse:
        answer = shim_pb2.StatsResponse()
        task = self._tasks.task(request.id)
        _pack(answer.stats, metrics.read(task.container, task.cgroup))
        return answer

    def connect(self, _call: Call, request: shim_pb2.ConnectRequest) -> shim_pb2.ConnectResponse:
        pid = 0  # of a container that is not there, as containerd's shim says it
        with contextlib.suppress(NotFoundError):
            pid = self._tasks.task(request.id).init.pid
        return shim_pb2.ConnectResponse(shim_pid=os.getpid(), task_pid=pid, version=f"orlop/{__version__}")

    def shutdown(self, _call: Call, request: shim_pb2.ShutdownRequest) -> Empty:
        self._tasks.shut_down(request.now)
        return Empty()


async def _to_the_end(work: Awaitable[_T]) -> _T:
    """Do `work` to its end even when the caller goes away: half of it would leave a state that nobody knows."""
    return await asyncio.shield(asyncio.ensure_future(asyncio.wait_for(work, _ANSWER_LIMIT_S)))


async def _wait(process: Process) -> shim_pb2.WaitResponse:
    await process.wait()
    return _waited(process)


def _waited(process: Process) -> shim_pb2.WaitResponse:
    answer = shim_pb2.WaitResponse()
    if process.exit is not None:
        answer.exit_status = process.exit.status
        _set_time(answer, process.exit.at_ns)
    return answer


def _status(process: Process) -> task_pb2.Status:
    if process.pausing:
        return task_pb2.PAUSING
    return _STATES.get(process.status, task_pb2.UNKNOWN)


def _set_time(answer: shim_pb2.StateResponse | shim_pb2.WaitResponse | shim_pb2.DeleteResponse, at_ns: int) -> None:
    if at_ns:
        answer.exited_at.FromNanoseconds(at_ns)


def _pack(target: AnyMessage, message: Message) -> None:
    """Into an Any as containerd's typeurl does: the bare name of the type."""
    target.type_url = message.DESCRIPTOR.full_name
    target.value = message.SerializeToString()


def _paths(request: shim_pb2.CreateTaskRequest | shim_pb2.ExecProcessRequest) -> Paths:
    return Paths(stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal)


def _checked_bundle(bundle: str) -> str:
    """The bundle's path, if it is a directory that only we could have filled.

    Raises:
        InvalidArgumentError: it is not.
    """
    if not os.path.isabs(bundle) or os.path.normpath(bundle) != bundle:
        raise InvalidArgumentError(f"bundle {bundle!r}: must be a clean absolute path")
    try:
        found = os.lstat(bundle)
    except OSError as error:
        raise InvalidArgumentError(f"bundle {bundle}: {error.strerror}") from error
    if found.st_mode & 0o170000 != 0o040000 or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise InvalidArgumentError(f"bundle {bundle}: must be a directory that only uid {os.geteuid()} may write")
    return bundle
