"""Calls to another program's gRPC socket that wait on the event loop, and two-way streams.

Whoever uses this has grpcio imported before, in a thread. Who does not answer is unavailable, by the name of the
plug-in; every wait for an answer has an end.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Final, Self, TypeVar

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from orlop.api.services.content.v1.content_pb2 import COMMIT
from orlop.base.errdefs import OrlopError, UnavailableError, from_status
from orlop.plugins.proxy.peers import OPTIONS, headers, target

T = TypeVar("T")

# What grpcio says, by itself, of a message that it could not send, if it has not heard yet that nobody is there.
_NOT_SENT: Final = "Internal error from Core"

ANSWER_S: Final = 60.0
"""Until an answer, or the next one of a stream."""
COMMIT_S: Final = 600.0
"""Until the answer to a commit: there may be gigabytes to sync."""
GOODBYE_S: Final = 5.0
"""Until the other side has ended a stream that we have ended."""


class Connection:
    """One service on one socket; belongs to one event loop. Any: protobuf's service descriptor, and grpcio's calls.

    Args:
        name: the plug-in's, for errors.
    """

    def __init__(self, service: Any, name: str, address: str) -> None:
        self._service = service
        self._name = name
        self._address = address
        self._open: Any = None

    async def close(self) -> None:
        """Hang up; what is under way is cancelled."""
        if self._open is not None:
            await self._open.close()

    def channel(self) -> Any:
        """The way there, which is opened by its first call."""
        import grpc.aio

        if self._open is None:
            self._open = grpc.aio.insecure_channel(target(self._address), options=OPTIONS)
        return self._open

    def method(self, name: str) -> tuple[str, Callable[[bytes], Any]]:
        """A method's path, and what reads its answers."""
        method = self._service.methods_by_name[name]
        return f"/{self._service.full_name}/{name}", GetMessageClass(method.output_type).FromString

    async def answer(self, name: str, wait: Awaitable[T], limit_s: float = ANSWER_S) -> T:
        """What a call answers, in our errors.

        Raises:
            UnavailableError: nobody is there, or says nothing for so long.
        """
        import grpc

        try:
            async with asyncio.timeout(limit_s):
                return await wait
        except TimeoutError:
            raise self.unavailable(name, f"no answer in {limit_s:.0f} s") from None
        except grpc.RpcError as error:
            raise self.error(name, error.code(), error.details()) from None
        except asyncio.InvalidStateError:  # grpcio's word for a stream that the other side has ended
            raise self.unavailable(name, "the stream has ended") from None

    def error(self, name: str, code: Any, details: str | None) -> OrlopError:
        """A status as an error."""
        if code.name == "UNAVAILABLE":
            return self.unavailable(name, details or "")
        if code.name == "INTERNAL" and details == _NOT_SENT:
            return self.unavailable(name, "the connection broke while a message was sent")
        return from_status(int(code.value[0]), details or "")

    def unavailable(self, name: str, text: str) -> UnavailableError:
        """Nobody answers: which plug-in, where, and what it was asked."""
        return UnavailableError(f"proxy plug-in {self._name} at {self._address}: {name}: {text}")


class ServiceChannel:
    """See `orlop.core.content.proxy.Channel`."""

    def __init__(self, connection: Connection, *, namespace: str = "", lease: str = "") -> None:
        self._connection = connection
        self._namespace = namespace
        self._lease = lease

    def using(self, *, namespace: str | None = None, lease: str | None = None) -> Self:
        return type(self)(
            self._connection,
            namespace=self._namespace if namespace is None else namespace,
            lease=self._lease if lease is None else lease,
        )

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return headers(self._namespace, self._lease)

    async def unary(self, name: str, request: Message) -> Any:
        path, decode = self._connection.method(name)
        call = self._connection.channel().unary_unary(path)(request.SerializeToString(), metadata=self._metadata)
        try:
            return decode(await self._connection.answer(name, call))
        finally:
            call.cancel()

    async def stream(self, name: str, request: Message) -> AsyncGenerator[Any, None]:
        path, decode = self._connection.method(name)
        call = self._connection.channel().unary_stream(path)(request.SerializeToString(), metadata=self._metadata)
        try:
            while (payload := await _next(self._connection, name, call, ANSWER_S)) is not None:
                yield decode(payload)
        finally:
            call.cancel()

    @contextlib.asynccontextmanager
    async def duplex(self, name: str) -> AsyncIterator["Talk"]:
        """See `Channel.duplex`. On leaving, the other side has ended the stream, if it still answers."""
        path, decode = self._connection.method(name)
        call = self._connection.channel().stream_stream(path)(metadata=self._metadata)
        try:
            yield Talk(self._connection, name, call, decode)
            with contextlib.suppress(OrlopError):  # whoever has heard of a failure, or of the end, needs no goodbye
                await self._connection.answer(name, call.done_writing(), GOODBYE_S)
                while await _next(self._connection, name, call, GOODBYE_S) is not None:
                    continue
        finally:
            call.cancel()


class Talk:
    """See `orlop.core.content.proxy.Conversation`."""

    def __init__(self, connection: Connection, name: str, call: Any, decode: Callable[[bytes], Any]) -> None:
        self._connection = connection
        self._name = name
        self._call = call
        self._decode = decode

    async def ask(self, request: Message) -> Any:
        try:
            await self._connection.answer(self._name, self._call.write(request.SerializeToString()))
        except UnavailableError:
            if not self._call.done():
                raise
            # The other side has ended the stream: what is left to read says why.
        limit_s = COMMIT_S if getattr(request, "action", None) == COMMIT else ANSWER_S
        payload = await _next(self._connection, self._name, self._call, limit_s)
        if payload is None:
            raise self._connection.unavailable(self._name, "the stream has ended")
        return self._decode(payload)


async def _next(connection: Connection, name: str, call: Any, limit_s: float) -> bytes | None:
    """The next message of a stream, None at its end."""
    import grpc
    import grpc.aio

    payload = await connection.answer(name, call.read(), limit_s)
    if payload is not grpc.aio.EOF:
        message: bytes = payload
        return message
    code = await call.code()
    if code is not grpc.StatusCode.OK:
        raise connection.error(name, code, await call.details())
    return None
