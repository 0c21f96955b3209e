"""gRPC's words on HTTP/2: a request's headers read and judged, messages' prefixes, statuses as trailers.

Source: "gRPC over HTTP2" (PROTOCOL-HTTP2.md of grpc/grpc); texts of refusals are grpc-go's, which clients of containerd
have met before.
"""

import base64
import json
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from orlop.http2 import hpack
from orlop.http2.frames import END_HEADERS, END_STREAM, HEAD, HEADERS, header_frames

CANCELLED: Final = 1
UNKNOWN: Final = 2
INVALID_ARGUMENT: Final = 3
DEADLINE_EXCEEDED: Final = 4
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14

# Before each message: whether it is compressed, and its length.
PREFIX: Final = struct.Struct(">BI")
PREFIX_SIZE: Final = 5

# What clients may compress their messages with. Ours are not: the socket is on this machine.
ENCODINGS: Final = ("identity", "gzip")

# The head of every answer that is no refusal, and the trailers of every success, ready to be written after a stream's
# number.
_HEAD_BLOCK: Final = hpack.encode([(":status", "200"), ("content-type", "application/grpc")])
_OK_BLOCK: Final = hpack.encode([("grpc-status", "0")])
_HEAD_START: Final = HEAD.pack(len(_HEAD_BLOCK) << 8 | HEADERS, END_HEADERS, 0)[:5]
_OK_START: Final = HEAD.pack(len(_OK_BLOCK) << 8 | HEADERS, END_HEADERS | END_STREAM, 0)[:5]

# What a status text may take of a peer that has set no limit to headers.
_TEXT_LIMIT: Final = 64 << 10
# Room for the other trailers.
_TEXT_RESERVE: Final = 512

_TIMEOUT: Final = re.compile(r"([0-9]{1,8})([HMSmun])")
_TIMEOUT_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
# RFC 9113 section 8.2.1: upper case and controls make a request malformed; gRPC allows fewer characters still.
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
_BAD_VALUE: Final = re.compile(r"[\x00\r\n]|^[ \t]|[ \t]$")
# Section 8.2.2.
_CONNECTION_FIELDS: Final = frozenset({"connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"})
_ESCAPED: Final = re.compile(rb"[^ -$&-~]")
_HANDLED: Final = frozenset({"content-type", "te", "grpc-encoding", "grpc-message-type"})


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ends. `details` is an encoded google.rpc.Status with the same code and message, or empty."""

    code: int
    message: str = ""
    details: bytes = b""


class RpcError(Exception):
    """An error of a handler that says by itself which status it becomes."""

    def __init__(self, code: int, message: str, details: bytes = b"") -> None:
        super().__init__(message)
        self.status = Status(code, message, details)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not looked at any further: an answer of headers only, with an HTTP status of its own."""

    status: Status
    http: int = 200
    accept_encoding: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a header block asks for; blocks that repeat share one.

    Attributes:
        path: `/package.Service/Method`, as sent.
        metadata: by name; of several values the first. Values are UTF-8.
        binary: the same for names that end in `-bin`, decoded.
        timeout_s: how long the caller waits, or None.
        compressed: its messages may be, with gzip.
        malformed: why the stream must be reset, else empty: RFC 9113, section 8.1.1.
    """

    path: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    binary: Mapping[str, bytes] = field(default_factory=dict)
    timeout_s: float | None = None
    compressed: bool = False
    refusal: Refusal | None = None
    malformed: str = ""


def read_request(fields: list[hpack.Field]) -> Request:
    """Judge and sort a request's header fields; never raises."""
    pseudo: dict[str, str] = {}
    plain: dict[str, str] = {}
    for name, value in fields:
        if name in plain:
            if name == "host":
                return Request(malformed="two host headers")
        elif name[:1] == ":":
            if plain or name in pseudo or name not in (":method", ":scheme", ":path", ":authority"):
                return Request(malformed=f"pseudo-header {name[:64]}: unknown, repeated or late")
            pseudo[name] = value
            continue
        else:
            if _NAME.fullmatch(name) is None:
                return Request(malformed=f"header name {name[:64]!r}")
            plain[name] = value
        if _BAD_VALUE.search(value) is not None:
            return Request(malformed=f"value of header {name[:64]}")
    if not pseudo.keys() >= {":method", ":scheme", ":path"}:
        return Request(malformed="a pseudo-header is missing")
    if not _CONNECTION_FIELDS.isdisjoint(plain):
        return Request(malformed="a header that belongs to one connection")
    return _read(pseudo, plain)


