"""Waiting for work that must end whoever waits."""

import asyncio

import pytest

from orlop.base.settling import settle


@pytest.mark.parametrize("turns", range(1, 4))
def test_a_cancellation_is_never_lost(turns: int) -> None:
    """Also one that comes in the turn of the loop in which the work ends."""

    async def run() -> bool:
        async def work() -> None:
            await asyncio.sleep(0)

        waiting = asyncio.create_task(settle(work()))
        for _ in range(turns):
            await asyncio.sleep(0)
        in_time = not waiting.done()
        waiting.cancel()
        await asyncio.wait([waiting])
        return waiting.cancelled() is in_time

    assert asyncio.run(run())
