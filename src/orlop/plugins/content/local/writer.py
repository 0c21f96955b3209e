"""The writer of the local store: an ingest's files and rows, and how they become content.

The order of a commit: sync the data; check size and digest; say that this digest is being committed, so that nobody
who removes its last record takes the file away; rename into place; sync the directory; then one transaction for the
record, the ingest's row and the lease. What a crash leaves is an ingest, or a blob without a row, which is swept.

Each operation exists twice: `await write(...)` on the event loop, where small data are written at once and big data in
the store's executor, and `write_sync(...)` for threads. One writer is used by one task or thread at a time.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orlop.api.events import content_pb2 as events
from orlop.base.errdefs import AbortedError, AlreadyExistsError, FailedPreconditionError, NotFoundError
from orlop.base.quoting import quote
from orlop.core.content import Info, Status
from orlop.core.metadata import Transaction, leases
from orlop.core.metadata import content as rows
from orlop.core.mount import disk
from orlop.oci.digest import HEX_LENGTHS, Digest
from orlop.plugins.content.local.ingest import Ingest, stat_data, sync_directory

if TYPE_CHECKING:
    from orlop.plugins.content.local.store import LocalStore

INLINE_SIZE: Final = 64 << 10
"""Bytes up to which a write happens on the event loop: hashing and copying them takes less than a thread's wake-up."""


# Of what is expected and is no digest, an error shows as many characters.
_SHOWN_LENGTH: Final = 256


