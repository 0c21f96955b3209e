"""Service handlers that do not know which door a request came through.

A door (gRPC, ttrpc, in-process) turns what it receives into a `Call` and bytes; a `Method` decodes the bytes, runs the
handler and encodes the answer. Handlers are methods of a plain class, named after the RPC in snake_case:

    class Version:
        def version(self, call: Call, request: Empty) -> VersionResponse: ...
        async def ...                                  # unary that waits
        async def list(self, call, request):           # server stream: an async generator of responses
            yield response
        async def write(self, call, requests):         # client or two-way stream: `requests` is an async iterator

`bind()` pairs such an object with its protobuf service descriptor. An RPC without a method answers UNIMPLEMENTED.
"""

import inspect
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from orlop.base.errdefs import FailedPreconditionError, InvalidArgumentError, UnimplementedError

NAMESPACE_HEADER: Final = "containerd-namespace"
LEASE_HEADER: Final = "containerd-lease"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who calls, as far as the door can see. `uid` and `pid` are None where it cannot (grpcio shows neither)."""

    door: str
    uid: int | None = None
    pid: int | None = None


@dataclass(slots=True, kw_only=True)
class Call:
    """What a door knows of one request beside its bytes.

    Attributes:
        metadata: header values by lower-case name; the first value counts for namespace and lease.
        deadline: point on the event loop's clock (seconds) after which the caller has gone, or None.
        max_message: the largest message in bytes that the caller accepts.
        bound: the one namespace that the caller may learn of; empty where it may of all. Then `namespace` is the same.
    """

    peer: Peer
    metadata: Mapping[str, str] = field(default_factory=dict)
    deadline: float | None = None
    max_message: int = 16 << 20
    bound: str = ""

    @property
    def namespace(self) -> str:
        """The caller's namespace, not yet validated.

        Raises:
            FailedPreconditionError: the request names none. Source: NamespaceRequired in containerd's pkg/namespaces.
        """
        name = self.metadata.get(NAMESPACE_HEADER, "")
        if not name:
            raise FailedPreconditionError("namespace is required")
        return name

    @property
    def lease(self) -> str:
        """The lease that what this call makes is added to, or an empty string."""
        return self.metadata.get(LEASE_HEADER, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One RPC of one service: how it streams, how its messages are read and written, and who handles it.

    `handler` is called with (call, request) or, where the client streams, (call, async iterator of requests); it
    returns a response, an awaitable of one, or an async iterator of responses where the server streams.
    """

    name: str
    client_streaming: bool
    server_streaming: bool
    decode: Callable[[bytes], Any]
    handler: Callable[[Call, Any], Any]

    def unary(self, call: Call, payload: bytes) -> bytes | Awaitable[bytes]:
        """Answer a unary request; a handler that does not wait costs no coroutine."""
        answer = self.handler(call, self._request(payload))
        if inspect.isawaitable(answer):
            return _encode_later(answer)
        encoded: bytes = answer.SerializeToString()
        return encoded

    async def stream(self, call: Call, payload: bytes | AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Answer a request in which a side streams; `payload` is bytes unless the client streams."""
        if isinstance(payload, bytes):
            argument: Any = self._request(payload)
        else:
            argument = self._requests(payload)
        answer = self.handler(call, argument)
        if not self.server_streaming:
            message = await answer
            yield message.SerializeToString()
            return
        try:
            async for message in answer:
                yield message.SerializeToString()
        finally:
            await answer.aclose()

    def _request(self, payload: bytes) -> Any:
        # DecodeError is not exported under one stable name by protobuf's implementations, hence the broad class.
        try:
            return self.decode(payload)
        except Exception as error:
            raise InvalidArgumentError(f"request of {self.name} cannot be decoded: {error}") from error

    async def _requests(self, payloads: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for payload in payloads:
            yield self._request(payload)


async def _encode_later(answer: Awaitable[Any]) -> bytes:
    encoded: bytes = (await answer).SerializeToString()
    return encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service by its full protobuf name, with all methods of its descriptor, implemented or not."""

    name: str
    methods: Mapping[str, Method]


def bind(descriptor: Any, implementation: object) -> Service:
    """Pair `implementation` with a `ServiceDescriptor`, found in a `_pb2` module's `DESCRIPTOR.services_by_name`."""
    # Any: protobuf's descriptor types differ between its C and Python implementations.
    from google.protobuf.message_factory import GetMessageClass

    methods = {}
    for rpc in descriptor.methods:
        handler = getattr(implementation, snake_case(rpc.name), None)
        full_name = f"/{descriptor.full_name}/{rpc.name}"
        methods[rpc.name] = Method(
            name=full_name,
            client_streaming=rpc.client_streaming,
            server_streaming=rpc.server_streaming,
            decode=GetMessageClass(rpc.input_type).FromString,
            handler=handler or _absent(full_name, rpc.server_streaming),
        )
    return Service(name=descriptor.full_name, methods=methods)


def snake_case(name: str) -> str:
    """`ListStatuses` becomes `list_statuses`, `CloseIO` becomes `close_io`; a Python keyword gets an underscore."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _absent(full_name: str, server_streaming: bool) -> Callable[[Call, Any], Any]:
    def refuse(_call: Call, _request: Any) -> Any:
        raise UnimplementedError(f"method {full_name}")

    async def refuse_stream(_call: Call, _request: Any) -> AsyncIterator[Any]:
        if full_name:
            raise UnimplementedError(f"method {full_name}")
        yield  # makes this an async generator

    return refuse_stream if server_streaming else refuse
