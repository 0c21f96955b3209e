"""Running the asyncio code of the client without an event loop."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from functools import partial

import pytest

from orlop.client.channel import Channel, DrivenIterator, drive
from orlop.client.session import Session


async def _double(value: int) -> int:
    return value * 2


async def _count(closed: list[bool]) -> AsyncIterator[int]:
    try:
        for number in range(3):
            yield await _double(number)
    finally:
        closed.append(True)


def test_a_coroutine_that_does_not_wait() -> None:
    assert drive(_double(2)) == 4


def test_one_that_waits_is_refused() -> None:
    with pytest.raises(RuntimeError, match="waited for an event loop"):
        drive(asyncio.sleep(0))


def test_streams() -> None:
    closed: list[bool] = []
    assert list(DrivenIterator(_count(closed))) == [0, 2, 4]
    assert closed == [True]


def test_leaving_a_stream_closes_it() -> None:
    closed: list[bool] = []
    with DrivenIterator(_count(closed)) as numbers:
        assert next(numbers) == 0
    assert closed == [True]


def test_threads_open_one_channel() -> None:
    callers = 8
    waiting = threading.Barrier(callers)
    others_come = partial(time.sleep, 0.01)
    opened: list[Channel] = []

    async def open_one(_asynchronous: bool) -> Channel:
        others_come()
        opened.append(object())  # type: ignore[arg-type]  # nothing is sent through it
        return opened[-1]

    session = Session.opened_by(open_one, namespace="n")
    got: list[Channel] = []

    def call() -> None:
        waiting.wait()
        got.append(drive(session.channel()))

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == opened * callers