def _read(pseudo: Mapping[str, str], plain: dict[str, str]) -> Request:
    method, path = pseudo[":method"], pseudo[":path"]
    content_type = plain.pop("content-type", "")
    if method != "POST":
        text = f"Received a HEADERS frame with :method {json.dumps(method)} which should be POST"
        return _refused(INTERNAL, text, http=405)
    if not _is_grpc(content_type):
        return _refused(INVALID_ARGUMENT, f"invalid gRPC request content-type {json.dumps(content_type)}", http=415)
    timeout_s = None
    timeout = plain.pop("grpc-timeout", None)
    if timeout is not None:
        match = _TIMEOUT.fullmatch(timeout)
        if match is None:
            what = "timeout string is too long" if len(timeout) > 9 else "timeout unit is not recognized"
            text = f"malformed grpc-timeout: transport: {what}: {json.dumps(timeout)}"
            return _refused(INTERNAL, text, http=400)
        timeout_s = int(match[1]) * _TIMEOUT_UNITS[match[2]]
    encoding = plain.pop("grpc-encoding", "identity")
    if encoding not in ENCODINGS:
        text = f"grpc: Decompressor is not installed for grpc-encoding {json.dumps(encoding)}"
        return Request(path=path, refusal=Refusal(Status(UNIMPLEMENTED, text), accept_encoding=True))
    metadata: dict[str, str] = {}
    binary: dict[str, bytes] = {}
    for name, value in plain.items():
        if name.endswith("-bin"):
            try:
                binary[name] = _decode_binary(value)
            except ValueError as error:
                text = f"malformed binary metadata {json.dumps(value)} in header {json.dumps(name)}: {error}"
                return _refused(INTERNAL, text, http=400)
        elif name not in _HANDLED:
            metadata[name] = value if value.isascii() else value.encode("latin-1").decode(errors="replace")
    return Request(
        path=path, metadata=metadata, binary=binary, timeout_s=timeout_s, compressed=encoding != ENCODINGS[0]
    )


def _refused(code: int, text: str, *, http: int) -> Request:
    return Request(refusal=Refusal(Status(code, text), http=http))


def _is_grpc(content_type: str) -> bool:
    """`application/grpc`, alone or with a subtype or parameters; the messages are protobuf's in any case."""
    kind = content_type.lower()
    return kind == "application/grpc" or kind.startswith(("application/grpc+", "application/grpc;"))


def _decode_binary(value: str) -> bytes:
    """The first of the values, which may be joined by commas; padding is optional."""
    text = value.partition(",")[0]
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def unknown_method(path: str, services: Mapping[str, object]) -> Status:
    """What grpc-go says to a path that nobody serves. `services` are known by name."""
    service, slash, method = path.removeprefix("/").rpartition("/")
    if not slash:
        return Status(UNIMPLEMENTED, f"malformed method name: {json.dumps(path)}")
    if service in services:
        return Status(UNIMPLEMENTED, f"unknown method {method} for service {service}")
    return Status(UNIMPLEMENTED, f"unknown service {service}")


def head_frame(stream: bytes) -> bytes:
    """The headers of an answer, for a stream's number as four bytes."""
    return _HEAD_START + stream + _HEAD_BLOCK


def success_frame(stream: bytes) -> bytes:
    """The trailers of a success; ends the stream."""
    return _OK_START + stream + _OK_BLOCK


def failure_frames(stream: int, status: Status, *, frame_size: int, list_limit: int | None) -> bytes:
    """Trailers after an answer's headers; ends the stream."""
    return header_frames(END_STREAM, stream, hpack.encode(_trailers(status, list_limit)), frame_size)


def refusal_frames(stream: int, refusal: Refusal, *, frame_size: int, list_limit: int | None) -> bytes:
    """An answer that is headers only; ends the stream."""
    fields = [(":status", str(refusal.http)), ("content-type", "application/grpc")]
    if refusal.accept_encoding:
        fields.append(("grpc-accept-encoding", ",".join(ENCODINGS)))
    fields += _trailers(refusal.status, list_limit)
    return header_frames(END_STREAM, stream, hpack.encode(fields), frame_size)


def _trailers(status: Status, list_limit: int | None) -> list[hpack.Field]:
    fields = [("grpc-status", str(status.code))]
    # grpcio rejects headers at random between half of the limit that it announces and the limit.
    room = _TEXT_LIMIT if list_limit is None else min(_TEXT_LIMIT, list_limit // 2)
    room = max(0, room - _TEXT_RESERVE)
    if status.message:
        text = percent_encoded(status.message)[:room]
        # Never cut inside an escape.
        fields.append(("grpc-message", re.sub(r"%.?$", "", text) if len(text) == room else text))
        room -= len(text)
    if status.details:
        details = base64.b64encode(status.details).decode().rstrip("=")
        if len(details) <= room:
            fields.append(("grpc-status-details-bin", details))
    return fields


def percent_encoded(message: str) -> str:
    """A status text for `grpc-message`: what is not printable ASCII, and `%`, becomes `%XX` of its UTF-8."""
    data = message.encode(errors="replace")
    return _ESCAPED.sub(lambda match: b"%%%02X" % match[0][0], data).decode("ascii")


def too_large(length: int, limit: int) -> Status:
    """A received message beyond the limit, as grpc-go words it."""
    return Status(RESOURCE_EXHAUSTED, f"grpc: received message larger than max ({length} vs. {limit})")


def inflated(message: bytes, limit: int) -> bytes | Status:
    """A message that came compressed, or why it is none; no more than `limit` bytes are ever made of it."""
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        data = inflater.decompress(message, limit + 1)
    except zlib.error as error:
        return Status(INTERNAL, f"grpc: failed to decompress the received message: {error}")
    if len(data) > limit:
        text = f"grpc: message after decompression larger than max ({len(data)} vs. {limit})"
        return Status(RESOURCE_EXHAUSTED, text)
    if not inflater.eof:
        return Status(INTERNAL, "grpc: failed to decompress the received message: unexpected EOF")
    return data


def too_large_to_send(length: int, limit: int) -> Status:
    return Status(RESOURCE_EXHAUSTED, f"grpc: trying to send message larger than max ({length} vs. {limit})")


def unexpected_format(flag: int) -> Status:
    """A message whose prefix does not begin with 0 or 1."""
    return Status(INTERNAL, f"grpc: received unexpected payload format {flag}")
