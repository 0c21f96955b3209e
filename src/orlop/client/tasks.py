"""Tasks and processes: what runs in a container, from create to exit."""

import contextlib
import signal as signals
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from orlop.api.services.tasks.v1 import tasks_pb2 as pb
from orlop.api.types.task import task_pb2
from orlop.base.errdefs import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OrlopError,
    UnavailableError,
)
from orlop.client.channel import Rpc
from orlop.client.io import NullIO, ProcessIO, Streams, remove_fifos
from orlop.client.session import Session
from orlop.client.stamps import to_datetime

if TYPE_CHECKING:
    from orlop.client.images import Image

_SERVICE = "containerd.services.tasks.v1.Tasks"
CREATE = Rpc(_SERVICE, "Create", pb.CreateTaskRequest, pb.CreateTaskResponse)
START = Rpc(_SERVICE, "Start", pb.StartRequest, pb.StartResponse)
DELETE = Rpc(_SERVICE, "Delete", pb.DeleteTaskRequest, pb.DeleteResponse)
DELETE_PROCESS = Rpc(_SERVICE, "DeleteProcess", pb.DeleteProcessRequest, pb.DeleteResponse)
GET = Rpc(_SERVICE, "Get", pb.GetRequest, pb.GetResponse)
LIST = Rpc(_SERVICE, "List", pb.ListTasksRequest, pb.ListTasksResponse)
KILL = Rpc(_SERVICE, "Kill", pb.KillRequest, Empty)
EXEC = Rpc(_SERVICE, "Exec", pb.ExecProcessRequest, Empty)
RESIZE = Rpc(_SERVICE, "ResizePty", pb.ResizePtyRequest, Empty)
CLOSE_IO = Rpc(_SERVICE, "CloseIO", pb.CloseIORequest, Empty)
PAUSE = Rpc(_SERVICE, "Pause", pb.PauseTaskRequest, Empty)
RESUME = Rpc(_SERVICE, "Resume", pb.ResumeTaskRequest, Empty)
PIDS = Rpc(_SERVICE, "ListPids", pb.ListPidsRequest, pb.ListPidsResponse)
CHECKPOINT = Rpc(_SERVICE, "Checkpoint", pb.CheckpointTaskRequest, pb.CheckpointTaskResponse)
UPDATE = Rpc(_SERVICE, "Update", pb.UpdateTaskRequest, Empty)
METRICS = Rpc(_SERVICE, "Metrics", pb.MetricsRequest, pb.MetricsResponse)
WAIT = Rpc(_SERVICE, "Wait", pb.WaitRequest, pb.WaitResponse)


class TaskStatus(StrEnum):
    """What a process is doing."""

    UNKNOWN = "UNKNOWN"
    CREATED = "CREATED"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    PAUSED = "PAUSED"
    PAUSING = "PAUSING"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a process ended. `code` is its exit status, or 128 and the number of the signal that killed it."""

    code: int
    exited_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessState:
    """A process as the daemon sees it."""

    container_id: str
    id: str
    pid: int
    status: TaskStatus
    streams: Streams
    exit_status: int
    exited_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One reading of a task's cgroup.

    Attributes:
        data: `orlop.api.cgroups.v1` or `.v2` `Metrics`, None where the type is neither.
        type_url: of the message that was sent.
    """

    id: str
    timestamp: datetime
    nanoseconds: int
    data: Message | None
    type_url: str
    value: bytes


