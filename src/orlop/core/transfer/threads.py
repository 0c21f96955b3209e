"""Files beside an event loop: a thread of an operation's own, and a file whose bytes come from the loop."""

import asyncio
import concurrent.futures
import io
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


SMALL: Final = 64 << 10
"""Bytes of a document that is read on the event loop: a few milliseconds at most."""


async def aside(size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Work on a document of `size` bytes: in place, or in a thread where it would hold up the event loop."""
    if size <= SMALL:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)


class Thread:
    """One thread for the time of an operation, which may wait in it as long as it likes; an async context manager."""

    def __init__(self, name: str) -> None:
        self._executor = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._running: concurrent.futures.Future[Any] | None = None

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that blocks. After a cancellation it goes on by itself."""
        running = self._running = self._executor.submit(function, *args, **kwargs)
        return await asyncio.wrap_future(running)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # An idle thread ends at once; one that still waits for a file must not hold the loop.
        self._executor.shutdown(wait=self._running is None or self._running.done())


class LoopFile(io.RawIOBase):
    """A file for threads whose bytes are an async generator's; `end` it on the loop when nobody shall wait any more.

    Reading raises what the generator raises, and ValueError after the end.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None]) -> None:
        self._chunks = chunks
        self._loop = asyncio.get_running_loop()
        self._pending = b""
        self._taking: asyncio.Task[bytes | None] | None = None
        self._over = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # Any: the buffer protocol has no type before Python 3.12
        while not self._pending:
            try:
                data = asyncio.run_coroutine_threadsafe(self._take(), self._loop).result()
            except concurrent.futures.CancelledError:
                raise ValueError("read of a stream that was given up") from None
            if data is None:
                return 0
            self._pending = data
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    async def end(self) -> None:
        """Let a thread that waits go, let none wait again, and close the generator. To be called on the loop."""
        self._over = True
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.gather(self._taking, return_exceptions=True)
        await self._chunks.aclose()

    async def _take(self) -> bytes | None:
        if self._over:
            raise ValueError("read of a stream that was given up")
        self._taking = asyncio.current_task()
        try:
            return await anext(self._chunks, None)
        finally:
            self._taking = None
