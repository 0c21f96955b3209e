"""The server as a peer sees it, frame by frame: what Go's clients rely on, and what hostile ones try."""

import asyncio
import logging
import os
import socket
import threading

import pytest

from orlop.ttrpc import _serving, aio, wire
from orlop.ttrpc.client import Client
from orlop.ttrpc.errors import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    INVALID_ARGUMENT,
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    UNKNOWN,
    TtrpcError,
)
from orlop.ttrpc.server import Context, Method, Peer, Server, listen_unix

from .conftest import Raw

RC, RO, ND = wire.REMOTE_CLOSED, wire.REMOTE_OPEN, wire.NO_DATA


def test_unary(raw):
    raw.request(1, "Echo", b"hi")
    assert raw.receive() == (1, wire.RESPONSE, 0, b"\x12\x02hi")
    raw.request(3, "Echo")
    assert raw.receive() == (3, wire.RESPONSE, 0, b"")


def test_answers_come_when_they_are_ready(running, raw):
    raw.request(1, "Never")
    raw.request(3, "Later", b"x")
    raw.request(5, "Echo", b"y")
    assert {raw.response()[0], raw.response()[0]} == {3, 5}
    assert running.state() == (1, 1)


def test_server_stream(raw):
    raw.request(1, "Count", b"2", RC)
    assert raw.receive() == (1, wire.DATA, 0, b"0")
    assert raw.receive() == (1, wire.DATA, 0, b"1")
    assert raw.receive() == (1, wire.DATA, RC | ND, b"")


def test_client_stream_as_go_sends_it(raw):
    raw.request(1, "Join", b"", RO)
    raw.send(1, wire.DATA, 0, b"a")
    raw.send(1, wire.DATA, 0, b"")  # an empty message is a message
    raw.send(1, wire.DATA, RC | ND)
    assert raw.response() == (1, 0, "", b"a|")


def test_client_stream_as_the_protocol_allows_it(raw):
    """The last message may close; the request's payload is the first message; flags 0 mean that no more comes."""
    raw.request(1, "Join", b"a", RO)
    raw.send(1, wire.DATA, RC, b"b")
    assert raw.response() == (1, 0, "", b"a|b")
    raw.request(3, "Join", b"a")
    assert raw.response() == (3, 0, "", b"a")


def test_a_failing_stream_ends_with_a_response(raw):
    raw.request(1, "CountAndFail", b"0", RC)
    assert raw.response() == (1, 9, "counted enough", b"")


def test_refusals_in_gos_words(raw):
    raw.send(1, wire.REQUEST, 0, wire.encode_request("t.Nope", "Echo", b""))
    assert raw.response() == (1, UNIMPLEMENTED, "service t.Nope", b"")
    raw.request(3, "Nope")
    assert raw.response() == (3, UNIMPLEMENTED, "method Nope", b"")
    raw.request(3, "Echo")
    assert raw.response() == (3, INVALID_ARGUMENT, "StreamID cannot be re-used and must increment", b"")
    raw.request(1, "Echo")
    assert raw.response() == (1, INVALID_ARGUMENT, "StreamID cannot be re-used and must increment", b"")
    raw.request(4, "Echo")
    assert raw.response() == (4, INVALID_ARGUMENT, "StreamID must be odd for client initiated streams", b"")
    raw.send(5, wire.DATA, 0, b"x")
    assert raw.response() == (5, INVALID_ARGUMENT, "StreamID is no longer active", b"")
    raw.send(5, wire.REQUEST, 0, b"\x0a\x09x")
    assert raw.response() == (5, INVALID_ARGUMENT, "unmarshal request error: message is cut short", b"")
    raw.request(7, "Mirror", b"", RO)
    raw.send(7, wire.DATA, RC | ND)
    raw.send(7, wire.DATA, 0, b"x")
    assert raw.receive() in (
        (7, wire.DATA, RC | ND, b""),
        (7, wire.RESPONSE, 0, wire.encode_failure(INVALID_ARGUMENT, "data handling error: ttrpc: stream closed")),
    )


def test_unknown_kinds_are_ignored(raw):
    for kind in (0, 2, 4, 16, 17, 255):
        raw.send(1, kind, 255, b"whatever")
    raw.request(1, "Echo", b"x")
    assert raw.response() == (1, 0, "", b"x")


