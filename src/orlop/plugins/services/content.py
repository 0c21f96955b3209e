"""The Content service. Source: containerd's plugins/services/content/contentserver/contentserver.go.

Texts that containerd sends without the class's word at their end are sent so: see `_plain`.
"""

import logging
from collections.abc import AsyncIterator
from typing import Final

from google.protobuf.empty_pb2 import Empty

from orlop.api.services.content.v1 import content_pb2 as api
from orlop.base import namespaces
from orlop.base.errdefs import (
    AlreadyExistsError,
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    OrlopError,
    OutOfRangeError,
    from_status,
)
from orlop.base.quoting import quote
from orlop.base.rpc import Call, Service, bind
from orlop.core.content import Info, Status, Store, Writer
from orlop.core.kinds import CONTENT, GRPC
from orlop.core.plugin import Context, Registration
from orlop.oci.digest import Digest, InvalidDigestError
from orlop.plugins.services.timestamps import to_timestamp

log: Final = logging.getLogger(__name__)

READ_CHUNK: Final = 1 << 20
"""Bytes of one message of a Read."""

LIST_CHUNK: Final = 100
"""Records of one message of a List."""

# What a message has beside its data.
_OVERHEAD: Final = 64
# Of what is no digest, an error shows as many characters.
_SHOWN_LENGTH: Final = 256


