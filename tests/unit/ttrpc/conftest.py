"""A ttrpc server in a thread of its own, a peer that speaks frames by hand, and a server that does."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from orlop.ttrpc import wire
from orlop.ttrpc.errors import TtrpcError
from orlop.ttrpc.server import Context, Method, Server


class Handlers:
    """What the test server does, and what it saw of it."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.cancelled = threading.Semaphore(0)
        self.contexts: list[Context] = []

    def echo(self, context: Context, payload: bytes) -> bytes:
        self.contexts.append(context)
        return payload

    async def later(self, _context: Context, payload: bytes) -> bytes:
        await asyncio.sleep(0)
        return payload

    async def never(self, _context: Context, _payload: bytes) -> bytes:
        self.entered.release()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.release()
            raise
        return b""

    def fail(self, _context: Context, payload: bytes) -> bytes:
        raise TtrpcError(5, payload.decode(), (b"\x0a\x01x",))

    async def fail_later(self, _context: Context, payload: bytes) -> bytes:
        await asyncio.sleep(0)
        raise KeyError(payload.decode())

    def large(self, _context: Context, payload: bytes) -> bytes:
        return bytes(int(payload))

    async def count(self, _context: Context, payload: bytes) -> AsyncIterator[bytes]:
        for number in range(int(payload)):
            yield str(number).encode()

    async def count_and_fail(self, _context: Context, payload: bytes) -> AsyncIterator[bytes]:
        for number in range(int(payload)):
            yield str(number).encode()
        raise TtrpcError(9, "counted enough")

    async def forever(self, _context: Context, payload: bytes) -> AsyncIterator[bytes]:
        try:
            while True:
                self.entered.release()
                yield payload
        finally:
            self.cancelled.release()

    async def join(self, _context: Context, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield b"|".join([message async for message in messages])

    async def mirror(self, _context: Context, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for message in messages:
            yield message

    async def deaf(self, _context: Context, _messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self.entered.release()
        try:
            await asyncio.Event().wait()
            yield b""
        finally:
            self.cancelled.release()

    async def early(self, _context: Context, _messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield b"that will do"

    async def twice(self, _context: Context, _messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield b"1"
        yield b"2"

    def methods(self) -> dict[str, Method]:
        return {
            "Echo": Method(False, False, self.echo),
            "Later": Method(False, False, self.later),
            "Never": Method(False, False, self.never),
            "Fail": Method(False, False, self.fail),
            "FailLater": Method(False, False, self.fail_later),
            "Large": Method(False, False, self.large),
            "Count": Method(False, True, self.count),
            "CountAndFail": Method(False, True, self.count_and_fail),
            "Forever": Method(False, True, self.forever),
            "Join": Method(True, False, self.join),
            "Mirror": Method(True, True, self.mirror),
            "Deaf": Method(True, True, self.deaf),
            "Early": Method(True, False, self.early),
            "Twice": Method(True, False, self.twice),
        }


class Running:
    """A server of `Handlers` in a thread. `connect()` gives a connected socket."""

    def __init__(self, **options: Any) -> None:
        self.handlers = Handlers()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(options)), name="ttrpc server")
        self._thread.start()
        self._ready.wait()

    async def _main(self, options: dict[str, Any]) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.server = Server({"t.T": self.handlers.methods()}, **options)
        self._ready.set()
        await self._stop.wait()
        await self.server.close(timeout_s=0)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.run(self.server.attach(theirs))
        ours.settimeout(30)
        return ours

    def state(self) -> tuple[int, int]:
        """Connections and calls, asked in the loop, so that what it has received before counts."""

        async def ask() -> tuple[int, int]:
            return self.server.connections, self.server.active_calls

        counts: tuple[int, int] = self.run(ask())
        return counts

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()


class Raw:
    """The other end of a socket, frame by frame."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(30)
        self.sock = sock

    def send(self, stream: int, kind: int, flags: int, data: bytes = b"") -> None:
        self.sock.sendall(wire.frame(stream, kind, flags, data))

    def request(self, stream: int, method: str, payload: bytes = b"", flags: int = 0, **more: Any) -> None:
        self.send(stream, wire.REQUEST, flags, wire.encode_request("t.T", method, payload, **more))

    def receive(self) -> tuple[int, int, int, bytes] | None:
        header = self._exactly(10)
        if header is None:
            return None
        length, stream, kind, flags = wire.HEADER.unpack(header)
        data = self._exactly(length)
        assert data is not None
        return stream, kind, flags, data

    def response(self) -> tuple[int, int, str, bytes]:
        """Stream, code, message and payload of the next frame, which must be a response."""
        frame = self.receive()
        assert frame is not None
        stream, kind, flags, data = frame
        assert (kind, flags) == (wire.RESPONSE, 0)
        status, payload = wire.decode_response(data)
        return stream, status.code if status else 0, status.message if status else "", payload

    def _exactly(self, count: int) -> bytes | None:
        data = bytearray()
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            if not part:
                assert not data
                return None
            data += part
        return bytes(data)


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """Start servers with options of `Server`; all are stopped after the test."""
    started: list[Running] = []

    def run(**options: Any) -> Running:
        started.append(Running(**options))
        return started[-1]

    yield run
    for running in started:
        running.stop()


@pytest.fixture
def running(start: Callable[..., Running]) -> Running:
    return start()


@pytest.fixture
def raw(running: Running) -> Iterator[Raw]:
    """A hand-made peer of `running`."""
    sock = running.connect()
    yield Raw(sock)
    sock.close()