def test_oversize_request_costs_only_itself(running, raw):
    raw.request(1, "Mirror", b"", RO)
    raw.request(3, "Never")
    raw.sock.sendall(wire.HEADER.pack((4 << 20) + 1, 5, wire.REQUEST, 0) + bytes((4 << 20) + 1))
    text = "message length 4194305 exceed maximum message size of 4194304"
    assert raw.response() == (5, RESOURCE_EXHAUSTED, text, b"")
    raw.sock.sendall(wire.HEADER.pack((4 << 20) + 1, 1, wire.DATA, 0) + bytes((4 << 20) + 1))
    assert raw.response() == (1, RESOURCE_EXHAUSTED, text, b"")
    assert running.state() == (1, 1)


def test_oversize_answer_is_told(raw):
    raw.request(1, "Large", b"4194304")
    text = "message length 4194309 exceed maximum message size of 4194304"
    assert raw.response() == (1, RESOURCE_EXHAUSTED, text, b"")


def test_negative_timeout_has_passed(raw):
    raw.request(1, "Echo", timeout_nano=-1)
    assert raw.response() == (1, DEADLINE_EXCEEDED, "context deadline exceeded", b"")


def test_deadline_cancels_the_handler(running, raw):
    raw.request(1, "Never", timeout_nano=1_000_000)
    assert raw.response() == (1, DEADLINE_EXCEEDED, "context deadline exceeded", b"")
    assert running.handlers.cancelled.acquire(timeout=30)
    raw.request(3, "Deaf", b"", RO, timeout_nano=1_000_000)
    assert raw.response() == (3, DEADLINE_EXCEEDED, "context deadline exceeded", b"")


def test_hanging_up_cancels_handlers(running, raw):
    raw.request(1, "Never")
    raw.request(3, "Deaf", b"", RO)
    for _ in range(2):
        assert running.handlers.entered.acquire(timeout=30)
    raw.sock.close()
    for _ in range(2):
        assert running.handlers.cancelled.acquire(timeout=30)
    assert running.state()[1] == 0


def test_limit_is_agreed_on_with_the_first_request_only(running, raw):
    raw.request(1, "Echo", b"x", metadata=[("ttrpc-message-limit", "99999999"), ("a", "1"), ("A", "2")])
    assert raw.receive() == (0, wire.SETTINGS, 0, ((1 << 24) - 1).to_bytes(4, "big"))
    assert raw.response() == (1, 0, "", b"x")
    raw.request(3, "Echo", b"x", metadata=[("ttrpc-message-limit", "99999999")])
    assert raw.response() == (3, 0, "", b"x")
    first, second = running.handlers.contexts
    assert (first.metadata, first.values("a"), first.message_limit) == ({"a": "1"}, ["1", "2"], (1 << 24) - 1)
    assert "ttrpc-message-limit" in second.metadata


@pytest.mark.parametrize("offer", ["", "-5", "x", "9" * 5000, "٣"])
def test_a_bad_offer_is_no_offer(raw, offer):
    raw.request(1, "Echo", metadata=[("ttrpc-message-limit", offer)])
    frame = raw.receive()
    assert frame in ((1, wire.RESPONSE, 0, b""), (0, wire.SETTINGS, 0, (4 << 20).to_bytes(4, "big")))


# ---- what a peer may cost


def test_calls_at_once_are_bounded(start):
    running = start(max_calls=3)
    with running.connect() as sock:
        raw = Raw(sock)
        for stream in (1, 3, 5):
            raw.request(stream, "Deaf", b"", RO)  # half open for ever
        raw.request(7, "Never")
        assert raw.response() == (7, RESOURCE_EXHAUSTED, "3 calls are running on this connection already", b"")
        raw.send(1, wire.CANCEL, 0)
        raw.request(9, "Echo", b"x")
        assert raw.response() == (9, 0, "", b"x")


def test_connections_are_bounded(start):
    running = start(max_connections=1)
    with running.connect() as first, running.connect() as second:
        assert second.recv(1) == b""
        raw = Raw(first)
        raw.request(1, "Echo", b"x")
        assert raw.response()[0] == 1


