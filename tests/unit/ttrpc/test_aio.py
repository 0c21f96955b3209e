"""The asyncio client against our server, both in one loop."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from orlop.ttrpc import aio, wire
from orlop.ttrpc.errors import CANCELLED, DEADLINE_EXCEEDED, INTERNAL, RESOURCE_EXHAUSTED, UNAVAILABLE, TtrpcError
from orlop.ttrpc.server import Server

from .conftest import Handlers


@asynccontextmanager
async def connected(offer: int = 0) -> AsyncIterator[tuple[aio.Client, Handlers, Server]]:
    handlers = Handlers()
    async with Server({"t.T": handlers.methods()}) as server:
        ours, theirs = socket.socketpair()
        await server.attach(theirs)
        async with await aio.Client.from_socket(
            ours, address="/run/t.sock", offer=offer, metadata={"ns": "x"}
        ) as client:
            yield client, handlers, server
        await server.close(0)


def run(test: Callable[..., Awaitable[None]], *, offer: int = 0) -> None:
    async def main() -> None:
        async with connected(offer) as parts:
            await test(*parts)

    asyncio.run(main())


def fails(code: int, text: str) -> "pytest.RaisesExc[TtrpcError]":
    return pytest.RaisesExc(TtrpcError, match=text, check=lambda error: error.code == code)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - the loop that runs the other side is this one
            await asyncio.sleep(0)


def test_calls():
    async def test(client: aio.Client, handlers: Handlers, _server: Server) -> None:
        answers = await asyncio.gather(*(client.call("t.T", ("Echo", "Later")[n % 2], b"%d" % n) for n in range(500)))
        assert answers == [b"%d" % n for n in range(500)]
        assert await client.call("t.T", "Echo", b"", timeout_s=5, metadata={"Lease": "l"}) == b""
        assert handlers.contexts[-1].metadata == {"ns": "x", "lease": "l"}
        with fails(5, "nothing"):
            await client.call("t.T", "Fail", b"nothing")

    run(test)


def test_deadline():
    async def test(client: aio.Client, handlers: Handlers, server: Server) -> None:
        with fails(DEADLINE_EXCEEDED, "context deadline exceeded"):
            await client.call("t.T", "Never", b"", timeout_s=0.01)
        await until(lambda: server.active_calls == 0)
        with fails(DEADLINE_EXCEEDED, "t.T/Echo: context deadline exceeded"):
            await client.call("t.T", "Echo", b"", timeout_s=0)
        assert await client.call("t.T", "Echo", b"x") == b"x"
        assert handlers.cancelled.acquire(blocking=False)

    run(test)


def test_cancelling_a_call_cancels_its_handler_where_the_peer_knows_how():
    async def test(client: aio.Client, handlers: Handlers, server: Server) -> None:
        await client.call("t.T", "Echo", b"")  # the answer to the offer comes before this one's
        call = asyncio.create_task(client.call("t.T", "Never", b""))
        await until(lambda: server.active_calls == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: server.active_calls == 0)
        await until(lambda: handlers.cancelled.acquire(blocking=False))

    run(test, offer=1 << 24)


def test_streams():
    async def test(client: aio.Client, _handlers: Handlers, _server: Server) -> None:
        async with client.stream("t.T", "Count", b"3", server_streaming=True) as stream:
            assert [message async for message in stream] == [b"0", b"1", b"2"]
            assert await stream.receive() is None
        async with client.stream("t.T", "Join", client_streaming=True) as stream:
            await stream.send(b"a")
            await stream.send(b"b")
            assert await stream.result() == b"a|b"
        async with client.stream("t.T", "Mirror", client_streaming=True, server_streaming=True) as stream:
            for message in (b"1", b"", bytes(1 << 20)):
                await stream.send(message)
                assert await stream.receive() == message
            await stream.close_send()
            assert await stream.receive() is None
            with pytest.raises(ValueError, match="closed"):
                await stream.send(b"late")
        async with client.stream("t.T", "CountAndFail", b"1", server_streaming=True) as stream:
            assert await stream.receive() == b"0"
            with fails(9, "counted enough"):
                await stream.receive()
            assert await stream.receive() is None
        async with client.stream("t.T", "Twice", client_streaming=True) as stream:
            with fails(INTERNAL, "produced 2 answers"):
                await stream.result()
        async with client.stream("t.T", "Count", b"0", server_streaming=True) as stream:
            with fails(INTERNAL, "without an answer"):
                await stream.result()
        with pytest.raises(ValueError, match="use call"):
            client.stream("t.T", "Echo")

    run(test)


def test_closing_a_stream_cancels_its_handler_where_the_peer_knows_how():
    async def test(client: aio.Client, handlers: Handlers, server: Server) -> None:
        async with client.stream("t.T", "Forever", bytes(1000), server_streaming=True) as stream:
            assert await stream.receive() == bytes(1000)
        await until(lambda: handlers.cancelled.acquire(blocking=False))
        assert await client.call("t.T", "Echo", b"x") == b"x"

    run(test, offer=1 << 24)


def test_limits():
    async def test(client: aio.Client, _handlers: Handlers, _server: Server) -> None:
        with fails(RESOURCE_EXHAUSTED, "maximum message size of 4194304"):
            await client.call("t.T", "Echo", bytes(4 << 20))
        with fails(RESOURCE_EXHAUSTED, "maximum message size of 4194304"):
            await client.call("t.T", "Large", b"4194304")
        assert await client.call("t.T", "Large", b"4194000") == bytes(4194000)

    async def raised(client: aio.Client, _handlers: Handlers, _server: Server) -> None:
        assert await client.call("t.T", "Echo", bytes(9 << 20)) == bytes(9 << 20)
        assert client.message_limit == 10 << 20
        with fails(RESOURCE_EXHAUSTED, "maximum message size of 10485760"):
            await client.call("t.T", "Echo", bytes(10 << 20))
        async with client.stream("t.T", "Mirror", client_streaming=True, server_streaming=True) as stream:
            await stream.send(bytes(9 << 20))
            assert await stream.receive() == bytes(9 << 20)

    run(test)
    run(raised, offer=10 << 20)


def test_a_stream_nobody_receives_from_fails_alone(monkeypatch):
    monkeypatch.setattr(aio, "_STALL_SECONDS", 0.05)
    monkeypatch.setattr(aio, "_STREAM_MESSAGES", 10)

    async def test(client: aio.Client, _handlers: Handlers, _server: Server) -> None:
        async with client.stream("t.T", "Count", b"20000", server_streaming=True) as stream:
            with fails(DEADLINE_EXCEEDED, "deadline"):
                await client.call("t.T", "Never", b"", timeout_s=0.3)
            with fails(RESOURCE_EXHAUSTED, "stream buffer full"):
                async for _ in stream:
                    pass
            assert await client.call("t.T", "Echo", b"through") == b"through"

    run(test)


def test_a_slow_receiver_gets_everything(monkeypatch):
    monkeypatch.setattr(aio, "_STREAM_MESSAGES", 3)

    async def test(client: aio.Client, _handlers: Handlers, _server: Server) -> None:
        async with client.stream("t.T", "Count", b"2000", server_streaming=True) as stream:
            got = []
            async for message in stream:
                got.append(message)
                await asyncio.sleep(0)
            assert len(got) == 2000

    run(test)


def test_lost_and_closed_connections(tmp_path):
    async def lost(client: aio.Client, _handlers: Handlers, server: Server) -> None:
        calls = [asyncio.create_task(client.call("t.T", "Never", b"")) for _ in range(3)]
        await until(lambda: server.active_calls == 3)
        for connection in server._connections:
            connection.abort()
        for call in calls:
            with fails(UNAVAILABLE, "connection to /run/t.sock lost: closed by the other side"):
                await call
        assert await client.wait_closed() == "connection to /run/t.sock lost: closed by the other side"
        assert client.closed
        with fails(UNAVAILABLE, "/run/t.sock"):
            await client.call("t.T", "Echo", b"")

    async def closed(client: aio.Client, _handlers: Handlers, server: Server) -> None:
        call = asyncio.create_task(client.call("t.T", "Never", b""))
        await until(lambda: server.active_calls == 1)
        await client.close()
        with fails(CANCELLED, "closed by this side"):
            await call

    async def absent() -> None:
        with fails(UNAVAILABLE, f"connect {tmp_path}/nope: No such file or directory"):
            await aio.Client.connect(f"{tmp_path}/nope")

    run(lost)
    run(closed)
    asyncio.run(absent())


def test_connect_waits_for_room(tmp_path):
    async def main() -> None:
        path = str(tmp_path / "s")
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(path)
        sock.listen(0)
        with sock:
            async with await aio.Client.connect(path):
                with fails(DEADLINE_EXCEEDED, "connect .*: context deadline exceeded"):
                    await aio.Client.connect(path, timeout_s=0.02)

    asyncio.run(main())


def test_answers_that_make_no_sense():
    async def main() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            async with await aio.Client.from_socket(ours) as client:
                for stream, kind, data, text in (
                    (1, wire.DATA, b"", "stream data in answer"),
                    (3, wire.RESPONSE, b"\x0a\xff", "cut short"),
                ):
                    theirs.sendall(wire.frame(98, wire.RESPONSE, 0, b"") + wire.frame(0, wire.SETTINGS, 0, b""))
                    call = asyncio.create_task(client.call("t.T", "Echo", b""))
                    await asyncio.sleep(0)
                    theirs.sendall(wire.frame(stream, kind, 0, data))
                    with fails(INTERNAL, text):
                        await call

    asyncio.run(main())
