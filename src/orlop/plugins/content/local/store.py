"""The local content store: blobs and ingests as files, their records in meta.db.

    <root>/blobs/<algorithm>/<hex>      mode 0444; complete, synced and verified from the moment it has this name
           ingest/<key>/                see `ingest.py`

What guards what:

    the writer of meta.db       all rows; the rename of a blob into the trash
    `_refs`                     one writer per (namespace, ref)
    `_commits`                  digests whose blob was placed and has no row yet: whoever removes a blob's last record
                                looks here, under `_commits_lock`, and leaves the file to the commit; the transaction
                                that makes the row takes its digest out

Bytes come first, synced; then the row. A blob without a row is left by a crash only, and swept after the next start.
"""

import asyncio
import logging
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

from orlop.api.events import content_pb2 as events
from orlop.base import filters as filter_language
from orlop.base.errdefs import (
    AlreadyExistsError,
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from orlop.core.content import Info, SharingPolicy, Status, adapt_status
from orlop.core.metadata import Database, Transaction, leases
from orlop.core.metadata import content as rows
from orlop.core.metadata.rows import check_key
from orlop.core.metadata.trash import Trash
from orlop.core.mount import disk
from orlop.oci.digest import Digest
from orlop.plugins.content.local import sweep as sweeping
from orlop.plugins.content.local.allowance import Allowances
from orlop.plugins.content.local.ingest import Ingest, stat_data
from orlop.plugins.content.local.room import SMALL_BYTES, Room
from orlop.plugins.content.local.sweep import Swept
from orlop.plugins.content.local.writer import LocalWriter

T = TypeVar("T")

log: Final = logging.getLogger(__name__)

THREADS: Final = 8
SMALL_SIZE: Final = 256 << 10
"""Bytes up to which a read happens on the event loop: manifests and configurations, which the page cache has."""

_SLOW_LOCK_S: Final = 30.0


class LocalReader:
    """See `orlop.core.content.Reader`; `fd` can be read by whoever holds the reader."""

    def __init__(self, store: "LocalStore", fd: int, size: int) -> None:
        self._store = store
        self.fd = fd
        self.size = size

    async def read_at(self, offset: int, length: int) -> bytes:
        if min(length, self.size - offset) <= SMALL_SIZE:
            return self.pread(offset, length)
        return await self._store.run(lambda: self.pread(offset, length))

    def pread(self, offset: int, length: int) -> bytes:
        """`read_at` for threads."""
        try:
            return os.pread(self.fd, length, offset)
        except OSError as error:
            path = os.readlink(f"/proc/self/fd/{self.fd}")
            raise disk.failure(f"content {path}: read at {offset}", path, error) from error

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class LocalStore:
    """See `orlop.core.content.Store`. For threads there are `find`, `blob_path`, `open` and what ends in `_sync`."""

    def __init__(self, root: Path, db: Database, trash: Trash, *, policy: SharingPolicy = SharingPolicy.SHARED) -> None:
        self.root = root
        self._blobs = f"{root}/blobs/"
        self.db = db
        self.policy = policy
        self.trash = trash
        self.on_labelled: Callable[[str, Info], None] | None = None
        self.on_blob: Callable[[], None] | None = None
        self._refs: dict[tuple[str, str], tuple[float, LocalWriter | None]] = {}
        self._refs_lock = threading.Lock()
        self._commits: Counter[str] = Counter()
        self._commits_lock = threading.Lock()
        self._room = Room(root, self._written)
        self.allowances = Allowances(db, lambda key: stat_data(self.ingest_path(key))[0])
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="orlop-content")

    def close(self) -> None:
        """Wait for what the store's threads are doing. Open writers fail afterwards; their ingests stay."""
        self._executor.shutdown()

    async def aclose(self) -> None:
        """`close` without blocking the event loop."""
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    # Blobs.

    def find(self, namespace: str, digest: str) -> Info | None:
        """The namespace's record of a blob, if it has one. Does not wait."""
        return rows.find(self.db, namespace, digest)

    def blob_path(self, digest: str) -> Path:
        """Where the blob's file is if the store has it. Ask `find` whether a namespace may read it."""
        parsed = Digest.parse(digest)
        return self.root / "blobs" / parsed.algorithm / parsed.hex

    def open(self, namespace: str, digest: str) -> LocalReader:
        """`reader` for threads."""
        while (reader := self._try_open(namespace, digest)) is None:
            self.db.write_sync(lambda tx: self._require_bytes(tx, namespace, digest))
        return reader

    def _try_open(self, namespace: str, digest: str) -> LocalReader | None:
        """Open a blob; None if there is a record and no file, which a deletion that is not durable yet looks like."""
        path = f"{self._blobs}{Digest.parse(digest).replace(':', '/')}"  # blob_path, without the price of pathlib
        info = rows.get(self.db, namespace, digest)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        return LocalReader(self, fd, info.size)

    def _require_bytes(self, tx: Transaction, namespace: str, digest: str) -> None:
        """Where nothing is deleted meanwhile: raise NotFoundError without a record, DataLossError without bytes."""
        if not rows.has(tx, namespace, digest):
            raise rows.absent(digest)
        if not self.blob_path(digest).exists():
            raise DataLossError(f"content {digest}: there is a record of it, but its bytes have gone")

    async def info(self, namespace: str, digest: str) -> Info:
        return rows.get(self.db, namespace, Digest.parse(digest))

    async def reader(self, namespace: str, digest: str) -> LocalReader:
        while (reader := self._try_open(namespace, digest)) is None:
            await self.db.write(lambda tx: self._require_bytes(tx, namespace, digest))
        return reader

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

        def delete(tx: Transaction) -> None:
            leases.release(tx, namespace, lease, leases.CONTENT, parsed)
            tx.publish(namespace, "/content/delete", events.ContentDelete(digest=parsed))
            self.remove_record(tx, namespace, parsed)
            tx.mutated(deletion=True)

        await self.db.write(delete)

    def remove_record(self, tx: Transaction, namespace: str, digest: str) -> int:
        """Remove a namespace's record, and the blob with its last one; the last thing that `tx` does with this digest.

        Returns the bytes that will be free. Raises NotFoundError.
        """
        size = rows.blob_size(tx, digest) or 0
        if rows.delete(tx, namespace, digest) and self.remove_blob(tx, digest):
            return size
        return 0

    def remove_blob(self, tx: Transaction, digest: str) -> bool:
        """Throw a blob's file away, whose row has gone, unless somebody is committing it."""
        with self._commits_lock:
            return digest not in self._commits and self.trash.take(tx, self.blob_path(digest))

    # After a start.

    def sweep(self) -> Swept:
        """Bring files and rows together again; blocks, and may run while the store is used."""
        return sweeping.sweep(self)

    def discard_blobs(self, digests: list[str]) -> list[str]:
        """Throw away those of the blobs that have no row; returns which."""
        return self.db.write_sync(lambda tx: sweeping.discard_blobs(self, tx, digests))

    def discard_ingests(self, keys: list[str]) -> list[str]:
        """Throw away those of the ingests' directories that have no row; returns which."""
        return self.db.write_sync(lambda tx: sweeping.discard_ingests(self, tx, keys))

    # Ingests.

    async def status(self, namespace: str, ref: str) -> Status:
        row = rows.find_ingest(self.db, namespace, ref)
        if row is None:
            raise NotFoundError(f"reference {ref}")
        return self._status(row)

    async def list_statuses(self, namespace: str, filters: Sequence[str] = ()) -> list[Status]:
        matches = filter_language.parse_all(filters)
        statuses = (self._status(row) for row in rows.list_ingests(self.db, namespace))
        return [status for status in statuses if matches(adapt_status(status))]

    def _status(self, row: rows.IngestRow) -> Status:
        with self._refs_lock:
            writer = self._refs.get((row.namespace, row.ref), (0.0, None))[1]
        if writer is not None:
            return writer.status()
        offset, written_at = stat_data(self.ingest_path(row.key))
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
    ) -> LocalWriter:
        opening = asyncio.ensure_future(self._open_writer(namespace, ref, total, expected, lease, owner_uid))
        try:
            return await self.settle(opening)
        except asyncio.CancelledError:
            # Who was cancelled never sees the writer, and could not close it: its ref would stay locked.
            if not opening.cancelled() and opening.exception() is None:
                await self.settle(opening.result().close())
            raise

    async def _open_writer(
        self, namespace: str, ref: str, total: int, expected: str, lease: str, owner_uid: int | None
    ) -> LocalWriter:
        opening = _Opening(self, namespace, ref, total, expected, lease, owner_uid)
        opening.lock()
        try:
            self.announce(namespace, ref, lease, total, expected)
            opening.take(await self.db.write(opening.record))
            return await self.run(opening.files)
        except BaseException:
            opening.unlock()
            raise

    def writer_sync(
        self,
        namespace: str,
        ref: str,
        *,
        total: int = 0,
        expected: str = "",
        lease: str = "",
        owner_uid: int | None = None,
    ) -> LocalWriter:
        """`writer` for threads; what it returns is used by its `_sync` methods."""
        opening = _Opening(self, namespace, ref, total, expected, lease, owner_uid)
        opening.lock()
        try:
            self.announce(namespace, ref, lease, total, expected)
            opening.take(self.db.write_sync(opening.record))
            return opening.files()
        except BaseException:
            opening.unlock()
            raise

    async def abort(self, namespace: str, ref: str, *, lease: str = "") -> None:
        def abort(tx: Transaction) -> None:
            leases.release(tx, namespace, lease, leases.INGESTS, ref)
            self.remove_ingest(tx, namespace, ref)
            tx.mutated(deletion=True)

        await self.db.write(abort)

    def remove_ingest(self, tx: Transaction, namespace: str, ref: str) -> None:
        """Remove an ingest with its files; its writer, if there is one, fails from then on. Raises NotFoundError."""
        row = rows.delete_ingest(tx, namespace, ref)
        if row is None:
            raise NotFoundError(f"reference {ref}")
        self.drop_claim(tx, row.expected)
        self.trash.take(tx, self.ingest_path(row.key))
        with self._refs_lock:
            writer = self._refs.get((namespace, ref), (0.0, None))[1]
        if writer is not None:
            tx.after_commit(lambda: setattr(writer, "aborted", True))

    def drop_claim(self, tx: Transaction, digest: str) -> None:
        """Remove a blob that only an ingest's claim, now gone, kept."""
        if digest and rows.forget_blob(tx, digest):
            self.remove_blob(tx, digest)

    def is_open(self, namespace: str, ref: str) -> bool:
        """Whether a writer has the ingest open."""
        with self._refs_lock:
            return (namespace, ref) in self._refs

    def ingest_path(self, key: str) -> Path:
        """The directory of an ingest."""
        return self.root / "ingest" / key

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

    def register(self, namespace: str, ref: str, writer: LocalWriter) -> None:
        """Say which writer has the ref that was locked."""
        with self._refs_lock:
            self._refs[namespace, ref] = (self._refs[namespace, ref][0], writer)

    def unlock(self, namespace: str, ref: str) -> None:
        """Let others write the ref."""
        self._room.forget((namespace, ref))
        self.allowances.forget((namespace, ref))
        with self._refs_lock:
            self._refs.pop((namespace, ref), None)

    def announce(self, namespace: str, ref: str, lease: str, total: int, expected: str) -> None:
        """Refuse what cannot fit, unless it need not be sent. Raises ResourceExhaustedError."""
        if expected and total > SMALL_BYTES:
            here = rows.find(self.db, namespace, expected) is not None
            if here or (self.policy is SharingPolicy.SHARED and self._blob_length(expected) == total):
                return
        self._room.announce((namespace, ref), lease, total)

    def _written(self, ref: tuple[str, str]) -> int:
        with self._refs_lock:
            writer = self._refs.get(ref, (0.0, None))[1]
        if writer is not None:
            return writer.status().offset
        row = rows.find_ingest(self.db, *ref)
        return 0 if row is None else stat_data(self.ingest_path(row.key))[0]

    def begin_commit(self, digest: str) -> None:
        """From now on nobody removes the blob's file, until `end_commit`."""
        with self._commits_lock:
            self._commits[digest] += 1

    def end_commit(self, digest: str) -> None:
        with self._commits_lock:
            self._commits[digest] -= 1
            if not self._commits[digest]:
                del self._commits[digest]

    def take_back(self, digest: str, data: Path) -> None:
        """Give a blob's file back to its ingest if there is no row of it and nobody else commits it."""
        path = self.blob_path(digest)
        with self._commits_lock:
            if self._commits[digest] > 1 or not data.parent.is_dir() or not path.exists():
                return
            if self.db.one("SELECT 1 FROM blobs WHERE digest = ?", (digest,)) is None:
                os.rename(path, data)
                os.chmod(data, 0o600)

    def now(self) -> int:
        """The time for an ingest's status."""
        return time.time_ns()

    async def run(self, work: Callable[[], T]) -> T:
        """Run blocking work in the store's threads; a caller that is cancelled leaves when it has ended."""
        return await self.settle(asyncio.get_running_loop().run_in_executor(self._executor, work))

    async def settle(self, work: Awaitable[T]) -> T:
        """Await `work` to its end, also when the caller is cancelled meanwhile: half of it must not go on alone."""
        future = asyncio.ensure_future(work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            while not future.done():
                try:
                    await asyncio.wait({future})
                except asyncio.CancelledError:  # asked again: the answer is the same
                    continue
            if not future.cancelled():
                future.exception()
            raise


def _digest_or_none(text: str) -> Digest | None:
    """An expectation that is no digest names no blob; that the bytes do not have it is said at the commit."""
    try:
        return Digest.parse(text)
    except InvalidArgumentError:
        return None


class _Opening:
    """The steps of opening a writer: the lock, the transaction, the files."""

    def __init__(
        self,
        store: LocalStore,
        namespace: str,
        ref: str,
        total: int,
        expected: str,
        lease: str,
        owner_uid: int | None,
    ) -> None:
        check_key(ref, "ref")
        self._store = store
        self._namespace = namespace
        self._ref = ref
        self._total = max(total, 0)
        self._expected = _digest_or_none(expected)
        self._lease = lease
        self._owner_uid = owner_uid
        self._row: rows.IngestRow | None = None
        self._shared: int | None = None
        self._key = secrets.token_hex(16)

    def lock(self) -> None:
        self._store.try_lock(self._namespace, self._ref)

    def unlock(self) -> None:
        self._store.unlock(self._namespace, self._ref)

    def record(self, tx: Transaction) -> rows.IngestRow | None:
        """The ingest's row; None if there is nothing to write, since the namespace has the blob."""
        if self._expected is not None and rows.has(tx, self._namespace, self._expected):
            leases.hold(tx, self._namespace, self._lease, leases.CONTENT, self._expected)
            return None
        self._shared = self._shareable(tx)
        self._make_way(tx)
        tx.ensure_namespace(self._namespace)
        held = leases.hold(tx, self._namespace, self._lease, leases.INGESTS, self._ref)
        row = rows.open_ingest(
            tx,
            self._namespace,
            self._ref,
            key=self._key,
            expected=self._expected if self._expected is not None and self._shared is not None else "",
            total=self._total,
            owner_uid=self._owner_uid,
            held=held,
        )
        self._store.allowances.open(tx, row, max(self._total, self._shared or 0))
        return row

    def _make_way(self, tx: Transaction) -> None:
        """Let go of what the ref's ingest has and this opening does not want.

        Who names another total means other bytes than those that are there. Source: resumeStatus.
        """
        old = rows.find_ingest(tx, self._namespace, self._ref)
        if old is None:
            return
        if self._total and old.total and self._total != old.total:
            self._store.remove_ingest(tx, self._namespace, self._ref)
        elif old.expected and (self._shared is None or old.expected != self._expected):
            tx.execute("UPDATE ingests SET expected = '' WHERE namespace = ? AND ref = ?", (self._namespace, self._ref))
            self._store.drop_claim(tx, old.expected)

    def take(self, row: rows.IngestRow | None) -> None:
        if row is None:
            raise AlreadyExistsError(f"content {self._expected}")
        self._row = row

    def files(self) -> LocalWriter:
        """Open the files and make the writer, which has the lock from then on."""
        row = self._row
        assert row is not None
        algorithm = "sha256" if self._expected is None else self._expected.algorithm
        ingest = Ingest(self._store.ingest_path(row.key), f"{row.namespace}/{row.ref}", algorithm)
        total = row.total or self._total
        shared = self._shared if not ingest.data.exists() else None
        if shared is None:
            ingest.open(fresh=row.key == self._key)
        writer = LocalWriter(
            self._store, row, ingest=ingest, total=total, lease=self._lease, owner_uid=self._owner_uid, shared=shared
        )
        self._store.register(row.namespace, row.ref, writer)
        return writer

    def _shareable(self, tx: Transaction) -> int | None:
        """The size of the expected blob if this namespace may have it by naming it."""
        if self._expected is None:
            return None
        size = rows.blob_size(tx, self._expected)
        if size is None or (self._total and self._total != size):
            return None
        if self._store.policy is SharingPolicy.ISOLATED and not rows.is_lent(tx, self._expected):
            return None
        return size
