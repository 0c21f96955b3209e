"""Waiting for work to its end, also when whoever waits is cancelled: half of it must not go on alone."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def settle(work: Awaitable[T]) -> T:
    """Await `work` to its end; a caller that is cancelled meanwhile leaves when it has ended."""
    future = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait({future})
            except asyncio.CancelledError:  # asked again: the answer is the same
                continue
        if not future.cancelled():
            future.exception()
        raise
