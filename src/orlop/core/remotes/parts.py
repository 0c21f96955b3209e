"""A large blob in parts that come side by side, given in order.

Memory is bounded by the parts under way and the one that is being given. Off unless asked for: most registries give one
connection all that there is.

Source: open in containerd's core/remotes/docker/fetcher.go.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

MINIMUM: Final = 1 << 20
"""Bytes up to which a blob comes in one piece; containerd's value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """`requests` at a time, each for `size` bytes."""

    size: int
    requests: int

    def worthwhile(self, length: int) -> bool:
        """Whether so many bytes are better fetched in parts."""
        return self.requests > 1 and length > max(MINIMUM, self.size)


async def in_order(
    fetch: Callable[[int, int], Awaitable[bytes]], start: int, end: int, parts: Parts
) -> AsyncGenerator[bytes, None]:
    """Yield what `fetch(start, end)` gives for each part, in order, while the next ones are on their way.

    When it is left, nothing is under way. The first part that fails ends it with that part's error.
    """
    begins = iter(range(start, end, parts.size))
    coming: deque[asyncio.Task[bytes]] = deque()

    def begin() -> None:
        at = next(begins, None)
        if at is not None:
            coming.append(asyncio.ensure_future(fetch(at, min(at + parts.size, end))))

    try:
        for _ in range(parts.requests):
            begin()
        while coming:
            data = await coming[0]
            coming.popleft()
            begin()
            yield data
    finally:
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)