class LocalWriter:
    """See `orlop.core.content.Writer`.

    Attributes:
        shared: the size of the blob that this ingest claims, while no byte was written; else None.
    """

    def __init__(
        self,
        store: "LocalStore",
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
        self._updated_at = max(row.updated_at, stat_data(ingest.directory)[1])
        self._closed = False
        self._digest: Digest | None = None
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

    # On the event loop.

    async def write(self, data: bytes) -> None:
        if not self._covered(len(data)):
            await self._store.db.write(lambda tx: self._grow(tx, len(data)))
        if self.shared is None and len(data) <= INLINE_SIZE:
            self.write_sync(data)
        elif data:
            await self._store.run(lambda: self.write_sync(data))

    async def truncate(self) -> None:
        await self._store.run(self.truncate_sync)

    async def commit(self, *, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> Info:
        return await self._store.settle(self._commit(size, expected, labels or {}))

    async def _commit(self, size: int, expected: str, labels: Mapping[str, str]) -> Info:
        store = self._store
        try:
            digest, length = await store.run(lambda: self._place(size, expected, labels))
            try:
                info = await store.db.write(lambda tx: self._record(tx, digest, length, labels))
            except BaseException:
                await store.run(lambda: self._take_back(digest))
                raise
        except BaseException:
            await store.run(self._keep)
            raise
        await store.run(self._finish)
        if store.on_blob is not None:
            store.on_blob()
        return self._answer(info, digest)

    async def close(self) -> None:
        if not self._closed:
            await self._store.run(self._keep)

    # In a thread.

    def write_sync(self, data: bytes | memoryview) -> None:
        """`write` for threads."""
        self._require_open()
        if not data:
            return
        if not self._covered(len(data)):
            self._store.db.write_sync(lambda tx: self._grow(tx, len(data)))
        if self.shared is not None:
            self._unshare(self.shared)
        self._ingest.write(data)
        self._updated_at = self._store.now()

    def truncate_sync(self) -> None:
        """`truncate` for threads."""
        self._require_open()
        if self.shared is not None:
            self._unshare(0)
        else:
            self._ingest.truncate()
        self._store.allowances.shrink((self._row.namespace, self._row.ref), self._total)
        self._updated_at = self._store.now()

    def commit_sync(self, *, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> Info:
        """`commit` for threads."""
        try:
            digest, length = self._place(size, expected, labels or {})
            try:
                info = self._store.db.write_sync(lambda tx: self._record(tx, digest, length, labels or {}))
            except BaseException:
                self._take_back(digest)
                raise
        except BaseException:
            self._keep()
            raise
        self._finish()
        return self._answer(info, digest)

    def close_sync(self) -> None:
        """`close` for threads."""
        if not self._closed:
            self._keep()

    # The parts of a commit.

    def _place(self, size: int, expected: str, labels: Mapping[str, str]) -> tuple[Digest, int]:
        """Bring the bytes to where blobs are, durably. The digest is marked as being committed on return."""
        if self._closed:
            raise FailedPreconditionError("cannot commit on closed writer")
        self._require_open()
        rows.check_labels(labels)
        offset = self.status().offset
        if size and size != offset:
            raise FailedPreconditionError(f"{quote(self._row.ref)} failed size validation: {offset} != {size}")
        digest = self._verified(expected)
        self._store.begin_commit(digest)
        try:
            if self.shared is None:
                self._rename(self._store.blob_path(digest))
        except BaseException as error:
            if self.shared is None:
                with contextlib.suppress(OSError):  # what has no row is swept after the next start
                    self._store.take_back(digest, self._ingest.data)
            self._store.end_commit(digest)
            if self.aborted:
                raise self._aborted() from error
            raise
        return digest, offset

    def _verified(self, expected: str) -> Digest:
        """The digest of the bytes, which are on disk now and are what is expected."""
        if self.shared is not None:
            digest = Digest(self._row.expected)
            if expected not in {"", digest}:
                raise FailedPreconditionError(f"{quote(self._row.ref)} unexpected digest")
            return digest
        algorithm = expected.partition(":")[0]
        digest = self._ingest.rehash(algorithm) if algorithm in HEX_LENGTHS else self._ingest.digest()
        if expected not in {"", digest}:
            raise FailedPreconditionError(f"unexpected commit digest {digest}, expected {expected[:_SHOWN_LENGTH]}")
        self._ingest.sync()
        return digest

    def _rename(self, target: Path) -> None:
        with disk.in_words(f"ingest {self._ingest.name}: commit", self._store.root):
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not target.exists():
                os.chmod(self._ingest.data, 0o444)
                os.rename(self._ingest.data, target)
            # Also if another commit has placed it, which may not have come so far yet.
            sync_directory(target.parent)

    def _take_back(self, digest: Digest) -> None:
        """After a transaction that failed: the bytes are the ingest's again, unless another record needs them."""
        if self.shared is None:
            self._store.take_back(digest, self._ingest.data)
        self._store.end_commit(digest)

    def _record(self, tx: Transaction, digest: Digest, length: int, labels: Mapping[str, str]) -> Info | None:
        """The transaction: the ingest becomes a record. None if the namespace has one already.

        With it the commit ends, not when its caller hears of it: who deletes the record right afterwards must take the
        file as well.
        """
        if self.aborted:
            raise self._aborted()
        namespace, ref = self._row.namespace, self._row.ref
        rows.delete_ingest(tx, namespace, ref)
        leases.release(tx, namespace, self._lease, leases.INGESTS, ref)
        leases.hold(tx, namespace, self._lease, leases.CONTENT, digest)
        if self.shared is None:
            self._store.drop_claim(tx, self._row.expected)
        if rows.has(tx, namespace, digest):
            self._end(tx, digest)
            return None
        if self.shared is not None and rows.blob_size(tx, digest) is None:
            raise NotFoundError(f"content {digest} for ingest {quote(ref)}")
        info = rows.insert(tx, namespace, digest, length, labels, owner_uid=self._owner_uid)
        tx.publish(namespace, "/content/create", events.ContentCreate(digest=digest, size=length))
        self._end(tx, digest)
        return info

    def _end(self, tx: Transaction, digest: Digest) -> None:
        self._store.end_commit(digest)
        tx.on_rollback(lambda: self._store.begin_commit(digest))

    def _answer(self, info: Info | None, digest: Digest) -> Info:
        if info is None:
            raise AlreadyExistsError(f"content {digest}")
        return info

    def _finish(self) -> None:
        self._digest = self.digest()
        self._ingest.close(keep=False)
        self._ingest.remove()
        self._release()

    def _keep(self) -> None:
        self._digest = self.digest()
        try:
            self._ingest.close(keep=not self.aborted)
        finally:
            self._release()

    def _release(self) -> None:
        if not self._closed:
            self._closed = True
            self._store.unlock(self._row.namespace, self._row.ref)

    def _covered(self, more: int) -> bool:
        ref = self._row.namespace, self._row.ref
        return self._closed or self._store.allowances.covers(ref, self.status().offset + more)

    def _grow(self, tx: Transaction, more: int) -> None:
        self._store.allowances.grow(tx, (self._row.namespace, self._row.ref), self.status().offset + more)

    def _require_open(self) -> None:
        if self._closed:
            raise FailedPreconditionError(f"ingest {quote(self._row.ref)}: writer is closed")
        if self.aborted:
            raise self._aborted()

    def _aborted(self) -> AbortedError:
        return AbortedError(f"ingest {quote(self._row.ref)} was aborted while it was written")

    def _unshare(self, length: int) -> None:
        """Turn the claim on a blob into an ingest of our own that begins with the first `length` bytes of it."""
        self._ingest.open(fresh=True)
        try:
            if length:
                self._copy(self._store.blob_path(Digest(self._row.expected)), length)
        except BaseException:
            self._ingest.close(keep=False)
            raise
        self.shared = None
        self._total = 0

    def _copy(self, source: os.PathLike[str], length: int) -> None:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            at = 0
            while at < length and (part := os.pread(fd, 1 << 20, at)):
                self._ingest.write(part)
                at += len(part)
        finally:
            os.close(fd)
