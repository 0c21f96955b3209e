"""Channels over ttrpc, blocking and for asyncio: the way our own daemon is reached by default."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from orlop.base.errdefs import OrlopError, from_status
from orlop.ttrpc.errors import TtrpcError

if TYPE_CHECKING:
    from orlop.ttrpc import aio
    from orlop.ttrpc.client import Client
    from orlop.ttrpc.client import Stream as ClientStream

# Offered to the daemon; a foreign one does not look, and 4 MiB stays.
MAX_MESSAGE_BYTES: Final = 16 << 20


def _error(error: TtrpcError) -> OrlopError:
    return from_status(error.code, error.message)


class BlockingTtrpcChannel:
    """Calls that wait in the calling thread; imports no asyncio."""

    blocking = True
    transport = "ttrpc"

    def __init__(self, client: "Client") -> None:
        self._client = client

    @classmethod
    def connect(cls, path: str, timeout_s: float | None) -> "BlockingTtrpcChannel":
        """Connect to a socket. Raises OrlopError, UnavailableError for one that is not there."""
        from orlop.ttrpc.client import Client

        try:
            return cls(Client.connect(path, timeout_s=timeout_s, offer=MAX_MESSAGE_BYTES))
        except TtrpcError as error:
            raise _error(error) from None

    async def unary(
        self, service: str, method: str, payload: bytes, *, metadata: Mapping[str, str], timeout_s: float | None
    ) -> bytes:
        try:
            return self._client.call(service, method, payload, metadata=dict(metadata), timeout_s=timeout_s)
        except TtrpcError as error:
            raise _error(error) from None

    async def stream(
        self, service: str, method: str, payload: bytes | None, *, metadata: Mapping[str, str], timeout_s: float | None
    ) -> "_BlockingStream":
        try:
            stream = self._client.stream(
                service,
                method,
                payload or b"",
                client_streaming=payload is None,
                server_streaming=True,
                metadata=dict(metadata),
                timeout_s=timeout_s,
            )
        except TtrpcError as error:
            raise _error(error) from None
        return _BlockingStream(stream)

    async def close(self) -> None:
        self._client.close()


class _BlockingStream:
    def __init__(self, stream: "ClientStream") -> None:
        self._stream = stream

    async def send(self, payload: bytes) -> None:
        try:
            self._stream.send(payload)
        except TtrpcError as error:
            raise _error(error) from None

    async def end(self) -> None:
        try:
            self._stream.close_send()
        except TtrpcError as error:
            raise _error(error) from None

    async def receive(self) -> bytes | None:
        try:
            return self._stream.receive()
        except TtrpcError as error:
            raise _error(error) from None

    async def close(self) -> None:
        self._stream.close()


class AsyncTtrpcChannel:
    """Calls that wait on asyncio's event loop."""

    blocking = False
    transport = "ttrpc"

    def __init__(self, client: "aio.Client") -> None:
        self._client = client

    @classmethod
    async def connect(cls, path: str, timeout_s: float | None) -> "AsyncTtrpcChannel":
        """Connect to a socket. Raises OrlopError, UnavailableError for one that is not there."""
        from orlop.ttrpc import aio

        try:
            return cls(await aio.Client.connect(path, timeout_s=timeout_s, offer=MAX_MESSAGE_BYTES))
        except TtrpcError as error:
            raise _error(error) from None

    async def unary(
        self, service: str, method: str, payload: bytes, *, metadata: Mapping[str, str], timeout_s: float | None
    ) -> bytes:
        try:
            return await self._client.call(service, method, payload, metadata=dict(metadata), timeout_s=timeout_s)
        except TtrpcError as error:
            raise _error(error) from None

    async def stream(
        self, service: str, method: str, payload: bytes | None, *, metadata: Mapping[str, str], timeout_s: float | None
    ) -> "_AsyncStream":
        try:
            stream = self._client.stream(
                service,
                method,
                payload or b"",
                client_streaming=payload is None,
                server_streaming=True,
                metadata=dict(metadata),
                timeout_s=timeout_s,
            )
        except TtrpcError as error:
            raise _error(error) from None
        return _AsyncStream(stream)

    async def close(self) -> None:
        await self._client.close()


class _AsyncStream:
    def __init__(self, stream: "aio.Stream") -> None:
        self._stream = stream

    async def send(self, payload: bytes) -> None:
        try:
            await self._stream.send(payload)
        except TtrpcError as error:
            raise _error(error) from None

    async def end(self) -> None:
        try:
            await self._stream.close_send()
        except TtrpcError as error:
            raise _error(error) from None

    async def receive(self) -> bytes | None:
        try:
            return await self._stream.receive()
        except TtrpcError as error:
            raise _error(error) from None

    async def close(self) -> None:
        self._stream.cancel()
