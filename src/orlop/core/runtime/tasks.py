"""A task as the daemon sees it: calls to the shim that holds it, with the words of the Tasks service."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from orlop.api.runtime.task.v2 import shim_pb2
from orlop.base import identifiers
from orlop.base.errdefs import InvalidArgumentError, NotFoundError, OrlopError, UnavailableError, from_status
from orlop.base.phases import Phases, Recent, clock
from orlop.core.runtime.bundle import Bundle
from orlop.core.runtime.shims import CALL_TIMEOUT_S, Shim

M = TypeVar("M", bound=Message)

STATE_TIMEOUT_S: Final = 2.0
# A successor of a dead supervisor is given this many chances to answer a call that may be repeated.
ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIO:
    """Where a process's standard streams go: FIFO paths or URIs, empty for none."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class Task:
    """One task; `exec_id` in its calls names one of its execs, empty its init process."""

    def __init__(self, bundle: Bundle, shim: Shim, recent: Recent[tuple[str, str, str]]) -> None:
        self.bundle = bundle
        self.shim = shim
        self._recent = recent
        self.lock = asyncio.Lock()

    @property
    def namespace(self) -> str:
        return self.bundle.namespace

    @property
    def id(self) -> str:
        return self.bundle.id

    def phases(self, exec_id: str = "") -> Phases:
        """What this daemon notes of the times of a process; ask only for one that there is."""
        return self._recent.at((self.namespace, self.id, exec_id))

    async def state(self, exec_id: str = "") -> shim_pb2.StateResponse:
        """What the shim knows of a process.

        Raises:
            NotFoundError: no such exec, or the task is gone.
            UnavailableError, DeadlineExceededError: the shim does not answer.
        """
        request = shim_pb2.StateRequest(id=self.id, exec_id=exec_id)
        return await self._repeatable("State", request, shim_pb2.StateResponse, STATE_TIMEOUT_S)

    async def pid(self) -> int:
        """Process id of init."""
        reply = await self._repeatable("Connect", shim_pb2.ConnectRequest(id=self.id), shim_pb2.ConnectResponse)
        return reply.task_pid

    async def start(self, exec_id: str = "") -> int:
        """Start a created process; returns its pid."""
        request = shim_pb2.StartRequest(id=self.id, exec_id=exec_id)
        start_ns = clock()
        reply = await self._call("Start", request, shim_pb2.StartResponse, exec_id=exec_id)
        self.phases(exec_id).note("shim Start", start_ns, clock())
        return reply.pid

    async def kill(self, signal: int, *, exec_id: str = "", everyone: bool = False) -> None:
        """Send a signal to a process, or to all of the container."""
        request = shim_pb2.KillRequest(id=self.id, exec_id=exec_id, signal=signal, all=everyone)
        await self._call("Kill", request, Empty, exec_id=exec_id)

    async def exec(self, exec_id: str, spec: AnyMessage, stdio: ProcessIO) -> None:
        """Add an exec; `start` runs it.

        Raises:
            InvalidArgumentError: the id is not valid.
        """
        try:
            identifiers.validate(exec_id)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"invalid exec id {exec_id}: {error.text}") from error
        request = shim_pb2.ExecProcessRequest(
            id=self.id,
            exec_id=exec_id,
            terminal=stdio.terminal,
            stdin=stdio.stdin,
            stdout=stdio.stdout,
            stderr=stdio.stderr,
            spec=spec,
        )
        start_ns = clock()
        await self._call("Exec", request, Empty)
        # Not before: there may be a process of that id already, and its phases are not to be forgotten.
        self._recent.begin((self.namespace, self.id, exec_id)).note("shim Exec", start_ns, clock())

    async def pids(self) -> shim_pb2.PidsResponse:
        """Every process in the container."""
        return await self._repeatable("Pids", shim_pb2.PidsRequest(id=self.id), shim_pb2.PidsResponse)

    async def pause(self) -> None:
        """Freeze all processes."""
        await self._call("Pause", shim_pb2.PauseRequest(id=self.id), Empty)

    async def resume(self) -> None:
        """Thaw them."""
        await self._call("Resume", shim_pb2.ResumeRequest(id=self.id), Empty)

    async def resize_pty(self, width: int, height: int, *, exec_id: str = "") -> None:
        """Tell a terminal its size in characters."""
        request = shim_pb2.ResizePtyRequest(id=self.id, exec_id=exec_id, width=width, height=height)
        await self._call("ResizePty", request, Empty, exec_id=exec_id)

    async def close_stdin(self, *, exec_id: str = "") -> None:
        """End a process's standard input."""
        await self._call("CloseIO", shim_pb2.CloseIORequest(id=self.id, exec_id=exec_id, stdin=True), Empty)

    async def update(self, resources: AnyMessage, annotations: Mapping[str, str]) -> None:
        """Change resource limits while running."""
        request = shim_pb2.UpdateTaskRequest(id=self.id, resources=resources, annotations=annotations)
        await self._call("Update", request, Empty)

    async def checkpoint(self, path: str, options: AnyMessage | None) -> None:
        """Let the runtime dump the processes into the directory `path`."""
        await self._call(
            "Checkpoint", shim_pb2.CheckpointTaskRequest(id=self.id, path=path, options=options), Empty, timeout_s=None
        )

    async def stats(self) -> AnyMessage:
        """Metrics of the container's cgroup, as the shim packs them."""
        reply = await self._repeatable("Stats", shim_pb2.StatsRequest(id=self.id), shim_pb2.StatsResponse)
        return reply.stats

    async def wait(self, exec_id: str = "") -> shim_pb2.WaitResponse:
        """Wait until a process has ended, however long that takes; at once if it has."""
        request = shim_pb2.WaitRequest(id=self.id, exec_id=exec_id)
        return await self._repeatable("Wait", request, shim_pb2.WaitResponse, None)

    async def delete_exec(self, exec_id: str) -> shim_pb2.DeleteResponse:
        """Forget an exec that has ended."""
        request = shim_pb2.DeleteRequest(id=self.id, exec_id=exec_id)
        start_ns = clock()
        reply = await self._call("Delete", request, shim_pb2.DeleteResponse, exec_id=exec_id)
        self.phases(exec_id).note("shim Delete", start_ns, clock())
        return reply

    async def delete(self) -> shim_pb2.DeleteResponse:
        """Let the shim forget the task; the manager removes the rest."""
        return await self._call("Delete", shim_pb2.DeleteRequest(id=self.id), shim_pb2.DeleteResponse)

    async def _call(
        self,
        method: str,
        request: Message,
        reply: type[M],
        *,
        exec_id: str = "",
        timeout_s: float | None = CALL_TIMEOUT_S,
    ) -> M:
        if exec_id and method != "Delete":
            await self.state(exec_id)
        return await self.shim.call(method, request, reply, timeout_s=timeout_s)

    async def _repeatable(
        self, method: str, request: Message, reply: type[M], timeout_s: float | None = CALL_TIMEOUT_S
    ) -> M:
        """A call that changes nothing, and so may be asked again of a successor."""
        for _attempt in range(ATTEMPTS - 1):
            try:
                return await self.shim.call(method, request, reply, timeout_s=timeout_s)
            except UnavailableError:
                if not self.shim.groups or self.shim.alive():
                    raise
        return await self.shim.call(method, request, reply, timeout_s=timeout_s)


def absent(task_id: str) -> OrlopError:
    """The error for a container without a task: a `NotFoundError` in containerd's words, which end there."""
    return from_status(NotFoundError.code, f"task {task_id} not found")