class Content:
    """containerd.services.content.v1.Content."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def info(self, call: Call, request: api.InfoRequest) -> api.InfoResponse:
        digest = _digest(request.digest)
        return api.InfoResponse(info=_encode(await self._store.info(_namespace(call), digest)))

    async def update(self, call: Call, request: api.UpdateRequest) -> api.UpdateResponse:
        digest = _digest(request.info.digest)
        labels, paths = dict(request.info.labels), tuple(request.update_mask.paths)
        return api.UpdateResponse(info=_encode(await self._store.update(_namespace(call), digest, labels, paths)))

    async def list(self, call: Call, request: api.ListContentRequest) -> AsyncIterator[api.ListContentResponse]:
        block: list[api.Info] = []
        async for info in self._store.walk(_namespace(call), request.filters):
            block.append(_encode(info))
            if len(block) == LIST_CHUNK:
                yield api.ListContentResponse(info=block)
                block = []
        if block:
            yield api.ListContentResponse(info=block)

    async def delete(self, call: Call, request: api.DeleteContentRequest) -> Empty:
        try:
            digest = Digest.parse(request.digest)
        except InvalidDigestError as error:
            raise _plain(InvalidArgumentError, error.reason) from None
        await self._store.delete(_namespace(call), digest, lease=call.lease)
        return Empty()

    async def read(self, call: Call, request: api.ReadContentRequest) -> AsyncIterator[api.ReadContentResponse]:
        try:
            digest = Digest.parse(request.digest)
        except InvalidDigestError as error:
            raise _plain(InvalidArgumentError, f"{request.digest[:_SHOWN_LENGTH]}: {error.reason}") from None
        reader = await self._store.reader(_namespace(call), digest)
        try:
            at = max(request.offset, 0)
            if at > reader.size:
                raise _plain(OutOfRangeError, f"read past object length {reader.size} bytes")
            end = min(reader.size, at + request.size) if request.size > 0 else reader.size
            chunk = min(READ_CHUNK, call.max_message - _OVERHEAD)
            while at < end:
                data = await reader.read_at(at, min(chunk, end - at))
                if not data:
                    raise DataLossError(f"content {digest}: ends at {at} of {reader.size} bytes")
                yield api.ReadContentResponse(offset=at, data=data)
                at += len(data)
        finally:
            reader.close()

    async def status(self, call: Call, request: api.StatusRequest) -> api.StatusResponse:
        try:
            status = await self._store.status(_namespace(call), request.ref)
        except OrlopError as error:
            raise type(error)(f"could not get status for ref {quote(request.ref)}: {error.text}") from None
        return api.StatusResponse(status=_encode_status(status))

    async def list_statuses(self, call: Call, request: api.ListStatusesRequest) -> api.ListStatusesResponse:
        statuses = await self._store.list_statuses(_namespace(call), request.filters)
        return api.ListStatusesResponse(statuses=[_encode_status(status) for status in statuses])

    async def write(
        self, call: Call, requests: AsyncIterator[api.WriteContentRequest]
    ) -> AsyncIterator[api.WriteContentResponse]:
        namespace = _namespace(call)
        first = await anext(requests, None)
        if first is None:
            return
        if not first.ref:
            raise _plain(InvalidArgumentError, "first message must have a reference")
        writer = await self._store.writer(
            namespace,
            first.ref,
            total=first.total,
            expected=first.expected,
            lease=call.lease,
            owner_uid=call.peer.uid,
        )
        session = _WriteSession(self._store, writer, call, namespace, first)
        try:
            request: api.WriteContentRequest | None = first
            while request is not None:
                yield await session.answer(request)
                if request.action == api.WriteAction.COMMIT:
                    return
                request = await anext(requests, None)
        finally:
            await writer.close()

    async def abort(self, call: Call, request: api.AbortRequest) -> Empty:
        await self._store.abort(_namespace(call), request.ref, lease=call.lease)
        return Empty()


class _WriteSession:
    """One Write stream: what the caller has said so far, and the writer.

    As in containerd, times and total are told when the caller asks by STAT, and from then on with every answer.
    """

    def __init__(
        self, store: Store, writer: Writer, call: Call, namespace: str, first: api.WriteContentRequest
    ) -> None:
        self._store = store
        self._writer = writer
        self._call = call
        self._namespace = namespace
        self._ref = first.ref
        self._total = first.total
        self._expected = ""
        self._told = api.WriteContentResponse()

    async def answer(self, request: api.WriteContentRequest) -> api.WriteContentResponse:
        status = self._writer.status()
        if request.expected:
            self._expected = request.expected
            await self._refuse_known(request.expected)
        if request.total > 0:
            self._total = request.total
        told = self._told
        told.action, told.offset = request.action, status.offset
        match request.action:
            case api.WriteAction.STAT:
                told.started_at.CopyFrom(to_timestamp(status.started_at))
                told.updated_at.CopyFrom(to_timestamp(status.updated_at))
                told.total = self._total
            case api.WriteAction.WRITE:
                told.offset = await self._take(request, status.offset)
            case api.WriteAction.COMMIT:
                told.offset = await self._take(request, status.offset)
                await self._writer.commit(size=self._total, expected=self._expected, labels=dict(request.labels))
            case _:
                return told
        told.digest = self._writer.digest()
        return told

    async def _take(self, request: api.WriteContentRequest, offset: int) -> int:
        """Append what the request brings, at the offset that it names; returns where that ends."""
        if request.offset > 0 and request.offset != offset:
            raise _plain(OutOfRangeError, f"write @{request.offset} must occur at current offset {offset}")
        if request.offset == 0 and offset > 0:
            await self._writer.truncate()
            offset = 0
        data = request.data  # each look at it is a copy
        await self._writer.write(data)
        return offset + len(data)

    async def _refuse_known(self, expected: str) -> None:
        """A blob that the namespace has needs no ingest: throw it away and say so."""
        try:
            reader = await self._store.reader(self._namespace, Digest.parse(expected))
            try:
                await reader.read_at(max(reader.size - 1, 0), 1)
            finally:
                reader.close()
        except OrlopError:  # it has none or its bytes are lost, or this is no digest, which the commit will say
            return
        await self._writer.close()
        try:
            await self._store.abort(self._namespace, self._ref, lease=self._call.lease)
        except NotFoundError:
            log.info("ingest had gone before it could be aborted", extra={"ref": self._ref})
        raise _plain(AlreadyExistsError, f"blob with expected digest {expected} exists")


def _namespace(call: Call) -> str:
    return namespaces.validate(call.namespace)


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except InvalidArgumentError:
        raise _plain(InvalidArgumentError, f"{quote(text[:_SHOWN_LENGTH])} failed validation") from None


def _plain(cls: type[OrlopError], text: str) -> OrlopError:
    """An error whose text is sent as it is, as containerd does where it uses status.Errorf."""
    return from_status(cls.code, text)


def _encode(info: Info) -> api.Info:
    return api.Info(
        digest=info.digest,
        size=info.size,
        created_at=to_timestamp(info.created_at),
        updated_at=to_timestamp(info.updated_at),
        labels=info.labels,
    )


def _encode_status(status: Status) -> api.Status:
    return api.Status(
        started_at=to_timestamp(status.started_at),
        updated_at=to_timestamp(status.updated_at),
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        expected=status.expected,
    )


def _init(context: Context) -> Service:
    return bind(api.DESCRIPTOR.services_by_name["Content"], Content(context.get(CONTENT)))


REGISTRATION: Final = Registration(kind=GRPC, id="content", requires=(CONTENT,), init=_init)
