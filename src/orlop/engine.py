"""The whole engine inside a Python process: no daemon, no gRPC, the same handlers and the same supervisor.

    async with orlop.Engine(root="/var/lib/mine", state="/run/mine") as engine:
        image = await engine.import_(...)

An engine touches no signal handler, logging, umask, fork handler or sub-reaper flag of its host process and may exist
more than once, each on its own root. On leaving it stops its tasks and removes their mounts, unless told to keep them.
"""

import asyncio
import contextlib
import inspect
import logging
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, Self

from orlop.aio import Client
from orlop.base.errdefs import (
    CanceledError,
    DeadlineExceededError,
    FailedPreconditionError,
    NotFoundError,
    OrlopError,
    UnimplementedError,
    from_status,
)
from orlop.base.rpc import Call, Method, Peer, Service
from orlop.client.channel import Stream
from orlop.core.kinds import MOUNT_MANAGER, RUNTIME, SANDBOX_CONTROLLER
from orlop.core.plugin import Registration
from orlop.core.runtime import Task
from orlop.core.runtime.sandboxes import ShimController
from orlop.server.config import Config
from orlop.server.daemon import Daemon
from orlop.server.doors import status_of

log: Final = logging.getLogger(__name__)

STOP_TIMEOUT_S: Final = 10.0
# Messages that a side of an in-process stream may be ahead of the other.
STREAM_BACKLOG: Final = 16


class Engine(Client):
    """An async context manager that is a connected client of its own engine.

    Args:
        root: directory of what survives; its lock keeps other engines and daemons off.
        state: directory of what does not survive a boot; short, for sockets lie in it (about 60 characters at most).
        namespace: of the calls of this client.
        keep: leave tasks and sandboxes running and mounts active on leaving; the next engine on the same directories
            finds them.
        config: everything else; its root, state and addresses are replaced.
        plugins: the plug-ins instead of the built-in ones.

    Raises on entering:
        FailedPreconditionError: another engine or daemon has the root directory.
    """

    def __init__(
        self,
        *,
        root: str | os.PathLike[str],
        state: str | os.PathLike[str],
        namespace: str = "default",
        keep: bool = False,
        config: Config | None = None,
        plugins: Sequence[Registration] | None = None,
    ) -> None:
        self._config = config or Config()
        self._config.root, self._config.state = os.path.abspath(root), os.path.abspath(state)
        self._config.grpc.address = f"{self._config.state}/orlop.sock"
        self._config.ttrpc.address = ""
        self._config.grpc.uid = self._config.ttrpc.uid = os.geteuid()
        self._config.grpc.gid = self._config.ttrpc.gid = os.getegid()
        self._plugins = plugins
        self._keep = keep
        self._stack = contextlib.AsyncExitStack()
        self._daemon: Daemon | None = None
        super().__init__(self._config.grpc.address, namespace=namespace, opener=self._open)

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            self._daemon = await stack.enter_async_context(Daemon(self._config, self._plugins))
            # Supervisors send their events to the ttrpc door.
            await stack.enter_async_context(self._daemon.doors(grpc=False))
            if not self._keep:
                stack.push_async_callback(self._undo_mounts)
                stack.push_async_callback(self._end_sandboxes)
                stack.push_async_callback(self._stop_tasks)
            await super().__aenter__()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        try:
            await super().__aexit__(*exc)
        finally:
            await self._stack.aclose()
            self._daemon = None

    async def _open(self, _asynchronous: bool) -> "InProcessChannel":
        if self._daemon is None:
            raise FailedPreconditionError("engine: not entered", hint="use it in `async with`")
        return InProcessChannel(self._daemon.services)

    async def _stop_tasks(self) -> None:
        """Kill and delete every task; what resists is logged and left to the next engine on these directories."""
        if self._daemon is None:
            return
        try:
            manager = self._daemon.graph.get(RUNTIME)
        except NotFoundError:
            return
        tasks = manager.all()
        results = await asyncio.gather(*(_stop(task) for task in tasks), return_exceptions=True)
        for task, result in zip(tasks, results, strict=True):
            if isinstance(result, BaseException):
                log.error("task is left", extra={"namespace": task.namespace, "id": task.id, "error": str(result)})
                continue
            with contextlib.suppress(NotFoundError):
                await manager.delete(task.namespace, task.id)

    async def _end_sandboxes(self) -> None:
        """Shut down every sandbox of the built-in controller, so that no supervisor stays for one."""
        if self._daemon is None:
            return
        with contextlib.suppress(NotFoundError):  # there is no such controller here
            controller = self._daemon.graph.get(SANDBOX_CONTROLLER, "shim")
            if isinstance(controller, ShimController):
                await controller.shutdown_all()

    async def _undo_mounts(self) -> None:
        """Undo every activation of mounts; what resists is logged there."""
        if self._daemon is None:
            return
        with contextlib.suppress(NotFoundError):  # there is no manager of them here
            await self._daemon.graph.get(MOUNT_MANAGER).deactivate_all()


