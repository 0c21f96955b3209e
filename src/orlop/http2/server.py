"""gRPC server for asyncio over HTTP/2.

    server = Server({"/acme.v1.Echo/Say": Method(False, False, lambda context, payload: payload)})
    await server.serve(listening_socket)
    ...
    await server.close(timeout_s=5)

A unary handler that returns bytes is answered inside the read callback; only what waits costs a task. All calls of a
connection run concurrently. Deadlines are enforced here, and a handler is cancelled when its caller has gone.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from orlop.http2 import rpc
from orlop.http2.limits import DEFAULT, Limits
from orlop.http2.rpc import Request, Status
from orlop.http2.serving import GrpcConnection, Method, Peer

if TYPE_CHECKING:
    import ssl

__all__ = ["Context", "Method", "Peer", "Server"]

log: Final = logging.getLogger("orlop.http2")

# After cancelling, how long `close()` waits for handlers to tidy up and for the last answers to be written.
_CUT_S: Final = 1.0
_READ_SIZE: Final = 128 << 10


@dataclass(frozen=True, slots=True)
class Context:
    """What a handler is given beside its messages, unless the server has a `make_context` of its own.

    `deadline` is a point on the event loop's clock (seconds), or None.
    """

    request: Request
    peer: Peer
    deadline: float | None


class Server:
    """Serves methods on any number of listening or connected stream sockets.

    Args:
        methods: by path, `/package.Service/Method`.
        make_context: what handlers are given for a request, its peer and its deadline on the loop's clock.
        translate: the status of an error of the named method's handler; `RpcError` passes without it.
        max_connections: connections at once; more are closed.
        admit: says of a new connection's transport whether it is served; None serves all.

    Attributes:
        tasks: of handlers that are running.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        *,
        make_context: Callable[[Request, Peer, float | None], Any] = Context,
        translate: Callable[[Exception, str], Status] | None = None,
        limits: Limits = DEFAULT,
        max_connections: int = 4096,
        admit: Callable[[asyncio.Transport], bool] | None = None,
    ) -> None:
        self.methods = dict(methods)
        self.services = dict.fromkeys(path[1:].rpartition("/")[0] for path in methods)
        self.make_context = make_context
        self.limits = limits
        self.max_connections = max_connections
        self.room = memoryview(bytearray(_READ_SIZE))
        self._translate = translate
        self._admit = admit
        self._listeners: list[asyncio.Server] = []
        self._connections: set[GrpcConnection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._emptied: asyncio.Event | None = None

    async def serve(self, sock: socket.socket, *, tls: "ssl.SSLContext | None" = None) -> None:
        """Accept connections on a listening stream socket, which is closed by `close()`; returns at once."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        self._listeners.append(await loop.create_server(lambda: GrpcConnection(self), sock=sock, ssl=tls))

    async def attach(self, sock: socket.socket) -> None:
        """Serve one socket that is connected already, e.g. half of a socketpair."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        await loop.connect_accepted_socket(lambda: GrpcConnection(self), sock)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Accept no more, let running calls end for `timeout_s` seconds, then cancel them and cut the connections.

        Clients are told at once (GOAWAY). Handlers that are cancelled get one second more to tidy up; one that does not
        end even then is left running and logged. The socket files are not removed.
        """
        self._closing = True
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.close()
        for connection in list(self._connections):
            connection.end_gracefully()
        await self._wait_empty(timeout_s)
        for connection in list(self._connections):
            connection.cut()
        if self.tasks:
            _done, stuck = await asyncio.wait(self.tasks, timeout=_CUT_S)
            for task in stuck:
                log.warning("http2: handler does not end although it was cancelled: %r", task)
        await self._wait_empty(_CUT_S)
        for connection in list(self._connections):
            connection.abort()
        await self._wait_empty(_CUT_S)

    @property
    def connections(self) -> int:
        """How many peers are connected."""
        return len(self._connections)

    @property
    def running(self) -> int:
        """How many calls are being handled by a task."""
        return len(self.tasks)

    @property
    def held(self) -> int:
        """Bytes of received messages that no handler has taken yet."""
        return sum(connection.held for connection in self._connections)

    async def _wait_empty(self, timeout_s: float) -> None:
        if not self._connections:
            return
        self._emptied = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._emptied.wait()

    # ---- called by GrpcConnection

    def connection_opened(self, connection: GrpcConnection) -> bool:
        """Keep account of a new connection; False if it must not be served."""
        if self._closing or len(self._connections) >= self.max_connections:
            if not self._closing:
                log.warning("http2: connection refused: %d are open", len(self._connections))
            return False
        transport = connection.transport
        if self._admit is not None and (transport is None or not self._admit(transport)):
            return False
        self._connections.add(connection)
        return True

    def connection_closed(self, connection: GrpcConnection) -> None:
        self._connections.discard(connection)
        if not self._connections and self._emptied is not None:
            self._emptied.set()

    def status_of(self, error: Exception, method: str) -> Status:
        """The status of a handler's error; a defect of the translation is logged and told as UNKNOWN."""
        if self._translate is not None:
            try:
                return self._translate(error, method)
            except Exception:
                log.exception("http2: error of %s cannot be translated", method)
        else:
            log.error("http2: handler of %s failed", method, exc_info=error)
        return Status(rpc.UNKNOWN, str(error) or type(error).__name__)
