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
        room: where the loop reads to; all connections of a loop may share it, since payloads are copied out of it and
            what is left of a frame is put back in front. (A buffer of asyncio's own for each read costs more than all
            that is done here.)

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
        """A whole frame, or several with a stream's data as one. Raises ConnectionFault if the connection must end."""
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
        rest = self._rest
        if not rest:
            return self._room
        self._room[: len(rest)] = rest
        return self._room[len(rest) :]

    def buffer_updated(self, nbytes: int) -> None:
        data = self._room[: len(self._rest) + nbytes]
        if len(data) < self._needed and self._rest:
            self._rest = bytes(data)
            return
        self._deal(data)

    # ---- frames

    def _deal(self, data: memoryview) -> None:
        """Deal with the whole frames in `data`, keep the rest, and write all answers in one go."""
        sender = self.sender
        sender.cork()
        try:
            self._rest = bytes(data[self._read(data) :])
        except ConnectionFault as fault:
            log.info("http2: connection ended: %s", fault.text)
            self.end(fault.code, fault.text)
        except Exception:
            log.exception("http2: defect while reading")
            self.end(INTERNAL_ERROR, "")
        finally:
            sender.uncork()

    def _read(self, data: memoryview) -> int:
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
            kind = head & 0xFF
            if length == frames.DEFAULT_FRAME_SIZE and kind == frames.DATA and not flags:
                more, position = _more_data(data, position, stream)
                payload = b"".join((data[start:stop], *more))
            else:
                payload = bytes(data[start:stop])
            self.frame_received(kind, flags, stream & frames.STREAM_MASK, payload)
        return size if self.ended else position

    def _read_preface(self, data: memoryview) -> int:
        preface = frames.PREFACE
        if data[: len(preface)] == preface:
            self._greeted = True
            return len(preface)
        if not preface.startswith(bytes(data)):
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
        self._deal(memoryview(data))
        if not self._paused and not self.transport.is_closing():
            self.transport.resume_reading()


def _more_data(data: memoryview, position: int, stream: int) -> tuple[list[memoryview], int]:
    """The payloads of the whole DATA frames without flags that go on a stream from `position`, and where they end.

    A large message comes as dozens of frames behind each other, which cost far less when dealt with together.
    """
    more = []
    size = len(data)
    while (start := position + frames.HEAD_SIZE) <= size:
        head, flags, number = _unpack_head(data, position)
        stop = start + (head >> 8)
        if (
            head & 0xFF != frames.DATA
            or flags
            or number != stream
            or stop > size
            or not 0 < head >> 8 <= frames.DEFAULT_FRAME_SIZE
        ):
            break
        more.append(data[start:stop])
        position = stop
    return more, position
