"""The SQLite database behind every store: one writer thread with group commit, readers beside it.

Journal mode WAL, `synchronous=FULL`: when a write's awaitable is done, the transaction is on disk. Writes are functions
of a `Transaction`; those that wait together run in one `BEGIN IMMEDIATE`, each in a SAVEPOINT of its own, and share one
sync. A function that raises takes back just its own changes. Callers, after-commit hooks and events are told after the
COMMIT, in the order of the commits.

Readers have a connection per thread and never wait for the writer.

On a full disk what frees space is still written, out of a reserve (`reserve.py`); the rest is refused. After an error
of the disk the transaction is taken back and the next one tries anew: nothing needs a restart.
"""

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, Protocol, Self, TypeVar

from orlop.base import failpoints, trace
from orlop.base.errdefs import FailedPreconditionError, ResourceExhaustedError, UnavailableError
from orlop.core.content import SharingPolicy
from orlop.core.metadata import schema
from orlop.core.metadata.quotas import Quotas
from orlop.core.metadata.reserve import NAME as RESERVE
from orlop.core.metadata.reserve import Reserve
from orlop.core.mount.disk import mount_point

T = TypeVar("T")

log = logging.getLogger(__name__)

BUSY_TIMEOUT_S: Final = 10.0
# A batch ends when nobody waits or after this many functions, so that the first caller of a flood is answered soon.
BATCH_LIMIT: Final = 64
# The WAL is checkpointed by SQLite past this many pages (4 KiB each) and cut to the limit below afterwards.
CHECKPOINT_PAGES: Final = 1000
WAL_LIMIT_BYTES: Final = 16 << 20


class Publisher(Protocol):
    """Takes an event after its transaction is durable; called on the writer's thread, must not block."""

    def __call__(self, namespace: str, topic: str, event: Any, /) -> None: ...


class Transaction:
    """What a write function may do: execute statements, name events and hooks for after the commit.

    Attributes:
        now: time of this function's run, nanoseconds since the epoch; use it for all rows that it writes.
        frees: it deletes, and so may use the space that is kept for that when there is no other.
    """

    def __init__(self, connection: sqlite3.Connection, quotas: Quotas | None = None) -> None:
        self._connection = connection
        self.quotas = quotas or Quotas()
        self.now = time.time_ns()
        self.events: list[tuple[str, str, Any]] = []
        self.hooks: list[Callable[[], None]] = []
        self.undo: list[Callable[[], None]] = []
        self.deletions = 0
        self.mutations = 0
        self.frees = False

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement; parameters always by placeholder."""
        return self._connection.execute(statement, parameters)

    def one(self, statement: str, parameters: Sequence[Any] = ()) -> sqlite3.Row | None:
        """The first row, or None."""
        row: sqlite3.Row | None = self._connection.execute(statement, parameters).fetchone()
        return row

    def publish(self, namespace: str, topic: str, event: Any) -> None:
        """Publish a protobuf event once this transaction is durable; not at all if it is rolled back."""
        self.events.append((namespace, topic, event))

    def after_commit(self, hook: Callable[[], None]) -> None:
        """Call `hook` on the writer's thread once this transaction is durable; it must not block or raise."""
        self.hooks.append(hook)

    def on_rollback(self, hook: Callable[[], None]) -> None:
        """Call `hook` on the writer's thread if this transaction is not committed: it takes back a change outside the
        database, such as a rename. Hooks run last registered first, across all functions of a lost batch.
        """
        self.undo.append(hook)

    def take_back(self) -> None:
        """Run the rollback hooks, once; one that fails is logged and does not stop the others."""
        while self.undo:
            hook = self.undo.pop()
            try:
                hook()
            except Exception:
                log.exception("metadata: taking back a change outside the database failed")

    def mutated(self, *, deletion: bool = False) -> None:
        """Count a change that may make the collector worth running."""
        self.mutations += 1
        self.deletions += deletion
        self.frees = self.frees or deletion

    def ensure_namespace(self, namespace: str) -> None:
        """Make the namespace's row if this is its first use. The name is validated at the service's edge."""
        self.execute(
            "INSERT INTO namespaces (name, created_at, updated_at, used_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (namespace, self.now, self.now, self.now),
        )


class _Write:
    """One queued function with the future that tells its caller."""

    __slots__ = ("error", "fn", "future", "result", "transaction")

    def __init__(self, fn: Callable[[Transaction], Any]) -> None:
        self.fn = fn
        self.future: Future[Any] = Future()
        self.clear()

    def clear(self) -> None:
        """As before it was run."""
        self.transaction: Transaction | None = None
        self.result: Any = None
        self.error: BaseException | None = None

    def may_free(self) -> bool:
        """Whether it frees space, or broke off before that could be known."""
        return self.error is None and (self.transaction is None or self.transaction.frees)


