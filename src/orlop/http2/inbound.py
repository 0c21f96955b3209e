"""What a client streams, waiting for its handler."""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from orlop.http2.rpc import PREFIX_SIZE

if TYPE_CHECKING:
    from orlop.http2.serving import Call, GrpcConnection

# What a waiting message costs beside its bytes, so that empty ones are not free.
_MESSAGE_OVERHEAD: Final = 64


class Inbound:
    """What a client sends on a stream, as the async iterator that the handler reads.

    While more than `Limits.stream_backlog` waits, the stream's window is not given back, so this client waits and
    nobody else.
    """

    __slots__ = ("_call", "_closed", "_connection", "_items", "_size", "_waiter")

    def __init__(self, connection: "GrpcConnection", call: "Call") -> None:
        self._connection = connection
        self._call = call
        self._items: deque[bytes] = deque()
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False

    @property
    def open(self) -> bool:
        """Whether more may come before the handler takes what waits."""
        return self._size <= self._connection.limits.stream_backlog

    def feed(self, message: bytes) -> None:
        self._items.append(message)
        self._size += len(message) + _MESSAGE_OVERHEAD
        self._wake()

    def close(self) -> None:
        """The client has said all."""
        self._closed = True
        self._wake()

    def drop(self) -> None:
        """The call has ended: forget what waits."""
        self._connection.held -= sum(len(message) + PREFIX_SIZE for message in self._items)
        self._items.clear()
        self._size = 0
        self.close()

    def __aiter__(self) -> "Inbound":
        return self

    async def __anext__(self) -> bytes:
        while not self._items:
            if self._closed:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._items.popleft()
        self._size -= len(message) + _MESSAGE_OVERHEAD
        self._connection.held -= len(message) + PREFIX_SIZE
        if self.open and not self._call.ended:
            self._connection.give_back(self._call)
        return message

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._waiter = None
