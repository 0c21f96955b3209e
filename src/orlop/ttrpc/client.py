"""Blocking ttrpc client. Imports no asyncio and as little else as it can: short programs live by their import time.

    with Client.connect("/run/acme.sock.ttrpc") as client:
        answer = client.call("acme.v1.Echo", "Say", b"...", timeout_s=10)
        with client.stream("acme.v1.Log", "Follow", b"...", server_streaming=True) as lines:
            for line in lines: ...

A client may be used by many threads at once, all calls sharing the connection. There is no reader thread: one of the
threads that wait reads for all of them. So a program with one thread pays no switch between threads, nothing is left
behind at exit, and an unused client costs nothing. The price: a lost connection shows at the next call, and a stream
that nobody receives from fills up (bounded, see `Stream`).
"""

import _socket  # the C module: `socket` builds enums of all its constants, 8 ms that a CLI notices
import time

from orlop.ttrpc import wire
from orlop.ttrpc._channel import Call, Channel
from orlop.ttrpc.errors import CANCELLED, DEADLINE_EXCEEDED, INTERNAL, TEXT_DEADLINE, UNAVAILABLE, TtrpcError

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself costs milliseconds of import
    from collections.abc import Iterator
    from typing import Self

    from orlop.ttrpc._channel import Socket


class Client:
    """A connection to a ttrpc server.

    Args:
        sock: connected stream socket; it belongs to the client from now on.
        address: how errors name the peer.
        offer: message limit in bytes offered to the peer; a foreign one does not look, and 4 MiB stays (docs/ttrpc.md).
        metadata: sent with every call, under the call's own.
    """

    def __init__(
        self, sock: "Socket", *, address: str = "", offer: int = 0, metadata: "wire.Metadata | None" = None
    ) -> None:
        self.address = address
        self._metadata = dict(metadata or {})
        self._channel = Channel(sock, address, offer)

    @classmethod
    def connect(
        cls, address: str, *, timeout_s: "float | None" = 10.0, offer: int = 0, metadata: "wire.Metadata | None" = None
    ) -> "Self":
        """Connect to the unix socket at `address` (a path, `unix://` before it or not, `@` for an abstract name).

        Raises:
            TtrpcError: UNAVAILABLE with address and reason; DEADLINE_EXCEEDED if the server does not accept in time.
        """
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            _connect(sock, address, timeout_s)
            return cls(sock, address=address, offer=offer, metadata=metadata)
        except BaseException:
            sock.close()
            raise

    @property
    def message_limit(self) -> int:
        """Largest message in bytes that the peer takes, envelope included, as far as is known yet."""
        return self._channel.send_limit

    @property
    def closed(self) -> bool:
        """Whether the connection is known to be unusable."""
        return self._channel.error is not None

    def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout_s: "float | None" = None,
        metadata: "wire.Metadata | None" = None,
    ) -> bytes:
        """One request, one answer.

        Raises:
            TtrpcError: the peer's status; DEADLINE_EXCEEDED; UNAVAILABLE naming the address if the connection is lost;
                RESOURCE_EXHAUSTED if the request or the answer is beyond the limit.
        """
        call = Call(f"{service}/{method}", timeout_s, False)
        self._open(call, service, method, payload, metadata, 0)
        try:
            kind, _flags, data = self._channel.wait(call)
        finally:
            self._channel.forget(call)
        if kind != wire.RESPONSE:
            raise TtrpcError(INTERNAL, f"{call.name}: peer sent stream data in answer to a unary call")
        return wire.answer_of(data, call.name)

    def stream(
        self,
        service: str,
        method: str,
        payload: bytes = b"",
        *,
        client_streaming: bool = False,
        server_streaming: bool = False,
        timeout_s: "float | None" = None,
        metadata: "wire.Metadata | None" = None,
    ) -> "Stream":
        """Open a stream. `payload` is the request, or nothing where the client streams.

        Raises:
            TtrpcError: the request could not be sent, as `call`; what the server says comes from the stream's methods.
            ValueError: neither side streams.
        """
        if not client_streaming and not server_streaming:
            raise ValueError("a stream needs a side that streams; use call()")
        call = Call(f"{service}/{method}", timeout_s, True)
        flags = wire.REMOTE_OPEN if client_streaming else wire.REMOTE_CLOSED
        self._open(call, service, method, payload, metadata, flags)
        return Stream(self, call, client_streaming, server_streaming)

    def close(self) -> None:
        """Close the connection; calls that wait in other threads end with CANCELLED. Harmless when repeated."""
        self._channel.close()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(
        self,
        call: Call,
        service: str,
        method: str,
        payload: bytes,
        metadata: "wire.Metadata | None",
        flags: int,
    ) -> None:
        merged = wire.pairs({**self._metadata, **metadata} if metadata else self._metadata)
        self._learn_limit(len(payload) + (1 << 16), call)
        self._channel.open(call, service, method, payload, merged, flags)

    def _learn_limit(self, size: int, call: Call) -> None:
        """Before a message that may need it, get the answer to our offer, by a call that no server implements."""
        if size <= self._channel.send_limit or self._channel.settled:
            return
        left = call.remaining()
        try:
            self.call(wire.LIMIT_SERVICE, wire.LIMIT_METHOD, b"", timeout_s=None if left < 0 else left)
        except TtrpcError as error:
            if error.code in (UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED):
                raise


