"""A client that speaks HTTP/2 frame by frame, right or wrong as a test wants; the `hpack` library does its headers."""

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

import hpack

from orlop.http2 import frames

HEADERS = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/t.T/Echo"),
    (":authority", "localhost"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
)


def message(payload: bytes, *, compressed: int = 0) -> bytes:
    return struct.pack(">BI", compressed, len(payload)) + payload


@dataclass
class Answer:
    """All that came on one stream."""

    headers: list[dict[str, str]] = field(default_factory=list)
    data: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> tuple[int, str]:
        last = self.headers[-1]
        return int(last["grpc-status"]), unquote_to_bytes(last.get("grpc-message", "")).decode()

    @property
    def messages(self) -> list[bytes]:
        found, data = [], self.data
        while data:
            _, length = struct.unpack_from(">BI", data)
            found.append(data[5 : 5 + length])
            data = data[5 + length :]
        return found


class Client:
    """One connection. `settings` are sent with the preface, unless `greet` is off."""

    def __init__(
        self, sock: socket.socket, *, settings: Sequence[tuple[int, int]] = (), window: int = 0, greet: bool = True
    ) -> None:
        sock.settimeout(30)
        self.sock = sock
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.answers: dict[int, Answer] = {}
        self.others: list[tuple[int, int, int, bytes]] = []  # frames that are no answers: kind, flags, stream, payload
        self.goaway: tuple[int, int, bytes] | None = None
        self.closed = False
        self._received = b""
        self._pings = 0
        if greet:
            update = frames.window_update(0, window) if window else b""
            self.raw(frames.PREFACE + frames.settings(settings) + frames.SETTINGS_ACK + update)

    def raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def block(self, path: str | None = None, extra: Sequence[tuple[str, str]] = ()) -> bytes:
        given = [(":path", path) if path is not None and name == ":path" else (name, value) for name, value in HEADERS]
        return self.encoder.encode([*given, *extra])

    def fields(self, fields: Sequence[tuple[str, str]]) -> bytes:
        return self.encoder.encode(list(fields))

    def request(
        self,
        stream: int,
        path: str = "/t.T/Echo",
        payload: bytes | None = b"",
        *,
        extra: Sequence[tuple[str, str]] = (),
        end: bool = True,
    ) -> None:
        """Headers, and in a frame of its own one message unless `payload` is None."""
        flags = frames.END_HEADERS | (frames.END_STREAM if end and payload is None else 0)
        data = frames.frame(frames.HEADERS, flags, stream, self.block(path, extra))
        if payload is not None:
            data += frames.frame(frames.DATA, frames.END_STREAM if end else 0, stream, message(payload))
        self.raw(data)

    def answer(self, stream: int) -> Answer:
        """Everything on a stream until it ends, is reset, or the connection ends."""
        answer = self.answers.setdefault(stream, Answer())
        while not answer.ended and answer.reset is None and self.step():
            pass
        return answer

    def call(self, stream: int, path: str = "/t.T/Echo", payload: bytes | None = b"", **more: object) -> Answer:
        self.request(stream, path, payload, **more)  # type: ignore[arg-type]
        return self.answer(stream)

    def end(self) -> tuple[int, int, bytes] | None:
        """Read to the end of the connection; the GOAWAY before it: last stream, code and text."""
        while self.step():
            pass
        return self.goaway

    def settle(self) -> None:
        """A ping and its answer: everything sent before has been dealt with."""
        self._pings += 1
        payload = self._pings.to_bytes(8, "big")
        self.raw(frames.frame(frames.PING, 0, 0, payload))
        while (frames.PING, frames.ACK, 0, payload) not in self.others:
            assert self.step(), self.goaway

    def step(self) -> bool:
        """Deal with one frame; False at the end of the connection."""
        frame = self._frame()
        if frame is None:
            self.closed = True
            return False
        kind, flags, stream, payload = frame
        answer = self.answers.setdefault(stream, Answer()) if stream else None
        if kind == frames.GOAWAY:
            last, code = struct.unpack_from(">II", payload)
            self.goaway = (last, code, payload[8:])
        elif answer is None or kind == frames.WINDOW_UPDATE:
            self.others.append(frame)
        elif kind == frames.HEADERS:
            block = payload
            while not flags & frames.END_HEADERS:
                more = self._frame()
                assert more is not None
                assert (more[0], more[2]) == (frames.CONTINUATION, stream)
                block += more[3]
                flags |= more[1] & frames.END_HEADERS
            answer.headers.append({str(name): str(value) for name, value in self.decoder.decode(block)})
            answer.ended = bool(flags & frames.END_STREAM)
        elif kind == frames.DATA:
            answer.data += payload
            answer.ended = bool(flags & frames.END_STREAM)
        elif kind == frames.RST_STREAM:
            answer.reset = int.from_bytes(payload, "big")
        return True

    def _frame(self) -> tuple[int, int, int, bytes] | None:
        head = self._exactly(9)
        if head is None:
            return None
        size, flags, stream = frames.HEAD.unpack(head)
        payload = self._exactly(size >> 8)
        assert payload is not None
        return size & 0xFF, flags, stream, payload

    def _exactly(self, count: int) -> bytes | None:
        while len(self._received) < count:
            try:
                part = self.sock.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not part:
                return None
            self._received += part
        data, self._received = self._received[:count], self._received[count:]
        return data
