"""A content store behind somebody's Content service.

`Channel` is what it needs of the way there: a gRPC or ttrpc connection, or the handlers in the same process.

Source: containerd's core/content/proxy.
"""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Final, Protocol, Self

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from orlop.api.services.content.v1 import content_pb2 as api
from orlop.base.errdefs import DataLossError, FailedPreconditionError
from orlop.core.content import Info, Status
from orlop.oci.digest import Digest

WRITE_SIZE: Final = 1 << 20
"""Bytes of one message: less than the 4 MiB that any peer takes."""


class Conversation(Protocol):
    """An open two-way stream. Any: the answer's class depends on the method."""

    async def ask(self, request: Message) -> Any: ...


class Channel(Protocol):
    """Calls of the Content service, by the names of its methods. Any: the answer's class depends on the method."""

    def using(self, *, namespace: str | None = None, lease: str | None = None) -> Self: ...

    async def unary(self, name: str, request: Message) -> Any: ...

    def stream(self, name: str, request: Message) -> AsyncGenerator[Any, None]: ...

    def duplex(self, name: str) -> AbstractAsyncContextManager[Conversation]: ...


class ProxyReader:
    """See `orlop.core.content.Reader`."""

    def __init__(self, channel: Channel, digest: Digest, size: int) -> None:
        self._channel = channel
        self._digest = digest
        self.size = size
        self.fd: int | None = None

    async def read_at(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        parts, got = [], 0
        request = api.ReadContentRequest(digest=self._digest, offset=offset, size=length)
        async with contextlib.aclosing(self._channel.stream("Read", request)) as responses:
            async for response in responses:
                parts.append(response.data)
                got += len(response.data)
                if got > length:
                    raise DataLossError(f"content {self._digest}: more than {length} bytes came from {offset}")
        return b"".join(parts)

    def close(self) -> None:
        return


class ProxyWriter:
    """See `orlop.core.content.Writer`."""

    def __init__(self, stack: AsyncExitStack, talk: Conversation, ref: str, first: api.WriteContentResponse) -> None:
        self._stack = stack
        self._talk: Conversation | None = talk
        self._ref = ref
        self._last = first
        self._offset = first.offset
        self._started_at = _nanoseconds(first.started_at)
        self._updated_at = _nanoseconds(first.updated_at)

    def status(self) -> Status:
        return Status(
            ref=self._ref,
            offset=self._offset,
            total=self._last.total,
            started_at=self._started_at,
            updated_at=self._updated_at,
        )

    def digest(self) -> Digest:
        return Digest.parse(self._last.digest)

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), WRITE_SIZE):
            part = data[start : start + WRITE_SIZE]
            response = await self._ask(
                api.WriteContentRequest(action=api.WriteAction.WRITE, offset=self._offset, data=part)
            )
            if response.offset != self._offset + len(part):
                raise DataLossError(f"ingest {self._ref}: {response.offset} after {len(part)} bytes at {self._offset}")
            self._offset = response.offset
        # A WRITE does not say when the ingest was changed last; a STAT does.
        self._updated_at = _nanoseconds(self._last.updated_at)

    async def truncate(self) -> None:
        await self._ask(api.WriteContentRequest(action=api.WriteAction.WRITE, offset=0))
        self._offset = 0

    async def commit(self, *, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> Info:
        request = api.WriteContentRequest(
            action=api.WriteAction.COMMIT, total=size, offset=self._offset, expected=expected, labels=labels or {}
        )
        try:
            response = await self._ask(request)
        finally:
            await self.close()
        return Info(digest=Digest.parse(response.digest), size=response.offset, labels=labels or {})

    async def close(self) -> None:
        self._talk = None
        await self._stack.aclose()

    async def _ask(self, request: api.WriteContentRequest) -> api.WriteContentResponse:
        if self._talk is None:
            raise FailedPreconditionError(f"ingest {self._ref}: writer is closed")
        answer: api.WriteContentResponse = await self._talk.ask(request)
        self._last = answer
        return answer


class ProxyStore:
    """See `orlop.core.content.Store`. Errors are those that the service answers with."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def info(self, namespace: str, digest: str) -> Info:
        response = await self._channel.using(namespace=namespace).unary("Info", api.InfoRequest(digest=digest))
        return _info(response.info)

    async def update(self, namespace: str, digest: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        request = api.UpdateRequest(info=api.Info(digest=digest, labels=labels), update_mask=FieldMask(paths=paths))
        return _info((await self._channel.using(namespace=namespace).unary("Update", request)).info)

    async def walk(self, namespace: str, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        request = api.ListContentRequest(filters=filters)
        async for response in self._channel.using(namespace=namespace).stream("List", request):
            for info in response.info:
                yield _info(info)

    async def delete(self, namespace: str, digest: str, *, lease: str = "") -> None:
        request = api.DeleteContentRequest(digest=digest)
        await self._channel.using(namespace=namespace, lease=lease).unary("Delete", request)

    async def reader(self, namespace: str, digest: str) -> ProxyReader:
        info = await self.info(namespace, digest)
        return ProxyReader(self._channel.using(namespace=namespace), info.digest, info.size)

    async def status(self, namespace: str, ref: str) -> Status:
        response = await self._channel.using(namespace=namespace).unary("Status", api.StatusRequest(ref=ref))
        return _status(response.status)

    async def list_statuses(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Status]:
        request = api.ListStatusesRequest(filters=filters)
        response = await self._channel.using(namespace=namespace).unary("ListStatuses", request)
        return [_status(status) for status in response.statuses]

    async def writer(
        self,
        namespace: str,
        ref: str,
        *,
        total: int = 0,
        expected: str = "",
        lease: str = "",
        owner_uid: int | None = None,  # not sent: the service sees the caller itself
    ) -> ProxyWriter:
        request = api.WriteContentRequest(action=api.WriteAction.STAT, ref=ref, total=total, expected=expected)
        async with AsyncExitStack() as stack:
            channel = self._channel.using(namespace=namespace, lease=lease)
            talk = await stack.enter_async_context(channel.duplex("Write"))
            first = await talk.ask(request)
            return ProxyWriter(stack.pop_all(), talk, ref, first)

    async def abort(self, namespace: str, ref: str, *, lease: str = "") -> None:
        await self._channel.using(namespace=namespace, lease=lease).unary("Abort", api.AbortRequest(ref=ref))


def _info(message: api.Info) -> Info:
    return Info(
        digest=Digest.parse(message.digest),
        size=message.size,
        created_at=_nanoseconds(message.created_at),
        updated_at=_nanoseconds(message.updated_at),
        labels=dict(message.labels),
    )


def _status(message: api.Status) -> Status:
    return Status(
        ref=message.ref,
        offset=message.offset,
        total=message.total,
        expected=message.expected,
        started_at=_nanoseconds(message.started_at),
        updated_at=_nanoseconds(message.updated_at),
    )


def _nanoseconds(stamp: Timestamp) -> int:
    return stamp.seconds * 1_000_000_000 + stamp.nanos
