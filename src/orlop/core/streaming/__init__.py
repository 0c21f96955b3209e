"""Streams that clients open and name, for the calls that use them: bytes of archives, progress, answers to questions.

A client opens one with the streaming service, gives it a name, and puts the name into another request, such as that of
a transfer. The `Manager` finds it there by namespace and name. A stream ends when its user closes it, when the client
gives it up, or, if it was opened with a lease, when a collection finds that the lease has gone.

Source: containerd's core/streaming/streaming.go and plugins/streaming/manager.go.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from google.protobuf.any_pb2 import Any as Packed

from orlop.base.errdefs import AlreadyExistsError, NotFoundError, UnavailableError

__all__ = ["Buffer", "Manager", "Packed", "Stream"]

log: Final = logging.getLogger(__name__)

T = TypeVar("T")


class Stream(Protocol):
    """Messages both ways, as one of the two ends sees them."""

    async def send(self, message: Packed) -> None:
        """Send a message, as soon as the other end takes it. Raises UnavailableError once the stream has ended."""
        ...

    async def receive(self) -> Packed | None:
        """The next message, or None at the end."""
        ...

    async def close(self) -> None:
        """End the stream for both; what was sent before still arrives. May be called twice."""
        ...


class Manager:
    """The open streams of all namespaces."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, str], tuple[Stream, str]] = {}

    def register(self, namespace: str, name: str, stream: Stream, *, lease: str = "") -> None:
        """Let a stream be found. Raises AlreadyExistsError while there is another of that name."""
        if (namespace, name) in self._streams:
            raise AlreadyExistsError(f"stream {name}")
        self._streams[namespace, name] = (stream, lease)

    def get(self, namespace: str, name: str) -> Stream:
        """Raises NotFoundError."""
        found = self._streams.get((namespace, name))
        if found is None:
            raise NotFoundError(f"stream {name}")
        return found[0]

    def remove(self, namespace: str, name: str) -> None:
        """Forget a stream that has ended."""
        self._streams.pop((namespace, name), None)

    async def collect(self, is_leased: Callable[[str, str], bool]) -> None:
        """Close the streams that were opened with a lease that `is_leased(namespace, lease)` does not know any more."""
        for (namespace, name), (stream, lease) in list(self._streams.items()):
            if lease and not is_leased(namespace, lease):
                log.debug("stream is closed: its lease has gone", extra={"namespace": namespace, "stream": name})
                self.remove(namespace, name)
                await stream.close()


class Buffer(Generic[T]):
    """A bounded queue with an end, between two tasks of one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[T] = deque()
        self._ended = False
        self._changed = asyncio.Event()

    async def put(self, item: T) -> None:
        """Raises UnavailableError once the queue has ended."""
        while not self._ended and len(self._items) >= self._limit:
            await self._change()
        if self._ended:
            raise UnavailableError("stream: closed")
        self._items.append(item)
        self._changed.set()

    async def get(self) -> T | None:
        """The next item, or None when there will be no more."""
        while not self._items and not self._ended:
            await self._change()
        if not self._items:
            return None
        item = self._items.popleft()
        self._changed.set()
        return item

    def end(self, *, drop: bool = False) -> None:
        """Take no more; what is there can still be had, unless it is dropped."""
        self._ended = True
        if drop:
            self._items.clear()
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
