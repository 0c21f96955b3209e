"""Bytes into frames: what comes in on one connection is cut up, in turns, and not faster than answers go out.

Reading pauses while the peer does not take our answers, and after `_FRAMES_PER_TURN` frames until the loop has been
round once, so that no connection keeps the others waiting.
"""

import asyncio
import logging
from typing import Final

from orlop.http2 import frames
from orlop.http2.frames import FRAME_SIZE_ERROR, INTERNAL_ERROR, PROTOCOL_ERROR, ConnectionFault
from orlop.http2.sending import Sender

log: Final = logging.getLogger("orlop.http2")

_FRAMES_PER_TURN: Final = 256

_unpack_head: Final = frames.HEAD.unpack_from


class FrameProtocol(asyncio.BufferedProtocol):
    """The receiving half of a connection. Subclasses implement `frame_received` and `end`.

    Args:
        room: where the loop reads to; all connections of a loop may share it, since what has come is copied at once.
            (A buffer of asyncio's own for each read costs more than all that is done here.)

    Attributes:
        ended: nothing more is read, because of a fault or because the transport has gone.
    """

    def __init__(self, room: memoryview) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.sender: Sender
        self.ended = False
        self._room = room
        self._rest = b""
        self._needed = len(frames.PREFACE)  # bytes of `_rest` before it is worth looking
        self._greeted = False  # the preface has come
        self._paused = False

    # ---- for subclasses

    def frame_received(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """A whole frame. Raises ConnectionFault if the connection must end."""
        raise NotImplementedError

    def end(self, code: int, text: str) -> None:
        """The peer broke the protocol: say so and close."""
        raise NotImplementedError

    # ---- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.sender = Sender(transport, self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.ended = True
        self._rest = b""

    def eof_received(self) -> bool:
        return False  # closes the transport: a client that has stopped talking has gone

    def pause_writing(self) -> None:
        self.sender.writable = False

    def resume_writing(self) -> None:
        self.sender.resume()
        if self._paused:
            self.loop.call_soon(self._go_on)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._room[:nbytes])
        if self._rest:
            data = self._rest + data
            if len(data) < self._needed:
                self._rest = data
                return
        self._deal(data)

    # ---- frames

    def _deal(self, data: bytes) -> None:
        """Deal with the whole frames in `data`, keep the rest, and write all answers in one go."""
        sender = self.sender
        sender.cork()
        try:
            self._rest = data[self._read(data) :]
        except ConnectionFault as fault:
            log.info("http2: connection ended: %s", fault.text)
            self.end(fault.code, fault.text)
        except Exception:
            log.exception("http2: defect while reading")
            self.end(INTERNAL_ERROR, "")
        finally:
            sender.uncork()

    def _read(self, data: bytes) -> int:
        """How far `data` has been dealt with."""
        position = 0
        if not self._greeted:
            position = self._read_preface(data)
            if not position:
                return 0
        size = len(data)
        turn = _FRAMES_PER_TURN
        while not self.ended:
            start = position + frames.HEAD_SIZE
            if start > size:
                self._needed = frames.HEAD_SIZE
                break
            head, flags, stream = _unpack_head(data, position)
            length = head >> 8
            if length > frames.DEFAULT_FRAME_SIZE:
                raise ConnectionFault(FRAME_SIZE_ERROR, f"frame of {length} bytes")
            stop = start + length
            if stop > size:
                self._needed = stop - position
                break
            if turn == 0 or not self.sender.writable:
                self._pause()
                break
            turn -= 1
            position = stop
            self.frame_received(head & 0xFF, flags, stream & frames.STREAM_MASK, data[start:stop])
        return size if self.ended else position

    def _read_preface(self, data: bytes) -> int:
        preface = frames.PREFACE
        if data[: len(preface)] == preface:
            self._greeted = True
            return len(preface)
        if not preface.startswith(data):
            raise ConnectionFault(PROTOCOL_ERROR, "no HTTP/2 preface")
        return 0

    def _pause(self) -> None:
        """Read no more: until the peer has taken our answers, or, if it has, until others have had their turn."""
        if not self._paused and self.transport is not None and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()
            if self.sender.writable:
                self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if not self._paused or not self.sender.writable or self.transport is None or self.ended:
            return
        self._paused = False
        data, self._rest = self._rest, b""
        self._deal(data)
        if not self._paused and not self.transport.is_closing():
            self.transport.resume_reading()
