"""HTTP/2, the server's side of one connection: frames in, streams kept, windows given, bounds held. RFC 9113.

What a stream carries is the subclass's business (`headers_received`, `payload_received`, `stream_reset`). Nothing here
waits.

What the peer may send without being read is bounded by the windows that we give; see `Limits` for everything else.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from orlop.http2 import frames, hpack
from orlop.http2.frames import (
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    NO_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    STREAM_CLOSED,
    ConnectionFault,
    StreamFault,
)
from orlop.http2.limits import Budget, Limits
from orlop.http2.reading import FrameProtocol
from orlop.http2.sending import Outlet

log: Final = logging.getLogger("orlop.http2")

# After GOAWAY the peer has this long to read it.
_LINGER_S: Final = 5.0
# How many streams' windows are set anew for the price of a frame that asks for nothing.
_STREAMS_FOR_ONE: Final = 16
_WRITE_HIGH: Final = 256 << 10
_WRITE_LOW: Final = 64 << 10
# Sent with the first GOAWAY of a graceful end: what the peer had sent before it heard arrives before the answer to it.
_FAREWELL: Final = b"farewell"


class Stream(Outlet):
    """One stream, both halves.

    Attributes:
        received_end: the peer has sent END_STREAM.
        allowance: what the peer may still send on this stream; `spent` of it has not been given back yet.
    """

    __slots__ = ("allowance", "received_end", "spent")

    def __init__(self, stream: int, window: int, allowance: int) -> None:
        super().__init__(stream, window)
        self.allowance = allowance
        self.spent = 0
        self.received_end = False


class Connection(FrameProtocol):
    """One accepted connection. `room` is `FrameProtocol`'s.

    Attributes:
        streams: by number, until both halves are closed.
        closing: new streams are not taken any more.
        header_limit: the peer's MAX_HEADER_LIST_SIZE, if it has one.
        control: frames that ask for nothing and may still come.
    """

    def __init__(self, limits: Limits, room: memoryview) -> None:
        super().__init__(room)
        self.limits = limits
        self.streams: dict[int, Stream] = {}
        self.closing = False
        self.header_limit: int | None = None
        self.decoder = hpack.Decoder()
        self.control = Budget(limits.control_burst, limits.control_rate)
        self._resets = Budget(limits.reset_burst, limits.reset_rate)
        self._sent_before = 0
        self._settled = False  # the first SETTINGS have come
        self._last_stream = 0
        self._final_stream: int | None = None  # in the last GOAWAY: later streams are not looked at
        self._block: list[bytes] | None = None  # of a header block that is not complete
        self._block_size = 0
        self._block_stream = 0
        self._block_flags = 0
        self._allowance = limits.connection_window
        self._spent = 0
        self._timer: asyncio.TimerHandle | None = None

    # ---- for subclasses

    def opened(self) -> bool:
        """The connection is there; False if it must not be served."""
        return True

    def closed(self) -> None:
        """The connection is gone; streams get no further calls."""

    def headers_received(self, stream: int, block: bytes, end: bool) -> None:
        """A request's header block, to be decoded with `decoder` in any case. Adds to `streams` what it takes."""
        raise NotImplementedError

    def payload_received(self, stream: Stream, payload: bytes) -> None:
        """Some of a stream's data; `received_end` is set if it is the last. Gives back with `give_back`."""
        raise NotImplementedError

    def stream_reset(self, stream: Stream) -> None:
        """The stream has ended early, by either side's RST_STREAM, or with the connection."""
        raise NotImplementedError

    # ---- for subclasses to use

    def give_back(self, stream: Stream) -> None:
        """Let the peer send on a stream as much as it has sent, once that is worth a frame."""
        spent = stream.spent
        if spent and not stream.received_end and spent * 2 >= self.limits.stream_window:
            stream.spent = 0
            stream.allowance += spent
            self.sender.write(frames.window_update(stream.id, spent))
            self.sender.flush_soon()

    def reset(self, stream: Stream, code: int) -> None:
        """End a stream early from our side."""
        if self.streams.pop(stream.id, None) is not None:
            self.sender.drop(stream)
            self.sender.write(frames.rst_stream(stream.id, code))
            self.sender.flush_soon()
            self.stream_reset(stream)
            self._close_if_idle()

    def outlet_finished(self, stream: Stream) -> None:
        """Our half of a stream is closed; so is the peer's, whether it likes that or not."""
        if self.streams.pop(stream.id, None) is not None:
            if not stream.received_end:
                # The answer stands although not all was read: section 8.1.
                self.sender.write(frames.rst_stream(stream.id, NO_ERROR))
            if self.closing:
                self._close_if_idle()

    def end_gracefully(self) -> None:
        """Say that no new streams are welcome, take those that cross it, and close after the last."""
        if self.ended or self.closing or self.transport is None:
            return
        self.closing = True
        if not self._settled:
            self.transport.close()
            return
        self.sender.write(frames.goaway(frames.STREAM_MASK, NO_ERROR) + frames.frame(frames.PING, 0, 0, _FAREWELL))
        self.sender.flush()

    def end(self, code: int, text: str) -> None:
        """Say why, reset everything, and close as soon as that is written."""
        if self.ended or self.transport is None:
            return
        self.ended = self.closing = True
        self._reset_all()
        last = self._last_stream if self._final_stream is None else self._final_stream
        self.sender.write(frames.goaway(last, code, text))
        self.sender.write_out()
        self.transport.close()
        self._set_timer(_LINGER_S, self.abort)

    def abort(self) -> None:
        """Drop the connection now."""
        if self.transport is not None:
            self.transport.abort()

    # ---- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.set_write_buffer_limits(_WRITE_HIGH, _WRITE_LOW)
        if not self.opened():
            self.ended = True
            self.transport.abort()
            return
        limits = self.limits
        greeting = frames.settings(
            [
                (frames.MAX_CONCURRENT_STREAMS, limits.streams),
                (frames.INITIAL_WINDOW_SIZE, limits.stream_window),
                (frames.MAX_HEADER_LIST_SIZE, limits.header_list),
            ]
        )
        if limits.connection_window > frames.DEFAULT_WINDOW:
            greeting += frames.window_update(0, limits.connection_window - frames.DEFAULT_WINDOW)
        self.sender.write(greeting)
        self.sender.flush()
        self._set_timer(limits.preface_timeout_s, self._silent)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.closing = True
        self._set_timer(None, self.abort)
        self._reset_all()
        self.closed()

    # ---- frames

    def frame_received(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self._block is not None and kind != frames.CONTINUATION:
            raise ConnectionFault(PROTOCOL_ERROR, "header block is interrupted")
        if not self._settled and kind != frames.SETTINGS:
            raise ConnectionFault(PROTOCOL_ERROR, "first frame is no SETTINGS")
        if kind > frames.CONTINUATION:
            self._spend_control()  # unknown kinds are ignored: section 5.5
            return
        try:
            _HANDLERS[kind](self, flags, stream, payload)
        except StreamFault as fault:
            self._fault(fault)

    def _fault(self, fault: StreamFault) -> None:
        self._spend_control()
        log.debug("http2: stream %d: %s", fault.stream, fault.text)
        stream = self.streams.get(fault.stream)
        if stream is not None:
            self.reset(stream, fault.code)
        else:
            self.sender.write(frames.rst_stream(fault.stream, fault.code))

    def _headers(self, flags: int, stream: int, payload: bytes) -> None:
        if stream % 2 == 0:
            raise ConnectionFault(PROTOCOL_ERROR, f"HEADERS on stream {stream}")
        payload = frames.without_padding(flags, payload)
        if flags & frames.PRIORITISED:
            if len(payload) < 5:
                raise ConnectionFault(FRAME_SIZE_ERROR, "HEADERS end inside their priority")
            payload = payload[5:]
        if flags & frames.END_HEADERS:
            self._block_complete(stream, payload, flags)
            return
        self._block = [payload]
        self._block_size = len(payload)
        self._block_stream = stream
        self._block_flags = flags

    def _continuation(self, flags: int, stream: int, payload: bytes) -> None:
        block = self._block
        if block is None or stream != self._block_stream:
            raise ConnectionFault(PROTOCOL_ERROR, f"CONTINUATION on stream {stream} continues nothing")
        block.append(payload)
        self._block_size += len(payload)
        if self._block_size > self.limits.header_list or len(block) > self.limits.continuations + 1:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "header block is too long")
        if flags & frames.END_HEADERS:
            self._block = None
            self._block_complete(stream, b"".join(block), self._block_flags)

    def _block_complete(self, stream: int, block: bytes, flags: int) -> None:
        if stream > self._last_stream:
            self._last_stream = stream
            self.headers_received(stream, block, bool(flags & frames.END_STREAM))
            return
        # Trailers, or what crossed our reset: the table must follow in either case.
        self.decoder.decode(block, self.limits.header_list)
        open_stream = self.streams.get(stream)
        if open_stream is None:
            self._spend_control()
        elif open_stream.received_end:
            raise StreamFault(stream, STREAM_CLOSED, "HEADERS after END_STREAM")
        elif not flags & frames.END_STREAM:
            raise StreamFault(stream, PROTOCOL_ERROR, "trailers without END_STREAM")
        else:
            open_stream.received_end = True
            self.payload_received(open_stream, b"")

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._allowance -= size
        if self._allowance < 0:
            raise ConnectionFault(FLOW_CONTROL_ERROR, "DATA beyond the connection's window")
        # The connection's window is given back whatever becomes of the data; memory is bounded stream by stream.
        self._spent += size
        if self._spent * 2 >= self.limits.connection_window:
            self.sender.write(frames.window_update(0, self._spent))
            self._allowance += self._spent
            self._spent = 0
        if flags & frames.PADDED:
            payload = frames.without_padding(flags, payload)
        if not payload and not flags & frames.END_STREAM:
            self._spend_control()
        stream = self.streams.get(number)
        if stream is None:
            self._expect_known(number, "DATA")
            return
        if stream.received_end:
            raise StreamFault(number, STREAM_CLOSED, "DATA after END_STREAM")
        stream.allowance -= size
        stream.spent += size
        if stream.allowance < 0:
            raise StreamFault(number, FLOW_CONTROL_ERROR, "DATA beyond the stream's window")
        if flags & frames.END_STREAM:
            stream.received_end = True
        self.payload_received(stream, payload)

    def _expect_known(self, stream: int, what: str) -> None:
        """A frame for a stream that is not open: late if there was one, else a fault. Section 5.1."""
        if stream == 0 or stream > self._last_stream or stream % 2 == 0:
            raise ConnectionFault(PROTOCOL_ERROR, f"{what} on stream {stream}, which is idle")

    def _priority(self, _flags: int, stream: int, payload: bytes) -> None:
        self._spend_control()
        if stream == 0:
            raise ConnectionFault(PROTOCOL_ERROR, "PRIORITY on stream 0")
        if len(payload) != 5:
            raise ConnectionFault(FRAME_SIZE_ERROR, f"PRIORITY of {len(payload)} bytes")

    def _rst_stream(self, _flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(FRAME_SIZE_ERROR, f"RST_STREAM of {len(payload)} bytes")
        stream = self.streams.pop(number, None)
        if stream is None:
            self._expect_known(number, "RST_STREAM")
            self._spend_control()
            return
        self.sender.drop(stream)
        self.stream_reset(stream)
        if not self._resets.take():
            raise ConnectionFault(ENHANCE_YOUR_CALM, "too many streams are opened and reset")
        self._close_if_idle()

    def _settings(self, flags: int, stream: int, payload: bytes) -> None:
        if stream:
            raise ConnectionFault(PROTOCOL_ERROR, f"SETTINGS on stream {stream}")
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(FRAME_SIZE_ERROR, "acknowledgement with settings")
            if not self._settled:
                raise ConnectionFault(PROTOCOL_ERROR, "first frame is no SETTINGS")
            self._spend_control()
            return
        if not self._settled:
            self._settled = True
            self._set_timer(None, self._silent)
        else:
            # A new window is put on every stream.
            self._spend_control(1 + len(self.streams) // _STREAMS_FOR_ONE)
        values = dict(frames.read_settings(payload))  # of a key that comes again the last value
        # Before any data that a wider window lets out: grpcio counts by the new one from the acknowledgement on.
        self.sender.write(frames.SETTINGS_ACK)
        for key, value in values.items():
            if key == frames.INITIAL_WINDOW_SIZE:
                self.sender.resize(list(self.streams.values()), value)
            elif key == frames.MAX_FRAME_SIZE:
                self.sender.frame_size = value
            elif key == frames.MAX_HEADER_LIST_SIZE:
                self.header_limit = value

    def _push_promise(self, _flags: int, _stream: int, _payload: bytes) -> None:
        raise ConnectionFault(PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _ping(self, flags: int, stream: int, payload: bytes) -> None:
        if stream:
            raise ConnectionFault(PROTOCOL_ERROR, f"PING on stream {stream}")
        if len(payload) != 8:
            raise ConnectionFault(FRAME_SIZE_ERROR, f"PING of {len(payload)} bytes")
        self._spend_control()
        if not flags & frames.ACK:
            self.sender.write(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif payload == _FAREWELL and self.closing and self._final_stream is None:
            self._final_stream = self._last_stream
            self.sender.write(frames.goaway(self._last_stream, NO_ERROR))
            self._close_if_idle()

    def _goaway(self, _flags: int, stream: int, payload: bytes) -> None:
        """The client opens no more streams; those that are open go on."""
        if stream:
            raise ConnectionFault(PROTOCOL_ERROR, f"GOAWAY on stream {stream}")
        if len(payload) < 8:
            raise ConnectionFault(FRAME_SIZE_ERROR, f"GOAWAY of {len(payload)} bytes")
        self._spend_control()

    def _window_update(self, _flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(FRAME_SIZE_ERROR, f"WINDOW_UPDATE of {len(payload)} bytes")
        increment = int.from_bytes(payload, "big") & frames.WINDOW_LIMIT
        if number == 0:
            if not increment:
                raise ConnectionFault(PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
            self._spend_control()
            self.sender.widen(increment)
            return
        stream = self.streams.get(number)
        if stream is None:
            self._expect_known(number, "WINDOW_UPDATE")
            self._spend_control()
            return
        if not increment:
            raise StreamFault(number, PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
        self._spend_control()
        self.sender.widen_stream(stream, increment)

    # ---- holding back and ending

    def _spend_control(self, count: int = 1) -> None:
        # Whatever we send may be answered by frames that keep the line going: window updates, pings that measure it.
        if self.sender.sent != self._sent_before:
            self._sent_before = self.sender.sent
            self.control.give(self.limits.control_burst)
        if not self.control.take(count):
            raise ConnectionFault(ENHANCE_YOUR_CALM, "too many frames that ask for nothing")

    def refuse(self, stream: int) -> None:
        """A new stream beyond the bounds: the client may try it again elsewhere or later."""
        self._spend_control()
        self.sender.write(frames.rst_stream(stream, REFUSED_STREAM))

    @property
    def is_last(self) -> bool:
        """Whether the stream just opened came after our last word on which are taken."""
        return self._final_stream is not None

    def _close_if_idle(self) -> None:
        if self.closing and not self.streams and self._final_stream is not None and self.transport is not None:
            self.sender.write_out()
            self.transport.close()
            self._set_timer(_LINGER_S, self.abort)

    def _reset_all(self) -> None:
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            self.sender.drop(stream)
            self.stream_reset(stream)

    def _silent(self) -> None:
        self.end(PROTOCOL_ERROR, "no preface in time")

    def _set_timer(self, delay_s: float | None, what: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if delay_s is None else self.loop.call_later(delay_s, what)


_HANDLERS: Final = (
    Connection._data,
    Connection._headers,
    Connection._priority,
    Connection._rst_stream,
    Connection._settings,
    Connection._push_promise,
    Connection._ping,
    Connection._goaway,
    Connection._window_update,
    Connection._continuation,
)
