"""Content, as `client.content`: immutable blobs by digest, and the ingests that become them."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from orlop.api.services.content.v1 import content_pb2 as pb
from orlop.base.errdefs import (
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
    OrlopError,
    UnavailableError,
)
from orlop.client.channel import Rpc
from orlop.client.session import Duplex, Session
from orlop.client.stamps import to_datetime
from orlop.core.transfer import CHUNK_BYTES, MAX_READ_BYTES, read_blob, write_blob

_SERVICE = "containerd.services.content.v1.Content"
INFO = Rpc(_SERVICE, "Info", pb.InfoRequest, pb.InfoResponse)
UPDATE = Rpc(_SERVICE, "Update", pb.UpdateRequest, pb.UpdateResponse)
LIST = Rpc(_SERVICE, "List", pb.ListContentRequest, pb.ListContentResponse)
DELETE = Rpc(_SERVICE, "Delete", pb.DeleteContentRequest, Empty)
READ = Rpc(_SERVICE, "Read", pb.ReadContentRequest, pb.ReadContentResponse)
STATUS = Rpc(_SERVICE, "Status", pb.StatusRequest, pb.StatusResponse)
STATUSES = Rpc(_SERVICE, "ListStatuses", pb.ListStatusesRequest, pb.ListStatusesResponse)
WRITE = Rpc(_SERVICE, "Write", pb.WriteContentRequest, pb.WriteContentResponse)
ABORT = Rpc(_SERVICE, "Abort", pb.AbortRequest, Empty)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobInfo:
    """A blob's record in the namespace."""

    digest: str
    size_bytes: int
    created_at: datetime
    updated_at: datetime
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestStatus:
    """An unfinished write. `total_bytes` is 0 and `expected` empty where they are not known."""

    ref: str
    offset: int
    total_bytes: int
    expected: str
    started_at: datetime
    updated_at: datetime


class Content:
    """The content of the namespace."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def info(self, digest: str) -> BlobInfo:
        """A blob's record. Raises NotFoundError if this namespace has none."""
        return _info((await self._session.call(INFO, pb.InfoRequest(digest=digest))).info)

    async def label(self, digest: str, labels: Mapping[str, str]) -> BlobInfo:
        """Set labels and keep the others; an empty value removes a label."""
        request = pb.UpdateRequest(
            info=pb.Info(digest=digest, labels=dict(labels)),
            update_mask=FieldMask(paths=[f"labels.{name}" for name in labels]),
        )
        return _info((await self._session.call(UPDATE, request)).info)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[BlobInfo]:
        """Yield the records that match one of the filters (all without filters), as the daemon lists them."""
        async for response in self._session.receive(LIST, pb.ListContentRequest(filters=list(filters))):
            for info in response.info:
                yield _info(info)

    async def delete(self, digest: str) -> None:
        """Forget a blob in this namespace; the bytes go when no namespace has it. Raises NotFoundError."""
        await self._session.call(DELETE, pb.DeleteContentRequest(digest=digest))

    async def chunks(self, digest: str, *, offset: int = 0, size: int = 0) -> AsyncGenerator[bytes, None]:
        """Yield a blob's bytes from `offset`, `size` of them or, when 0, to the end."""
        request = pb.ReadContentRequest(digest=digest, offset=offset, size=size)
        async for response in self._session.receive(READ, request):
            yield response.data

    async def read(self, digest: str, *, max_bytes: int = MAX_READ_BYTES) -> bytes:
        """The whole of a small blob.

        Raises:
            NotFoundError: this namespace has no such blob.
            OutOfRangeError: it is larger than `max_bytes`.
        """
        return await read_blob(self, digest, max_bytes=max_bytes)

    async def status(self, ref: str) -> IngestStatus:
        """An ingest's state. Raises NotFoundError."""
        return _status((await self._session.call(STATUS, pb.StatusRequest(ref=ref))).status)

    async def offset(self, ref: str) -> int:
        """How far an ingest is. Raises NotFoundError."""
        return (await self.status(ref)).offset

    async def ingests(self, filters: Sequence[str] = ()) -> list[IngestStatus]:
        """All unfinished writes that match one of the filters."""
        response = await self._session.call(STATUSES, pb.ListStatusesRequest(filters=list(filters)))
        return [_status(one) for one in response.statuses]

    async def abort(self, ref: str) -> None:
        """Give an ingest up and free its bytes. Raises NotFoundError."""
        await self._session.call(ABORT, pb.AbortRequest(ref=ref))

    async def writer(self, ref: str, *, size: int = 0, expected: str = "") -> "Writer":
        """Open an ingest for writing, or resume it where it ended (`Writer.offset`).

        Args:
            ref: the writer's own name for it, unique in the namespace.
            size: of the blob in bytes when known.
            expected: the digest the bytes will have, when known.

        Raises:
            AlreadyExistsError: the expected blob is in this namespace already.
            UnavailableError: someone else is writing under this ref.
        """
        stream = await self._session.duplex(WRITE)
        writer = Writer(stream, ref=ref, size=size, expected=expected)
        try:
            await writer.open()
        except BaseException:
            await stream.close()
            raise
        return writer

    async def write(self, ref: str, data: bytes, *, expected: str = "", labels: Mapping[str, str] | None = None) -> str:
        """Store bytes as a blob, verified against `expected` when given, and return its digest.

        It is no error if the blob is there already; then its labels are set.
        """
        return await write_blob(self, ref, data, expected=expected, labels=labels)

    async def exists(self, digest: str) -> bool:
        """Whether this namespace has the blob."""
        try:
            await self.info(digest)
        except NotFoundError:
            return False
        return True