class Stream:
    """One open stream of a `Client`.

    One thread may send while another receives, but not two of either. What is not received is kept, up to 1024 messages
    or 16 MiB; then the connection is read no further for 10 s, so that the peer slows down, and after that the stream
    fails with RESOURCE_EXHAUSTED. Leaving the `with` block gives up what is left of the stream.
    """

    def __init__(self, client: Client, call: Call, client_streaming: bool, server_streaming: bool) -> None:
        self._client = client
        self._channel = client._channel
        self._call = call
        self._sending = client_streaming
        self._server_streaming = server_streaming
        self._ended = False

    def send(self, payload: bytes) -> None:
        """Send one message. One that the server no longer wants is dropped: `receive()` tells how the stream ended.

        Raises:
            TtrpcError: UNAVAILABLE; DEADLINE_EXCEEDED; RESOURCE_EXHAUSTED beyond the limit.
            ValueError: this side was closed, or never streams.
        """
        if not self._sending:
            raise ValueError(f"{self._call.name}: this side of the stream is closed")
        self._client._learn_limit(len(payload), self._call)
        self._channel.send_data(self._call, 0, payload)

    def close_send(self) -> None:
        """Tell the server that no more comes. Harmless when repeated."""
        if self._sending:
            self._sending = False
            # Never together with data: Go's server refuses that.
            self._channel.send_data(self._call, wire.REMOTE_CLOSED | wire.NO_DATA, b"")

    def receive(self) -> "bytes | None":
        """The next message, or None when the server has ended the stream well.

        Raises:
            TtrpcError: the server's status, or as `Client.call`.
        """
        if self._ended:
            return None
        try:
            kind, flags, data = self._channel.wait(self._call)
        except BaseException:
            self.close()
            raise
        if kind == wire.RESPONSE:
            self._ended = True
            payload = wire.answer_of(data, self._call.name)
            return payload if payload or not self._server_streaming else None
        if flags & wire.REMOTE_CLOSED:
            self._ended = True
        return None if flags & wire.NO_DATA else bytes(data)

    def result(self) -> bytes:
        """Close this side and return the server's one answer, where only the client streams.

        Raises:
            TtrpcError: as `receive`; INTERNAL if the server ends the stream without an answer.
        """
        self.close_send()
        answer = self.receive()
        if answer is None:
            raise TtrpcError(INTERNAL, f"{self._call.name}: stream ended without an answer")
        return answer

    def close(self) -> None:
        """Give up the stream: nothing more comes, and a peer that understands stops. Harmless when repeated."""
        self._ended = True
        self._sending = False
        self._channel.forget(self._call)

    def __iter__(self) -> "Iterator[bytes]":
        while (message := self.receive()) is not None:
            yield message

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _connect(sock: "_socket.socket", address: str, timeout_s: "float | None") -> None:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    path = wire.unix_path(address)
    pause = 0.001
    while True:
        try:
            sock.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
            sock.connect(path)
            return
        except BlockingIOError:
            # A unix socket with a timeout does not wait for room in the server's queue: EAGAIN, unix(7).
            if deadline is not None and time.monotonic() + pause > deadline:
                text = f"connect {address}: server accepts nobody: {TEXT_DEADLINE}"
                raise TtrpcError(DEADLINE_EXCEEDED, text) from None
            time.sleep(pause)
            pause = min(pause * 2, 0.05)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise TtrpcError(UNAVAILABLE, f"connect {address}: {reason}") from error