async def _stop(task: Task) -> None:
    async with asyncio.timeout(STOP_TIMEOUT_S):
        # Already ended, or gone: both are what is wanted.
        with contextlib.suppress(NotFoundError, FailedPreconditionError):
            await task.kill(signal.SIGKILL, everyone=True)
        with contextlib.suppress(NotFoundError):
            await task.wait()


class InProcessChannel:
    """A client's channel that calls handlers directly; messages still cross as bytes, so nothing is shared."""

    blocking: Final = False
    transport: Final = "inprocess"

    def __init__(self, services: Sequence[Service]) -> None:
        self._methods = {method.name: method for service in services for method in service.methods.values()}
        self._peer = Peer(door="inprocess", uid=os.geteuid(), pid=os.getpid())
        self._closed = False

    async def unary(
        self, service: str, method: str, payload: bytes, *, metadata: Mapping[str, str], timeout_s: float | None
    ) -> bytes:
        found = self._find(service, method)
        try:
            async with asyncio.timeout(timeout_s):
                answer = found.unary(self._call(metadata, timeout_s), payload)
                return await answer if inspect.isawaitable(answer) else answer
        except TimeoutError as error:
            raise DeadlineExceededError(f"{found.name}") from error
        except Exception as error:
            raise _seen_by_client(error, found.name) from error

    async def stream(
        self, service: str, method: str, payload: bytes | None, *, metadata: Mapping[str, str], timeout_s: float | None
    ) -> Stream:
        return InProcessStream(self._find(service, method), self._call(metadata, timeout_s), payload, timeout_s)

    async def close(self) -> None:
        self._closed = True

    def _find(self, service: str, method: str) -> Method:
        if self._closed:
            raise CanceledError("the engine's channel is closed")
        found = self._methods.get(f"/{service}/{method}")
        if found is None:
            raise UnimplementedError(f"unknown method {method} for service {service}")
        return found

    def _call(self, metadata: Mapping[str, str], timeout_s: float | None) -> Call:
        deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        return Call(peer=self._peer, metadata=dict(metadata), deadline=deadline)


class InProcessStream:
    """One streaming call: two bounded queues and a task that runs the handler between them."""

    def __init__(self, method: Method, call: Call, payload: bytes | None, timeout_s: float | None) -> None:
        self._method = method
        self._requests: asyncio.Queue[bytes | None] = asyncio.Queue(STREAM_BACKLOG)
        self._answers: asyncio.Queue[bytes | OrlopError | None] = asyncio.Queue(STREAM_BACKLOG)
        self._ended: OrlopError | None = None
        self._over = False
        requests = self._incoming() if payload is None else payload
        self._task = asyncio.create_task(self._run(call, requests, timeout_s), name=method.name)

    async def send(self, payload: bytes) -> None:
        """Hand one message to the handler. Raises the handler's error if it has ended with one."""
        putting = asyncio.ensure_future(self._requests.put(payload))
        try:
            await asyncio.wait({putting, self._task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not putting.done():
                putting.cancel()
        if self._ended is not None:
            raise self._ended

    async def end(self) -> None:
        """No more messages from the client."""
        if not self._task.done():
            await self._requests.put(None)

    async def receive(self) -> bytes | None:
        """The handler's next message, or None at the end. Raises its error."""
        if self._over:
            return None
        answer = await self._answers.get()
        if isinstance(answer, bytes):
            return answer
        self._over = True
        if answer is not None:
            raise answer
        return None

    async def close(self) -> None:
        """Give the call up; the handler is cancelled and waited for."""
        self._over = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _incoming(self) -> AsyncIterator[bytes]:
        while (payload := await self._requests.get()) is not None:
            yield payload

    async def _run(self, call: Call, requests: bytes | AsyncIterator[bytes], timeout_s: float | None) -> None:
        last: OrlopError | None = None
        try:
            async with asyncio.timeout(timeout_s), contextlib.aclosing(self._method.stream(call, requests)) as answers:
                async for answer in answers:
                    await self._answers.put(answer)
        except TimeoutError:
            last = DeadlineExceededError(self._method.name)
        except Exception as error:
            last = _seen_by_client(error, self._method.name)
        self._ended = last
        await self._answers.put(last)


def _seen_by_client(error: Exception, method: str) -> OrlopError:
    """What a client would get through a door, so that in-process callers see no other errors."""
    return error if isinstance(error, OrlopError) else from_status(*status_of(error, method))
