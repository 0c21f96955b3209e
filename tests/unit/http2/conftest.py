"""A server of ours in a thread of its own, over socket pairs or on a unix socket for grpcio's clients."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from orlop.http2.limits import Limits
from orlop.http2.rpc import RpcError
from orlop.http2.server import Context, Method, Server
from tests.unit.http2.client import Client


class Handlers:
    """What the test server does, and what it saw of it."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.cancelled = threading.Semaphore(0)
        self.received = threading.Semaphore(0)
        self.contexts: list[Context] = []

    def echo(self, context: Context, payload: bytes) -> bytes:
        self.contexts.append(context)
        return payload

    async def later(self, _context: Context, payload: bytes) -> bytes:
        await asyncio.sleep(0)
        return payload

    async def at_once(self, _context: Context, payload: bytes) -> bytes:
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
        raise RpcError(5, payload.decode(), b"\x08\x05")

    async def fail_later(self, _context: Context, payload: bytes) -> bytes:
        await asyncio.sleep(0)
        raise KeyError(payload.decode())

    def large(self, _context: Context, payload: bytes) -> bytes:
        return bytes(int(payload))

    async def count(self, _context: Context, payload: bytes) -> AsyncIterator[bytes]:
        for number in range(int(payload)):
            yield str(number).encode()

    async def large_ones(self, _context: Context, payload: bytes) -> AsyncIterator[bytes]:
        for size in payload.split():
            self.entered.release()
            yield bytes(int(size))

    async def count_and_fail(self, _context: Context, payload: bytes) -> AsyncIterator[bytes]:
        for number in range(int(payload)):
            yield str(number).encode()
        raise RpcError(9, "counted enough")

    async def forever(self, _context: Context, payload: bytes) -> AsyncIterator[bytes]:
        try:
            while True:
                self.entered.release()
                yield payload
        finally:
            self.cancelled.release()

    async def join(self, _context: Context, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield b"|".join([message async for message in messages])

    async def total(self, _context: Context, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        size = 0
        async for message in messages:
            size += len(message)
            self.received.release()
        yield str(size).encode()

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
        kinds: dict[str, tuple[bool, bool, Callable[[Any, Any], Any]]] = {
            "Echo": (False, False, self.echo),
            "Later": (False, False, self.later),
            "AtOnce": (False, False, self.at_once),
            "Never": (False, False, self.never),
            "Fail": (False, False, self.fail),
            "FailLater": (False, False, self.fail_later),
            "Large": (False, False, self.large),
            "Count": (False, True, self.count),
            "LargeOnes": (False, True, self.large_ones),
            "CountAndFail": (False, True, self.count_and_fail),
            "Forever": (False, True, self.forever),
            "Join": (True, False, self.join),
            "Total": (True, False, self.total),
            "Mirror": (True, True, self.mirror),
            "Deaf": (True, True, self.deaf),
            "Early": (True, False, self.early),
            "Twice": (True, False, self.twice),
        }
        return {f"/t.T/{name}": Method(*kind, name=name) for name, kind in kinds.items()}


class Running:
    """A server of `Handlers` in a thread. `client()` gives a connected peer."""

    def __init__(self, path: Path | None, **limits: Any) -> None:
        self.handlers = Handlers()
        self.path = path
        self._limits = Limits(**limits)
        self._ready = threading.Event()
        self._clients: list[Client] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="http2 server")
        self._thread.start()
        self._ready.wait()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.server = Server(self.handlers.methods(), limits=self._limits)
        if self.path is not None:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self.path))
            listener.listen()
            await self.server.serve(listener)
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

    def client(self, **options: Any) -> Client:
        """A peer, closed with the server."""
        self._clients.append(Client(self.connect(), **options))
        return self._clients[-1]

    def state(self) -> tuple[int, int, int]:
        """Connections, running handlers and bytes held, once the loop has dealt with what it has received."""

        async def ask() -> tuple[int, int, int]:
            for _ in range(20):
                await asyncio.sleep(0)
            return self.server.connections, self.server.running, self.server.held

        counts: tuple[int, int, int] = self.run(ask())
        return counts

    def stop(self) -> None:
        for client in self._clients:
            client.sock.close()
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start servers with some `Limits`, on a socket if `listen` is set; all are stopped after the test."""
    started: list[Running] = []

    def run(*, listen: bool = False, **limits: Any) -> Running:
        started.append(Running(tmp_path / "s" if listen else None, **limits))
        return started[-1]

    yield run
    for running in started:
        running.stop()


@pytest.fixture
def running(start: Callable[..., Running]) -> Running:
    return start()