class Writer:
    """An open ingest. Leaving it without a commit keeps what was written, for a later `Content.writer` to resume."""

    def __init__(
        self,
        stream: Duplex[pb.WriteContentRequest, pb.WriteContentResponse],
        *,
        ref: str,
        size: int = 0,
        expected: str = "",
    ) -> None:
        self._stream = stream
        self._ref = ref
        self._size = size
        self._expected = expected
        self._offset = 0

    @property
    def ref(self) -> str:
        """The ingest's name."""
        return self._ref

    @property
    def offset(self) -> int:
        """Bytes written so far, those of earlier attempts included."""
        return self._offset

    async def open(self) -> None:
        """Take the ingest's lock and learn its offset; `Content.writer` has done so."""
        answer = await self._exchange(
            pb.WriteContentRequest(action=pb.STAT, ref=self._ref, total=self._size, expected=self._expected)
        )
        self._offset = answer.offset

    async def write(self, data: bytes) -> None:
        """Append bytes; they are written, though not yet synced, when this returns."""
        view = memoryview(data)
        for start in range(0, len(view), CHUNK_BYTES):
            chunk = bytes(view[start : start + CHUNK_BYTES])
            answer = await self._exchange(pb.WriteContentRequest(action=pb.WRITE, offset=self._offset, data=chunk))
            if answer.offset != self._offset + len(chunk):
                raise DataLossError(
                    f"ingest {self._ref}: {answer.offset - self._offset} of {len(chunk)} bytes were written"
                )
            self._offset = answer.offset

    async def truncate(self) -> None:
        """Start again from nothing."""
        answer = await self._exchange(pb.WriteContentRequest(action=pb.WRITE, offset=0, data=b"", ref=self._ref))
        self._offset = answer.offset
        if self._offset:
            raise FailedPreconditionError(f"ingest {self._ref} cannot start again from offset 0")

    async def commit(self, *, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> str:
        """Turn the ingest into a blob, wholly or not at all, and return its digest.

        Raises:
            FailedPreconditionError: size or digest differ from what was expected.
            AlreadyExistsError: the namespace had the blob already; the ingest is gone.
        """
        answer = await self._exchange(
            pb.WriteContentRequest(
                action=pb.COMMIT,
                ref=self._ref,
                total=size or self._size,
                offset=self._offset,
                expected=expected or self._expected,
                labels=dict(labels or {}),
            )
        )
        return answer.digest

    async def close(self) -> None:
        """Let go of the ingest's lock; when this returns the daemon has done so."""
        try:
            with contextlib.suppress(OrlopError):  # whatever ended the stream has been raised where it mattered
                await self._stream.end()
                while await self._stream.receive() is not None:
                    pass
        finally:
            await self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def _exchange(self, request: pb.WriteContentRequest) -> pb.WriteContentResponse:
        await self._stream.send(request)
        answer = await self._stream.receive()
        if answer is None:
            raise UnavailableError(f"ingest {self._ref}: the daemon ended the write")
        return answer


def _info(info: pb.Info) -> BlobInfo:
    return BlobInfo(
        digest=info.digest,
        size_bytes=info.size,
        created_at=to_datetime(info.created_at),
        updated_at=to_datetime(info.updated_at),
        labels=dict(info.labels),
    )


def _status(status: pb.Status) -> IngestStatus:
    return IngestStatus(
        ref=status.ref,
        offset=status.offset,
        total_bytes=status.total,
        expected=status.expected,
        started_at=to_datetime(status.started_at),
        updated_at=to_datetime(status.updated_at),
    )
