"""What a check is, and what it is asked for."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from orlop.core.fsck import Finding, Unchecked

T = TypeVar("T")

# How often it is looked whether anybody still wants what a check waits for, in seconds.
_LOOK_S: Final = 0.5


class Stopped(Exception):
    """Nobody wants the answer any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a check is asked for.

    Attributes:
        repair: mend what can be mended.
        quick: read no blob's bytes and unpack no layer.
        after_stop: look only at what was being written when the last daemon was killed or the machine stopped.
        loop: the daemon's event loop.
        damaged: digests of blobs that were found damaged, for the checks that need them.
    """

    loop: asyncio.AbstractEventLoop
    repair: bool = False
    quick: bool = False
    after_stop: bool = False
    damaged: set[str] = field(default_factory=set)
    stopped: threading.Event = field(default_factory=threading.Event)

    def go_on(self) -> None:
        """To be called now and then by what takes long. Raises Stopped."""
        if self.stopped.is_set():
            raise Stopped

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the event loop, to its end, and return its result; for a check's thread.

        Raises:
            Stopped: nobody wants the answer any more; the coroutine was cancelled, and has ended.
        """
        return asyncio.run_coroutine_threadsafe(self._wanted(coroutine), self.loop).result()

    def call(self, look: Callable[[], T]) -> T:
        """Run something quick on the event loop, where nothing that belongs to it changes meanwhile."""

        async def run() -> T:
            return look()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result()

    async def _wanted(self, coroutine: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(coroutine)
        while not task.done():
            await asyncio.wait({task}, timeout=_LOOK_S)
            if self.stopped.is_set():
                task.cancel()
        if task.cancelled():
            raise Stopped
        return task.result()


class Check(Protocol):
    """Looks at one kind of thing. Runs in a thread of its own and may block.

    Attributes:
        what: names what it looks at, for `Unchecked`.
    """

    what: str

    def run(self, order: Order) -> Iterator[Finding | Unchecked]:
        """Look once, and mend if asked to; what raises ends this check only."""
        ...
