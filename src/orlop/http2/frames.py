"""HTTP/2 frames as bytes: numbers of RFC 9113, how to build frames, and the two ways in which a peer can be wrong."""

import struct
from collections.abc import Iterable, Iterator
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# A frame's head: 24 bits of length and 8 of type, flags, stream. Section 4.1.
HEAD: Final = struct.Struct(">IBI")
HEAD_SIZE: Final = 9
STREAM_MASK: Final = 0x7FFF_FFFF

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITISED: Final = 0x20

# Section 6.5.2.
HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

# What holds until a setting says otherwise.
DEFAULT_WINDOW: Final = 65_535
DEFAULT_FRAME_SIZE: Final = 16_384
FRAME_SIZE_LIMIT: Final = (1 << 24) - 1
WINDOW_LIMIT: Final = (1 << 31) - 1

# Section 7.
NO_ERROR: Final = 0x0
PROTOCOL_ERROR: Final = 0x1
INTERNAL_ERROR: Final = 0x2
FLOW_CONTROL_ERROR: Final = 0x3
STREAM_CLOSED: Final = 0x5
FRAME_SIZE_ERROR: Final = 0x6
REFUSED_STREAM: Final = 0x7
CANCEL: Final = 0x8
COMPRESSION_ERROR: Final = 0x9
ENHANCE_YOUR_CALM: Final = 0xB

SETTINGS_ACK: Final = HEAD.pack(SETTINGS, ACK, 0)


class ConnectionFault(Exception):
    """The peer broke the protocol, or a bound, for the whole connection: GOAWAY with `code`, then the end."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class StreamFault(Exception):
    """One stream is wrong: RST_STREAM with `code`; the connection goes on."""

    def __init__(self, stream: int, code: int, text: str) -> None:
        super().__init__(text)
        self.stream = stream
        self.code = code
        self.text = text


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame of at most 2**24 - 1 bytes of payload."""
    return HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def header_frames(flags: int, stream: int, block: bytes, frame_size: int) -> bytes:
    """A header block as HEADERS and, where it is longer than the peer's `frame_size`, CONTINUATION frames."""
    if len(block) <= frame_size:
        return frame(HEADERS, flags | END_HEADERS, stream, block)
    pieces = [block[start : start + frame_size] for start in range(0, len(block), frame_size)]
    first, *middle, last = pieces
    return b"".join(
        [
            frame(HEADERS, flags, stream, first),
            *(frame(CONTINUATION, 0, stream, piece) for piece in middle),
            frame(CONTINUATION, END_HEADERS, stream, last),
        ]
    )


def settings(values: Iterable[tuple[int, int]]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", key, value) for key, value in values))


def read_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    """The pairs of a SETTINGS frame.

    Raises:
        ConnectionFault: the length is no multiple of six, or a value is one that section 6.5.2 forbids.
    """
    if len(payload) % 6:
        raise ConnectionFault(FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
    for key, value in struct.iter_unpack(">HI", payload):
        if key == ENABLE_PUSH and value > 1:
            raise ConnectionFault(PROTOCOL_ERROR, f"ENABLE_PUSH is {value}")
        if key == INITIAL_WINDOW_SIZE and value > WINDOW_LIMIT:
            raise ConnectionFault(FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE is {value}")
        if key == MAX_FRAME_SIZE and not DEFAULT_FRAME_SIZE <= value <= FRAME_SIZE_LIMIT:
            raise ConnectionFault(PROTOCOL_ERROR, f"MAX_FRAME_SIZE is {value}")
        yield key, value


def rst_stream(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


def goaway(last_stream: int, code: int, text: str = "") -> bytes:
    return frame(GOAWAY, 0, 0, struct.pack(">II", last_stream, code) + text.encode()[:256])


def without_padding(flags: int, payload: bytes) -> bytes:
    """The payload of a DATA or HEADERS frame without its padding: section 6.1.

    Raises:
        ConnectionFault: the padding is longer than the frame.
    """
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(PROTOCOL_ERROR, "padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]