def test_a_handler_that_does_not_read_holds_the_peer_back_and_then_loses_its_call(start, monkeypatch):
    monkeypatch.setattr(_serving, "_STREAM_MESSAGES", 8)
    running = start(stall_timeout_s=0.1)
    with running.connect() as sock:
        raw = Raw(sock)
        raw.request(1, "Deaf", b"", RO)
        for _ in range(2000):
            raw.send(1, wire.DATA, 0, bytes(1000))
        frame = raw.response()
        assert frame[:2] == (1, RESOURCE_EXHAUSTED)
        assert frame[2] == "stream buffer full: nothing was taken for 0.1 s"
        assert running.handlers.cancelled.acquire(timeout=30)
        raw.request(3, "Echo", b"x")
        while (frame := raw.response())[0] == 1:
            assert frame[1:3] == (INVALID_ARGUMENT, "StreamID is no longer active")
        assert frame == (3, 0, "", b"x")


def test_a_slow_handler_gets_everything(start, monkeypatch):
    monkeypatch.setattr(_serving, "_STREAM_MESSAGES", 2)
    running = start(stall_timeout_s=30)
    with Client(running.connect()) as client, client.stream("t.T", "Join", client_streaming=True) as stream:
        for number in range(500):
            stream.send(str(number).encode())
        assert stream.result() == "|".join(map(str, range(500))).encode()


def test_a_peer_that_does_not_read_does_not_fill_the_memory(running, raw):
    """Requests whose answers nobody takes: the server stops reading until somebody does."""
    request = wire.encode_request("t.T", "Large", b"1000000")
    sent = 0

    def flood() -> None:
        nonlocal sent
        raw.sock.settimeout(0.3)
        try:
            for stream in range(1, 200_000, 2):
                raw.sock.sendall(wire.frame(stream, wire.REQUEST, 0, request + bytes(0)))
                sent += 1
        except TimeoutError:
            pass

    flood()
    assert 0 < sent < 100_000
    (connection,) = running.server._connections

    async def buffered() -> int:
        size: int = connection.transport.get_write_buffer_size()
        return size

    assert running.run(buffered()) < 4 << 20
    raw.sock.settimeout(30)
    for number in range(min(sent, 20)):
        assert raw.response()[0] == 2 * number + 1


def test_an_endless_stream_waits_for_its_reader(running, raw):
    raw.request(1, "Forever", bytes(10_000), RC)
    assert running.handlers.entered.acquire(timeout=30)
    raw.request(3, "Echo", b"x")
    while (frame := raw.receive())[0] == 1:
        assert len(frame[3]) == 10_000
    assert frame == (3, wire.RESPONSE, 0, b"\x12\x01x")
    raw.send(1, wire.CANCEL, 0)
    assert running.handlers.cancelled.acquire(timeout=30)


# ---- errors of handlers


def test_translate(start, caplog):
    def translate(error: Exception) -> tuple[int, str]:
        if isinstance(error, KeyError):
            return 5, f"no {error}"
        raise ValueError("no idea")

    running = start(translate=translate)
    with running.connect() as sock:
        raw = Raw(sock)
        raw.request(1, "FailLater", b"key")
        assert raw.response() == (1, 5, "no 'key'", b"")
        raw.request(3, "Large", b"many")
        assert raw.response()[1] == UNKNOWN
    assert "cannot be translated" in caplog.text


def test_a_defect_is_logged_once_and_told(raw, caplog):
    raw.request(1, "Large", b"many")
    assert raw.response()[1:3] == (UNKNOWN, "invalid literal for int() with base 10: b'many'")
    records = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in records] == ["ttrpc handler of t.T/Large failed"]


def test_a_long_message_is_shortened(raw):
    raw.request(1, "Fail", b"x" * (1 << 20))
    assert raw.response() == (1, 5, "x" * (64 << 10), b"")


# ---- access


def test_access_check(start):
    seen: list[Peer] = []

    def check(peer: Peer) -> str | None:
        seen.append(peer)
        return f"uid {peer.uid} may not come in"

    running = start(check_access=check)
    with running.connect() as sock:
        raw = Raw(sock)
        request = wire.encode_request("t.T", "Echo", b"x")
        sock.sendall(wire.frame(1, wire.REQUEST, 0, request) + wire.frame(3, wire.REQUEST, 0, request))
        assert raw.response() == (1, PERMISSION_DENIED, f"uid {os.getuid()} may not come in", b"")
        assert raw.receive() is None
    assert seen == [Peer(uid=os.getuid(), gid=os.getgid(), pid=os.getpid())]


