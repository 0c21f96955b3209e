"""Calls frame by frame: what a client hears, in the words of grpc-go, and what handlers see."""

import base64
import gzip
import os

import pytest

from orlop.http2 import frames, hpack, rpc
from tests.unit.http2.client import HEADERS, message

OK = (0, "")


@pytest.mark.parametrize("path", ["/t.T/Echo", "/t.T/Later", "/t.T/AtOnce"])
def test_unary(running, path):
    client = running.client()
    for stream in range(1, 20, 2):
        answer = client.call(stream, path, b"x" * stream)
        assert (answer.status, answer.messages) == (OK, [b"x" * stream])
        assert answer.headers[0] == {":status": "200", "content-type": "application/grpc"}
    assert running.state() == (1, 0, 0)


def test_handlers_see_metadata_deadline_and_peer(running):
    client = running.client()
    extra = [
        ("containerd-namespace", "one"),
        ("containerd-namespace", "two"),
        ("grpc-timeout", "5S"),
        ("user-agent", "grpc-go/1.59"),
        ("x-bin", base64.b64encode(b"\x00\xff").decode().rstrip("=")),
    ]
    client.call(1, extra=extra)
    client.call(3, extra=extra)
    for context in running.handlers.contexts:
        assert context.request.metadata == {"containerd-namespace": "one", "user-agent": "grpc-go/1.59"}
        assert context.request.binary == {"x-bin": b"\x00\xff"}
        assert context.request.timeout_s == 5
        assert (context.peer.uid, context.peer.pid) == (os.geteuid(), os.getpid())
    assert len(running.handlers.contexts) == 2


def test_equal_blocks_are_read_anew_when_the_table_has_changed(running):
    client = running.client()
    base = hpack.encode(list(HEADERS))
    learn_one, learn_two, newest = b"\x40\x03x-a\x011", b"\x40\x03x-a\x012", b"\xbe"

    def call(stream, block):
        client.raw(frames.header_frames(0, stream, block, 16384) + frames.frame(0, 1, stream, message(b"")))
        assert client.answer(stream).status == OK
        return running.handlers.contexts[-1].request.metadata["x-a"]

    assert [call(1, base + learn_one), call(3, base + newest), call(5, base + newest)] == ["1", "1", "1"]
    # Trailers change the table too, and are no request.
    client.request(7, "/t.T/Join", b"", end=False)
    client.raw(frames.header_frames(frames.END_STREAM, 7, learn_two, 16384))
    assert client.answer(7).status == OK
    assert call(9, base + newest) == "2"


def refused(**changes):
    changed = {f":{name[1:]}" if name[0] == "_" else name.replace("_", "-"): value for name, value in changes.items()}
    return [(name, value) for name, value in (dict(HEADERS) | changed).items() if value is not None]


@pytest.mark.parametrize(
    ("fields", "http", "code", "text"),
    [
        (refused(_path="/x.Y/Z"), 200, 12, "unknown service x.Y"),
        (refused(_path="/t.T/Nope"), 200, 12, "unknown method Nope for service t.T"),
        (refused(_path="nothing"), 200, 12, 'malformed method name: "nothing"'),
        (refused(_path=""), 200, 12, 'malformed method name: ""'),
        (refused(content_type="text/plain"), 415, 3, 'invalid gRPC request content-type "text/plain"'),
        (refused(content_type="application/grpcx"), 415, 3, 'invalid gRPC request content-type "application/grpcx"'),
        (refused(content_type=None), 415, 3, 'invalid gRPC request content-type ""'),
        (
            refused(_method="GET"),
            405,
            13,
            'Received a HEADERS frame with :method "GET" which should be POST',
        ),
        (
            refused(grpc_timeout="5x"),
            400,
            13,
            'malformed grpc-timeout: transport: timeout unit is not recognized: "5x"',
        ),
        (
            refused(grpc_timeout="123456789S"),
            400,
            13,
            'malformed grpc-timeout: transport: timeout string is too long: "123456789S"',
        ),
        (refused(grpc_timeout="0n"), 200, 4, "context deadline exceeded"),
        (refused(grpc_encoding="zstd"), 200, 12, 'grpc: Decompressor is not installed for grpc-encoding "zstd"'),
        (
            refused(x_bin="!"),
            400,
            13,
            'malformed binary metadata "!" in header "x-bin": Only base64 data is allowed',
        ),
    ],
)
def test_refused_by_the_headers(running, fields, http, code, text):
    client = running.client()
    client.raw(frames.header_frames(0, 1, client.fields(fields), 16384))
    answer = client.answer(1)
    assert answer.status == (code, text)
    assert answer.headers[0][":status"] == str(http)
    assert len(answer.headers) == 1
    client.raw(frames.frame(frames.DATA, frames.END_STREAM, 1, message(b"")))
    assert client.call(3).status == OK
    assert answer.reset == frames.NO_ERROR
    assert answer.headers[0].get("grpc-accept-encoding") == (
        "identity,gzip" if "grpc-encoding" in dict(fields) else None
    )


