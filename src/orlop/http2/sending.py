"""What goes out on one connection: frames gathered into few writes, and data as the peer's windows allow.

Small answers are written at once. What does not fit a window, or finds the socket full, waits on its stream; streams
that can go on take turns. A stream whose window is shut costs the others nothing, and whoever produces more for it
waits in `Outlet.drained`.
"""

import asyncio
from collections import deque
from typing import Final

from orlop.http2.frames import (
    DEFAULT_FRAME_SIZE,
    DEFAULT_WINDOW,
    FLOW_CONTROL_ERROR,
    HEAD,
    WINDOW_LIMIT,
    ConnectionFault,
    StreamFault,
)

# Gathered output is handed to the transport beyond this, so that a full socket is noticed.
_GATHER: Final = 64 << 10
# What one stream sends before the next has its turn.
_TURN: Final = 64 << 10
# A unary answer is written in one piece up to this size; must fit the smallest frame size.
_SMALL: Final = DEFAULT_FRAME_SIZE


class Outlet:
    """The sending half of a stream.

    Attributes:
        id: the stream's number.
        window: what the peer lets us send on this stream; below zero after it has shrunk its setting.
        waiting: bytes of data that have not been handed to the transport.
    """

    __slots__ = ("_drain_waiter", "_parts", "_queued", "_tail", "id", "waiting", "window")

    def __init__(self, stream: int, window: int) -> None:
        self.id = stream
        self.window = window
        self.waiting = 0
        self._parts: deque[memoryview] | None = None
        self._tail: bytes | None = None  # HEADERS frames that end the stream once the data is out
        self._queued = False  # whether it stands in the sender's line
        self._drain_waiter: asyncio.Future[None] | None = None

    async def drained(self) -> None:
        """Return when nothing waits, or the stream is over. One waiter at a time: the stream's handler."""
        if self.waiting:
            self._drain_waiter = asyncio.get_running_loop().create_future()
            await self._drain_waiter

    def finished(self) -> None:
        """Called once the last frame has been handed on; for the owner to override."""

    def _wake(self) -> None:
        waiter, self._drain_waiter = self._drain_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Sender:
    """The sending half of a connection.

    Attributes:
        frame_size, stream_window: the peer's settings.
        sent: grows with every answer; what a peer says about them is no flood.
        waiting: bytes of data of all streams that have not been handed to the transport.
        writable: False while the peer does not take what was written.
    """

    __slots__ = (
        "_corked",
        "_flush_planned",
        "_gathered",
        "_line",
        "_loop",
        "_size",
        "_transport",
        "frame_size",
        "sent",
        "stream_window",
        "waiting",
        "window",
        "writable",
    )

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._gathered: list[bytes | memoryview] = []
        self._size = 0
        self._corked = False
        self._flush_planned = False
        self._line: deque[Outlet] = deque()
        self.frame_size = DEFAULT_FRAME_SIZE
        self.stream_window = DEFAULT_WINDOW
        self.window = DEFAULT_WINDOW
        self.waiting = 0
        self.sent = 0
        self.writable = True

    # ---- frames

    def write(self, data: bytes | memoryview) -> None:
        """Whole frames, written with the next flush."""
        self._gathered.append(data)
        self._size += len(data)
        if self._size > _GATHER:
            self.write_out()

    def answer(self, outlet: Outlet, head: bytes, message: bytes, tail: bytes) -> None:
        """A stream's whole answer: `head` and `tail` are frames, `message` is data. Ends the stream."""
        length = len(message)
        if length <= _SMALL and length <= outlet.window and length <= self.window and self.writable:
            outlet.window -= length
            self.window -= length
            self.sent += length
            self.write(b"".join((head, HEAD.pack(length << 8, 0, outlet.id), message, tail)))
            outlet.finished()
            self.flush()
            return
        self.write(head)
        self.send(outlet, message)
        self.end(outlet, tail)
        self.flush()

    def send(self, outlet: Outlet, message: bytes) -> None:
        """Data for a stream, now or when its turn comes; await `outlet.drained()` before sending more."""
        length = len(message)
        room = min(_SMALL, outlet.window, self.window)
        if not outlet.waiting and length <= room and self.writable:
            outlet.window -= length
            self.window -= length
            self.sent += length
            self.write(HEAD.pack(length << 8, 0, outlet.id) + message)
            return
        if outlet._parts is None:
            outlet._parts = deque()
        outlet._parts.append(memoryview(message))
        outlet.waiting += length
        self.waiting += length
        self._join_line(outlet)
        self._take_turns()

    def end(self, outlet: Outlet, tail: bytes) -> None:
        """Header frames with END_STREAM, after all data."""
        if outlet.waiting:
            outlet._tail = tail
            return
        self.sent += len(tail)
        self.write(tail)
        outlet.finished()

    def drop(self, outlet: Outlet) -> None:
        """Forget what waits for a stream: it has been reset."""
        self.waiting -= outlet.waiting
        outlet.waiting = 0
        outlet._parts = None
        outlet._tail = None
        outlet._wake()

    # ---- windows and the socket

    def widen(self, increment: int) -> None:
        """The peer's WINDOW_UPDATE for the connection."""
        self.window += increment
        if self.window > WINDOW_LIMIT:
            raise ConnectionFault(FLOW_CONTROL_ERROR, "connection window beyond 2**31 - 1")
        self._take_turns()

    def widen_stream(self, outlet: Outlet, increment: int) -> None:
        """The peer's WINDOW_UPDATE for a stream."""
        outlet.window += increment
        if outlet.window > WINDOW_LIMIT:
            raise StreamFault(outlet.id, FLOW_CONTROL_ERROR, "stream window beyond 2**31 - 1")
        if outlet.waiting:
            self._join_line(outlet)
            self._take_turns()

    def resize(self, outlets: list[Outlet], window: int) -> None:
        """The peer's INITIAL_WINDOW_SIZE, which moves the windows of open streams too: section 6.9.2."""
        change = window - self.stream_window
        self.stream_window = window
        for outlet in outlets:
            outlet.window += change
            if outlet.window > WINDOW_LIMIT:
                raise ConnectionFault(FLOW_CONTROL_ERROR, "stream window beyond 2**31 - 1")
            if outlet.waiting:
                self._join_line(outlet)
        self._take_turns()

    def resume(self) -> None:
        """The socket takes more."""
        self.writable = True
        self._take_turns()
        self.flush()

    def cork(self) -> None:
        """Gather until `uncork`: answers to frames that came together leave together."""
        self._corked = True

    def uncork(self) -> None:
        self._corked = False
        self.flush()

    def flush(self) -> None:
        """Write what was gathered, unless corked."""
        if self._gathered and not self._corked:
            self.write_out()

    def flush_soon(self) -> None:
        """Write what this turn of the loop gathers, at its end."""
        if not self._flush_planned and not self._corked:
            self._flush_planned = True
            self._loop.call_soon(self._flush_planned_now)

    def _flush_planned_now(self) -> None:
        self._flush_planned = False
        self.flush()

    def write_out(self) -> None:
        """Write what was gathered, corked or not: the last words before the transport is closed."""
        gathered = self._gathered
        if not gathered:
            return
        data = gathered[0] if len(gathered) == 1 else b"".join(gathered)
        self._gathered = []
        self._size = 0
        if not self._transport.is_closing():
            self._transport.write(data)

    # ---- taking turns

    def _join_line(self, outlet: Outlet) -> None:
        if not outlet._queued and outlet.window > 0:
            outlet._queued = True
            self._line.append(outlet)

    def _take_turns(self) -> None:
        line = self._line
        while line and self.window > 0 and self.writable:
            outlet = line.popleft()
            outlet._queued = False
            if outlet.waiting:
                self._turn(outlet)
        if self._gathered:
            self.flush_soon()

    def _turn(self, outlet: Outlet) -> None:
        parts = outlet._parts
        assert parts is not None
        left = min(_TURN, outlet.window, self.window)
        while left > 0 and parts:
            part = parts[0]
            size = min(left, self.frame_size, len(part))
            self.write(HEAD.pack(size << 8, 0, outlet.id))
            self.write(part[:size])
            left -= size
            outlet.window -= size
            self.window -= size
            self.sent += size
            outlet.waiting -= size
            self.waiting -= size
            if size == len(part):
                parts.popleft()
            else:
                parts[0] = part[size:]
        if outlet.waiting:
            self._join_line(outlet)
            return
        outlet._wake()
        if outlet._tail is not None:
            tail, outlet._tail = outlet._tail, None
            self.end(outlet, tail)
