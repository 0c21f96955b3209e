"""One client's way to a daemon: typed calls over a channel, with namespace, lease and deadline.

Everything above (images, containers, tasks, pull and so on) is written against `Session` only, as coroutines. Where a
step must wait for something else than an RPC it asks the session to: `blocking()` for a call that blocks, `looped()`
for what needs an event loop in any case (transfers). A blocking session does these in place.
"""

import _thread  # `threading` costs what a blocking client does not need
import contextlib
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from orlop.base.phases import Phases
from orlop.client.channel import (
    LEASE_HEADER,
    NAMESPACE_HEADER,
    Channel,
    Request,
    Response,
    Rpc,
    Stream,
)

if TYPE_CHECKING:
    import asyncio

P = ParamSpec("P")
T = TypeVar("T")
# Of calls that a client notes; what it did before is forgotten.
NOTED_CALLS = 4096

Opener = Callable[[bool], Awaitable[Channel]]


@dataclass(slots=True, kw_only=True)
class Connection:
    """The channel that sessions of one client share, opened by the first call."""

    open: Opener
    channel: Channel | None = None
    # The first callers, in threads or on the event loop that it then belongs to, open one channel and not one each;
    # asyncio is not imported by blocking clients.
    blocking_opening: _thread.LockType = field(default_factory=_thread.allocate_lock)
    loop: "asyncio.AbstractEventLoop | None" = None
    opening: "asyncio.Lock | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Typed access to one daemon in one namespace.

    Attributes:
        namespace: sent with every call.
        lease: id of the lease that what is made belongs to, or an empty string.
        timeout_s: deadline of each unary call in seconds, None for none.
        asynchronous: whether coroutines may suspend.
        phases: notes how long each call takes; None where nobody wants to know.
    """

    connection: Connection
    namespace: str
    lease: str = ""
    timeout_s: float | None = None
    asynchronous: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    phases: Phases | None = None

    @classmethod
    def opened_by(
        cls, opener: Opener, *, namespace: str, timeout_s: float | None = None, asynchronous: bool = False
    ) -> "Session":
        """A session whose channel `opener(asynchronous)` makes when it is first needed."""
        return cls(
            connection=Connection(open=opener), namespace=namespace, timeout_s=timeout_s, asynchronous=asynchronous
        )

    def with_lease(self, lease: str) -> "Session":
        """The same connection, with `lease` named in every call."""
        return Session(
            connection=self.connection,
            namespace=self.namespace,
            lease=lease,
            timeout_s=self.timeout_s,
            asynchronous=self.asynchronous,
            headers=self.headers,
            phases=self.phases,
        )

    def with_namespace(self, namespace: str) -> "Session":
        """The same connection in another namespace, without a lease."""
        return Session(
            connection=self.connection,
            namespace=namespace,
            timeout_s=self.timeout_s,
            asynchronous=self.asynchronous,
            headers=self.headers,
            phases=self.phases,
        )

    def timed(self) -> "Session":
        """The same connection, noting how long each call takes."""
        return replace(self, phases=Phases(limit=NOTED_CALLS))

    def phase(self, name: str) -> "contextlib.AbstractContextManager[object]":
        """A context whose time is noted under that name, if times are noted."""
        return contextlib.nullcontext() if self.phases is None else self.phases(name)

    async def channel(self) -> Channel:
        """The channel, connected."""
        if self.connection.channel is not None:
            return self.connection.channel
        with self.phase("connect"):
            return await self._connected()

    async def _connected(self) -> Channel:
        connection = self.connection
        if not self.asynchronous:
            with connection.blocking_opening:
                if connection.channel is None:
                    connection.channel = await connection.open(False)
            return connection.channel
        import asyncio

        if connection.opening is None:
            connection.opening = asyncio.Lock()
            connection.loop = asyncio.get_running_loop()
        async with connection.opening:
            if connection.channel is None:
                connection.channel = await connection.open(True)
        return connection.channel

    async def call(
        self, rpc: Rpc[Request, Response], request: Request, *, timeout_s: float | None = None, endless: bool = False
    ) -> Response:
        """Call a unary RPC.

        Args:
            timeout_s: instead of the session's own.
            endless: wait without a deadline, as Tasks.Wait must.

        Raises:
            OrlopError: what the daemon answered, by its code.
        """
        channel = await self.channel()
        with self.phase(rpc.name):
            payload = await channel.unary(
                rpc.service,
                rpc.method,
                request.SerializeToString(),
                metadata=self.metadata(),
                timeout_s=None if endless else (self.timeout_s if timeout_s is None else timeout_s),
            )
        return rpc.response.FromString(payload)

    async def receive(self, rpc: Rpc[Request, Response], request: Request) -> AsyncIterator[Response]:
        """Call a server-streaming RPC and yield its responses; leaving early gives the stream up."""
        channel = await self.channel()
        with self.phase(rpc.name):
            stream = await channel.stream(
                rpc.service, rpc.method, request.SerializeToString(), metadata=self.metadata(), timeout_s=None
            )
            try:
                while (payload := await stream.receive()) is not None:
                    yield rpc.response.FromString(payload)
            finally:
                await stream.close()

    async def duplex(self, rpc: Rpc[Request, Response]) -> "Duplex[Request, Response]":
        """Begin a two-way streaming RPC."""
        channel = await self.channel()
        stream = await channel.stream(rpc.service, rpc.method, None, metadata=self.metadata(), timeout_s=None)
        return Duplex(rpc, stream)

    def metadata(self) -> dict[str, str]:
        """The headers of a call."""
        headers = dict(self.headers)
        if self.namespace:
            headers[NAMESPACE_HEADER] = self.namespace
        if self.lease:
            headers[LEASE_HEADER] = self.lease
        return headers

    async def blocking(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function that blocks: in place, or in a thread where an event loop must go on."""
        if not self.asynchronous:
            return function(*args, **kwargs)
        import asyncio

        return await asyncio.to_thread(function, *args, **kwargs)

    async def looped(self, operation: "Callable[[Session], Coroutine[Any, Any, T]]") -> T:
        """Run an operation that needs an event loop: on ours, or on a private one with its own connection."""
        if self.asynchronous:
            return await operation(self)
        import asyncio

        twin = Session(
            connection=Connection(open=self.connection.open),
            namespace=self.namespace,
            lease=self.lease,
            timeout_s=self.timeout_s,
            asynchronous=True,
            headers=self.headers,
            phases=self.phases,
        )

        async def whole() -> T:
            try:
                return await operation(twin)
            finally:
                await twin.close()

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(whole())
        return _in_thread(whole)

    async def close(self) -> None:
        """Close the connection, for all sessions that share it."""
        channel, self.connection.channel = self.connection.channel, None
        if channel is not None:
            await channel.close()


class Duplex(Generic[Request, Response]):
    """A two-way stream of messages."""

    def __init__(self, rpc: Rpc[Request, Response], stream: Stream) -> None:
        self._rpc = rpc
        self._stream = stream

    async def send(self, message: Request) -> None:
        """Send one message."""
        await self._stream.send(message.SerializeToString())

    async def receive(self) -> Response | None:
        """The next message, or None at the stream's end."""
        payload = await self._stream.receive()
        return None if payload is None else self._rpc.response.FromString(payload)

    async def end(self) -> None:
        """Send no more."""
        await self._stream.end()

    async def close(self) -> None:
        """Give the stream up."""
        await self._stream.close()


def _in_thread(whole: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on a loop of its own while the calling thread's loop is busy calling us."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    context = contextvars.copy_context()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="orlop-client") as pool:
        return pool.submit(context.run, asyncio.run, whole()).result()