@pytest.mark.parametrize(
    "fields",
    [
        refused(content_type="application/grpc+proto"),
        refused(content_type="application/grpc;charset=utf-8"),
        refused(content_type="Application/GRPC"),
        refused(grpc_encoding="identity"),
        refused(te=None),
        refused(_authority=None),
        refused(_authority="%2Frun%2Forlop%2Forlop.sock"),
        refused(_authority=None, host="x"),
    ],
)
def test_taken_as_grpc_go_takes_it(running, fields):
    client = running.client()
    client.raw(frames.header_frames(0, 1, client.fields(fields), 16384) + frames.frame(0, 1, 1, message(b"x")))
    assert client.answer(1).messages == [b"x"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (message(b"", compressed=1), (13, "grpc: compressed flag set with identity or empty encoding")),
        (message(b"", compressed=7), (13, "grpc: received unexpected payload format 7")),
        (b"\0\x7f\0\0\0abc", (8, "grpc: received message larger than max (2130706432 vs. 16777216)")),
        (b"\0\0\0\0\x02a", (2, "unexpected EOF")),
        (b"\0\0", (2, "unexpected EOF")),
        (b"", (13, "the request has no message")),
        (message(b"a") + message(b"b"), (13, "the request has more than one message")),
    ],
)
def test_messages_that_are_none(running, data, status):
    client = running.client()
    client.raw(frames.header_frames(0, 1, client.block(), 16384) + frames.frame(0, 1, 1, data))
    assert client.answer(1).status == status
    assert running.state() == (1, 0, 0)


def test_gzip_is_taken(running):
    client = running.client()
    data = b"".join(message(gzip.compress(part), compressed=1) + message(part) for part in (b"a" * 1000, b"", b"b"))
    for stream, path in ((1, "/t.T/Mirror"), (3, "/t.T/Mirror")):
        client.raw(frames.header_frames(0, stream, client.block(path, [("grpc-encoding", "gzip")]), 16384))
        client.raw(frames.frame(frames.DATA, frames.END_STREAM, stream, data))
        answer = client.answer(stream)
        assert (answer.status, answer.messages) == (OK, [b"a" * 1000] * 2 + [b""] * 2 + [b"b"] * 2)
    assert running.state() == (1, 0, 0)


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (gzip.compress(bytes(1001)), 8, "grpc: message after decompression larger than max (1001 vs. 1000)"),
        (gzip.compress(bytes(1 << 20)), 8, "grpc: message after decompression larger than max (1001 vs. 1000)"),
        (gzip.compress(b"cut")[:-3], 13, "grpc: failed to decompress the received message: unexpected EOF"),
        (b"", 13, "grpc: failed to decompress the received message: unexpected EOF"),
        (b"no gzip", 13, "grpc: failed to decompress the received message: Error -3 while decompressing data"),
    ],
)
def test_gzip_that_is_none_or_a_bomb(start, data, code, text):
    running = start(max_receive=2000 if len(data) > 1000 else 1000)
    client = running.client()
    extra = [("grpc-encoding", "gzip")]
    client.raw(frames.header_frames(0, 1, client.block(extra=extra), 16384))
    client.raw(frames.frame(0, 1, 1, message(data, compressed=1)))
    answer = client.answer(1)
    assert answer.status[0] == code
    assert answer.status[1].startswith(text.replace("1001 vs. 1000", "2001 vs. 2000") if len(data) > 1000 else text)
    assert running.state() == (1, 0, 0)


