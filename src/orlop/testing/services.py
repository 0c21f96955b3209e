"""Call a service's handlers in the same process, without a door: messages in, messages out, errors as they are raised.

    images = InProcess(service, namespace="default")
    response = await images.unary("Get", GetImageRequest(name="x"))
    async for message in images.stream("Read", ReadContentRequest(digest=…)): …
    async with images.duplex("Write") as write:
        answer = await write.ask(WriteContentRequest(ref="x"))

Requests and responses are encoded and decoded on the way, as a door would.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, Final

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from orlop.base.rpc import LEASE_HEADER, NAMESPACE_HEADER, Call, Method, Peer, Service, bind

_END: Final = object()


class InProcess:
    """A service with the namespace and lease that its calls are made with."""

    def __init__(self, service: Service, *, namespace: str = "", lease: str = "", uid: int | None = 0) -> None:
        self.service = service
        self.namespace = namespace
        self.lease = lease
        self.uid = uid

    @classmethod
    def of(cls, descriptor: Any, implementation: object, *, namespace: str = "", lease: str = "") -> "InProcess":
        """Bind an implementation to its descriptor first. Any: see `orlop.base.rpc.bind`."""
        service = bind(descriptor, implementation)
        made = cls(service, namespace=namespace, lease=lease)
        made.responses = _responses(descriptor)
        return made

    responses: Mapping[str, Any] = {}

    def using(self, *, namespace: str | None = None, lease: str | None = None) -> "InProcess":
        """The same service for another namespace or lease."""
        other = InProcess(
            self.service,
            namespace=self.namespace if namespace is None else namespace,
            lease=self.lease if lease is None else lease,
            uid=self.uid,
        )
        other.responses = self.responses
        return other

    async def unary(self, name: str, request: Message) -> Any:
        """Make a unary call. Any: the response's class depends on the method."""
        answer = self._method(name).unary(self._call(), request.SerializeToString())
        payload = answer if isinstance(answer, bytes) else await answer
        return self._decode(name, payload)

    async def stream(self, name: str, request: Message) -> AsyncGenerator[Any, None]:
        """Make a call whose answer streams."""
        answers = self._method(name).stream(self._call(), request.SerializeToString())
        async with _closing(answers):
            async for payload in answers:
                yield self._decode(name, payload)

    def duplex(self, name: str) -> "Duplex":
        """Make a call where both sides stream."""
        return Duplex(self, name)

    def _method(self, name: str) -> Method:
        return self.service.methods[name]

    def _call(self) -> Call:
        metadata = {NAMESPACE_HEADER: self.namespace, LEASE_HEADER: self.lease}
        peer = Peer(door="in-process", uid=self.uid)
        return Call(peer=peer, metadata={name: value for name, value in metadata.items() if value})

    def _decode(self, name: str, payload: bytes) -> Any:
        return self.responses[name].FromString(payload)


class Duplex:
    """An open two-way stream; leaving its context ends it as a client that goes away would."""

    def __init__(self, service: InProcess, name: str) -> None:
        self._service = service
        self._name = name
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._answers: AsyncIterator[bytes] | None = None

    async def __aenter__(self) -> "Duplex":
        self._answers = self._service._method(self._name).stream(self._service._call(), self._sent())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._answers is not None:
            await _aclose(self._answers)

    async def ask(self, request: Message) -> Any:
        """Send a request and wait for one answer.

        Raises:
            EOFError: the service has ended the stream.
            Whatever the service raises.
        """
        self._requests.put_nowait(request.SerializeToString())
        return await self.receive()

    async def finish(self) -> None:
        """Say that there are no more requests, and wait for the end.

        Raises:
            AssertionError: the service answers once more.
        """
        self._requests.put_nowait(_END)
        with contextlib.suppress(EOFError):
            extra = await self.receive()
            raise AssertionError(f"unexpected answer: {extra}")

    async def receive(self) -> Any:
        """Wait for one answer; errors as `ask`."""
        assert self._answers is not None
        payload = await anext(self._answers, None)
        if payload is None:
            raise EOFError(self._name)
        return self._service._decode(self._name, payload)

    async def _sent(self) -> AsyncIterator[bytes]:
        while (item := await self._requests.get()) is not _END:
            yield item


def _responses(descriptor: Any) -> dict[str, Any]:
    return {rpc.name: GetMessageClass(rpc.output_type) for rpc in descriptor.methods}


@contextlib.asynccontextmanager
async def _closing(answers: AsyncIterator[bytes]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await _aclose(answers)


async def _aclose(answers: AsyncIterator[bytes]) -> None:
    close = getattr(answers, "aclose", None)
    if close is not None:
        await close()
