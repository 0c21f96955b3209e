"""The Streaming service: the daemon's end of the streams that clients open.

Source: containerd's plugins/services/streaming/service.go.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from orlop.api.services.streaming.v1 import streaming_pb2 as api
from orlop.base import namespaces
from orlop.base.errdefs import AlreadyExistsError, OrlopError, UnknownError, from_status
from orlop.base.quoting import quote
from orlop.base.rpc import Call, Service, bind
from orlop.core.kinds import GRPC, STREAMING
from orlop.core.plugin import Context, Registration
from orlop.core.streaming import Buffer, Manager, Packed
from orlop.core.streaming.proxy import GARBLED, is_a, pack

log: Final = logging.getLogger(__name__)

BACKLOG: Final = 4
"""Messages that wait on each way; more wait in the door."""


class Streaming:
    """containerd.services.streaming.v1.Streaming."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    async def stream(self, call: Call, requests: AsyncIterator[Packed]) -> AsyncIterator[Packed]:
        namespace = namespaces.validate(call.namespace)
        name = _name(await anext(requests, None))
        served = _Served()
        try:
            self._manager.register(namespace, name, served, lease=call.lease)
        except AlreadyExistsError:
            # containerd does not translate this one, so its clients see no class.
            raise from_status(UnknownError.code, "already exists") from None
        reading = asyncio.create_task(served.read(requests), name=f"stream {name}")
        try:
            yield pack(Empty())
            while (message := await served.outgoing.get()) is not None:
                yield message
        finally:
            self._manager.remove(namespace, name)
            served.outgoing.end(drop=True)
            served.incoming.end()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


class _Served:
    """See `core.streaming.Stream`: what the user of a stream has in hand, while the handler above moves messages."""

    def __init__(self) -> None:
        self.incoming: Buffer[Packed] = Buffer(BACKLOG)
        self.outgoing: Buffer[Packed] = Buffer(BACKLOG)

    async def send(self, message: Packed) -> None:
        await self.outgoing.put(message)

    async def receive(self) -> Packed | None:
        return await self.incoming.get()

    async def close(self) -> None:
        self.outgoing.end()

    async def read(self, requests: AsyncIterator[Packed]) -> None:
        try:
            async for message in requests:
                await self.incoming.put(message)
        except OrlopError as error:
            log.debug("stream: the client's side ended", extra={"error": str(error)})
        finally:
            self.incoming.end()


def _name(first: Packed | None) -> str:
    if first is None:
        raise from_status(UnknownError.code, "EOF")
    if not is_a(first, api.StreamInit):
        wanted = quote(api.StreamInit.DESCRIPTOR.full_name)
        raise UnknownError(f"can't unmarshal type {quote(first.type_url)} to output {wanted}")
    try:
        return api.StreamInit.FromString(first.value).id
    except DecodeError:
        raise from_status(UnknownError.code, GARBLED) from None


def _init(context: Context) -> Service:
    return bind(api.DESCRIPTOR.services_by_name["Streaming"], Streaming(context.get(STREAMING)))


REGISTRATION: Final = Registration(kind=GRPC, id="streaming", requires=(STREAMING,), init=_init)
