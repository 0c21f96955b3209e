"""The ttrpc door: the same services and handlers as the gRPC door, for our own client, and events from shims."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final, Self

from orlop.base import trace
from orlop.base.rpc import NAMESPACE_HEADER, Call, Method, Peer, Service
from orlop.server.doors import sockets, status_of
from orlop.ttrpc import server

# What containerd's shims and ttrpc clients send the namespace as. Source: TTRPCHeader in pkg/namespaces.
TTRPC_NAMESPACE_HEADER: Final = "containerd-namespace-ttrpc"
STOP_GRACE_S: Final = 2.0
# What the response envelope adds to a payload at most, with room for a status.
ENVELOPE: Final = 64


class TtrpcDoor:
    """An async context manager: entering binds and serves, leaving stops with a short grace for running calls.

    Raises on entering:
        AlreadyExistsError: another daemon listens at the address.
        OSError: the address cannot be bound.
    """

    def __init__(
        self, path: Path, services: Iterable[Service], *, uid: int, gid: int, mode: int = sockets.MODE
    ) -> None:
        self._path = path
        self._uid, self._gid, self._mode = uid, gid, mode
        self._record = trace.recorder()
        self._server = server.Server(
            {service.name: {name: self._method(m) for name, m in service.methods.items()} for service in services},
            translate=lambda error: status_of(error, "ttrpc"),
        )

    async def __aenter__(self) -> Self:
        listener = sockets.listen(self._path, uid=self._uid, gid=self._gid, mode=self._mode)
        await self._server.serve(listener)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._server.close(STOP_GRACE_S)
        self._path.unlink(missing_ok=True)

    def _method(self, method: Method) -> server.Method:
        streams = method.client_streaming or method.server_streaming
        handler: Callable[[server.Context, Any], Any] = self._streaming(method) if streams else self._unary(method)
        return server.Method(method.client_streaming, method.server_streaming, handler)

    def _unary(self, method: Method) -> Callable[[server.Context, bytes], bytes | Awaitable[bytes]]:
        record = self._record
        if record is None:
            return lambda context, payload: method.unary(call_of(context), payload)

        async def traced(context: server.Context, payload: bytes) -> bytes:
            start = trace.clock()
            try:
                answer = method.unary(call_of(context), payload)
                return await answer if inspect.isawaitable(answer) else answer
            finally:
                record("ttrpc", method.name, start, trace.clock())

        return traced

    def _streaming(self, method: Method) -> Callable[[server.Context, Any], AsyncIterator[bytes]]:
        return lambda context, payload: method.stream(call_of(context), payload)


def call_of(context: server.Context) -> Call:
    """The door-neutral view of a ttrpc request."""
    metadata = context.metadata
    namespace = metadata.get(TTRPC_NAMESPACE_HEADER)
    if namespace is not None and NAMESPACE_HEADER not in metadata:
        metadata[NAMESPACE_HEADER] = namespace
    return Call(
        peer=Peer(door="ttrpc", uid=context.peer.uid, pid=context.peer.pid),
        metadata=metadata,
        deadline=context.deadline,
        max_message=context.message_limit - ENVELOPE,
    )
