"""The blocking client, against our server and against peers that misbehave."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from orlop.ttrpc import _channel, wire
from orlop.ttrpc.client import Client
from orlop.ttrpc.errors import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    INTERNAL,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    UNKNOWN,
    TtrpcError,
)
from orlop.ttrpc.server import listen_unix

from .conftest import Raw, Running


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    with Client(running.connect(), address="/run/t.sock", metadata={"Ns": "one"}) as client:
        yield client


@pytest.fixture
def pair() -> Iterator[tuple[Client, Raw]]:
    """A client and a hand-made server."""
    ours, theirs = socket.socketpair()
    with Client(ours, address="/run/raw.sock") as client:
        yield client, Raw(theirs)
    theirs.close()


def fails(code: int, text: str) -> "pytest.RaisesExc[TtrpcError]":
    return pytest.RaisesExc(TtrpcError, match=text, check=lambda error: error.code == code)


def test_calls_and_metadata(running, client):
    assert client.call("t.T", "Echo", b"hi", metadata={"Lease": ["a", "b"]}, timeout_s=60) == b"hi"
    assert client.call("t.T", "Later", b"") == b""
    context = running.handlers.contexts[0]
    assert context.metadata == {"ns": "one", "lease": "a"}
    assert context.values("lease") == ["a", "b"]
    assert 0 < context.deadline - running.loop.time() <= 60
    assert context.peer.uid is not None
    assert context.message_limit == 4 << 20


def test_statuses(client):
    with fails(5, "^no such thing$") as caught:
        client.call("t.T", "Fail", b"no such thing")
    assert caught.value.details == (b"\x0a\x01x",)
    with fails(UNKNOWN, "'oops'"):
        client.call("t.T", "FailLater", b"oops")
    with fails(UNIMPLEMENTED, "^service t.Nope$"):
        client.call("t.Nope", "Echo", b"")
    with fails(UNIMPLEMENTED, "^method Nope$"):
        client.call("t.T", "Nope", b"")


def test_deadline_ends_both_sides(running, client):
    with fails(DEADLINE_EXCEEDED, "context deadline exceeded"):
        client.call("t.T", "Never", b"", timeout_s=0.01)
    assert running.handlers.cancelled.acquire(timeout=30)
    assert client.call("t.T", "Echo", b"still here") == b"still here"
    with fails(DEADLINE_EXCEEDED, "t.T/Echo: context deadline exceeded"):
        client.call("t.T", "Echo", b"", timeout_s=0)


def test_many_threads_share_a_connection(client):
    wrong: list[object] = []

    def work(mark: int) -> None:
        for number in range(100):
            payload = f"{mark}.{number}".encode() * (1 + number % 7 * 1000)
            method = ("Echo", "Later")[number % 2]
            if client.call("t.T", method, payload) != payload:
                wrong.append(payload)
        with client.stream("t.T", "Count", b"50", server_streaming=True) as stream:
            if len(list(stream)) != 50:
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert not client._channel._calls


def test_a_reader_that_gives_up_hands_on(running, client):
    """The thread that reads for all has the shorter deadline; the other one must still get its answer."""
    results: list[object] = []

    def patient() -> None:
        results.append(client.call("t.T", "Later", b"patience"))

    def impatient() -> None:
        with pytest.raises(TtrpcError):
            client.call("t.T", "Never", b"", timeout_s=0.05)
        results.append("gave up")

    first = threading.Thread(target=impatient)
    first.start()
    assert running.handlers.entered.acquire(timeout=30)
    second = threading.Thread(target=patient)
    second.start()
    first.join(30)
    second.join(30)
    assert sorted(map(str, results)) == ["b'patience'", "gave up"]


def test_streams(client):
    with client.stream("t.T", "Count", b"3", server_streaming=True) as stream:
        assert list(stream) == [b"0", b"1", b"2"]
        assert stream.receive() is None
    with client.stream("t.T", "Join", client_streaming=True) as stream:
        for message in (b"a", b"", b"c"):
            stream.send(message)
        assert stream.result() == b"a||c"
    with client.stream("t.T", "Join", b"first", client_streaming=True) as stream:
        assert stream.result() == b"first"
    with client.stream("t.T", "Mirror", client_streaming=True, server_streaming=True) as stream:
        for message in (b"1", b"22", b"", bytes(100_000)):
            stream.send(message)
            assert stream.receive() == message
        stream.close_send()
        assert stream.receive() is None
        with pytest.raises(ValueError, match="closed"):
            stream.send(b"late")
    with pytest.raises(ValueError, match="use call"):
        client.stream("t.T", "Echo")


def test_stream_failures(client):
    with client.stream("t.T", "CountAndFail", b"2", server_streaming=True) as stream:
        assert [stream.receive(), stream.receive()] == [b"0", b"1"]
        with fails(9, "counted enough"):
            stream.receive()
        assert stream.receive() is None
    with client.stream("t.T", "Nope", server_streaming=True) as stream, fails(UNIMPLEMENTED, "method Nope"):
        stream.receive()
    with client.stream("t.T", "Twice", client_streaming=True) as stream, fails(INTERNAL, "produced 2 answers"):
        stream.result()
    with client.stream("t.T", "Mirror", client_streaming=True, server_streaming=True, timeout_s=0.01) as stream:
        with fails(DEADLINE_EXCEEDED, "deadline"):
            stream.receive()


def test_what_the_server_no_longer_wants_is_dropped(client):
    with client.stream("t.T", "Early", client_streaming=True) as stream:
        assert stream.receive() == b"that will do"
        stream.send(b"more")
    assert client.call("t.T", "Echo", b"x") == b"x"


def test_both_sides_full_of_data_do_not_lock_up(client):
    """One thread sends more than both sockets hold before it reads: it must read while it cannot send."""
    with client.stream("t.T", "Mirror", client_streaming=True, server_streaming=True) as stream:
        for _ in range(40):
            stream.send(bytes(256 << 10))
        stream.close_send()
        assert sum(len(message) for message in stream) == 40 * (256 << 10)


def test_closing_a_stream_cancels_its_handler_where_the_peer_knows_how(running):
    with Client(running.connect(), offer=1 << 24) as client:
        with client.stream("t.T", "Forever", b"x", server_streaming=True) as stream:
            assert stream.receive() == b"x"
        assert running.handlers.cancelled.acquire(timeout=30)
        assert client.call("t.T", "Echo", b"x") == b"x"


def test_losing_the_connection_ends_the_handler(running):
    client = Client(running.connect())
    stream = client.stream("t.T", "Forever", b"x", server_streaming=True)
    assert stream.receive() == b"x"
    client.close()
    assert running.handlers.cancelled.acquire(timeout=30)


# ---- limits


def test_limits_of_foreign_peers(client):
    with fails(RESOURCE_EXHAUSTED, "message length 4194331 exceed maximum message size of 4194304"):
        client.call("t.T", "Echo", bytes(4 << 20))
    with fails(RESOURCE_EXHAUSTED, "exceed maximum message size of 4194304"):
        client.call("t.T", "Large", b"4194304")
    assert client.call("t.T", "Large", b"4194000") == bytes(4194000)


def test_raised_limit_is_agreed_on(running):
    with Client(running.connect(), offer=1 << 24) as client:
        assert client.message_limit == 4 << 20
        assert client.call("t.T", "Large", str(15 << 20).encode()) == bytes(15 << 20)
        assert client.message_limit == (1 << 24) - 1
        with fails(RESOURCE_EXHAUSTED, "maximum message size of 16777215"):
            client.call("t.T", "Echo", bytes(1 << 24))
    assert running.handlers.contexts == []


def test_raised_limit_for_the_first_message(running):
    with Client(running.connect(), offer=8 << 20) as client:
        assert client.call("t.T", "Echo", bytes(7 << 20)) == bytes(7 << 20)
        assert client.message_limit == 8 << 20
    with Client(running.connect(), offer=1 << 24) as client:
        with client.stream("t.T", "Mirror", client_streaming=True, server_streaming=True) as stream:
            stream.send(bytes(9 << 20))
            assert stream.receive() == bytes(9 << 20)
    assert [context.metadata for context in running.handlers.contexts] == [{}]


def test_a_foreign_server_ignores_the_offer(pair):
    _unused, raw = pair
    ours, theirs = socket.socketpair()
    raw = Raw(theirs)

    def serve() -> None:
        while (frame := raw.receive()) is not None:
            failure = wire.encode_failure(UNIMPLEMENTED, "service x")
            raw.send(frame[0], wire.RESPONSE, 0, failure)

    thread = threading.Thread(target=serve)
    thread.start()
    with Client(ours, offer=1 << 24) as client, fails(RESOURCE_EXHAUSTED, "maximum message size of 4194304"):
        client.call("t.T", "Echo", bytes(5 << 20))
    thread.join(30)
    theirs.close()


def test_oversize_answer_costs_only_its_call(pair):
    client, raw = pair

    def serve() -> None:
        raw.receive()
        raw.sock.sendall(wire.HEADER.pack(5 << 20, 1, wire.RESPONSE, 0) + bytes(5 << 20))
        raw.receive()
        raw.send(3, wire.RESPONSE, 0, wire.encode_response(b"fine"))

    thread = threading.Thread(target=serve)
    thread.start()
    with fails(RESOURCE_EXHAUSTED, "message length 5242880 exceed maximum message size of 4194304"):
        client.call("t.T", "Echo", b"")
    assert client.call("t.T", "Echo", b"") == b"fine"
    thread.join(30)


def test_a_stream_nobody_receives_from_fails_alone(client, monkeypatch):
    monkeypatch.setattr(_channel, "STALL_SECONDS", 0.05)
    monkeypatch.setattr(_channel, "STREAM_MESSAGES", 10)
    with client.stream("t.T", "Count", b"20000", server_streaming=True) as stream:
        with fails(DEADLINE_EXCEEDED, "context deadline exceeded"):
            client.call("t.T", "Never", b"", timeout_s=0.2)
        got = []
        with fails(RESOURCE_EXHAUSTED, "stream buffer full"):
            got.extend(stream)
        assert client.call("t.T", "Echo", b"through") == b"through"


def test_a_slow_receiver_slows_its_peer(client, monkeypatch):
    """The reader is another thread, held back by the stream that this one empties slowly."""
    monkeypatch.setattr(_channel, "STREAM_MESSAGES", 4)
    with client.stream("t.T", "Count", b"300", server_streaming=True) as stream:
        other = threading.Thread(target=lambda: client.call("t.T", "Later", b""))
        other.start()
        assert len(list(stream)) == 300
        other.join(30)
        assert not other.is_alive()


# ---- lost connections and bad peers


def test_connection_lost_ends_every_call(pair):
    client, raw = pair
    caught: list[TtrpcError] = []

    def call() -> None:
        try:
            client.call("t.T", "Echo", b"")
        except TtrpcError as error:
            caught.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert raw.receive() is not None
    raw.sock.close()
    for thread in threads:
        thread.join(30)
    assert [(error.code, str(error)) for error in caught] == [
        (UNAVAILABLE, "connection to /run/raw.sock lost: closed by the other side")
    ] * 4
    assert client.closed
    with fails(UNAVAILABLE, "/run/raw.sock"):
        client.call("t.T", "Echo", b"")


def test_close_from_another_thread(pair):
    client, raw = pair
    caught: list[TtrpcError] = []

    def call() -> None:
        try:
            client.call("t.T", "Echo", b"")
        except TtrpcError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert raw.receive() is not None
    client.close()
    thread.join(30)
    assert [error.code for error in caught] == [CANCELLED]
    client.close()


def test_answers_that_make_no_sense(pair):
    client, raw = pair

    def serve() -> None:
        raw.receive()
        raw.send(99, wire.RESPONSE, 0, b"")  # not a call of ours
        raw.send(0, wire.SETTINGS, 0, b"\x01")  # nothing was offered, and too short
        raw.send(1, 77, 0, b"?")
        raw.receive()
        raw.send(3, wire.RESPONSE, 0, b"\x0a\xff")

    thread = threading.Thread(target=serve)
    thread.start()
    with fails(INTERNAL, "stream data in answer to a unary call"):
        client.call("t.T", "Echo", b"")
    with fails(INTERNAL, "answer cannot be read: message is cut short"):
        client.call("t.T", "Echo", b"")
    thread.join(30)


def test_a_frame_cut_off_by_the_deadline_is_still_sent_whole(pair):
    client, raw = pair
    with fails(DEADLINE_EXCEEDED, "context deadline exceeded"):
        client.call("t.T", "Echo", bytes(3 << 20), timeout_s=0.05)
    got: list[object] = []

    def serve() -> None:
        first, second = raw.receive(), raw.receive()
        assert first is not None
        assert second is not None
        got.extend([len(wire.decode_request(first[3]).payload), wire.decode_request(second[3]).payload])
        raw.send(second[0], wire.RESPONSE, 0, wire.encode_response(b"ok"))

    thread = threading.Thread(target=serve)
    thread.start()
    assert client.call("t.T", "Echo", b"next") == b"ok"
    thread.join(30)
    assert got == [3 << 20, b"next"]


def test_interruption_inside_a_system_call_loses_the_connection_not_the_framing():
    """Ctrl-C between send(2) and its book-keeping: nobody knows how much the peer has, so nothing more may follow."""

    class Torn:
        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock

        def __getattr__(self, name: str) -> object:
            return getattr(self.sock, name)

        def send(self, data: memoryview) -> int:
            self.sock.send(data[:5])
            raise KeyboardInterrupt

    ours, theirs = socket.socketpair()
    with theirs, Client(Torn(ours), address="a") as client:  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt):
            client.call("t.T", "Echo", b"")
        with fails(UNAVAILABLE, "interrupted in the middle of a frame"):
            client.call("t.T", "Echo", b"")


def test_connect(tmp_path):
    path = str(tmp_path / "s")
    with fails(UNAVAILABLE, f"connect unix://{path}: No such file or directory"):
        Client.connect("unix://" + path)
    with listen_unix(path, mode=0o640, backlog=0):
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o640
        # A queue of length 0 holds one connection that nobody accepts.
        with Client.connect(path), fails(DEADLINE_EXCEEDED, "server accepts nobody"):
            Client.connect(path, timeout_s=0.01)
        with pytest.raises(OSError, match=path):
            listen_unix(path)
    with fails(UNAVAILABLE, "Connection refused"):
        Client.connect(path)
    with fails(UNAVAILABLE, "too long"):
        Client.connect("/" + "x" * 200)


def test_a_deadline_holds_while_another_thread_reads(running):
    with Client(running.connect()) as client:

        def wait() -> None:
            with fails(CANCELLED, "closed by this side"):
                client.call("t.T", "Never", b"")

        other = threading.Thread(target=wait)
        other.start()
        assert running.handlers.entered.acquire(timeout=30)
        before = time.monotonic()
        with fails(DEADLINE_EXCEEDED, "context deadline exceeded"):
            client.call("t.T", "Never", b"", timeout_s=0.02)
        assert time.monotonic() - before >= 0.02
        client.close()
        other.join(30)
