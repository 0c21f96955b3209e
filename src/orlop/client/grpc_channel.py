"""Channels over gRPC (grpcio), for daemons that speak no ttrpc. This module is imported only where one is opened."""

from collections.abc import Iterator, Mapping
from queue import Queue
from typing import Any, Final

import grpc
import grpc.aio

from orlop.base.errdefs import OrlopError, UnavailableError, from_status

MAX_MESSAGE_BYTES: Final = 16 << 20
# Any, throughout: grpcio ships no types of its own, and types-grpcio leaves the generic calls untyped.
_OPTIONS: Final[list[tuple[str, Any]]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # grpc-go refuses the percent-encoded socket path that grpcio would send as :authority.
    ("grpc.default_authority", "localhost"),
    # A proxy of the environment is for registries, never for the daemon's socket.
    ("grpc.enable_http_proxy", 0),
]
_END: Final = object()


def _error(error: Any) -> OrlopError:
    code, details = error.code(), error.details() or ""
    return from_status(int(code.value[0]), str(details))


def _pairs(metadata: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(metadata.items())


class BlockingGrpcChannel:
    """Calls that wait in the calling thread."""

    blocking = True
    transport = "grpc"

    def __init__(self, path: str) -> None:
        self._channel: Any = grpc.insecure_channel(f"unix:{path}", options=_OPTIONS)

    def ready(self, timeout_s: float | None) -> None:
        """Wait until the daemon answers at all.

        Raises:
            UnavailableError: it did not within `timeout_s` seconds.
        """
        try:
            grpc.channel_ready_future(self._channel).result(timeout=timeout_s)
        except grpc.FutureTimeoutError as error:
            raise UnavailableError(f"no daemon answers within {timeout_s:g} s") from error

    async def unary(
        self, service: str, method: str, payload: bytes, *, metadata: Mapping[str, str], timeout_s: float | None
    ) -> bytes:
        try:
            answer: bytes = self._channel.unary_unary(f"/{service}/{method}")(
                payload, metadata=_pairs(metadata), timeout=timeout_s
            )
        except grpc.RpcError as error:
            raise _error(error) from None
        return answer

    async def stream(
        self, service: str, method: str, payload: bytes | None, *, metadata: Mapping[str, str], timeout_s: float | None
    ) -> "_BlockingStream":
        path = f"/{service}/{method}"
        if payload is not None:
            call = self._channel.unary_stream(path)(payload, metadata=_pairs(metadata), timeout=timeout_s)
            return _BlockingStream(call, None)
        requests: Queue[Any] = Queue()
        call = self._channel.stream_stream(path)(_drain(requests), metadata=_pairs(metadata), timeout=timeout_s)
        return _BlockingStream(call, requests)

    async def close(self) -> None:
        self._channel.close()


def _drain(requests: "Queue[Any]") -> Iterator[bytes]:
    while (payload := requests.get()) is not _END:
        yield payload


class _BlockingStream:
    def __init__(self, call: Any, requests: "Queue[Any] | None") -> None:
        self._call = call
        self._requests = requests

    async def send(self, payload: bytes) -> None:
        if self._requests is None:
            raise TypeError("this RPC takes one request")
        if not self._call.is_active():
            await self.receive()
        self._requests.put(payload)

    async def end(self) -> None:
        if self._requests is not None:
            self._requests.put(_END)

    async def receive(self) -> bytes | None:
        try:
            payload: bytes = next(self._call)
        except StopIteration:
            return None
        except grpc.RpcError as error:
            raise _error(error) from None
        return payload

    async def close(self) -> None:
        self._call.cancel()
        await self.end()


class AsyncGrpcChannel:
    """Calls that wait on asyncio's event loop."""

    blocking = False
    transport = "grpc"

    def __init__(self, path: str) -> None:
        self._channel: Any = grpc.aio.insecure_channel(f"unix:{path}", options=_OPTIONS)

    async def ready(self, timeout_s: float | None) -> None:
        """Wait until the daemon answers at all, as `BlockingGrpcChannel.ready` does."""
        import asyncio

        try:
            async with asyncio.timeout(timeout_s):
                await self._channel.channel_ready()
        except TimeoutError as error:
            raise UnavailableError(f"no daemon answers within {timeout_s:g} s") from error

    async def unary(
        self, service: str, method: str, payload: bytes, *, metadata: Mapping[str, str], timeout_s: float | None
    ) -> bytes:
        try:
            answer: bytes = await self._channel.unary_unary(f"/{service}/{method}")(
                payload, metadata=_pairs(metadata), timeout=timeout_s
            )
        except grpc.RpcError as error:
            raise _error(error) from None
        return answer

    async def stream(
        self, service: str, method: str, payload: bytes | None, *, metadata: Mapping[str, str], timeout_s: float | None
    ) -> "_AsyncStream":
        path = f"/{service}/{method}"
        if payload is not None:
            call = self._channel.unary_stream(path)(payload, metadata=_pairs(metadata), timeout=timeout_s)
        else:
            call = self._channel.stream_stream(path)(metadata=_pairs(metadata), timeout=timeout_s)
        return _AsyncStream(call)

    async def close(self) -> None:
        await self._channel.close()


class _AsyncStream:
    def __init__(self, call: Any) -> None:
        self._call = call

    async def send(self, payload: bytes) -> None:
        try:
            await self._call.write(payload)
        except grpc.RpcError as error:
            raise _error(error) from None

    async def end(self) -> None:
        try:
            await self._call.done_writing()
        except grpc.RpcError as error:
            raise _error(error) from None

    async def receive(self) -> bytes | None:
        try:
            payload = await self._call.read()
        except grpc.RpcError as error:
            raise _error(error) from None
        if payload is grpc.aio.EOF:
            code = await self._call.code()
            if code is not grpc.StatusCode.OK:
                raise from_status(int(code.value[0]), str(await self._call.details() or ""))
            return None
        message: bytes = payload
        return message

    async def close(self) -> None:
        self._call.cancel()
