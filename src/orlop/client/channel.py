"""What a client needs of a connection: bytes out, bytes back, over whichever door the daemon offers.

A `Channel` calls RPCs by service and method name with encoded messages; it knows headers and deadlines and turns a
peer's status into the errors of `orlop.base.errdefs`. There are four: ttrpc and gRPC, each blocking and for asyncio,
and one that calls an engine's handlers in the same process.

All methods are coroutines. In a blocking channel they never suspend: they wait inside, so that `drive()` can run
them, and everything written on top of them, without an event loop. So the smart side exists once, for both clients.
"""

from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar, cast

from google.protobuf.message import Message

NAMESPACE_HEADER: Final = "containerd-namespace"
LEASE_HEADER: Final = "containerd-lease"

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rpc(Generic[Request, Response]):
    """One method of the API and the classes of its messages.

    Attributes:
        service: full protobuf name, such as `containerd.services.images.v1.Images`.
        method: such as `Get`.
    """

    service: str
    method: str
    request: type[Request]
    response: type[Response]

    @property
    def name(self) -> str:
        """In short, as `Images.Get`."""
        return f"{self.service.rpartition('.')[2]}.{self.method}"


class Stream(Protocol):
    """An RPC in which a side streams; messages are encoded bytes."""

    async def send(self, payload: bytes) -> None:
        """Send one message. Raises the stream's error if the peer has ended it with one."""
        ...

    async def end(self) -> None:
        """Say that no more messages come from this side."""
        ...

    async def receive(self) -> bytes | None:
        """The peer's next message, or None once it has ended the stream well. Raises the error of its status."""
        ...

    async def close(self) -> None:
        """Give the stream up, also before its end. May be called twice."""
        ...


class Channel(Protocol):
    """A connection to one daemon."""

    @property
    def blocking(self) -> bool:
        """Whether the coroutines of this channel wait inside and never suspend."""
        ...

    @property
    def transport(self) -> str:
        """`ttrpc`, `grpc` or `inprocess`."""
        ...

    async def unary(
        self, service: str, method: str, payload: bytes, *, metadata: Mapping[str, str], timeout_s: float | None
    ) -> bytes:
        """Call a unary RPC and return the encoded response.

        Raises:
            OrlopError: the status that the peer answered; UnavailableError where the connection failed.
        """
        ...

    async def stream(
        self, service: str, method: str, payload: bytes | None, *, metadata: Mapping[str, str], timeout_s: float | None
    ) -> Stream:
        """Begin a streaming RPC: server streaming when `payload` is its request, else two-way."""
        ...

    async def close(self) -> None:
        """Let go of the connection; what is under way fails with CanceledError or UnavailableError."""
        ...


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that rests on a blocking channel, and so never suspends, to its end."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return cast("T", stop.value)  # the type is the coroutine's own; StopIteration does not carry it
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} waited for an event loop in a blocking client")


class DrivenIterator(Generic[T]):
    """An async iterator over a blocking channel, seen as a plain one; closing it closes the stream."""

    def __init__(self, items: AsyncIterator[T]) -> None:
        self._items = items

    def __iter__(self) -> "DrivenIterator[T]":
        return self

    def __next__(self) -> T:
        try:
            return drive(_next(self._items))
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """End the stream now rather than when this object is collected."""
        close = getattr(self._items, "aclose", None)
        if close is not None:
            drive(close())

    def __enter__(self) -> "DrivenIterator[T]":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)
