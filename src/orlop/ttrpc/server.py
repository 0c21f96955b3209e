"""ttrpc server for asyncio.

    server = Server({"acme.v1.Echo": {"Say": Method(False, False, lambda context, payload: payload)}})
    server.serve(listen_unix("/run/acme.sock"))
    ...
    await server.close(timeout_s=5)

A unary handler that returns bytes is answered inside the read callback; only what waits costs a task. All calls of a
connection run concurrently. Deadlines are enforced here, and a handler is cancelled when its caller has gone.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Self

from orlop.ttrpc import wire
from orlop.ttrpc._serving import Connection, Context, Method, Peer
from orlop.ttrpc.errors import CANCELLED, DEADLINE_EXCEEDED, TEXT_CANCELLED, TEXT_DEADLINE, UNKNOWN

__all__ = ["Context", "Method", "Peer", "Server", "listen_unix", "status_of"]

_log = logging.getLogger("orlop.ttrpc")

# After cancelling, how long `close()` waits for handlers to tidy up and for the last answers to be written.
_CUT_SECONDS: Final = 1.0

Services = Mapping[str, Mapping[str, Method]]


def status_of(error: Exception) -> tuple[int, str]:
    """What an error of a handler becomes unless the server is given a `translate` of its own: UNKNOWN, as in Go."""
    if isinstance(error, TimeoutError):
        return DEADLINE_EXCEEDED, str(error) or TEXT_DEADLINE
    if isinstance(error, asyncio.CancelledError):
        return CANCELLED, TEXT_CANCELLED
    return UNKNOWN, str(error) or type(error).__name__


def listen_unix(path: str | os.PathLike[str], *, mode: int = 0o600, backlog: int = 128) -> socket.socket:
    """A listening unix socket at `path`, which must not exist; its mode is right from the first moment.

    Raises:
        OSError: EADDRINUSE if the path exists; ENAMETOOLONG, ENOENT, EACCES as bind(2).
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # On Linux the socket file takes its mode from the unbound socket, and umask only narrows it.
        os.fchmod(sock.fileno(), mode)
        sock.bind(os.fspath(path))
        sock.listen(backlog)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        error.filename = error.filename or os.fspath(path)
        raise
    return sock


