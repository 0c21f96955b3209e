"""The writer of a content store: how an ingest becomes a record of a namespace.

The order of a commit: the bytes become a blob, durably, that nobody removes meanwhile (`Ingest.place`); then one
transaction for the record, the ingest's row and the lease. What a crash leaves is an ingest, or a blob without a row,
which is swept.

One writer is used by one task at a time.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from orlop.base.errdefs import AbortedError, AlreadyExistsError, DataLossError, FailedPreconditionError, NotFoundError
from orlop.base.quoting import quote
from orlop.base.settling import settle
from orlop.core.content import Info, Status, events
from orlop.core.content.arrival import Arrival
from orlop.core.content.blobs import Ingest
from orlop.core.metadata import Transaction, leases
from orlop.core.metadata import content as rows
from orlop.oci.digest import Digest

if TYPE_CHECKING:
    from orlop.core.content.store import ContentStore

_COPY_SIZE: Final = 1 << 20


class ContentWriter:
    """See `orlop.core.content.Writer`.

    Attributes:
        shared: the size of the blob that this ingest claims, while no byte was written; else None.
    """

    def __init__(
        self,
        store: "ContentStore",
        row: rows.IngestRow,
        *,
        ingest: Ingest,
        total: int,
        lease: str,
        owner_uid: int | None,
        shared: int | None = None,
    ) -> None:
        self._store = store
        self._row = row
        self._ingest = ingest
        self._total = total
        self._lease = lease
        self._owner_uid = owner_uid
        self._updated_at = max(row.updated_at, ingest.written_at)
        self._closed = False
        self._digest: Digest | None = None
        self._arrival: Arrival | None = None
        self.shared = shared
        self.aborted = False

    # What can be seen.

    def status(self) -> Status:
        if self.shared is not None:
            offset, total, expected = self.shared, self.shared, self._row.expected
        else:
            offset, total, expected = self._ingest.offset, self._total, ""
        return Status(
            ref=self._row.ref,
            offset=offset,
            total=total,
            expected=expected,
            started_at=self._row.started_at,
            updated_at=self._updated_at,
        )

    def digest(self) -> Digest:
        if self._digest is not None:
            return self._digest
        return Digest(self._row.expected) if self.shared is not None else self._ingest.digest()

    # Writing.

    async def write(self, data: bytes) -> None:
        self._require_open()
        if not data:
            return
        ref, end = (self._row.namespace, self._row.ref), self.status().offset + len(data)
        if not self._store.allowances.covers(ref, end):
            await self._store.db.write(lambda tx: self._store.allowances.grow(tx, ref, end))
        if self.shared is not None:
            await settle(self._unshare(self.shared))
        await self._ingest.write(data)
        self._updated_at = time.time_ns()
        self._grew()

    async def truncate(self) -> None:
        self._require_open()
        self._end_arrival(None)
        if self.shared is not None:
            await settle(self._unshare(0))
        else:
            await self._ingest.truncate()
        self._store.allowances.shrink((self._row.namespace, self._row.ref), self._total)
        self._updated_at = time.time_ns()

    async def commit(self, *, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> Info:
        return await settle(self._commit(size, expected, labels or {}))

    async def _commit(self, size: int, expected: str, labels: Mapping[str, str]) -> Info:
        try:
            digest, length = await self._place(size, expected, labels)
            try:
                info = await self._store.db.write(lambda tx: self._record(tx, digest, length, labels))
            except BaseException:
                if self.shared is None:
                    await self._ingest.take_back()
                raise
        except BaseException:
            await self._keep()
            raise
        self._end_arrival(digest)
        await self._finish()
        if self._store.on_blob is not None:
            self._store.on_blob()
        if info is None:
            raise AlreadyExistsError(f"content {digest}")
        return info

    async def close(self) -> None:
        if not self._closed:
            await self._keep()

    # The parts of a commit.

    async def _place(self, size: int, expected: str, labels: Mapping[str, str]) -> tuple[Digest, int]:
        """Have the bytes where blobs are, durably, and kept there; their digest and how many they are."""
        if self._closed:
            raise FailedPreconditionError("cannot commit on closed writer")
        self._require_open()
        rows.check_labels(labels)
        offset = self.status().offset
        if size and size != offset:
            raise FailedPreconditionError(f"{quote(self._row.ref)} failed size validation: {offset} != {size}")
        if self.shared is not None:
            # The claim in the ingest's row keeps the blob until the transaction that makes the record.
            if expected not in {"", self._row.expected}:
                raise FailedPreconditionError(f"{quote(self._row.ref)} unexpected digest")
            return Digest(self._row.expected), offset
        try:
            return await self._ingest.place(expected), offset
        except BaseException as error:
            if self.aborted:
                raise self._aborted() from error
            raise

    def _record(self, tx: Transaction, digest: Digest, length: int, labels: Mapping[str, str]) -> Info | None:
        """The transaction: the ingest becomes a record. None if the namespace has one already."""
        if self.aborted:
            raise self._aborted()
        namespace, ref = self._row.namespace, self._row.ref
        rows.delete_ingest(tx, namespace, ref)
        leases.release(tx, namespace, self._lease, leases.INGESTS, ref)
        leases.hold(tx, namespace, self._lease, leases.CONTENT, digest)
        if self.shared is None:
            self._store.drop_claim(tx, self._row.expected)
        info = None
        if self.shared is None:
            rows.correct_size(tx, digest, length)
        elif rows.blob_size(tx, digest) is None:
            raise NotFoundError(f"content {digest} for ingest {quote(ref)}")
        elif flaw := self._store.blobs.flaw(digest, length):
            raise DataLossError(f"content {digest}: {flaw}")
        if not rows.has(tx, namespace, digest):
            info = rows.insert(tx, namespace, digest, length, labels, owner_uid=self._owner_uid)
            events.created(tx, namespace, info)
        if self.shared is None:
            self._ingest.recorded(tx)
        return info

    async def _finish(self) -> None:
        try:
            self._digest = self.digest()
            await self._ingest.remove()
        finally:
            self._release()

    async def _keep(self) -> None:
        self._end_arrival(None)
        try:
            self._digest = self.digest()
            await self._ingest.close(keep=not self.aborted)
        finally:
            self._release()

    def _release(self) -> None:
        if not self._closed:
            self._closed = True
            self._store.unlock(self._row.namespace, self._row.ref)

    def _grew(self) -> None:
        """Tell who reads along; at the beginning, everybody who might."""
        if self._arrival is None and self._total and self._store.on_arrival is not None:
            self._arrival = Arrival(self._row.namespace, self._total, lambda: self._ingest.follow(self._total))
            self._store.on_arrival(self._arrival)
        if self._arrival is not None:
            self._arrival.grew(self._ingest.offset)

    def _end_arrival(self, blob: Digest | None) -> None:
        arrival, self._arrival = self._arrival, None
        if arrival is not None:
            arrival.end(blob)

    def _require_open(self) -> None:
        if self._closed:
            raise FailedPreconditionError(f"ingest {quote(self._row.ref)}: writer is closed")
        if self.aborted:
            raise self._aborted()

    def _aborted(self) -> AbortedError:
        return AbortedError(f"ingest {quote(self._row.ref)} was aborted while it was written")

    async def _unshare(self, length: int) -> None:
        """Turn the claim on a blob into an ingest of our own that begins with the first `length` bytes of it."""
        await self._ingest.open(fresh=True)
        try:
            if length:
                await self._copy(Digest(self._row.expected), length)
        except BaseException:
            await self._ingest.close(keep=False)
            raise
        self.shared = None
        self._total = 0

    async def _copy(self, digest: Digest, length: int) -> None:
        reader = self._store.blobs.open(digest, length)
        if reader is None:
            raise DataLossError(f"content {digest}: its bytes have gone")
        try:
            at = 0
            while at < length:
                part = await reader.read_at(at, min(_COPY_SIZE, length - at))
                if not part:
                    raise DataLossError(f"content {digest}: ends at {at} of {length} bytes")
                await self._ingest.write(part)
                at += len(part)
        finally:
            reader.close()
