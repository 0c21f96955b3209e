"""Any frames whatever against the server: it answers, ignores or hangs up, and the next peer is served as ever."""

import socket

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orlop.ttrpc import wire
from orlop.ttrpc.client import Client

from .conftest import Running

METHODS = ["Echo", "Later", "Never", "Fail", "Count", "Join", "Mirror", "Deaf", "Early", "Twice", "Nope", ""]

streams = st.one_of(st.integers(0, 9), st.integers(0, (1 << 32) - 1))
flags = st.one_of(st.integers(0, 7), st.integers(0, 255))
bodies = st.one_of(
    st.binary(max_size=40),
    st.builds(
        wire.encode_request,
        st.sampled_from(["t.T", "t.Nope", ""]),
        st.sampled_from(METHODS),
        st.sampled_from([b"", b"3", b"x"]),
        st.sampled_from([0, 1, 1_000_000, -1, (1 << 63) - 1, -(1 << 63)]),
        st.sampled_from([[], [("ttrpc-message-limit", "9999999")], [("a", "b"), ("A", "c")], [("", "")]]),
    ),
)
kinds = st.one_of(st.sampled_from([1, 1, 1, 3, 3, wire.CANCEL, wire.SETTINGS, 2]), st.integers(0, 255))
frames = st.builds(wire.frame, streams, kinds, flags, bodies)
garbage = st.binary(max_size=60)


def _drain(sock: socket.socket) -> None:
    """Read until the server hangs up; a reset is its right too."""
    sock.shutdown(socket.SHUT_WR)
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass


def test_any_frames(running: Running) -> None:
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.one_of(frames, frames, frames, garbage), max_size=12), st.integers(1, 64))
    def attack(parts: list[bytes], cut: int) -> None:
        data = b"".join(parts)
        with running.connect() as sock:
            try:
                for start in range(0, min(len(data), 4 * cut), cut):
                    sock.sendall(data[start : start + cut])
                sock.sendall(data[4 * cut :])
            except (BrokenPipeError, ConnectionResetError):
                return
            _drain(sock)

    attack()
    with Client(running.connect()) as client:
        assert client.call("t.T", "Echo", b"alive", timeout_s=30) == b"alive"
        assert running.state() == (1, 0)


def test_many_half_open_streams_and_a_hang_up(running: Running) -> None:
    with running.connect() as sock:
        request = wire.encode_request("t.T", "Deaf", b"")
        for first in range(1, 6001, 600):
            numbers = range(first, first + 600, 2)
            sock.sendall(b"".join(wire.frame(number, wire.REQUEST, wire.REMOTE_OPEN, request) for number in numbers))
        for _ in range(3000):
            assert running.handlers.entered.acquire(timeout=30)
        assert running.state() == (1, 3000)
    for _ in range(3000):
        assert running.handlers.cancelled.acquire(timeout=30)
    assert running.state()[1] == 0
