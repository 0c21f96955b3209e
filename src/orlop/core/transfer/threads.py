"""Files beside an event loop: a thread of an operation's own, and a file whose bytes come from the loop."""

import asyncio
import concurrent.futures
import io
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


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
    """A file for threads whose bytes are an async iterator's; close it on the loop when nobody shall wait any more.

    Reading raises what the iterator raises, and ValueError after it is closed.
    """

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._loop = asyncio.get_running_loop()
        self._pending = b""
        self._ended = False
        self._waiting: concurrent.futures.Future[bytes | None] | None = None
        self._stopped = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # Any: the buffer protocol has no type before Python 3.12
        if not self._pending and not self._ended:
            self._pending = self._next()
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def stop(self) -> None:
        """Let a thread that waits go, and none wait again. To be called on the loop."""
        self._stopped = True
        if self._waiting is not None:
            self._waiting.cancel()

    def _next(self) -> bytes:
        while True:
            if self._stopped:
                raise ValueError("read of a stopped stream")
            self._waiting = asyncio.run_coroutine_threadsafe(self._take(), self._loop)
            try:
                data = self._waiting.result()
            except concurrent.futures.CancelledError:
                raise ValueError("read of a stopped stream") from None
            if data is None:
                self._ended = True
                return b""
            if data:
                return data

    async def _take(self) -> bytes | None:
        if self._stopped:
            return None
        return await anext(self._chunks, None)
