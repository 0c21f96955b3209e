"""asyncio ttrpc client.

    client = await Client.connect("/run/acme.sock.ttrpc")
    answer = await client.call("acme.v1.Echo", "Say", b"...", timeout_s=10)
    async with client.stream("acme.v1.Log", "Follow", b"...", server_streaming=True) as lines:
        async for line in lines: ...
    await client.close()

All calls share the connection. Requests are written in the order in which `call` and `stream` are entered.
`wait_closed` tells the loss of the connection also to those who call nothing.
"""

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, Self

from orlop.ttrpc import wire
from orlop.ttrpc._frames import FrameProtocol
from orlop.ttrpc.errors import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    INTERNAL,
    RESOURCE_EXHAUSTED,
    TEXT_DEADLINE,
    UNAVAILABLE,
    TtrpcError,
)

__all__ = ["Client", "Stream"]

# What may wait for a stream's receiver before the connection is held back, and for how long it may hold it.
_STREAM_MESSAGES: Final = 1024
_STREAM_BYTES: Final = 16 << 20
_STALL_SECONDS: Final = 10.0


class Client:
    """A connection to a ttrpc server. Made by `connect` or `from_socket`, used in one event loop."""

    def __init__(self, protocol: "_ClientProtocol", metadata: "wire.Metadata | None") -> None:
        self._protocol = protocol
        self._metadata = dict(metadata or {})

    @classmethod
    async def connect(
        cls,
        address: str,
        *,
        timeout_s: float | None = 10.0,
        offer: int = 0,
        metadata: "wire.Metadata | None" = None,
    ) -> Self:
        """Connect to the unix socket at `address` (a path, `unix://` before it or not, `@` for an abstract name).

        Args:
            offer: message limit in bytes offered to the peer; a foreign one does not look, and 4 MiB stays
                (docs/ttrpc.md).
            metadata: sent with every call, under the call's own.

        Raises:
            TtrpcError: UNAVAILABLE with address and reason; DEADLINE_EXCEEDED if the server does not accept in time.
        """
        path = wire.unix_path(address)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(timeout_s):
                await _connect(sock, path)
                return await cls.from_socket(sock, address=address, offer=offer, metadata=metadata)
        except TimeoutError:
            sock.close()
            raise TtrpcError(DEADLINE_EXCEEDED, f"connect {address}: {TEXT_DEADLINE}") from None
        except (OSError, ValueError) as error:
            sock.close()
            reason = getattr(error, "strerror", None) or error
            raise TtrpcError(UNAVAILABLE, f"connect {address}: {reason}") from error
        except BaseException:
            sock.close()
            raise

    @classmethod
    async def from_socket(
        cls, sock: socket.socket, *, address: str = "", offer: int = 0, metadata: "wire.Metadata | None" = None
    ) -> Self:
        """Use a connected stream socket, which belongs to the client from now on."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        # create_connection() takes any stream socket that is connected, also a unix one.
        _transport, protocol = await loop.create_connection(lambda: _ClientProtocol(address, offer), sock=sock)
        return cls(protocol, metadata)

    @property
    def address(self) -> str:
        return self._protocol.address

    @property
    def message_limit(self) -> int:
        """Largest message in bytes that the peer takes, envelope included, as far as is known yet."""
        return self._protocol.send_limit

    @property
    def closed(self) -> bool:
        """Whether the connection is gone."""
        return self._protocol.error is not None

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout_s: float | None = None,
        metadata: "wire.Metadata | None" = None,
    ) -> bytes:
        """One request, one answer.

        Raises:
            TtrpcError: the peer's status; DEADLINE_EXCEEDED; UNAVAILABLE naming the address if the connection is lost;
                RESOURCE_EXHAUSTED if the request or the answer is beyond the limit.
        """
        await self._learn_limit(len(payload) + (1 << 16), timeout_s)
        call = self._protocol.open(service, method, payload, timeout_s, self._pairs(metadata), 0, False)
        try:
            kind, _flags, data = await call.next()
        finally:
            self._protocol.forget(call)
        if kind != wire.RESPONSE:
            raise TtrpcError(INTERNAL, f"{call.name}: peer sent stream data in answer to a unary call")
        return wire.answer_of(data, call.name)

    def stream(
        self,
        service: str,
        method: str,
        payload: bytes = b"",
        *,
        client_streaming: bool = False,
        server_streaming: bool = False,
        timeout_s: float | None = None,
        metadata: "wire.Metadata | None" = None,
    ) -> "Stream":
        """Open a stream; the request is written at once. `payload` is the request, or nothing where the client streams.

        Raises:
            TtrpcError: UNAVAILABLE; RESOURCE_EXHAUSTED; what the server says comes from the stream's methods.
            ValueError: neither side streams.
        """
        if not client_streaming and not server_streaming:
            raise ValueError("a stream needs a side that streams; use call()")
        flags = wire.REMOTE_OPEN if client_streaming else wire.REMOTE_CLOSED
        call = self._protocol.open(service, method, payload, timeout_s, self._pairs(metadata), flags, True)
        return Stream(self, self._protocol, call, client_streaming, server_streaming)

    async def close(self) -> None:
        """Close the connection; pending calls end with CANCELLED. Returns when the socket is closed."""
        self._protocol.end(TtrpcError(CANCELLED, f"connection to {self.address} was closed by this side"))
        await self._protocol.wait_closed()

    async def wait_closed(self) -> str:
        """Return when the connection is gone, with the reason."""
        await self._protocol.wait_closed()
        return str(self._protocol.error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _pairs(self, metadata: "wire.Metadata | None") -> list[tuple[str, str]]:
        return wire.pairs({**self._metadata, **metadata} if metadata else self._metadata)

    async def _learn_limit(self, size: int, timeout_s: float | None = None) -> None:
        """Before a message that may need it, get the answer to our offer, by a call that no server implements."""
        if size <= self._protocol.send_limit or self._protocol.settled:
            return
        try:
            await self.call(wire.LIMIT_SERVICE, wire.LIMIT_METHOD, b"", timeout_s=timeout_s)
        except TtrpcError as error:
            if error.code in (UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED):
                raise


class Stream:
    """One open stream of a `Client`; leaving `async with` gives up what is left of it.

    What is not received is kept, up to 1024 messages or 16 MiB; then the connection is read no further for 10 s, so
    that the peer slows down, and after that the stream fails with RESOURCE_EXHAUSTED.
    """

    def __init__(
        self, client: Client, protocol: "_ClientProtocol", call: "_Call", client_streaming: bool, server_streaming: bool
    ) -> None:
        self._client = client
        self._protocol = protocol
        self._call = call
        self._sending = client_streaming
        self._server_streaming = server_streaming
        self._ended = False

    async def send(self, payload: bytes) -> None:
        """Send one message. One that the server no longer wants is dropped: `receive()` tells how the stream ended.

        Raises:
            TtrpcError: UNAVAILABLE; RESOURCE_EXHAUSTED beyond the limit.
            ValueError: this side was closed, or never streams.
        """
        if not self._sending:
            raise ValueError(f"{self._call.name}: this side of the stream is closed")
        await self._client._learn_limit(len(payload))
        self._protocol.send_data(self._call, 0, payload)
        if not self._protocol.writable:
            await self._protocol.drained()

    async def close_send(self) -> None:
        """Tell the server that no more comes. Harmless when repeated."""
        if self._sending:
            self._sending = False
            # Never together with data: Go's server refuses that.
            self._protocol.send_data(self._call, wire.REMOTE_CLOSED | wire.NO_DATA, b"")

    async def receive(self) -> bytes | None:
        """The next message, or None when the server has ended the stream well.

        Raises:
            TtrpcError: the server's status, or as `Client.call`.
        """
        if self._ended:
            return None
        try:
            kind, flags, data = await self._call.next()
        except TtrpcError:
            self._ended = True
            raise
        if kind == wire.RESPONSE:
            self._ended = True
            payload = wire.answer_of(data, self._call.name)
            return payload if payload or not self._server_streaming else None
        if flags & wire.REMOTE_CLOSED:
            self._ended = True
        return None if flags & wire.NO_DATA else bytes(data)

    async def result(self) -> bytes:
        """Close this side and return the server's one answer, where only the client streams.

        Raises:
            TtrpcError: as `receive`; INTERNAL if the server ends the stream without an answer.
        """
        await self.close_send()
        answer = await self.receive()
        if answer is None:
            raise TtrpcError(INTERNAL, f"{self._call.name}: stream ended without an answer")
        return answer

    def cancel(self) -> None:
        """Give up the stream: nothing more comes, and a peer that understands stops. Harmless when repeated."""
        self._ended = True
        self._sending = False
        self._protocol.forget(self._call)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self.receive()) is not None:
            yield message

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()


class _Call:
    """What came for a call and is not yet taken; one task waits at a time."""

    __slots__ = (
        "_bytes",
        "_error",
        "_items",
        "_protocol",
        "_stall",
        "_streaming",
        "_waiter",
        "finished",
        "name",
        "stream",
        "timer",
    )

    def __init__(self, protocol: "_ClientProtocol", stream: int, name: str, streaming: bool) -> None:
        self._protocol = protocol
        self._items: deque[tuple[int, int, bytes | memoryview]] = deque()
        self._bytes = 0
        self._error: TtrpcError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._streaming = streaming
        self._stall: asyncio.TimerHandle | None = None
        self.stream = stream
        self.name = name
        self.timer: asyncio.TimerHandle | None = None
        self.finished = False

    async def next(self) -> tuple[int, int, bytes | memoryview]:
        while not self._items:
            if self._error is not None:
                raise self._error.copy()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        item = self._items.popleft()
        self._bytes -= len(item[2])
        if self._stall is not None:
            self._restall()
        return item

    def feed(self, kind: int, flags: int, data: bytes | memoryview) -> None:
        self._items.append((kind, flags, data))
        self._bytes += len(data)
        if self._streaming and self._stall is None and not self.finished and self._full():
            self._protocol.hold()
            self._stall = asyncio.get_running_loop().call_later(_STALL_SECONDS, self._stalled)
        self._wake()

    def fail(self, error: TtrpcError) -> None:
        if self._error is None:
            self._error = error
        self._let_go()
        self._wake()

    def drop(self) -> None:
        """Nobody will take what is left."""
        self._items.clear()
        self._bytes = 0
        self._let_go()

    def _full(self) -> bool:
        return len(self._items) > _STREAM_MESSAGES or self._bytes > _STREAM_BYTES

    def _restall(self) -> None:
        assert self._stall is not None
        if self._full():
            self._stall.cancel()
            self._stall = asyncio.get_running_loop().call_later(_STALL_SECONDS, self._stalled)
        else:
            self._let_go()

    def _stalled(self) -> None:
        text = f"{self.name}: stream buffer full: nothing was taken for {_STALL_SECONDS:g} s"
        self._protocol.fail(self, TtrpcError(RESOURCE_EXHAUSTED, text))

    def _let_go(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
            self._protocol.release()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._waiter = None


class _ClientProtocol(FrameProtocol):
    def __init__(self, address: str, offer: int) -> None:
        super().__init__(wire.MESSAGE_LIMIT)
        self.address = address
        self.error: TtrpcError | None = None
        self._offer = wire.bounded_limit(offer) if offer else 0
        self.settled = not offer  # whether the peer has answered our offer, or never will
        self.receive_limit = max(self._offer, wire.MESSAGE_LIMIT)
        self._extended = False  # the peer knows our extension
        self._calls: dict[int, _Call] = {}
        self._next_stream = 1
        self._gone = asyncio.Event()

    # ---- for Client and Stream

    def open(
        self,
        service: str,
        method: str,
        payload: bytes,
        timeout_s: float | None,
        metadata: list[tuple[str, str]],
        flags: int,
        streaming: bool,
    ) -> _Call:
        name = f"{service}/{method}"
        if self.error is not None:
            raise self.error.copy()
        timeout_nano = 0
        if timeout_s is not None:
            if timeout_s <= 0:
                raise TtrpcError(DEADLINE_EXCEEDED, f"{name}: {TEXT_DEADLINE}")
            timeout_nano = max(1, min(int(timeout_s * 1e9), (1 << 63) - 1))
        stream = self._next_stream
        if self._offer and stream == 1:
            metadata.append((wire.LIMIT_KEY, str(self._offer)))
        data = wire.encode_request(service, method, payload, timeout_nano, metadata)
        if len(data) > self.send_limit:
            raise wire.oversize(len(data), self.send_limit)
        self._next_stream += 2
        call = self._calls[stream] = _Call(self, stream, name, streaming)
        if timeout_s is not None:
            error = TtrpcError(DEADLINE_EXCEEDED, f"{name}: {TEXT_DEADLINE}")
            call.timer = self._loop.call_later(timeout_s, self._too_late, call, error)
        self.send(stream, wire.REQUEST, flags, data)
        return call

    def send_data(self, call: _Call, flags: int, data: bytes) -> None:
        if self.error is not None:
            raise self.error.copy()
        if len(data) > self.send_limit:
            raise wire.oversize(len(data), self.send_limit)
        # Go's server panics at data for a stream that it has ended.
        if call.stream in self._calls:
            self.send(call.stream, wire.DATA, flags, data)

    def forget(self, call: _Call) -> None:
        """The caller wants no more of this call: drop what comes, and say so to a peer that understands."""
        if self._finish(call) and self._extended:
            self.send(call.stream, wire.CANCEL, 0, b"")
        call.drop()

    def fail(self, call: _Call, error: TtrpcError) -> None:
        self.forget(call)
        call.fail(error)

    def end(self, error: TtrpcError) -> None:
        """Close the connection from this side."""
        if self.error is None:
            self.error = error
        if self.transport is not None:
            # What was written may never be taken: nobody waits for its answer any more.
            self.transport.abort()

    async def wait_closed(self) -> None:
        await self._gone.wait()

    def _too_late(self, call: _Call, error: TtrpcError) -> None:
        # What has come already is still delivered.
        if self._finish(call):
            if self._extended:
                self.send(call.stream, wire.CANCEL, 0, b"")
            call.fail(error)

    def _finish(self, call: _Call) -> bool:
        call.finished = True
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        return self._calls.pop(call.stream, None) is not None

    # ---- frames

    def frame_received(self, stream: int, kind: int, flags: int, data: bytes | memoryview) -> None:
        self.settled = True  # SETTINGS comes before everything else or never
        if kind == wire.SETTINGS:
            if self._offer and len(data) >= 4:
                self.send_limit = min(wire.read_settings(bytes(data)), self._offer)
                self._extended = True
            return
        call = self._calls.get(stream)
        if call is None:
            return  # given up by its caller, or not ours
        if kind == wire.RESPONSE or flags & wire.REMOTE_CLOSED:
            self._finish(call)
        call.feed(kind, flags, data)

    def oversize_received(self, stream: int, kind: int, length: int) -> None:
        call = self._calls.get(stream)
        if call is not None:
            self._finish(call)
            call.fail(wire.oversize(length, self.receive_limit))

    def connection_ended(self, reason: str) -> None:
        if self.error is None:
            self.error = TtrpcError(UNAVAILABLE, f"connection to {self.address} lost: {reason}")
        for call in list(self._calls.values()):
            self._finish(call)
            call.fail(self.error)
        self._gone.set()


async def _connect(sock: socket.socket, path: str) -> None:
    """Connect; a unix socket whose server's queue is full says EAGAIN instead of waiting: unix(7)."""
    pause = 0.001
    while True:
        code = sock.connect_ex(path)
        if code == 0:
            return
        if code != errno.EAGAIN:
            raise OSError(code, os.strerror(code))
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.05)
