"""The gRPC door on our own HTTP/2: what grpcio does here, for a fraction of its time; and it sees who calls."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final, Self

from orlop.base import trace
from orlop.base.errdefs import UnavailableError
from orlop.base.rpc import Call, Method, Peer, Service
from orlop.http2 import server
from orlop.http2.limits import Limits
from orlop.http2.rpc import Request, Status
from orlop.server.doors import sockets, status_of

STOP_GRACE_S: Final = 2.0


class LeanDoor:
    """An async context manager: entering binds and serves, leaving stops with a short grace for running calls.

    Raises on entering:
        AlreadyExistsError: another daemon listens at the address.
        UnavailableError: the address cannot be bound.
    """

    def __init__(
        self,
        path: Path,
        services: Iterable[Service],
        *,
        uid: int,
        gid: int,
        mode: int = sockets.MODE,
        max_receive: int,
        max_send: int,
    ) -> None:
        self._path = path
        self._uid, self._gid, self._mode = uid, gid, mode
        self._server = Handlers(max_send).serving(services, Limits(max_receive=max_receive, max_send=max_send))

    async def __aenter__(self) -> Self:
        try:
            listener = sockets.listen(self._path, uid=self._uid, gid=self._gid, mode=self._mode)
        except OSError as error:
            raise UnavailableError(f'gRPC door: cannot listen at "{self._path}": {error.strerror}') from error
        await self._server.serve(listener)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._server.close(STOP_GRACE_S)
        self._path.unlink(missing_ok=True)


class Handlers:
    """Services' handlers as the server of `orlop.http2` calls them."""

    def __init__(self, max_send: int) -> None:
        self._max_send = max_send
        self._record = trace.recorder()

    def serving(
        self,
        services: Iterable[Service],
        limits: Limits,
        *,
        admit: Callable[[asyncio.Transport], bool] | None = None,
    ) -> server.Server:
        """A server of these services, not listening yet."""
        return server.Server(
            {method.name: self._method(method) for service in services for method in service.methods.values()},
            make_context=self._call,
            translate=lambda error, method: Status(*status_of(error, method)),
            limits=limits,
            admit=admit,
        )

    def _call(self, request: Request, peer: server.Peer, deadline: float | None) -> Call:
        return Call(
            peer=Peer(door="grpc", uid=peer.uid, pid=peer.pid),
            metadata=dict(request.metadata),  # requests that repeat share one
            deadline=deadline,
            max_message=self._max_send,
        )

    def _method(self, method: Method) -> server.Method:
        streams = method.client_streaming or method.server_streaming
        handler: Callable[[Call, Any], Any] = method.stream if streams else method.unary
        if self._record is not None:
            handler = self._traced_stream(method) if streams else self._traced(method)
        return server.Method(method.client_streaming, method.server_streaming, handler, method.name)

    def _traced(self, method: Method) -> Callable[[Call, bytes], Awaitable[bytes]]:
        record = self._record
        assert record is not None

        async def handle(call: Call, payload: bytes) -> bytes:
            start = trace.clock()
            try:
                answer = method.unary(call, payload)
                return await answer if inspect.isawaitable(answer) else answer
            finally:
                record("grpc", method.name, start, trace.clock())

        return handle

    def _traced_stream(self, method: Method) -> Callable[[Call, Any], AsyncIterator[bytes]]:
        record = self._record
        assert record is not None

        async def handle(call: Call, payload: Any) -> AsyncIterator[bytes]:
            start = trace.clock()
            answers = method.stream(call, payload)
            try:
                async for answer in answers:
                    yield answer
            finally:
                await answers.aclose()
                record("grpc", method.name, start, trace.clock())

        return handle
