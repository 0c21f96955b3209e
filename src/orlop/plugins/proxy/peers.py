"""Calls to another program's gRPC socket that wait in a thread. grpcio is imported by the first one that is used."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Final

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from orlop.base.errdefs import OrlopError, from_status
from orlop.base.rpc import LEASE_HEADER, NAMESPACE_HEADER

MESSAGE_LIMIT: Final = 16 << 20
OPTIONS: Final[list[tuple[str, Any]]] = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    # grpc-go refuses the percent-encoded socket path that grpcio would send as :authority.
    ("grpc.default_authority", "localhost"),
    ("grpc.enable_http_proxy", 0),
    # So that one that was started anew is found at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
# What the other side is told: numbers say nothing of namespaces, and a service may want one.
NAMESPACE: Final = "default"
# Listing is for the sweep at start; who does not answer by then is swept at a later start.
LIST_TIMEOUT_S: Final = 2.0


class Peer:
    """Blocking calls of one service on one socket; may be used by several threads."""

    def __init__(self, service: Any, address: str) -> None:
        # Any: protobuf's service descriptor, whose type differs between its implementations.
        self._service = service
        self._address = address
        self._open: Any = None

    def unary(self, name: str, request: Message, *, namespace: str = NAMESPACE, lease: str = "") -> Any:
        """Ask and wait. Raises the errors of `base.errdefs`; UnavailableError if nobody answers at the address."""
        import grpc

        path, decode = self._method(name)
        call = self._channel().unary_unary(path)
        try:
            return decode(call(request.SerializeToString(), metadata=headers(namespace, lease)))
        except grpc.RpcError as error:
            raise self._error(error, name) from None

    def stream(self, name: str, request: Message) -> Iterator[Any]:
        """Ask and yield the answers."""
        import grpc

        path, decode = self._method(name)
        call = self._channel().unary_stream(path)
        try:
            for answer in call(request.SerializeToString(), metadata=headers(NAMESPACE, ""), timeout=LIST_TIMEOUT_S):
                yield decode(answer)
        except grpc.RpcError as error:
            raise self._error(error, name) from None

    def begin(self, name: str, request: Message, *, namespace: str) -> Any:
        """Ask and do not wait: grpcio's call, for `finish`."""
        path, _decode = self._method(name)
        call = self._channel().unary_unary(path)
        return call.future(request.SerializeToString(), metadata=headers(namespace, ""))

    def finish(self, name: str, call: Any) -> Any:
        """The answer to a call that is done. Errors as `unary`."""
        import grpc

        try:
            return self._method(name)[1](call.result())
        except grpc.RpcError as error:
            raise self._error(error, name) from None

    def close(self) -> None:
        """Hang up."""
        if self._open is not None:
            self._open.close()

    def _channel(self) -> Any:
        import grpc

        if self._open is None:
            self._open = grpc.insecure_channel(target(self._address), options=OPTIONS)
        return self._open

    def _method(self, name: str) -> tuple[str, Callable[[bytes], Any]]:
        method = self._service.methods_by_name[name]
        return f"/{self._service.full_name}/{name}", GetMessageClass(method.output_type).FromString

    def _error(self, error: Any, name: str) -> OrlopError:
        code, details = error.code(), error.details() or ""
        if code.name == "UNAVAILABLE":
            details = f"proxy plug-in at {self._address}: {name}: {details}"
        return from_status(int(code.value[0]), details)


class AsyncPeer:
    """The same for the event loop: each call waits in a thread of its own."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def unary(self, name: str, request: Message, *, namespace: str, lease: str = "") -> Any:
        return await asyncio.to_thread(self._peer.unary, name, request, namespace=namespace, lease=lease)

    async def endless(self, name: str, request: Message, *, namespace: str) -> Any:
        """The same for what may take for ever: no thread waits, and the call ends when its caller goes away."""
        call = await asyncio.to_thread(self._peer.begin, name, request, namespace=namespace)
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        call.add_done_callback(lambda _call: loop.call_soon_threadsafe(done.set))
        try:
            await done.wait()
        except asyncio.CancelledError:
            call.cancel()
            raise
        return self._peer.finish(name, call)


def target(address: str) -> str:
    """An address of the configuration as grpcio takes it."""
    return f"unix:{address.removeprefix('unix://')}"


def headers(namespace: str, lease: str) -> tuple[tuple[str, str], ...]:
    """A call's metadata."""
    pairs = ((NAMESPACE_HEADER, namespace),)
    return (*pairs, (LEASE_HEADER, lease)) if lease else pairs
