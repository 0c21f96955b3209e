"""What RFC 9113 demands of a server: which faults end a stream and which the connection, windows, ends; and floods."""

import asyncio
import random
import struct

import pytest

from orlop.http2 import frames
from orlop.http2.frames import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    NO_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    STREAM_CLOSED,
    frame,
)
from orlop.http2.limits import Budget
from tests.unit.http2.client import HEADERS, message

OK = (0, "")
GREETING = frames.PREFACE + frames.settings([])


def pair(key, value):
    return struct.pack(">HI", key, value)


CONNECTION_FAULTS = {
    "no preface": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", PROTOCOL_ERROR),
    "another preface": (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", PROTOCOL_ERROR),
    "no settings": (frames.PREFACE + frame(frames.PING, 0, 0, bytes(8)), PROTOCOL_ERROR),
    "acknowledgement first": (frames.PREFACE + frames.SETTINGS_ACK, PROTOCOL_ERROR),
    "settings on a stream": (GREETING + frame(frames.SETTINGS, 0, 1), PROTOCOL_ERROR),
    "settings cut": (GREETING + frame(frames.SETTINGS, 0, 0, b"12345"), FRAME_SIZE_ERROR),
    "settings acknowledged with more": (GREETING + frame(frames.SETTINGS, 1, 0, bytes(6)), FRAME_SIZE_ERROR),
    "push neither on nor off": (GREETING + frame(frames.SETTINGS, 0, 0, pair(2, 2)), PROTOCOL_ERROR),
    "initial window": (GREETING + frame(frames.SETTINGS, 0, 0, pair(4, 1 << 31)), FLOW_CONTROL_ERROR),
    "frame size below": (GREETING + frame(frames.SETTINGS, 0, 0, pair(5, 16383)), PROTOCOL_ERROR),
    "frame size above": (GREETING + frame(frames.SETTINGS, 0, 0, pair(5, 1 << 24)), PROTOCOL_ERROR),
    "large frame": (GREETING + frame(frames.DATA, 0, 1, bytes(16385)), FRAME_SIZE_ERROR),
    "large frame of an unknown kind": (GREETING + frame(77, 0, 1, bytes(16385)), FRAME_SIZE_ERROR),
    "ping on a stream": (GREETING + frame(frames.PING, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "short ping": (GREETING + frame(frames.PING, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    "goaway on a stream": (GREETING + frame(frames.GOAWAY, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "short goaway": (GREETING + frame(frames.GOAWAY, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    "push promise": (GREETING + frame(frames.PUSH_PROMISE, 4, 1, bytes(4)), PROTOCOL_ERROR),
    "data on stream 0": (GREETING + frame(frames.DATA, 0, 0, b"x"), PROTOCOL_ERROR),
    "data on an idle stream": (GREETING + frame(frames.DATA, 0, 1, b"x"), PROTOCOL_ERROR),
    "reset of an idle stream": (GREETING + frames.rst_stream(1, 8), PROTOCOL_ERROR),
    "reset of stream 0": (GREETING + frames.rst_stream(0, 8), PROTOCOL_ERROR),
    "short reset": (GREETING + frame(frames.RST_STREAM, 0, 1, b"123"), FRAME_SIZE_ERROR),
    "priority of stream 0": (GREETING + frame(frames.PRIORITY, 0, 0, bytes(5)), PROTOCOL_ERROR),
    "short priority": (GREETING + frame(frames.PRIORITY, 0, 1, bytes(4)), FRAME_SIZE_ERROR),
    "window of an idle stream": (GREETING + frames.window_update(1, 1), PROTOCOL_ERROR),
    "window by nothing": (GREETING + frames.window_update(0, 0), PROTOCOL_ERROR),
    "short window update": (GREETING + frame(frames.WINDOW_UPDATE, 0, 0, b"123"), FRAME_SIZE_ERROR),
    "window too wide": (GREETING + frames.window_update(0, (1 << 31) - 1), FLOW_CONTROL_ERROR),
    "an even stream": (GREETING + frame(frames.HEADERS, 5, 2, b"\x83"), PROTOCOL_ERROR),
    "headers on stream 0": (GREETING + frame(frames.HEADERS, 5, 0, b"\x83"), PROTOCOL_ERROR),
    "continuation of nothing": (GREETING + frame(frames.CONTINUATION, 4, 1, b"\x83"), PROTOCOL_ERROR),
    "continuation of another": (
        GREETING + frame(frames.HEADERS, 0, 1, b"\x83") + frame(frames.CONTINUATION, 4, 3, b"\x83"),
        PROTOCOL_ERROR,
    ),
    "interrupted headers": (
        GREETING + frame(frames.HEADERS, 0, 1, b"\x83") + frame(frames.PING, 0, 0, bytes(8)),
        PROTOCOL_ERROR,
    ),
    "no header block": (GREETING + frame(frames.HEADERS, 5, 1, b"\xff"), COMPRESSION_ERROR),
    "padding longer than its frame": (GREETING + frame(frames.HEADERS, 0xD, 1, b"\x05abc"), PROTOCOL_ERROR),
    "padding of an empty frame": (GREETING + frame(frames.HEADERS, 0xD, 1, b""), PROTOCOL_ERROR),
    "priority cut": (GREETING + frame(frames.HEADERS, 0x25, 1, b"1234"), FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize("name", CONNECTION_FAULTS)
def test_faults_that_end_the_connection(running, name):
    data, code = CONNECTION_FAULTS[name]
    client = running.client(greet=False)
    client.raw(data)
    goaway = client.end()
    assert goaway is not None
    assert goaway[1] == code, goaway
    assert running.state() == (0, 0, 0)


def test_a_fault_ends_the_calls_of_the_connection_and_of_no_other(running):
    bystander, client = running.client(), running.client()
    client.request(1, "/t.T/Never")
    assert running.handlers.entered.acquire(timeout=30)
    client.raw(frame(frames.PUSH_PROMISE, 4, 1, bytes(4)))
    assert client.end() is not None
    assert running.handlers.cancelled.acquire(timeout=30)
    assert bystander.call(1).status == OK


@pytest.mark.parametrize("seed", range(6))
def test_data_frames_that_come_together_are_what_each_is_alone(running, seed):
    """Full frames behind each other are dealt with as one; others, short and empty ones come in between."""
    dice = random.Random(seed)
    payloads = {1: dice.randbytes(300_000), 3: dice.randbytes(150_000)}
    left = {stream: message(payload) for stream, payload in payloads.items()}
    client = running.client(settings=[(frames.INITIAL_WINDOW_SIZE, 1 << 20)], window=1 << 20)
    sent = b""
    for stream in payloads:
        client.request(stream, payload=None, end=False)
    while left:
        stream = dice.choice(list(left))
        for _ in range(dice.randint(1, 6)):
            size = dice.choice([frames.DEFAULT_FRAME_SIZE] * 6 + [0, 1, 100])
            sent += frame(frames.DATA, 0, stream, left[stream][:size])
            left[stream] = left[stream][size:]
        if not left[stream]:
            sent += frame(frames.DATA, frames.END_STREAM, stream)
            del left[stream]
    while sent:
        size = dice.choice([1, 8, 9, 10, 20_000, 100_000, 300_000])
        client.raw(sent[:size])
        sent = sent[size:]
    for stream, payload in payloads.items():
        assert client.answer(stream).messages == [payload]
    assert running.state() == (1, 0, 0)


def test_frames_behind_full_ones_are_judged_as_any(running):
    client = running.client()
    client.request(1, payload=None, end=False)
    full = frame(frames.DATA, 0, 1, message(bytes(100_000))[: frames.DEFAULT_FRAME_SIZE])
    client.raw(full + full + frame(frames.DATA, 0, 1, bytes(frames.DEFAULT_FRAME_SIZE + 1)))
    goaway = client.end()
    assert goaway is not None
    assert goaway[1] == FRAME_SIZE_ERROR


def without(name):
    return [field for field in HEADERS if field[0] != name]


@pytest.mark.parametrize(
    "fields",
    [
        without(":method"),
        without(":scheme"),
        without(":path"),
        [*HEADERS, (":path", "/late")],
        [(":path", "/twice"), *HEADERS],
        [(":status", "200"), *HEADERS],
        [*HEADERS, ("Upper", "x")],
        [*HEADERS, ("", "x")],
        [*HEADERS, ("x y", "x")],
        [*HEADERS, ("x", "a\nb")],
        [*HEADERS, ("x", "a\0b")],
        [*HEADERS, ("x", " a")],
        [*HEADERS, ("connection", "close")],
        [*HEADERS, ("transfer-encoding", "chunked")],
        [*HEADERS, ("host", "a"), ("host", "b")],
    ],
)
def test_malformed_requests_end_their_stream(running, fields):
    client = running.client()
    client.raw(frames.header_frames(0, 1, client.fields(fields), 16384) + frame(frames.DATA, 1, 1, message(b"")))
    assert client.answer(1).reset == PROTOCOL_ERROR
    assert client.call(3).status == OK


def test_frames_after_the_end_of_a_stream(running):
    client = running.client()
    for stream, path in ((1, "/t.T/Never"), (3, "/t.T/Never"), (5, "/t.T/Deaf")):
        client.request(stream, path, end=stream < 5)
        assert running.handlers.entered.acquire(timeout=30)
    client.raw(frame(frames.DATA, 0, 1, b"more"))
    assert client.answer(1).reset == STREAM_CLOSED
    client.raw(frames.header_frames(frames.END_STREAM, 3, client.fields([("x", "y")]), 16384))
    assert client.answer(3).reset == STREAM_CLOSED
    client.raw(frames.header_frames(0, 5, client.fields([("x", "y")]), 16384))
    assert client.answer(5).reset == PROTOCOL_ERROR
    for _ in range(3):
        assert running.handlers.cancelled.acquire(timeout=30)
    # What crosses the end of a stream is no fault: it was sent before the sender knew.
    late = frame(frames.DATA, 0, 1, b"x") + frames.window_update(1, 9) + frames.rst_stream(1, 8)
    client.raw(late + frames.header_frames(frames.END_STREAM, 1, client.fields([("x", "z")]), 16384))
    assert client.call(7).status == OK


def test_unknown_frames_and_settings_are_ignored(running):
    client = running.client(settings=[(99, 1), (frames.MAX_CONCURRENT_STREAMS, 0)])
    client.raw(frame(200, 0xFF, 12, b"whatever") + frame(frames.PRIORITY, 0, 9, bytes(5)))
    client.raw(frame(frames.GOAWAY, 0, 0, bytes(8)))
    assert client.call(1).status == OK


def test_pings_and_settings_are_answered(running):
    client = running.client()
    client.raw(frame(frames.PING, 0, 0, b"abcdefgh") + frames.settings([(frames.INITIAL_WINDOW_SIZE, 1 << 20)]))
    client.settle()
    assert (frames.PING, frames.ACK, 0, b"abcdefgh") in client.others
    acknowledgements = [other for other in client.others if other[:2] == (frames.SETTINGS, frames.ACK)]
    assert len(acknowledgements) == 2


# ---- windows


def test_answers_keep_to_the_windows(running):
    client = running.client(settings=[(frames.INITIAL_WINDOW_SIZE, 10)])
    client.request(1, "/t.T/Large", b"95")
    client.request(3)
    assert client.answer(3).messages == [b""]
    assert len(client.answers[1].data) == 10
    client.raw(frames.window_update(1, 50))
    client.settle()
    assert len(client.answers[1].data) == 60
    # A smaller setting makes the window negative, and it must be made up for: section 6.9.2.
    client.raw(frames.settings([(frames.INITIAL_WINDOW_SIZE, 0)]) + frames.window_update(1, 5))
    client.settle()
    assert len(client.answers[1].data) == 60
    client.raw(frames.settings([(frames.INITIAL_WINDOW_SIZE, 100)]))
    answer = client.answer(1)
    assert (answer.status, answer.messages) == (OK, [bytes(95)])


def test_a_wider_setting_is_acknowledged_before_it_is_used(running):
    client = running.client(settings=[(frames.INITIAL_WINDOW_SIZE, 10)])
    client.request(1, "/t.T/Large", b"95")
    client.settle()
    client.raw(frames.settings([(frames.INITIAL_WINDOW_SIZE, 100)]))
    while (frames.SETTINGS, frames.ACK, 0, b"") not in client.others[-1:]:
        assert client.step()
    assert len(client.answers[1].data) == 10
    assert client.answer(1).messages == [bytes(95)]


def test_the_connections_window_is_shared_and_nobody_starves(running):
    client = running.client(settings=[(frames.INITIAL_WINDOW_SIZE, 1 << 20)])
    client.request(1, "/t.T/Large", b"400000")
    client.request(3, "/t.T/Large", b"400000")
    client.settle()
    assert len(client.answers[1].data) == 65535
    for _ in range(8):
        client.raw(frames.window_update(0, 100_000))
    first, second = client.answer(1), client.answer(3)
    assert first.messages == second.messages == [bytes(400_000)]


def test_frame_size_of_the_client_is_kept(running):
    client = running.client(
        settings=[(frames.INITIAL_WINDOW_SIZE, 1 << 20), (frames.MAX_FRAME_SIZE, 20_000)], window=1 << 20
    )
    client.request(1, "/t.T/Large", b"100000")
    sizes = []
    while not client.answers.get(1) or not client.answers[1].ended:
        before = len(client.answers[1].data) if 1 in client.answers else 0
        assert client.step()
        sizes.append(len(client.answers[1].data) - before if 1 in client.answers else 0)
    assert max(sizes) == 20_000


def test_a_shut_window_holds_one_message_and_a_reset_lets_go(running):
    client = running.client(settings=[(frames.INITIAL_WINDOW_SIZE, 0)])
    client.request(1, "/t.T/Forever", b"x" * 1000)
    assert running.handlers.entered.acquire(timeout=30)
    for stream in range(3, 21, 2):
        client.request(stream, "/t.T/Fail", b"no data")
        assert client.answer(stream).status == (5, "no data")
    assert not running.handlers.entered.acquire(blocking=False)
    client.raw(frames.rst_stream(1, frames.CANCEL))
    assert running.handlers.cancelled.acquire(timeout=30)
    client.settle()
    assert running.state() == (1, 0, 0)


def test_a_deadline_passes_while_the_window_is_shut(running):
    client = running.client(settings=[(frames.INITIAL_WINDOW_SIZE, 0)])
    client.request(1, "/t.T/Forever", b"x", extra=[("grpc-timeout", "30m")])
    assert client.answer(1).reset == frames.CANCEL
    assert running.handlers.cancelled.acquire(timeout=30)


def test_window_of_a_stream_too_wide(running):
    client = running.client()
    client.request(1, "/t.T/Never")
    client.raw(frames.window_update(1, (1 << 31) - 1))
    assert client.answer(1).reset == FLOW_CONTROL_ERROR
    client.request(3, "/t.T/Never")
    client.raw(frames.window_update(3, 0))
    assert client.answer(3).reset == PROTOCOL_ERROR
    client.request(5, "/t.T/Never")
    client.raw(frames.window_update(5, (1 << 31) - 1 - 65535))
    client.raw(frames.settings([(frames.INITIAL_WINDOW_SIZE, 65536)]))
    goaway = client.end()
    assert goaway is not None
    assert goaway[1] == FLOW_CONTROL_ERROR


def test_windows_are_given_back_as_messages_are_read(start):
    running = start(stream_window=100_000, connection_window=200_000, stream_backlog=50_000)
    client = running.client()
    client.request(1, "/t.T/Total", None, end=False)
    for _ in range(30):
        client.raw(frame(frames.DATA, 0, 1, message(bytes(15_995))))
        assert running.handlers.received.acquire(timeout=30)
    client.raw(frame(frames.DATA, frames.END_STREAM, 1))
    assert client.answer(1).messages == [b"479850"]
    given = {0: 0, 1: 0}
    for kind, _, stream, payload in client.others:
        if kind == frames.WINDOW_UPDATE:
            given[stream] += int.from_bytes(payload, "big")
    assert given[0] >= 200_000 - 65_535 + 350_000
    assert given[1] >= 350_000


def test_a_deaf_handlers_stream_is_held_back_and_its_neighbours_are_not(start):
    running = start(stream_window=100_000, stream_backlog=50_000)
    client = running.client()
    client.request(1, "/t.T/Deaf", None, end=False)
    assert running.handlers.entered.acquire(timeout=30)
    for _ in range(6):
        client.raw(frame(frames.DATA, 0, 1, message(bytes(15_995))))
    client.settle()
    updates = [other for other in client.others if other[0] == frames.WINDOW_UPDATE and other[2] == 1]
    assert len(updates) <= 1
    assert client.call(3, payload=b"x").messages == [b"x"]
    assert running.state()[2] == 96_000
    for _ in range(8):
        client.raw(frame(frames.DATA, 0, 1, message(bytes(15_995))))
    assert client.answer(1).reset == FLOW_CONTROL_ERROR
    assert running.handlers.cancelled.acquire(timeout=30)
    client.settle()
    assert running.state() == (1, 0, 0)


def test_the_connections_window_is_given_back_whatever_becomes_of_the_data(start):
    running = start(connection_window=65_535, stream_window=1 << 20)
    client = running.client()
    client.request(1, "/t.T/Deaf", None, end=False)
    assert running.handlers.entered.acquire(timeout=30)
    for stream in (1, 1, 1, 3, 3, 3):  # of the third on nobody knows any more
        if stream == 3 and 3 not in client.answers:
            client.request(3, "/t.T/Nope", None, end=False)
            client.answer(3)
        client.raw(frame(frames.DATA, 0, stream, message(bytes(16_000))))
        client.settle()
    given = sum(
        int.from_bytes(payload, "big")
        for kind, _, stream, payload in client.others
        if (kind, stream) == (frames.WINDOW_UPDATE, 0)
    )
    assert given >= 64_000
    assert client.goaway is None


def test_messages_in_memory_are_bounded(start):
    running = start(inbound=100_000)
    client = running.client()
    for stream in range(1, 13, 2):
        client.request(stream, "/t.T/Join", None, end=False)
        client.raw(frame(frames.DATA, 0, stream, struct.pack(">BI", 0, 1 << 20) + bytes(16_000)) * 2)
    answers = [client.answer(stream) for stream in (7,)]
    assert answers[0].status[0] == 8
    assert running.state()[2] <= 100_000
    client.sock.close()
    client = running.client()
    assert client.call(1).status == OK
    assert running.state()[2] == 0


# ---- bounds


def test_concurrent_streams_are_bounded(start):
    running = start(streams=3)
    client = running.client()
    for stream in (1, 3, 5):
        client.request(stream, "/t.T/Never")
    assert client.call(7).reset == REFUSED_STREAM
    client.raw(frames.rst_stream(1, frames.CANCEL))
    assert running.handlers.cancelled.acquire(timeout=30)
    assert client.call(9).status == OK
    settings = [other for other in client.others if other[:2] == (frames.SETTINGS, 0)]
    assert pair(frames.MAX_CONCURRENT_STREAMS, 3) in settings[0][3]


def test_answers_that_wait_are_bounded(start):
    running = start(outbound=100_000)
    client = running.client(settings=[(frames.INITIAL_WINDOW_SIZE, 0)], window=1 << 20)
    client.request(1, "/t.T/Large", b"90000")
    client.request(3, "/t.T/Large", b"90000")
    assert client.call(5).reset == REFUSED_STREAM
    client.raw(frames.rst_stream(1, frames.CANCEL))
    client.raw(frames.settings([(frames.INITIAL_WINDOW_SIZE, 1 << 20)]))
    assert client.call(7).status == OK


FLOODS = {
    "pings": lambda client, n: frame(frames.PING, 0, 0, bytes(8)),
    "settings": lambda client, n: frames.settings([(frames.INITIAL_WINDOW_SIZE, 65535)]),
    "settings acknowledged": lambda client, n: frames.SETTINGS_ACK,
    "empty data": lambda client, n: frame(frames.DATA, 0, 1),
    "data that is padding": lambda client, n: frame(frames.DATA, frames.PADDED, 1, b"\x03abc"),
    "priorities": lambda client, n: frame(frames.PRIORITY, 0, 1, bytes(5)),
    "windows": lambda client, n: frames.window_update(0, 1),
    "windows of a stream": lambda client, n: frames.window_update(1, 1),
    "late resets": lambda client, n: frames.rst_stream(3, 8),
    "late headers": lambda client, n: frame(frames.HEADERS, 5, 3, b"\x83"),
    "malformed requests": lambda client, n: frame(frames.HEADERS, 5, 5 + 2 * n, b"\x83"),
    "unknown frames": lambda client, n: frame(99, 0, 0),
    "goaways": lambda client, n: frame(frames.GOAWAY, 0, 0, bytes(8)),
    "rapid resets": lambda client, n: (
        frame(frames.HEADERS, 4, 5 + 2 * n, client.block("/t.T/Deaf")) + frames.rst_stream(5 + 2 * n, 8)
    ),
}


@pytest.mark.parametrize("name", FLOODS)
def test_floods_end_the_connection(start, name):
    running = start(control_burst=50, control_rate=0.0, reset_burst=50, reset_rate=0.0)
    client = running.client()
    client.request(1, "/t.T/Deaf", None, end=False)
    client.request(3)
    assert client.answer(3).status == OK
    try:
        for number in range(200):
            client.raw(FLOODS[name](client, number))
    except (BrokenPipeError, ConnectionResetError):
        pass
    goaway = client.end()
    if goaway is not None:  # a reset of the socket may have swallowed it
        assert goaway[1] == ENHANCE_YOUR_CALM
    assert running.client().call(1).status == OK
    assert running.state() == (1, 0, 0)


def test_settings_cost_more_the_more_streams_they_change(start):
    running = start(control_burst=50, control_rate=0.0)
    client = running.client()
    for stream in range(1, 400, 2):
        client.request(stream, "/t.T/Never")
        assert running.handlers.entered.acquire(timeout=30)
    client.raw(frames.settings([(frames.INITIAL_WINDOW_SIZE, 65535)]) * 5)
    goaway = client.end()
    assert goaway is not None
    assert goaway[1] == ENHANCE_YOUR_CALM


def test_answers_give_the_budget_back(start):
    client = start(control_burst=50, control_rate=0.0).client()
    for stream in range(1, 401, 2):
        client.raw(frame(frames.PING, 0, 0, bytes(8)) + frames.window_update(0, 5))
        assert client.call(stream).status == OK


def test_a_budget_refills():
    budget = Budget(3, 1e9)
    assert all(budget.take() for _ in range(100))
    budget = Budget(3, 0.0)
    assert [budget.take() for _ in range(5)] == [True, True, True, False, False]
    budget.give(2)
    assert [budget.take(3), budget.take(2), budget.take()] == [False, True, False]


def test_header_lists_are_bounded(start):
    running = start(header_list=5000)
    client = running.client()
    assert client.call(1, extra=[("x", "y" * 5000)]).reset == ENHANCE_YOUR_CALM
    assert client.call(3).status == OK
    client.raw(frame(frames.HEADERS, 0, 5, client.block()))
    client.raw(b"".join(frame(frames.CONTINUATION, 0, 5, b"\x00\x01a\x01b" * 400) for _ in range(3)))
    goaway = client.end()
    assert goaway is not None
    assert goaway[1] == ENHANCE_YOUR_CALM


def test_a_bomb_of_references_is_cut_off(running):
    """One long field in the table, named ten thousand times."""
    client = running.client()
    learn = b"\x40\x01x\x7f\x81\x1e" + b"v" * 4000
    client.raw(frame(frames.HEADERS, 5, 1, client.block() + learn + b"\xbe" * 10_000))
    assert client.answer(1).reset == ENHANCE_YOUR_CALM


def test_continuations_without_end(start):
    client = start().client()
    client.raw(frame(frames.HEADERS, 0, 1, client.block()))
    client.raw(frame(frames.CONTINUATION, 0, 1) * 100)
    goaway = client.end()
    assert goaway is not None
    assert goaway[1] == ENHANCE_YOUR_CALM


def test_silence_is_ended(start):
    client = start(preface_timeout_s=0.02).client(greet=False)
    goaway = client.end()
    assert goaway is not None
    assert goaway[1:] == (PROTOCOL_ERROR, b"no preface in time")


def test_a_client_that_does_not_read_is_not_read(running):
    """Its requests stay in the socket, so that answers do not pile up here."""
    client = running.client(settings=[(frames.INITIAL_WINDOW_SIZE, (1 << 31) - 1)], window=1 << 30)
    client.sock.settimeout(0.5)
    sent = 0
    for stream in range(1, 100_000, 2):
        try:
            client.request(stream, "/t.T/Large", b"15000")
        except TimeoutError:
            break
        sent = stream
    assert sent < 50_000
    assert running.client().call(1).status == OK
    client.sock.settimeout(30)
    assert client.answer(sent).messages == [bytes(15_000)]


# ---- ends


def test_a_graceful_end(running):
    client, idle = running.client(), running.client()
    client.request(1, "/t.T/Join", b"a", end=False)
    idle.settle()
    client.settle()
    done = asyncio.run_coroutine_threadsafe(running.server.close(30), running.loop)
    while client.goaway is None:
        assert client.step()
    assert client.goaway[:2] == (frames.STREAM_MASK, NO_ERROR)
    # A call that crosses the first GOAWAY is served.
    assert client.call(3, payload=b"crossing").messages == [b"crossing"]
    farewell = next(other for other in client.others if other[0] == frames.PING and not other[1] & frames.ACK)
    client.raw(frame(frames.PING, frames.ACK, 0, farewell[3]))
    while client.goaway[0] != 3:
        assert client.step()
    client.request(5)  # comes too late; the client knows
    client.raw(frame(frames.DATA, frames.END_STREAM, 1, message(b"b")))
    assert client.answer(1).messages == [b"a|b"]
    assert client.end() == (3, NO_ERROR, b"")
    while idle.goaway is None:
        assert idle.step()
    idle.raw(frame(frames.PING, frames.ACK, 0, farewell[3]))
    assert idle.end() == (0, NO_ERROR, b"")
    done.result(30)
    assert running.state() == (0, 0, 0)


def test_an_end_without_patience(running):
    client = running.client()
    for stream, path in ((1, "/t.T/Never"), (3, "/t.T/Deaf"), (5, "/t.T/Forever")):
        client.request(stream, path, b"x")
        assert running.handlers.entered.acquire(timeout=30)
    done = asyncio.run_coroutine_threadsafe(running.server.close(0), running.loop)
    assert client.answer(1).status == (14, "server is shutting down")
    assert client.answer(3).status == (14, "server is shutting down")
    client.end()
    done.result(30)
    for _ in range(3):
        assert running.handlers.cancelled.acquire(timeout=30)
    assert running.state() == (0, 0, 0)
