"""The bytes of ttrpc: frames and the two envelope messages. No I/O and no imports beyond `struct`.

    frame = length u32 | stream u32 | type u8 | flags u8 | data      (big endian; length counts the data alone)

`Request` and `Response` are protobuf messages of five and two fields. They are read and written by hand here: importing
protobuf takes longer than a whole call of a short-lived client may, and the library stays free of dependencies. A test
holds this codec against the generated one.

Source: PROTOCOL.md and request.proto of github.com/containerd/ttrpc; docs/ttrpc.md for SETTINGS and CANCEL.
"""

import struct

from orlop.ttrpc.errors import INTERNAL, OK, RESOURCE_EXHAUSTED, UNAVAILABLE, Status, TtrpcError

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself costs milliseconds of import
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Final

    # Metadata to send: one value or several for a key.
    Metadata = Mapping[str, str | Sequence[str]]

HEADER: "Final" = struct.Struct(">IIBB")
HEADER_SIZE: "Final" = 10

REQUEST: "Final" = 1
RESPONSE: "Final" = 2
DATA: "Final" = 3
# Ours, and sent only to a peer that has shown that it knows them: see LIMIT_KEY.
SETTINGS: "Final" = 0x10
CANCEL: "Final" = 0x11

REMOTE_CLOSED: "Final" = 1
REMOTE_OPEN: "Final" = 2
NO_DATA: "Final" = 4

MESSAGE_LIMIT: "Final" = 4 << 20
# The protocol reserves the first byte of a frame as zero, so no agreement may go beyond 16 MiB less one byte.
RAISED_LIMIT: "Final" = (1 << 24) - 1
# What an envelope adds to a payload at most in a response: tag and length.
RESPONSE_OVERHEAD: "Final" = 6

# Metadata of a connection's first request: "I take messages of this many bytes". A foreign server hands it to its
# handlers, which do not look. Ours answers with a SETTINGS frame that holds what it takes (u32), before anything else.
LIMIT_KEY: "Final" = "ttrpc-message-limit"
# A call that no server implements; its answer shows that SETTINGS has come before it or never comes.
LIMIT_SERVICE: "Final" = "ttrpc.Extension"
LIMIT_METHOD: "Final" = "Limit"

_ONE = [bytes((number,)) for number in range(128)]
_INT64 = (1 << 64) - 1


class WireError(ValueError):
    """Bytes that are no message of this protocol."""


def frame(stream: int, kind: int, flags: int, data: bytes) -> bytes:
    """One frame, header and data together."""
    return HEADER.pack(len(data), stream, kind, flags) + data


def oversize(length: int, limit: int) -> TtrpcError:
    """The error of a message beyond the limit, in Go's words."""
    return TtrpcError(RESOURCE_EXHAUSTED, f"message length {length} exceed maximum message size of {limit}")


def settings(limit: int) -> bytes:
    """The SETTINGS frame that accepts messages up to `limit` bytes."""
    return frame(0, SETTINGS, 0, limit.to_bytes(4, "big"))


def read_settings(data: bytes) -> int:
    """The limit in a SETTINGS frame's data, bounded to what the protocol can carry.

    Raises:
        WireError: fewer than four bytes.
    """
    if len(data) < 4:
        raise WireError("settings frame is too short")
    return bounded_limit(int.from_bytes(data[:4], "big"))


def bounded_limit(offered: int) -> int:
    """`offered` between the protocol's default and the largest agreement."""
    return max(MESSAGE_LIMIT, min(offered, RAISED_LIMIT))


def unix_path(address: str) -> str:
    """What connect(2) takes, out of `/path`, `unix:///path`, `unix:/path` or `@abstract`.

    Raises:
        TtrpcError: UNAVAILABLE for a scheme other than unix.
    """
    path = address
    if path.startswith("unix://"):
        path = path[7:]
    elif path.startswith("unix:"):
        path = path[5:]
    elif "://" in path:
        raise TtrpcError(UNAVAILABLE, f"connect {address}: only unix sockets are supported")
    return "\0" + path[1:] if path.startswith("@") else path


# ---- envelope: writing


def encode_request(
    service: str, method: str, payload: bytes, timeout_nano: int = 0, metadata: "Iterable[tuple[str, str]]" = ()
) -> bytes:
    """A serialized `ttrpc.Request`. `timeout_nano` 0 means no deadline; fields at their defaults are left out."""
    parts: list[bytes] = []
    _put(parts, b"\x0a", service.encode())
    _put(parts, b"\x12", method.encode())
    _put(parts, b"\x1a", payload)
    if timeout_nano:
        parts += (b"\x20", _varint(timeout_nano & _INT64))
    for key, value in metadata:
        pair: list[bytes] = []
        _put(pair, b"\x0a", key.encode())
        _put(pair, b"\x12", value.encode())
        body = b"".join(pair)
        parts += (b"\x2a", _varint(len(body)), body)
    return b"".join(parts)


def pairs(metadata: "Metadata | None") -> "list[tuple[str, str]]":
    """Metadata as a new list of key and value pairs, keys in lower case as Go looks them up."""
    if not metadata:
        return []
    found: list[tuple[str, str]] = []
    for key, value in metadata.items():
        name = key.lower()
        if isinstance(value, str):
            found.append((name, value))
        else:
            found += [(name, one) for one in value]
    return found