@pytest.mark.parametrize("cut", [1, 3, 5, 7, 1000])
def test_messages_in_pieces(running, cut):
    client = running.client()
    data = b"".join(message(part) for part in (b"a", b"", b"bcd", b"e" * 50))
    for stream, path, expected in ((1, "/t.T/Join", [b"a||bcd|" + b"e" * 50]), (3, "/t.T/Mirror", None)):
        client.raw(frames.header_frames(0, stream, client.block(path), 16384))
        for start in range(0, len(data), cut):
            client.raw(frames.frame(frames.DATA, 0, stream, data[start : start + cut]))
        client.raw(frames.frame(frames.DATA, frames.END_STREAM, stream))
        answer = client.answer(stream)
        assert answer.messages == (expected or [b"a", b"", b"bcd", b"e" * 50])
        assert answer.status == OK
    assert running.state() == (1, 0, 0)


def test_padding_and_priority_are_taken_off(running):
    client = running.client()
    block = b"\x03" + b"\0\0\0\0\x10" + client.block() + b"pad"
    flags = frames.END_HEADERS | frames.PADDED | frames.PRIORITISED
    body = b"\x04" + message(b"x") + b"pads"
    client.raw(frames.frame(frames.HEADERS, flags, 1, block))
    client.raw(frames.frame(frames.DATA, frames.END_STREAM | frames.PADDED, 1, body))
    assert client.answer(1).messages == [b"x"]


def test_header_blocks_come_in_pieces(running):
    client = running.client()
    block = client.block(extra=[("x-long", "v" * 300)])
    pieces = [frames.frame(frames.HEADERS, frames.END_STREAM, 1, b"")]
    pieces += [frames.frame(frames.CONTINUATION, 0, 1, block[start : start + 40]) for start in range(0, len(block), 40)]
    client.raw(b"".join(pieces) + frames.frame(frames.CONTINUATION, frames.END_HEADERS, 1))
    assert client.answer(1).status == (13, "the request has no message")


def test_byte_by_byte(running):
    client = running.client(greet=False)
    data = frames.PREFACE + frames.settings([]) + frames.header_frames(0, 1, client.block(), 16384)
    for octet in data + frames.frame(0, 1, 1, message(b"slow")):
        client.raw(bytes([octet]))
    assert client.answer(1).messages == [b"slow"]


def test_errors_of_handlers(running):
    client = running.client()
    answer = client.call(1, "/t.T/Fail", "50 % of “it”\n".encode())
    assert answer.status == (5, "50 % of “it”\n")
    assert answer.headers[-1]["grpc-message"] == "50 %25 of %E2%80%9Cit%E2%80%9D%0A"
    assert answer.headers[-1]["grpc-status-details-bin"] == "CAU"
    assert client.call(3, "/t.T/FailLater", b"key").status == (2, "'key'")
    counted = client.call(5, "/t.T/CountAndFail", b"2")
    assert (counted.messages, counted.status) == ([b"0", b"1"], (9, "counted enough"))
    assert client.call(7, "/t.T/Twice", b"").status == (13, "handler produced 2 answers instead of one")


