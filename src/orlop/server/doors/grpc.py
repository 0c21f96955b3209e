"""The gRPC door on grpcio: HTTP/2 on a unix socket for everybody's clients.

Handlers get bytes and give bytes, so grpcio neither decodes nor encodes. grpcio does not show who calls.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

import grpc
from grpc import aio

from orlop.base import trace
from orlop.base.errdefs import UnavailableError
from orlop.base.rpc import Call, Method, Peer, Service
from orlop.server.doors import sockets, status_of

# Quoted: the class is generic for the type checker only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

PEER: Final = Peer(door="grpc")
CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
STOP_GRACE_S: Final = 2.0


class GrpcDoor:
    """An async context manager: entering binds and serves, leaving stops with a short grace for running calls.

    Raises on entering:
        AlreadyExistsError: another daemon listens at the address.
        UnavailableError: the address cannot be bound.
    """

    def __init__(
        self,
        path: Path,
        services: Iterable[Service],
        *,
        uid: int,
        gid: int,
        mode: int = sockets.MODE,
        max_receive: int,
        max_send: int,
    ) -> None:
        self._path = path
        self._uid, self._gid, self._mode = uid, gid, mode
        self._max_send = max_send
        self._record = trace.recorder()
        self._server = aio.server(
            options=[
                ("grpc.max_receive_message_length", max_receive),
                ("grpc.max_send_message_length", max_send),
                ("grpc.max_concurrent_streams", 10_000),
                ("grpc.so_reuseport", 0),
                # Go clients ping idle connections; answering with GOAWAY would cut their open waits and subscriptions.
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ]
        )
        self._server.add_generic_rpc_handlers([_Handlers(self._handlers(services))])

    async def __aenter__(self) -> Self:
        sockets.claim(self._path)
        with sockets.private_umask():
            try:
                self._server.add_insecure_port(f"unix:{self._path}")
            except RuntimeError as error:
                raise UnavailableError(f'gRPC door: cannot listen at "{self._path}": {error}') from error
        sockets.give(self._path, uid=self._uid, gid=self._gid, mode=self._mode)
        await self._server.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._server.stop(STOP_GRACE_S)
        self._path.unlink(missing_ok=True)

    def _handlers(self, services: Iterable[Service]) -> dict[str, Handler]:
        return {method.name: self._handler(method) for service in services for method in service.methods.values()}

    def _handler(self, method: Method) -> Handler:
        match method.client_streaming, method.server_streaming:
            case False, False:
                return grpc.unary_unary_rpc_method_handler(self._unary(method))
            case False, True:
                return grpc.unary_stream_rpc_method_handler(self._stream(method))
            case True, False:
                return grpc.stream_unary_rpc_method_handler(self._collect(method))
            case _:
                return grpc.stream_stream_rpc_method_handler(self._stream(method))

    def _unary(self, method: Method) -> Callable[[bytes, Any], Awaitable[bytes]]:
        record = self._record

        async def handle(request: bytes, context: Any) -> bytes:
            start = trace.clock() if record else 0.0
            try:
                answer = method.unary(self._call(context), request)
                return await answer if inspect.isawaitable(answer) else answer
            except asyncio.CancelledError:
                raise
            except Exception as error:
                await _abort(context, error, method)
            finally:
                if record:
                    record("grpc", method.name, start, trace.clock())
            raise AssertionError("abort returned")

        return handle

    def _stream(self, method: Method) -> Callable[[Any, Any], AsyncIterator[bytes]]:
        record = self._record

        async def handle(request: Any, context: Any) -> AsyncIterator[bytes]:
            start = trace.clock() if record else 0.0
            answers = method.stream(self._call(context), request)
            try:
                async for answer in answers:
                    yield answer
            except Exception as error:
                await _abort(context, error, method)
            finally:
                await answers.aclose()
                if record:
                    record("grpc", method.name, start, trace.clock())

        return handle

    def _collect(self, method: Method) -> Callable[[Any, Any], Awaitable[bytes]]:
        async def handle(requests: Any, context: Any) -> bytes:
            try:
                async for answer in method.stream(self._call(context), requests):
                    return answer
            except asyncio.CancelledError:
                raise
            except Exception as error:
                await _abort(context, error, method)
            raise AssertionError(f"{method.name} gave no answer")

        return handle

    def _call(self, context: Any) -> Call:
        # Any: grpcio's context; its stubs do not know the generic handlers' one.
        metadata: dict[str, str] = {}
        for key, value in context.invocation_metadata() or ():
            if isinstance(value, str):
                metadata.setdefault(key, value)
        remaining = context.time_remaining()
        deadline = None if remaining is None else asyncio.get_running_loop().time() + remaining
        return Call(peer=PEER, metadata=metadata, deadline=deadline, max_message=self._max_send)


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "Handler | None":
        return self._handlers.get(handler_call_details.method)


async def _abort(context: Any, error: Exception, method: Method) -> None:
    """Answer with the error's status; always raises grpcio's own AbortError, which it expects to see."""
    if isinstance(error, aio.AbortError):
        raise error
    code, message = status_of(error, method.name)
    await context.abort(CODES.get(code, grpc.StatusCode.UNKNOWN), message)
