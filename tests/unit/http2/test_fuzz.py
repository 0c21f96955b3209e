"""Any frames whatever against the server: it answers, ignores or hangs up, and the next peer is served as ever."""

import struct

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orlop.http2 import frames, hpack
from orlop.http2.rpc import percent_encoded, read_request
from tests.unit.http2.client import HEADERS, message

PATHS = ["Echo", "Later", "Never", "Fail", "FailLater", "Count", "Join", "Mirror", "Deaf", "Early", "Twice", "Nope"]
NAMES = [":method", ":path", ":scheme", "te", "grpc-timeout", "grpc-encoding", "content-type", "x-bin", "connection"]
VALUES = ["", "GET", "1n", "5S", "gzip", "identity", "AAA", "!", "é", "a\n"]

extras = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=2)
blocks = st.builds(
    lambda path, extra: hpack.encode([(n, f"/t.T/{path}") if n == ":path" else (n, v) for n, v in HEADERS] + extra),
    st.sampled_from(PATHS),
    extras,
)
streams = st.one_of(st.sampled_from([1, 1, 1, 3, 3, 5, 0, 2]), st.integers(0, (1 << 32) - 1))
flags = st.one_of(st.sampled_from([0, 1, 4, 5]), st.integers(0, 255))
pairs = st.builds(lambda k, v: struct.pack(">HI", k, v), st.integers(0, 7), st.sampled_from([0, 1, 20000, 1 << 31]))
payloads = st.one_of(
    blocks,
    st.builds(message, st.binary(max_size=30)),
    st.lists(pairs, max_size=3).map(b"".join),
    st.binary(max_size=20),
    st.sampled_from([bytes(4), bytes(8), b"\x7f\xff\xff\xff", b"\0\0\1\0", b"\0\x7f\xff\xff\xff", b"farewell"]),
)
kinds = st.one_of(st.integers(0, 9), st.sampled_from([0, 0, 1, 1, 1, 3, 8]), st.integers(0, 255))
calls = st.builds(
    lambda stream, block, end, body: frames.header_frames(0, stream, block, 16384) + frames.frame(0, end, stream, body),
    st.sampled_from([1, 3, 5, 7]),
    blocks,
    st.integers(0, 1),
    st.builds(message, st.sampled_from([b"", b"3", b"x" * 40])),
)
any_frames = st.builds(frames.frame, kinds, flags, streams, payloads)
garbage = st.binary(max_size=40)
greetings = st.sampled_from([frames.PREFACE + frames.settings([]), frames.PREFACE, b""])


def test_any_frames(running):
    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        greetings,
        st.lists(st.one_of(calls, any_frames, any_frames, any_frames, garbage), max_size=12),
        st.integers(1, 64),
    )
    def attack(greeting, parts, cut):
        data = greeting + b"".join(parts)
        with running.connect() as sock:
            try:
                for start in range(0, min(len(data), 4 * cut), cut):
                    sock.sendall(data[start : start + cut])
                sock.sendall(data[4 * cut :])
                sock.shutdown(1)
                while sock.recv(1 << 16):
                    pass
            except (BrokenPipeError, ConnectionResetError):
                pass

    attack()
    assert running.client().call(1, payload=b"alive").messages == [b"alive"]
    assert running.state() == (1, 0, 0)


def test_any_calls_leave_nothing(running):
    """Well-formed calls and resets in any order: afterwards nothing is held and the connection still serves."""

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.sampled_from(PATHS[:-1]), st.integers(0, 3), st.booleans()), max_size=20))
    def attack(plan):
        client = running.client(settings=[(frames.INITIAL_WINDOW_SIZE, 20)])
        for number, (path, count, reset) in enumerate(plan):
            stream = 2 * number + 1
            client.request(stream, f"/t.T/{path}", None, end=False)
            for _ in range(count):
                client.raw(frames.frame(frames.DATA, 0, stream, message(b"3")))
            client.raw(frames.rst_stream(stream, 8) if reset else frames.frame(frames.DATA, 1, stream))
        client.settle()
        client.raw(frames.settings([(frames.INITIAL_WINDOW_SIZE, 1 << 20)]))
        last = 2 * len(plan) + 1
        assert client.call(last, payload=b"alive").messages == [b"alive"]
        for number, (path, _, reset) in enumerate(plan):
            if not reset and path not in ("Never", "Deaf"):
                assert client.answer(2 * number + 1).headers
        client.sock.close()

    attack()
    assert running.state() == (0, 0, 0)


@given(st.lists(st.tuples(st.one_of(st.sampled_from(NAMES), st.text(max_size=5)), st.text(max_size=9)), max_size=9))
def test_any_header_fields_are_judged(fields):
    raw = [
        (name.encode("utf-8", "replace").decode("latin-1"), value.encode().decode("latin-1")) for name, value in fields
    ]
    request = read_request(raw)
    assert request.malformed or request.refusal or request.path


@given(st.text())
def test_any_text_becomes_a_header_value(text):
    encoded = percent_encoded(text)
    assert encoded.isascii()
    assert encoded.isprintable() or not encoded