def test_long_error_texts_fit_what_the_client_takes(running):
    client = running.client(settings=[(frames.MAX_HEADER_LIST_SIZE, 2048)])
    code, text = client.call(1, "/t.T/Fail", b"%" * 5000).status
    assert (code, text) == (5, "%" * (512 // 3))
    unbounded = running.client()
    assert unbounded.call(1, "/t.T/Fail", b"%" * 12_000).status == (5, "%" * 12_000)


def test_streams(running):
    client = running.client()
    assert client.call(1, "/t.T/Count", b"200").messages == [str(n).encode() for n in range(200)]
    assert client.call(3, "/t.T/Count", b"0").status == OK
    assert client.call(5, "/t.T/Join", None).messages == [b""]
    client.request(7, "/t.T/Mirror", b"1", end=False)
    while not (7 in client.answers and client.answers[7].data):
        assert client.step()
    assert client.answers[7].messages == [b"1"]
    client.raw(frames.frame(frames.DATA, frames.END_STREAM, 7, message(b"2")))
    assert client.answer(7).messages == [b"1", b"2"]


def test_an_early_answer_stands_and_the_rest_is_not_wanted(running):
    client = running.client()
    client.request(1, "/t.T/Early", b"1", end=False)
    assert client.answer(1).messages == [b"that will do"]
    while client.answers[1].reset is None:
        assert client.step()
    client.raw(frames.frame(frames.DATA, 0, 1, message(b"more")) + frames.frame(frames.DATA, frames.END_STREAM, 1))
    assert client.call(3).status == OK
    assert client.answers[1].reset == frames.NO_ERROR


def test_answers_beyond_the_limit(start):
    client = start(max_send=1000).client()
    text = "grpc: trying to send message larger than max (1001 vs. 1000)"
    assert client.call(1, "/t.T/Large", b"1001").status == (8, text)
    assert client.call(3, "/t.T/LargeOnes", b"1000 1001").status == (8, text)
    assert client.call(5, "/t.T/Large", b"1000").status == OK


def test_deadline(running):
    client = running.client()
    answer = client.call(1, "/t.T/Never", extra=[("grpc-timeout", "20m")])
    assert answer.status == (rpc.DEADLINE_EXCEEDED, "context deadline exceeded")
    assert running.handlers.cancelled.acquire(timeout=30)
    client.request(3, "/t.T/Deaf", b"", extra=[("grpc-timeout", "20000u")], end=False)
    assert client.answer(3).status == (rpc.DEADLINE_EXCEEDED, "context deadline exceeded")
    assert running.handlers.cancelled.acquire(timeout=30)
    client.settle()
    assert running.state() == (1, 0, 0)


@pytest.mark.parametrize("path", ["/t.T/Never", "/t.T/Deaf", "/t.T/Forever"])
def test_a_reset_cancels_the_handler(running, path):
    client = running.client()
    client.request(1, path, b"x", end=path != "/t.T/Deaf")
    assert running.handlers.entered.acquire(timeout=30)
    client.raw(frames.rst_stream(1, frames.CANCEL))
    assert running.handlers.cancelled.acquire(timeout=30)
    client.settle()
    assert running.state() == (1, 0, 0)


def test_a_reset_in_the_same_breath(running):
    """The handler takes its first step all the same, so that nothing it was given is left unawaited."""
    client = running.client()
    for stream, path in ((1, "/t.T/Never"), (3, "/t.T/Deaf"), (5, "/t.T/Later")):
        block = frames.header_frames(0, stream, client.block(path), 16384)
        client.raw(block + frames.frame(0, 1, stream, message(b"")) + frames.rst_stream(stream, frames.CANCEL))
    for _ in range(2):
        assert running.handlers.entered.acquire(timeout=30)
        assert running.handlers.cancelled.acquire(timeout=30)
    client.settle()
    assert running.state() == (1, 0, 0)


def test_a_hang_up_cancels_the_handlers(running):
    client = running.client()
    for stream in range(1, 2001, 2):
        client.request(stream, "/t.T/Never")
    for _ in range(1000):
        assert running.handlers.entered.acquire(timeout=30)
    assert running.state() == (1, 1000, 0)
    client.sock.close()
    for _ in range(1000):
        assert running.handlers.cancelled.acquire(timeout=30)
    assert running.state() == (0, 0, 0)
