"""Frames over an asyncio transport: what the asyncio client and the server share. It reads, writes and holds back.

Nothing here is unbounded: while the owner has called `hold()` nothing is read, and while the peer does not take what
was written, nothing is read beyond the first frame that would add to it.
"""

import asyncio
from typing import TYPE_CHECKING, Final

from orlop.ttrpc import wire
from orlop.ttrpc._reader import FrameReader

if TYPE_CHECKING:
    from orlop.ttrpc._reader import Frame

# One write call for header and data below this; above it, copying costs more than a second buffer.
_JOIN_BELOW: Final = 64 << 10


class FrameProtocol(asyncio.BufferedProtocol):
    """One connection's framing. Subclasses implement `frame_received`, `oversize_received` and `connection_ended`.

    Attributes:
        receive_limit: largest data length accepted; `send_limit` the largest that may be sent.
        writable: False while the peer does not take what was written.
    """

    def __init__(self, limit: int) -> None:
        self.receive_limit = limit
        self.send_limit = limit
        self.writable = True
        self.transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(asks=True)
        self._large = 0  # length of the frame that is being received into a buffer of its own
        self._holds = 0
        self._deferred: Frame | None = None  # taken out of the reader, not to be dealt with before the peer takes more
        self._drain_waiters: list[asyncio.Future[None]] = []
        self._corked: list[bytes] | None = None  # answers to the frames being dealt with, written together
        self._corked_size = 0

    # ---- for subclasses to implement

    def frame_received(self, stream: int, kind: int, flags: int, data: bytes | memoryview) -> None:
        """A whole frame has come."""
        raise NotImplementedError

    def oversize_received(self, stream: int, kind: int, length: int) -> None:
        """A frame beyond the limit has come and was dropped."""
        raise NotImplementedError

    def connection_ended(self, reason: str) -> None:
        """The connection is gone; `reason` says how, for people."""
        raise NotImplementedError

    def adds_output(self, stream: int, kind: int) -> bool:
        """Whether such a frame would be answered; then it waits until the peer has taken the answers before it."""
        return False

    def may_begin(self, length: int) -> bool:
        """Whether a buffer of `length` bytes may be made for a frame now; else `begin_large()` follows when it may."""
        return True

    def large_ended(self, length: int) -> None:
        """Such a frame is complete, or will never be."""

    # ---- sending

    def send(self, stream: int, kind: int, flags: int, data: bytes) -> None:
        """Write a frame; never blocks. Await `drained()` before sending much more."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        header = wire.HEADER.pack(len(data), stream, kind, flags)
        if self._corked is not None:
            self._corked += (header, data)
            self._corked_size += wire.HEADER_SIZE + len(data)
            if self._corked_size >= _JOIN_BELOW:
                self.flush()  # many small requests may have large answers: let the transport say when it is full
        elif len(data) < _JOIN_BELOW:
            transport.write(header + data)
        else:
            transport.writelines((header, data))

    def flush(self) -> None:
        """Hand on to the transport what waits for the end of the frames being dealt with."""
        if self._corked and self.transport is not None:
            data = b"".join(self._corked)
            self._corked, self._corked_size = [], 0
            self.transport.write(data)

    async def drained(self) -> None:
        """Return when the peer has taken enough of what was written, or is gone; at once if it has."""
        if not self.writable:
            waiter = self._loop.create_future()
            self._drain_waiters.append(waiter)
            await waiter

    # ---- holding back

    def hold(self) -> None:
        """Read nothing more until the matching `release()`."""
        self._holds += 1
        if self._holds == 1 and self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def release(self) -> None:
        """Undo one `hold()`; what has been received meanwhile is dealt with soon, not inside this call."""
        self._holds -= 1
        if self._holds == 0:
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        if not self._holds and self.transport is not None and not self.transport.is_closing():
            self._deal()
            if not self._holds:
                self.transport.resume_reading()

    def begin_large(self) -> None:
        """Go on with a frame that had to wait."""
        if self.transport is not None:
            self._large = self._reader.wanted
            self._reader.begin()
        self.release()

    # ---- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._reader.add(nbytes)
        self._deal()

    def eof_received(self) -> bool:
        return False  # closes the transport: half-closed connections have no meaning in ttrpc

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.writable = True
        self._deferred = None
        self._wake_drained()
        self._end_large()
        self.connection_ended(str(exc) if exc is not None else "closed by the other side")

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self._wake_drained()
        if self._deferred is not None:
            self.release()

    def _wake_drained(self) -> None:
        waiters, self._drain_waiters = self._drain_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _deal(self) -> None:
        """Deal with every whole frame that has been received, writing the answers to them in one go."""
        self._corked, self._corked_size = [], 0
        try:
            while not self._holds:
                frame = self._deferred or self._reader.next_frame(self.receive_limit)
                if frame is None:
                    if self._reader.wanted:
                        self._begin_or_wait(self._reader.wanted)
                    break
                if self._large:
                    self._end_large()
                stream, kind, flags, data, length = frame
                if not self.writable and (data is None or self.adds_output(stream, kind)):
                    self._deferred = frame
                    self.hold()
                    break
                self._deferred = None
                if data is None:
                    self.oversize_received(stream, kind, length)
                else:
                    self.frame_received(stream, kind, flags, data)
        finally:
            self.flush()
            self._corked = None

    def _begin_or_wait(self, length: int) -> None:
        if self.may_begin(length):
            self._large = length
            self._reader.begin()
        else:
            self.hold()

    def _end_large(self) -> None:
        length, self._large = self._large, 0
        if length:
            self.large_ended(length)
