"""A content store of many namespaces: rows in meta.db say who has a right to what, the bytes lie in a `Blobs`.

What guards what:

    the writer of meta.db       all rows
    `_refs`                     one writer per (namespace, ref)
    `Blobs`                     bytes, see there for the order of rows and bytes

Source: containerd's core/metadata/content.go.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

from orlop.base import filters as filter_language
from orlop.base.errdefs import DataLossError, NotFoundError, UnavailableError
from orlop.base.settling import settle
from orlop.core.content import Info, Reader, SharingPolicy, Status, adapt_status, events
from orlop.core.content.allowance import Allowances
from orlop.core.content.arrival import Arrival
from orlop.core.content.blobs import Blobs
from orlop.core.content.opening import Opening
from orlop.core.content.room import SMALL_BYTES, Room
from orlop.core.content.writer import ContentWriter
from orlop.core.metadata import Database, Transaction, leases
from orlop.core.metadata import content as rows
from orlop.oci.digest import Digest

log: Final = logging.getLogger(__name__)

_SLOW_LOCK_S: Final = 30.0


class ContentStore:
    """See `orlop.core.content.WatchedStore`, and `orlop.core.gc.collector.ContentRemover`."""

    def __init__(self, db: Database, blobs: Blobs, *, policy: SharingPolicy = SharingPolicy.SHARED) -> None:
        self.db = db
        self.policy = policy
        self.on_labelled: Callable[[str, Info], None] | None = None
        self.on_blob: Callable[[], None] | None = None
        self.on_arrival: Callable[[Arrival], None] | None = None
        self.on_removed: Callable[[str, str], None] | None = None
        self.before_delete: Callable[[str, str], Awaitable[None]] | None = None
        self.blobs = blobs
        self._refs: dict[tuple[str, str], tuple[float, ContentWriter | None]] = {}
        self._refs_lock = threading.Lock()
        self.allowances = Allowances(db, blobs.length)
        self._room = None if blobs.directory is None else Room(blobs.directory, self._written)

    def close(self) -> None:
        """Wait for what is being done. Open writers fail afterwards; their ingests stay."""
        self.blobs.close()

    async def aclose(self) -> None:
        """`close` without blocking the event loop."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def sweep(self) -> object:
        """Bring bytes and rows together again after a start; see `Blobs.sweep`. May run while the store is used."""
        return self.blobs.sweep()

    # Blobs.

    def find(self, namespace: str, digest: str) -> Info | None:
        """The namespace's record of a blob, if it has one. Does not wait."""
        return rows.find(self.db, namespace, digest)

    async def info(self, namespace: str, digest: str) -> Info:
        return rows.get(self.db, namespace, Digest.parse(digest))

    async def reader(self, namespace: str, digest: str) -> Reader:
        parsed = Digest.parse(digest)
        while True:
            reader = self.blobs.open(parsed, rows.get(self.db, namespace, parsed).size)
            if reader is not None:
                return reader
            await self.db.write(lambda tx: self._require_bytes(tx, namespace, parsed))

    def _require_bytes(self, tx: Transaction, namespace: str, digest: str) -> None:
        """Where nothing is deleted meanwhile: raise NotFoundError without a record, DataLossError without bytes."""
        size = rows.blob_size(tx, digest)
        if size is None or not rows.has(tx, namespace, digest):
            raise rows.absent(digest)
        if flaw := self.blobs.flaw(digest, size):
            raise DataLossError(f"content {digest}: {flaw}")

    async def update(self, namespace: str, digest: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        parsed = Digest.parse(digest)
        info = await self.db.write(lambda tx: rows.update(tx, namespace, parsed, labels, paths))
        if self.on_labelled is not None:
            self.on_labelled(namespace, info)
        return info

    async def walk(self, namespace: str, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        filter_language.parse_all(filters)
        after = ""
        while True:
            infos, after = rows.page(self.db, namespace, filters, after=after)
            for info in infos:
                yield info
            if not after:
                return
            await asyncio.sleep(0)

    async def delete(self, namespace: str, digest: str, *, lease: str = "") -> None:
        parsed = Digest.parse(digest)
        if self.before_delete is not None:
            await self.before_delete(namespace, parsed)

        def delete(tx: Transaction) -> None:
            leases.release(tx, namespace, lease, leases.CONTENT, parsed)
            events.deleted(tx, namespace, parsed)
            self.remove_record(tx, namespace, parsed)
            tx.mutated(deletion=True)

        await self.db.write(delete)

    def remove_record(self, tx: Transaction, namespace: str, digest: str) -> int:
        """Remove a namespace's record, and the blob with its last one; the last thing that `tx` does with this digest.

        Returns the bytes that will be free. Raises NotFoundError.
        """
        size = rows.blob_size(tx, digest) or 0
        if self.on_removed is not None:
            tx.after_commit(partial(self.on_removed, namespace, digest))
        if rows.delete(tx, namespace, digest) and self.blobs.discard(tx, digest):
            return size
        return 0

    # Ingests.

    async def status(self, namespace: str, ref: str) -> Status:
        row = rows.find_ingest(self.db, namespace, ref)
        if row is None:
            raise NotFoundError(f"reference {ref}")
        [status] = await self._statuses([row])
        return status

    async def list_statuses(self, namespace: str, filters: Sequence[str] = ()) -> list[Status]:
        matches = filter_language.parse_all(filters)
        statuses = await self._statuses(rows.list_ingests(self.db, namespace))
        return [status for status in statuses if matches(adapt_status(status))]

    async def _statuses(self, found: Sequence[rows.IngestRow]) -> list[Status]:
        open_ones = {row.key: writer for row in found if (writer := self._writer_of(row.namespace, row.ref))}
        measured = await self.blobs.measure([row.key for row in found if row.key not in open_ones])
        return [
            open_ones[row.key].status() if row.key in open_ones else self._status(row, *measured[row.key])
            for row in found
        ]

    def _status(self, row: rows.IngestRow, offset: int, written_at: int) -> Status:
        total = row.total
        if row.expected and not written_at:
            offset = total = self._blob_length(row.expected)
        return Status(
            ref=row.ref,
            offset=offset,
            total=total,
            expected=row.expected,
            started_at=row.started_at,
            updated_at=max(row.updated_at, written_at),
        )

    def _blob_length(self, digest: str) -> int:
        row = self.db.one("SELECT size_bytes FROM blobs WHERE digest = ?", (digest,))
        return 0 if row is None else int(row["size_bytes"])

    async def writer(
        self,
        namespace: str,
        ref: str,
        *,
        total: int = 0,
        expected: str = "",
        lease: str = "",
        owner_uid: int | None = None,
    ) -> ContentWriter:
        opening = Opening(self, namespace, ref, total=total, expected=expected, lease=lease, owner_uid=owner_uid)
        work = asyncio.ensure_future(opening.run())
        try:
            return await settle(work)
        except asyncio.CancelledError:
            # Who was cancelled never sees the writer, and could not close it: its ref would stay locked.
            if not work.cancelled() and work.exception() is None:
                await settle(work.result().close())
            raise

    async def abort(self, namespace: str, ref: str, *, lease: str = "") -> None:
        def abort(tx: Transaction) -> None:
            leases.release(tx, namespace, lease, leases.INGESTS, ref)
            self.remove_ingest(tx, namespace, ref)
            tx.mutated(deletion=True)

        await self.db.write(abort)

    def remove_ingest(self, tx: Transaction, namespace: str, ref: str) -> None:
        """Remove an ingest with its bytes; its writer, if there is one, fails from then on. Raises NotFoundError."""
        row = rows.delete_ingest(tx, namespace, ref)
        if row is None:
            raise NotFoundError(f"reference {ref}")
        self.drop_claim(tx, row.expected)
        self.blobs.discard_ingest(tx, row.key)
        writer = self._writer_of(namespace, ref)
        if writer is not None:
            tx.after_commit(lambda: setattr(writer, "aborted", True))

    def drop_claim(self, tx: Transaction, digest: str) -> None:
        """Remove a blob that only an ingest's claim, now gone, kept."""
        if digest and rows.forget_blob(tx, digest):
            self.blobs.discard(tx, digest)

    def is_open(self, namespace: str, ref: str) -> bool:
        """Whether a writer has the ingest open."""
        with self._refs_lock:
            return (namespace, ref) in self._refs

    # For the writers.

    def try_lock(self, namespace: str, ref: str) -> None:
        """Be the only writer of a ref. Raises UnavailableError."""
        with self._refs_lock:
            taken = self._refs.get((namespace, ref))
            if taken is None:
                self._refs[namespace, ref] = (time.time(), None)
                return
        since = taken[0]
        held_s = time.time() - since
        if held_s > _SLOW_LOCK_S:
            log.warning("ingest is being written for long", extra={"namespace": namespace, "ref": ref, "s": held_s})
        raise UnavailableError(f"ref {ref} locked for {held_s:.3f}s (since {datetime.fromtimestamp(since, UTC)})")

    def register(self, namespace: str, ref: str, writer: ContentWriter) -> None:
        """Say which writer has the ref that was locked."""
        with self._refs_lock:
            self._refs[namespace, ref] = (self._refs[namespace, ref][0], writer)

    def unlock(self, namespace: str, ref: str) -> None:
        """Let others write the ref."""
        if self._room is not None:
            self._room.forget((namespace, ref))
        self.allowances.forget((namespace, ref))
        with self._refs_lock:
            self._refs.pop((namespace, ref), None)

    def announce(self, namespace: str, ref: str, lease: str, total: int, expected: str) -> None:
        """Refuse what cannot fit, unless it need not be sent. Raises ResourceExhaustedError."""
        if self._room is None:
            return
        if expected and total > SMALL_BYTES:
            here = rows.find(self.db, namespace, expected) is not None
            size = self._blob_length(expected)
            if (here or (self.policy is SharingPolicy.SHARED and size == total)) and not self.blobs.flaw(
                expected, size
            ):
                return
        self._room.announce((namespace, ref), lease, total)

    def _written(self, ref: tuple[str, str]) -> int:
        writer = self._writer_of(*ref)
        if writer is not None:
            return writer.status().offset
        row = rows.find_ingest(self.db, *ref)
        return 0 if row is None else self.blobs.length(row.key)

    def _writer_of(self, namespace: str, ref: str) -> ContentWriter | None:
        with self._refs_lock:
            return self._refs.get((namespace, ref), (0.0, None))[1]