class Server:
    """Serves methods on any number of listening or connected stream sockets.

    Args:
        services: methods by service and name, e.g. `{"acme.v1.Echo": {"Say": Method(...)}}`; more with `add`.
        translate: code and message of a handler's error; `TtrpcError` passes without it.
        check_access: called for each connection; returns why the peer may not use it, or None if it may.
        message_limit: largest message taken or sent, envelope included, with peers that offer nothing else.
        raised_limit: the most that is agreed on with a peer that offers more (docs/ttrpc.md).
        max_calls: calls at once on one connection; more are answered RESOURCE_EXHAUSTED.
        max_connections: connections at once; more are closed.
        stall_timeout_s: how long a handler may leave a full stream untouched before it loses its call, and a peer a
            large message unfinished before it loses its connection.
        max_unfinished: bytes of large messages that all peers together may have under way; who comes later waits.
    """

    def __init__(
        self,
        services: Services | None = None,
        *,
        translate: Callable[[Exception], tuple[int, str]] | None = None,
        check_access: Callable[[Peer], str | None] | None = None,
        message_limit: int = wire.MESSAGE_LIMIT,
        raised_limit: int = wire.RAISED_LIMIT,
        max_calls: int = 8192,
        max_connections: int = 4096,
        stall_timeout_s: float = 30.0,
        max_unfinished: int = 64 << 20,
    ) -> None:
        self.services: dict[str, Mapping[str, Method]] = dict(services or {})
        self.message_limit = message_limit
        self.raised_limit = min(raised_limit, wire.RAISED_LIMIT)
        self.max_calls = max_calls
        self.max_connections = max_connections
        self.stall_timeout_s = stall_timeout_s
        self.max_unfinished = max_unfinished
        self._unfinished = 0
        self._waiting: dict[Connection, int] = {}  # in the order they came
        self._translate = translate
        self._check_access = check_access
        self._listeners: list[asyncio.Server] = []
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._emptied: asyncio.Event | None = None

    def add(self, name: str, methods: Mapping[str, Method]) -> None:
        """Serve one more service, from the next request on.

        Raises:
            ValueError: a service of that name is there.
        """
        if name in self.services:
            raise ValueError(f"ttrpc service {name!r} is registered twice")
        self.services[name] = methods

    async def serve(self, sock: socket.socket) -> None:
        """Accept connections on a listening stream socket, which is closed by `close()`; returns at once."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        self._listeners.append(await loop.create_server(lambda: Connection(self), sock=sock))

    async def attach(self, sock: socket.socket) -> None:
        """Serve one socket that is connected already, e.g. half of a socketpair."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        await loop.connect_accepted_socket(lambda: Connection(self), sock)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Accept no more, let running calls end for `timeout_s` seconds, then cancel them and cut the connections.

        New requests meanwhile are answered UNAVAILABLE. Handlers that are cancelled get one second more to tidy up; one
        that does not end even then is left running and logged. The socket files are not removed.
        """
        self._closing = True
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.close()
        for connection in list(self._connections):
            connection.close_when_idle()
        await self._wait_empty(timeout_s)
        for connection in list(self._connections):
            connection.cut()
        if self._tasks:
            _done, stuck = await asyncio.wait(self._tasks, timeout=_CUT_SECONDS)
            for task in stuck:
                _log.warning("ttrpc handler does not end although it was cancelled: %r", task)
        await self._wait_empty(_CUT_SECONDS)
        for connection in list(self._connections):
            connection.abort()
        await self._wait_empty(_CUT_SECONDS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def connections(self) -> int:
        """How many peers are connected."""
        return len(self._connections)

    @property
    def active_calls(self) -> int:
        """How many calls are being handled by a task."""
        return sum(connection.active_calls for connection in self._connections)

    async def _wait_empty(self, timeout_s: float) -> None:
        if not self._connections:
            return
        self._emptied = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._emptied.wait()

    # ---- called by Connection

    def connection_opened(self, connection: Connection) -> bool:
        """Keep account of a new connection; False if it must not be served."""
        if self._closing or len(self._connections) >= self.max_connections:
            if not self._closing:
                _log.warning("ttrpc: connection refused: %d are open", len(self._connections))
            return False
        self._connections.add(connection)
        return True

    def connection_closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._waiting.pop(connection, None)
        if not self._connections and self._emptied is not None:
            self._emptied.set()

    def may_take(self, connection: Connection, length: int) -> bool:
        """Whether memory for a large message is free; else the connection is told when it is."""
        if self._waiting or (self._unfinished and self._unfinished + length > self.max_unfinished):
            self._waiting[connection] = length
            return False
        self._unfinished += length
        return True

    def give_back(self, length: int) -> None:
        """A large message has come, or never will."""
        self._unfinished -= length
        while self._waiting:
            connection, wanted = next(iter(self._waiting.items()))
            if self._unfinished and self._unfinished + wanted > self.max_unfinished:
                return
            del self._waiting[connection]
            self._unfinished += wanted
            connection.begin_large()

    def refusal(self, peer: Peer) -> str | None:
        """Why `peer` may not use this server, or None."""
        if self._check_access is None:
            return None
        try:
            return self._check_access(peer)
        except Exception:
            _log.exception("ttrpc: access check of %r failed", peer)
            return "access check failed"

    def status_of(self, context: Context, error: Exception) -> tuple[int, str]:
        """Code and message for a handler's error; a defect of the translation is logged and told as UNKNOWN."""
        if self._translate is None:
            _log.exception("ttrpc handler of %s/%s failed", context.service, context.method, exc_info=error)
            return status_of(error)
        try:
            return self._translate(error)
        except Exception:
            _log.exception("ttrpc: error of %s/%s cannot be translated", context.service, context.method)
            return status_of(error)

    def track(self, task: "asyncio.Task[None]") -> None:
        """Own a handler's task until it is done."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