def test_access_check_that_fails_lets_nobody_in(start, caplog):
    running = start(check_access=lambda peer: 1 / 0)
    with running.connect() as sock:
        raw = Raw(sock)
        raw.request(1, "Echo", b"x")
        assert raw.response() == (1, PERMISSION_DENIED, "access check failed", b"")
    assert "ZeroDivisionError" in caplog.text


# ---- life


def test_close_lets_calls_end(tmp_path):
    async def main() -> None:
        entered, go = asyncio.Event(), asyncio.Event()

        async def slow(_context: Context, payload: bytes) -> bytes:
            entered.set()
            await go.wait()
            return payload

        server = Server()
        server.add("t.T", {"Slow": Method(False, False, slow)})
        with pytest.raises(ValueError, match="twice"):
            server.add("t.T", {})
        path = tmp_path / "s"
        await server.serve(listen_unix(path))
        idle = await aio.Client.connect(str(path))
        busy = await aio.Client.connect(str(path))
        call = asyncio.create_task(busy.call("t.T", "Slow", b"done"))
        await entered.wait()
        closing = asyncio.create_task(server.close(30))
        assert await idle.wait_closed() == f"connection to {path} lost: closed by the other side"
        with pytest.raises(TtrpcError, match="server is shutting down") as caught:
            await busy.call("t.T", "Slow", b"too late")
        assert caught.value.code == UNAVAILABLE
        with pytest.raises(TtrpcError, match="Connection refused"):
            await aio.Client.connect(str(path))
        go.set()
        assert await call == b"done"
        await busy.wait_closed()
        await closing
        assert (server.connections, server.active_calls) == (0, 0)

    asyncio.run(main())


def test_close_cuts_what_does_not_end(caplog):
    async def main() -> None:
        stuck = asyncio.Event()

        async def stubborn(_context: Context, _payload: bytes) -> bytes:
            while not stuck.is_set():
                try:
                    await stuck.wait()
                except asyncio.CancelledError:
                    continue
            return b""

        async def endless(_context: Context, _payload: bytes) -> bytes:
            await asyncio.Event().wait()
            return b""

        server = Server({"t.T": {"Stubborn": Method(False, False, stubborn), "Endless": Method(False, False, endless)}})
        ours, theirs = socket.socketpair()
        await server.attach(theirs)
        client = await aio.Client.from_socket(ours)
        calls = [asyncio.create_task(client.call("t.T", name, b"")) for name in ("Stubborn", "Endless")]
        while server.active_calls < 2:  # noqa: ASYNC110 - the loop that runs the other side is this one
            await asyncio.sleep(0)
        await server.close(timeout_s=0.01)
        for call in calls:
            with pytest.raises(TtrpcError, match="server is shutting down"):
                await call
        await client.close()
        stuck.set()

    asyncio.run(main())
    assert "does not end although it was cancelled" in caplog.text


def test_close_does_not_wait_for_a_peer_that_does_not_read(running):
    with running.connect() as sock:
        raw = Raw(sock)
        raw.request(1, "Forever", bytes(1 << 20), RC)
        assert running.handlers.entered.acquire(timeout=30)
        running.run(running.server.close(timeout_s=0.01))
        assert running.state() == (0, 0)


def test_a_handler_that_is_cancelled_by_others_is_told(running, raw):
    raw.request(1, "Never")
    assert running.handlers.entered.acquire(timeout=30)

    async def cancel() -> None:
        for task in running.server._tasks:
            task.cancel()

    running.run(cancel())
    assert raw.response() == (1, CANCELLED, "context canceled", b"")


def test_large_answers_to_many_threads(running):
    with Client(running.connect()) as client:
        sizes: list[int] = []

        def work(size: int) -> None:
            sizes.append(len(client.call("t.T", "Large", str(size).encode())))

        threads = [threading.Thread(target=work, args=(size,)) for size in range(100_000, 4_000_000, 400_000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(sizes) == list(range(100_000, 4_000_000, 400_000))