def encode_response(payload: bytes) -> bytes:
    """A serialized `ttrpc.Response` of a call that went well: the status is left out, as Go does."""
    if not payload:
        return b""
    return b"\x12" + _varint(len(payload)) + payload


def encode_failure(code: int, message: str, details: tuple[bytes, ...] = ()) -> bytes:
    """A serialized `ttrpc.Response` of a failed call."""
    status = [b"\x08", _varint(code & _INT64)]
    # Lone surrogates (a file name's odd bytes in a message) must not cost the caller its error.
    _put(status, b"\x12", message.encode(errors="replace"))
    for detail in details:
        status += (b"\x1a", _varint(len(detail)), detail)
    body = b"".join(status)
    return b"\x0a" + _varint(len(body)) + body


def _put(parts: list[bytes], tag: bytes, value: bytes) -> None:
    if value:
        parts += (tag, _varint(len(value)), value)


def _varint(number: int) -> bytes:
    if number < 128:
        return _ONE[number]
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


# ---- envelope: reading


class Request:
    """A decoded `ttrpc.Request`; `metadata` holds the pairs in the order of the wire."""

    __slots__ = ("metadata", "method", "payload", "service", "timeout_nano")

    def __init__(self) -> None:
        self.service = ""
        self.method = ""
        self.payload = b""
        self.timeout_nano = 0
        self.metadata: list[tuple[str, str]] = []


def decode_request(data: bytes | memoryview) -> Request:
    """Read a `ttrpc.Request`; unknown fields are skipped.

    Raises:
        WireError: truncated, a field of the wrong type, a string that is not UTF-8.
    """
    request = Request()
    for field, value in _scan(data):
        if field == 1:
            request.service = _text(value)
        elif field == 2:
            request.method = _text(value)
        elif field == 3:
            request.payload = _bytes(value)
        elif field == 4:
            request.timeout_nano = _int(value, 64)
        elif field == 5:
            key = text = ""
            for inner, part in _scan(_bytes(value)):
                if inner == 1:
                    key = _text(part)
                elif inner == 2:
                    text = _text(part)
            request.metadata.append((key, text))
    return request


def decode_response(data: bytes | memoryview) -> tuple[Status | None, bytes]:
    """Read a `ttrpc.Response`: the status if it is a failure, and the payload.

    Raises:
        WireError: as `decode_request`.
    """
    status: Status | None = None
    payload = b""
    for field, value in _scan(data):
        if field == 2:
            payload = _bytes(value)
        elif field == 1:
            status = _status(_bytes(value))
    if status is not None and status.code == OK:
        status = None
    return status, payload


def answer_of(data: bytes | memoryview, name: str) -> bytes:
    """The payload of the `ttrpc.Response` to the call `name`.

    Raises:
        TtrpcError: the status in it; INTERNAL if it cannot be read.
    """
    try:
        status, payload = decode_response(data)
    except WireError as error:
        raise TtrpcError(INTERNAL, f"{name}: answer cannot be read: {error}") from error
    if status is not None:
        raise TtrpcError(status.code, status.message, status.details)
    return payload


def _status(data: bytes) -> Status:
    code, message = 0, ""
    details: list[bytes] = []
    for field, value in _scan(data):
        if field == 1:
            code = _int(value, 32)
        elif field == 2:
            message = _text(value)
        elif field == 3:
            details.append(_bytes(value))
    return Status(code, message, tuple(details))


def _scan(data: bytes | memoryview) -> "list[tuple[int, int | bytes]]":
    """All fields of one message, undecoded: numbers as they lie, strings and messages as bytes."""
    found: list[tuple[int, int | bytes]] = []
    at, end = 0, len(data)
    while at < end:
        tag = data[at]
        at += 1
        if tag > 127:
            start = at - 1
            tag, at = _read_varint(data, start)
            if at - start > 5 or tag >> 32:
                raise WireError("field number is too large")
        kind = tag & 7
        if kind == 2:
            if at < end and data[at] < 128:
                size = data[at]
                at += 1
            else:
                size, at = _read_varint(data, at)
            if size > end - at:
                raise WireError("message is cut short")
            found.append((tag >> 3, bytes(data[at : at + size])))
            at += size
        elif kind == 0:
            value, at = _read_varint(data, at)
            found.append((tag >> 3, value))
        elif kind in (1, 5):
            # No field of ours is fixed-width; what a later version may add is stepped over.
            at += 8 if kind == 1 else 4
            if at > end:
                raise WireError("message is cut short")
        else:
            raise WireError(f"wire type {kind} is not supported")
        if tag < 8:
            raise WireError("field number 0 is not allowed")
    return found


def _read_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    end = len(data)
    while at < end:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number & _INT64, at
        shift += 7
        if shift > 63:
            raise WireError("number is longer than ten bytes")
    raise WireError("message is cut short")


def _text(value: int | bytes) -> str:
    try:
        return _bytes(value).decode()
    except UnicodeDecodeError as error:
        raise WireError("string is not valid UTF-8") from error


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise WireError("number where a string is expected")
    return value


def _int(value: int | bytes, bits: int) -> int:
    if not isinstance(value, int):
        raise WireError("string where a number is expected")
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value