class Process:
    """One process of a task: its init, or an exec."""

    def __init__(self, session: Session, container_id: str, exec_id: str = "", *, io: ProcessIO | None = None) -> None:
        self._session = session
        self._container_id = container_id
        self._exec_id = exec_id
        self._io: ProcessIO = io or NullIO()
        self._pid = 0

    @property
    def container_id(self) -> str:
        """The container that it runs in."""
        return self._container_id

    @property
    def exec_id(self) -> str:
        """Its own id; empty for the init process."""
        return self._exec_id

    @property
    def pid(self) -> int:
        """Its process id on the host; 0 before it is known."""
        return self._pid

    @property
    def io(self) -> ProcessIO:
        """Its standard streams, as this client has set them up."""
        return self._io

    async def start(self) -> int:
        """Let it run and return its process id. Raises the runtime's own words if it cannot be started.

        Raises:
            UnavailableError: the daemon has gone away; whether it runs is not known, and its streams stay open.
        """
        request = pb.StartRequest(container_id=self._container_id, exec_id=self._exec_id)
        try:
            response = await self._session.call(START, request)
        except UnavailableError:
            raise
        except BaseException:
            await self._session.blocking(self._io.close)
            raise
        self._pid = response.pid or self._pid
        return self._pid

    async def wait(self) -> Exit:
        """Wait until it has exited, however long that takes. May be called before `start` and after the exit."""
        request = pb.WaitRequest(container_id=self._container_id, exec_id=self._exec_id)
        response = await self._session.call(WAIT, request, endless=True)
        return Exit(code=response.exit_status, exited_at=to_datetime(response.exited_at))

    async def kill(self, signal: "int | str | signals.Signals" = "SIGTERM", *, everyone: bool = False) -> None:
        """Send a signal, by number or name; `everyone` reaches every process of the container. Raises NotFoundError."""
        number = signal_number(signal)
        await self._session.call(
            KILL, pb.KillRequest(container_id=self._container_id, exec_id=self._exec_id, signal=number, all=everyone)
        )

    async def resize(self, width: int, height: int) -> None:
        """Set the size of its terminal, in characters."""
        await self._session.call(
            RESIZE,
            pb.ResizePtyRequest(container_id=self._container_id, exec_id=self._exec_id, width=width, height=height),
        )

    async def close_io(self) -> None:
        """Tell it that its input has ended."""
        request = pb.CloseIORequest(container_id=self._container_id, exec_id=self._exec_id, stdin=True)
        await self._session.call(CLOSE_IO, request)

    async def state(self) -> ProcessState:
        """What it is doing now."""
        request = pb.GetRequest(container_id=self._container_id, exec_id=self._exec_id)
        return process_state((await self._session.call(GET, request)).process)

    async def status(self) -> TaskStatus:
        """What it is doing now, in a word."""
        return (await self.state()).status

    async def delete(self, *, force: bool = False) -> Exit:
        """Remove it once it has stopped and return how it ended; its output has arrived by then.

        Args:
            force: kill it first if it still runs.

        Raises:
            FailedPreconditionError: it still runs.
        """
        try:
            state = await self.state()
        except NotFoundError:
            await self._session.blocking(self._io.close)
            raise
        status, streams = state.status, state.streams
        if status in (TaskStatus.STOPPED, TaskStatus.UNKNOWN):
            pass
        elif force:
            await self._kill_and_wait(status)
        else:
            raise FailedPreconditionError(
                f"{self} must be stopped before deletion: {status.lower()}",
                hint="kill it first, or force the deletion",
            )
        try:
            with self._session.phase("output"):
                await self._session.blocking(self._io.wait)
            response = await self._delete()
        finally:
            await self._session.blocking(self._io.close)
        # Whoever made it may be gone, and nobody else will tidy up after it.
        await self._session.blocking(lambda: remove_fifos((streams.stdin, streams.stdout, streams.stderr)))
        return Exit(code=response.exit_status, exited_at=to_datetime(response.exited_at))

    async def detach(self) -> None:
        """Leave it running and its streams to whoever attaches later."""
        await self._session.blocking(self._io.detach)
        await self._session.blocking(self._io.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        try:
            await self.delete(force=True)
        except NotFoundError:  # it has been deleted inside, which is as good
            await self._session.blocking(self._io.close)

    def __str__(self) -> str:
        return (
            f"process {self._exec_id} of task {self._container_id}" if self._exec_id else f"task {self._container_id}"
        )

    async def attach(self) -> None:
        """Begin to copy the streams of a process that someone else has made; its `io` is open."""
        self.began()

    def began(self) -> None:
        """Its streams may be copied: the daemon has created it."""
        self._io.start(self._input_ended)

    def _input_ended(self) -> None:
        """Runs in the copier's thread, when our input is at its end."""
        from orlop.client.handover import call_from_thread

        call_from_thread(self._session, self.close_io)

    async def _kill_and_wait(self, status: TaskStatus) -> None:
        with contextlib.suppress(NotFoundError, FailedPreconditionError):  # it has exited meanwhile
            await self.kill(signals.SIGKILL, everyone=not self._exec_id)
        if status is TaskStatus.PAUSED and not self._exec_id:
            with contextlib.suppress(OrlopError):  # on cgroup v2 a frozen process dies of SIGKILL all the same
                await self._session.call(RESUME, pb.ResumeTaskRequest(container_id=self._container_id))
        await self.wait()

    async def _delete(self) -> pb.DeleteResponse:
        request = pb.DeleteProcessRequest(container_id=self._container_id, exec_id=self._exec_id)
        return await self._session.call(DELETE_PROCESS, request)


class Task(Process):
    """A container's task, which is its init process with all that belongs to it.

    Used as a context manager it is killed and deleted on leaving.
    """

    def __init__(self, session: Session, container_id: str, *, io: ProcessIO | None = None, pid: int = 0) -> None:
        super().__init__(session, container_id, io=io)
        self._pid = pid

    async def pause(self) -> None:
        """Freeze all its processes."""
        await self._session.call(PAUSE, pb.PauseTaskRequest(container_id=self._container_id))

    async def resume(self) -> None:
        """Let them go on."""
        await self._session.call(RESUME, pb.ResumeTaskRequest(container_id=self._container_id))

    async def pids(self) -> list[int]:
        """The host's ids of all its processes."""
        response = await self._session.call(PIDS, pb.ListPidsRequest(container_id=self._container_id))
        return [one.pid for one in response.processes]

    async def processes(self) -> list[tuple[int, str]]:
        """All its processes: host's id, and the exec id where it is one, else an empty string."""
        from orlop.api.types.runc.options import oci_pb2

        response = await self._session.call(PIDS, pb.ListPidsRequest(container_id=self._container_id))
        found = []
        for one in response.processes:
            details = oci_pb2.ProcessDetails()
            if one.HasField("info") and one.info.type_url.endswith("ProcessDetails"):
                details.ParseFromString(one.info.value)
            found.append((one.pid, details.exec_id))
        return found

    async def metrics(self) -> Metric:
        """One reading of its cgroup. Raises NotFoundError if the daemon has none."""
        response = await self._session.call(METRICS, pb.MetricsRequest(filters=[f"id=={self._container_id}"]))
        for one in response.metrics:
            if one.id == self._container_id:
                return Metric(
                    id=one.id,
                    timestamp=to_datetime(one.timestamp),
                    nanoseconds=one.timestamp.nanos,
                    data=decode_metrics(one.data),
                    type_url=one.data.type_url,
                    value=one.data.value,
                )
        raise NotFoundError(f"metrics of task {self._container_id}")

    async def update(self, resources: bytes, *, annotations: Mapping[str, str] | None = None) -> None:
        """Change its limits: `resources` is the JSON of runtime-spec's LinuxResources."""
        packed = PackedAny(type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", value=resources)
        await self._session.call(
            UPDATE,
            pb.UpdateTaskRequest(
                container_id=self._container_id, resources=packed, annotations=dict(annotations or {})
            ),
        )

    async def checkpoint(self, *, stop: bool = False, image_path: str = "", work_path: str = "") -> list[str]:
        """Have CRIU write the task's state; returns digests of the content it became, if any.

        Args:
            stop: the task afterwards.
            image_path: keep the files there instead of in the content store.
            work_path: for CRIU's logs.
        """
        from orlop.api.types.runc.options import oci_pb2

        options = oci_pb2.CheckpointOptions(exit=stop, image_path=image_path, work_path=work_path)
        packed = PackedAny(type_url=options.DESCRIPTOR.full_name, value=options.SerializeToString())
        response = await self._session.call(
            CHECKPOINT, pb.CheckpointTaskRequest(container_id=self._container_id, options=packed), endless=True
        )
        return [one.digest for one in response.descriptors]

    async def checkpoint_image(self, name: str = "", *, stop: bool = False, work_path: str = "") -> "Image":
        """Have CRIU write the task's state, and keep it as an image with its container's image, spec and files.

        The task is paused meanwhile. `Client.restore` and `Image.checkpoint_digest` are the way back.

        Args:
            name: of the image; by default made of the container's id and the time.
            stop: the task afterwards.
            work_path: for CRIU's logs.
        """
        from orlop.client.checkpoint import checkpoint_task
        from orlop.client.containers import Containers

        container = await Containers(self._session).get(self._container_id)
        return await checkpoint_task(self._session, container, name, stop=stop, work_path=work_path)

    async def exec(self, exec_id: str, process: bytes, *, io: ProcessIO | None = None) -> Process:
        """Add a process, not started yet.

        Args:
            process: the JSON of runtime-spec's Process; `Container.exec_spec` makes one.
        """
        child = Process(self._session, self._container_id, exec_id, io=io)
        streams = await self._session.blocking(child.io.open, exec_id)
        packed = PackedAny(type_url="types.containerd.io/opencontainers/runtime-spec/1/Process", value=process)
        request = pb.ExecProcessRequest(
            container_id=self._container_id,
            exec_id=exec_id,
            stdin=streams.stdin,
            stdout=streams.stdout,
            stderr=streams.stderr,
            terminal=streams.terminal,
            spec=packed,
        )
        try:
            await self._session.call(EXEC, request)
        except BaseException:
            await self._session.blocking(child.io.close)
            raise
        child.began()
        return child

    def process(self, exec_id: str, *, io: ProcessIO | None = None) -> Process:
        """An exec that exists already."""
        return Process(self._session, self._container_id, exec_id, io=io)

    async def _delete(self) -> pb.DeleteResponse:
        return await self._session.call(DELETE, pb.DeleteTaskRequest(container_id=self._container_id))


async def list_tasks(session: Session) -> list[ProcessState]:
    """The tasks of the namespace, by container."""
    response = await session.call(LIST, pb.ListTasksRequest())
    return sorted((process_state(one) for one in response.tasks), key=lambda state: state.container_id)


def process_state(process: task_pb2.Process) -> ProcessState:
    """A process from the wire."""
    return ProcessState(
        container_id=process.container_id or process.id,
        id=process.id,
        pid=process.pid,
        status=TaskStatus(task_pb2.Status.Name(process.status)),
        streams=Streams(stdin=process.stdin, stdout=process.stdout, stderr=process.stderr, terminal=process.terminal),
        exit_status=process.exit_status,
        exited_at=to_datetime(process.exited_at),
    )


def decode_metrics(packed: PackedAny) -> Message | None:
    """A task's metrics by type URL: cgroup v1 or v2."""
    if packed.type_url.endswith("cgroups.v1.Metrics"):
        from orlop.api.cgroups.v1 import metrics_pb2 as v1

        return v1.Metrics.FromString(packed.value)
    if packed.type_url.endswith("cgroups.v2.Metrics"):
        from orlop.api.cgroups.v2 import metrics_pb2 as v2

        return v2.Metrics.FromString(packed.value)
    return None


def signal_number(signal: "int | str | signals.Signals") -> int:
    """A signal by number, `TERM`, `SIGTERM`, `SIGRTMIN+3` or `"15"`. Raises InvalidArgumentError."""
    if isinstance(signal, int):
        return int(signal)
    text = signal.upper()
    if text.isascii() and text.isdecimal():
        return int(text)
    name = text if text.startswith("SIG") else f"SIG{text}"
    base, plus, offset = name.partition("+")
    try:
        number = int(signals.Signals[base])
    except KeyError:
        raise InvalidArgumentError(f"invalid signal: {signal}") from None
    if plus and offset.isascii() and offset.isdecimal():
        number += int(offset)
    return number
