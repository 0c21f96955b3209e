"""Cuts a stream of bytes into frames, whoever reads it. No I/O.

Small frames are cut from one fixed buffer. A frame that does not fit there gets a buffer of its own size, allocated
only if its length is within the limit, and is received straight into it. A longer one is read to its end and dropped,
so that the connection stays usable, as in Go.
"""

from orlop.ttrpc import wire

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself costs milliseconds of import
    from typing import Final

    # stream, kind, flags, data, length; data is None for a frame beyond the limit. Large data is a view into a buffer
    # that is not used again.
    Frame = tuple[int, int, int, bytes | memoryview | None, int]

_BUFFER_SIZE: "Final" = 32 << 10


class FrameReader:
    """Receive into `room()`, say how much with `add()`, then take frames with `next_frame()` until it gives None.

    Args:
        asks: whether a frame that needs a buffer of its own waits for `begin()`. Then `wanted` is its length, and
            nothing may be received before.
    """

    __slots__ = (
        "_asks",
        "_body",
        "_body_filled",
        "_buffer",
        "_filled",
        "_header",
        "_parsed",
        "_skip",
        "_view",
        "wanted",
    )

    def __init__(self, *, asks: bool = False) -> None:
        self._asks = asks
        self.wanted = 0
        self._buffer = bytearray(_BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._parsed = 0  # up to here frames have been taken out of _buffer
        self._filled = 0
        self._body: memoryview | None = None
        self._body_filled = 0
        self._header = (0, 0, 0, 0)  # of the frame in _body, or of the one that is skipped
        self._skip = 0  # bytes of a frame beyond the limit that are still to come

    def room(self) -> memoryview:
        """Where to receive into; never empty once `next_frame()` has given None."""
        if self._body is not None:
            return self._body[self._body_filled :]
        return self._view[self._filled :]

    def add(self, count: int) -> None:
        """`count` bytes have been received into `room()`."""
        if self._body is not None:
            self._body_filled += count
        else:
            self._filled += count

    def next_frame(self, limit: int) -> "Frame | None":
        """The next whole frame, or None if more must be received first."""
        if self._body is not None:
            return self._large_frame()
        if self._skip:
            return self._skipped_frame()
        start = self._parsed + wire.HEADER_SIZE
        have = self._filled - start
        if have < 0:
            self._compact()
            return None
        length, stream, kind, flags = wire.HEADER.unpack_from(self._buffer, self._parsed)
        if length > limit:
            self._header = (length, stream, kind, flags)
            self._skip = length
            self._parsed = start
            return self._skipped_frame()
        if length <= have:
            self._parsed = end = start + length
            return stream, kind, flags, bytes(self._view[start:end]), length
        if length <= _BUFFER_SIZE - wire.HEADER_SIZE:
            self._compact()
            return None
        self._header = (length, stream, kind, flags)
        self.wanted = length
        if not self._asks:
            self.begin()
        return None

    def begin(self) -> None:
        """Make the buffer for the frame that `wanted` told of."""
        start = self._parsed + wire.HEADER_SIZE
        have = self._filled - start
        self._body = memoryview(bytearray(self.wanted))
        self._body[:have] = self._view[start : self._filled]
        self._body_filled = have
        self._parsed = self._filled = self.wanted = 0

    def _large_frame(self) -> "Frame | None":
        body = self._body
        assert body is not None
        if self._body_filled < len(body):
            return None
        self._body = None
        length, stream, kind, flags = self._header
        return stream, kind, flags, body, length

    def _skipped_frame(self) -> "Frame | None":
        dropped = min(self._skip, self._filled - self._parsed)
        self._parsed += dropped
        self._skip -= dropped
        if self._skip:
            self._compact()
            return None
        length, stream, kind, flags = self._header
        return stream, kind, flags, None, length

    def _compact(self) -> None:
        """Move what is left to the front, so that there is always room to receive into."""
        rest = self._filled - self._parsed
        if self._parsed:
            if rest:
                self._buffer[:rest] = self._buffer[self._parsed : self._filled]
            self._parsed, self._filled = 0, rest