class Database:
    """A context manager around meta.db; `publisher` and `on_mutation` are told after each commit.

    Attributes:
        quotas: what namespaces may have at most.
        unclean: whether the last daemon on it was killed, or its machine stopped under it.
        content_sharing: the policy for content; kept here, where containerd has it too, for the store that follows it.

    Raises on entering:
        FailedPreconditionError: the file's schema is newer than this program.
        UnavailableError: the file cannot be opened or is no database; the text names it.
    """

    def __init__(
        self,
        path: Path,
        *,
        publisher: Publisher | None = None,
        content_sharing: SharingPolicy = SharingPolicy.SHARED,
        quotas: Quotas | None = None,
    ) -> None:
        self.path = path
        self.content_sharing = content_sharing
        self.quotas = quotas or Quotas()
        self.unclean = False
        self.publisher = publisher
        self.on_mutation: Callable[[int, int], None] | None = None
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._readers_lock = threading.Lock()
        self._closed = True
        self._thread: threading.Thread | None = None
        self._record = trace.recorder()
        self._reserve = Reserve(path.with_name(f"{path.name}.{RESERVE}"))

    def __enter__(self) -> Self:
        try:
            connection = self._open_migrated()
        except UnavailableError:
            if not self._reserve.spend():  # a full disk has no room for the files that SQLite makes on opening
                raise
            connection = self._open_migrated()
        self._reserve.fill()
        self._closed = False
        self._thread = threading.Thread(target=self._run, args=(connection,), name="orlop-metadata", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        """Finish what is queued, then close every connection."""
        self._closed = True
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()
        with self._readers_lock:
            for connection in self._readers:
                connection.close()
            self._readers.clear()
        self._local = threading.local()

    async def write(self, fn: Callable[[Transaction], T]) -> T:
        """Run `fn` in a transaction and return its result when it is durable.

        If the caller is cancelled while `fn` waits in the queue, it does not run; once it runs it is committed.

        Raises:
            ResourceExhaustedError: the file system that holds the database is full.
            UnavailableError: the database is closed or fails; the text says how.
            Whatever `fn` raises; its own changes are undone then.
        """
        result: T = await asyncio.wrap_future(self.submit(fn))
        return result

    def write_sync(self, fn: Callable[[Transaction], T]) -> T:
        """`write()` for threads other than the event loop's."""
        result: T = self.submit(fn).result()
        return result

    def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run a quick look-up on this thread's own read-only connection; sees every finished write.

        Raises:
            UnavailableError: the disk does not give what is asked for; the next read tries anew.
        """
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            if self._closed:
                raise UnavailableError(f"metadata database {self.path}: closed")
            connection = self._open(readonly=True)
            self._local.connection = connection
            with self._readers_lock:
                self._readers.append(connection)
        try:
            return fn(connection)
        except sqlite3.Error as error:
            if _is_broken(error):
                raise self._translate(error, "read") from error
            raise

    def one(self, statement: str, parameters: Sequence[Any] = ()) -> sqlite3.Row | None:
        """The first row of a read, or None."""
        row: sqlite3.Row | None = self.read(lambda c: c.execute(statement, parameters).fetchone())
        return row

    def all(self, statement: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Every row of a read."""
        return self.read(lambda c: c.execute(statement, parameters).fetchall())

    def submit(self, fn: Callable[[Transaction], T]) -> "Future[T]":
        """`write()` without waiting; a done callback of the future runs on the writer's thread and must not block."""
        if self._closed:
            raise UnavailableError(f"metadata database {self.path}: closed")
        write = _Write(fn)
        self._queue.put(write)
        return write.future

    def _open_migrated(self) -> sqlite3.Connection:
        connection = self._open()
        try:
            self._migrate(connection)
        except sqlite3.Error as error:
            connection.close()
            raise UnavailableError(f"metadata database {self.path}: migrate: {error}") from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _open(self, *, readonly: bool = False) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=256
            )
            try:
                connection.row_factory = sqlite3.Row
                connection.execute("PRAGMA foreign_keys=ON")
                if readonly:
                    connection.execute("PRAGMA query_only=ON")
                else:
                    connection.execute("PRAGMA journal_mode=WAL")
                    connection.execute("PRAGMA synchronous=FULL")
                    connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
                    connection.execute(f"PRAGMA journal_size_limit={WAL_LIMIT_BYTES}")
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise UnavailableError(f"metadata database {self.path}: open: {error}") from error
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found > schema.VERSION:
            raise FailedPreconditionError(
                f"metadata database {self.path} has schema {found}, this program knows up to {schema.VERSION}",
                hint="start the newer release that wrote it",
            )
        for number in range(found, schema.VERSION):
            script = schema.MIGRATIONS[number]
            with contextlib.closing(connection.cursor()) as cursor:
                cursor.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version={number + 1};")
                failpoints.reach("metadata.migration.applied")
                cursor.execute("COMMIT")
                failpoints.reach("metadata.migration.committed")

    def _run(self, connection: sqlite3.Connection) -> None:
        with contextlib.closing(connection):
            while (first := self._queue.get()) is not None:
                batch, stop = self._gather(first)
                self._commit(connection, batch)
                if stop:
                    return

    def _gather(self, first: _Write) -> tuple[list[_Write], bool]:
        batch = [first]
        while len(batch) < BATCH_LIMIT:
            try:
                write = self._queue.get_nowait()
            except queue.Empty:
                break
            if write is None:
                return batch, True
            batch.append(write)
        return batch, False

    def _commit(self, connection: sqlite3.Connection, batch: list[_Write]) -> None:
        batch = [write for write in batch if write.future.set_running_or_notify_cancel()]
        failure = self._try(connection, batch)
        if failure is None:
            self._reserve.fill()
        elif isinstance(failure, ResourceExhaustedError) and any(write.may_free() for write in batch):
            self._free(connection, batch, failure)
            return
        for write in batch:
            self._tell(write, failure)

    def _free(self, connection: sqlite3.Connection, batch: list[_Write], failure: BaseException) -> None:
        """There is no space for all of `batch`: run what frees some, each alone and out of the reserve."""
        self._reserve.spend()
        for write in batch:
            if write.may_free():
                write.clear()
                self._tell(write, self._try(connection, [write], full=failure))
            else:
                self._tell(write, failure)

    def _try(
        self, connection: sqlite3.Connection, batch: list[_Write], *, full: BaseException | None = None
    ) -> BaseException | None:
        """Run a batch and commit it; if that fails all is taken back, and this is why.

        Args:
            full: why not, for those that do not free space; by default all may use what there is.
        """
        try:
            connection.execute("BEGIN IMMEDIATE")
            if len(batch) == 1:
                self._apply_alone(connection, batch[0])
            else:
                for write in batch:
                    self._apply(connection, write)
            if full is not None and not all(write.may_free() for write in batch):
                raise full
            start = trace.clock()
            failpoints.reach("metadata.batch.applied")
            connection.execute("COMMIT")
            failpoints.reach("metadata.batch.committed")
            if self._record is not None:
                self._record("metadata", "commit", start, trace.clock())
        except BaseException as error:
            for write in reversed(batch):
                if write.transaction is not None:
                    write.transaction.take_back()
            with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself; the first error counts
                connection.execute("ROLLBACK")
            return error if error is full else self._translate(error)
        return None

    def _apply(self, connection: sqlite3.Connection, write: _Write) -> None:
        """Run one function inside its savepoint: its errors stay its own, those of the disk are everyone's."""
        connection.execute("SAVEPOINT one")
        transaction = Transaction(connection, self.quotas)
        try:
            write.result = write.fn(transaction)
        except BaseException as error:
            transaction.take_back()
            if _is_broken(error):
                raise
            connection.execute("ROLLBACK TO one")
            write.error = error
        else:
            write.transaction = transaction
        connection.execute("RELEASE one")

    def _apply_alone(self, connection: sqlite3.Connection, write: _Write) -> None:
        """The same for a function that shares the transaction with no other: no savepoint, it is begun anew instead."""
        transaction = Transaction(connection, self.quotas)
        try:
            write.result = write.fn(transaction)
        except BaseException as error:
            transaction.take_back()
            if _is_broken(error):
                raise
            connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")  # so that what follows finds one to commit
            write.error = error
        else:
            write.transaction = transaction

    def _tell(self, write: _Write, failure: BaseException | None) -> None:
        transaction = write.transaction
        if failure is not None or transaction is None:
            write.future.set_exception(write.error or failure or UnavailableError("write was not run"))
            return
        for hook in transaction.hooks:
            hook()
        if self.publisher is not None:
            for event in transaction.events:
                self.publisher(*event)
        if transaction.mutations and self.on_mutation is not None:
            self.on_mutation(transaction.mutations, transaction.deletions)
        write.future.set_result(write.result)

    def _translate(self, error: BaseException, phase: str = "commit") -> BaseException:
        what = f"metadata database {self.path}: {phase}"
        name = getattr(error, "sqlite_errorname", None) or ""
        if name.startswith("SQLITE_FULL"):
            return ResourceExhaustedError(f"{what}: no space left on the file system at {mount_point(self.path)}")
        if name.startswith("SQLITE_IOERR"):
            return UnavailableError(f"{what}: {error} ({name}) on the file system at {mount_point(self.path)}")
        return UnavailableError(f"{what}: {error}")


def _is_broken(error: BaseException) -> bool:
    """Whether the whole batch is lost: the disk is full or failing, as opposed to a constraint or a caller's error."""
    return (
        isinstance(error, sqlite3.Error)
        and not isinstance(error, sqlite3.IntegrityError)
        and getattr(error, "sqlite_errorname", "").startswith(
            ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOMEM")
        )
    )
