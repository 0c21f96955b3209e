"""Large messages that peers begin and do not end: bounded over all connections, and ended."""

import contextlib
import struct
import threading
from collections.abc import Callable

import pytest

from orlop.ttrpc import wire
from orlop.ttrpc.client import Client

from .conftest import Running

BODY = 100_000


def begun(running, rest=1):
    """A connection that has sent all but `rest` bytes of a large request."""
    request = wire.encode_request("t.T", "Echo", bytes(BODY))
    peer = running.connect()
    peer.sendall(struct.pack(">IIBB", len(request), 1, wire.REQUEST, 0) + request[:-rest])
    return peer, request[-rest:]


@pytest.fixture
def small(start: Callable[..., Running]) -> Running:
    return start(max_unfinished=250_000)


def echo(running, timeout_s=30):
    with Client(running.connect()) as client:
        return client.call("t.T", "Echo", bytes(BODY), timeout_s=timeout_s)


def test_who_comes_later_waits_and_is_served(small):
    first, second = begun(small), begun(small)
    answers = []
    later = threading.Thread(target=lambda: answers.append(echo(small)))
    later.start()
    with Client(small.connect()) as client:  # small ones do not wait
        assert client.call("t.T", "Echo", b"small", timeout_s=30) == b"small"
    assert answers == []
    for peer, rest in (first, second):
        peer.sendall(rest)
        assert len(peer.recv(1 << 20)) > 0
        peer.close()
    later.join(30)
    assert answers == [bytes(BODY)]


def test_who_does_not_go_on_is_cut_off(start):
    small = start(max_unfinished=250_000, stall_timeout_s=0.3)
    peers = [begun(small)[0] for _ in range(8)]
    assert echo(small) == bytes(BODY)
    for peer in peers:
        with contextlib.suppress(ConnectionResetError):
            assert peer.recv(1) == b""
        peer.close()


def test_who_hangs_up_while_waiting_takes_nothing_along(small):
    peers = [begun(small)[0] for _ in range(6)]
    for peer in reversed(peers):
        peer.close()
    assert echo(small) == echo(small) == bytes(BODY)


def test_a_message_larger_than_all_that_may_be_under_way_still_comes(start):
    assert echo(start(max_unfinished=10)) == bytes(BODY)
