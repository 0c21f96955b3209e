"""Blobs in another content store, such as the one behind a proxy plug-in's socket.

    here              there, all in one namespace
    blob <digest>     content <digest>, labelled as a root, so that a collector there keeps it
    ingest <key>      ingest <key>

The namespace there is this daemon's alone: whatever lies in it and has no row here is removed. A store that knows no
namespaces belongs to this daemon as a whole.

Nothing there can be part of a transaction here. So what is to go is noted when the transaction is durable, and a task
removes it afterwards, again and again while nobody answers; a sweep after each start finds what a crash has left. Three
rules keep rows and bytes together, all on the event loop:

    whoever commits or reads a digest *holds* it; what is held is not removed
    while a digest is being removed, whoever wants to commit it waits
    what has a row when its turn comes is not removed
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Self

from orlop.base import failpoints
from orlop.base.errdefs import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
    OrlopError,
    OutOfRangeError,
    UnavailableError,
    UnimplementedError,
)
from orlop.base.labels import GC_ROOT
from orlop.core.content import Reader, Store, Writer
from orlop.core.content.blobs import require_expected
from orlop.core.metadata import Database, Transaction
from orlop.oci.digest import EMPTY_SHA256, Digest

log: Final = logging.getLogger(__name__)

RETRY_S: Final = 0.5
RETRY_MAX_S: Final = 30.0
WAIT_S: Final = 60.0
"""How long a commit waits for a removal of the same digest."""

_ROOT: Final = {GC_ROOT: "1970-01-01T00:00:00Z"}


class RemoteBlobs:
    """See `orlop.core.content.blobs.Blobs`. An async context manager: inside, what is to go is removed there.

    Args:
        namespace: there; of no other daemon, and of no client.
    """

    directory = None

    def __init__(self, store: Store, db: Database, *, namespace: str) -> None:
        self.store = store
        self.namespace = namespace
        self._db = db
        self._held: Counter[str] = Counter()
        self._removing: dict[str, asyncio.Event] = {}
        self._doomed: set[str] = set()
        self._aborted: set[str] = set()
        self._lengths: dict[str, int] = {}
        self._missing: set[str] = set()
        self._placed = 0
        self._sweeping = False
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run(), name="orlop-remote-content")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._task is not None
        self._loop = None
        self._task.cancel()
        await asyncio.wait([self._task])

    def close(self) -> None:
        return

    # Blobs.

    def open(self, digest: str, size: int) -> "_RemoteReader":
        # Nobody removes it now: it has a row, and what has none yet cannot get one while it is being removed.
        self._held[digest] += 1
        return _RemoteReader(self, digest, size)

    def flaw(self, digest: str, size: int) -> str:
        del size
        return "there is a record of it, but its bytes have gone" if digest in self._missing else ""

    async def look(self, digest: str, size: int) -> None:
        """Ask for the last byte: a store may know of a blob, and of its size, that it has lost or that was cut."""
        if not size or digest in self._missing:
            return
        placed = self._placed
        reader = self.open(digest, size)
        try:
            await reader.read_at(size - 1, 1)
            return
        except DataLossError:
            log.warning("content elsewhere has lost a blob: taking it again", extra={"digest": digest})
        except OrlopError:
            return  # who brings it will hear what is the matter there
        finally:
            reader.close()
        if placed == self._placed:  # else what is there may have come just now
            with contextlib.suppress(OrlopError):  # then whoever commits it is told that it is there
                await self.throw_away(digest)

    def note_missing(self, digest: str) -> None:
        """A blob that has a row is not there, or not as it should be: whoever brings it again is let write it."""
        self._missing.add(digest)

    def note_there(self, digest: str) -> None:
        """It is there."""
        self._missing.discard(digest)

    def note_placed(self, digest: str) -> None:
        """It has just come there."""
        self._placed += 1
        self.note_there(digest)

    async def throw_away(self, digest: str) -> bool:
        """Remove a blob that is damaged, though it has a row. Returns whether it has gone: not if somebody holds it."""
        if self._held[digest] or digest in self._removing:
            return False
        self._missing.add(digest)
        try:
            await self._delete(digest)
        except BaseException:
            self.doom(digest)  # so that it is asked again, until it is known what became of it
            raise
        return True

    def discard(self, tx: Transaction, digest: str) -> bool:
        tx.frees = True
        tx.after_commit(lambda: self._soon(lambda: self.doom(digest)))
        return True

    # Ingests.

    def ingest(self, key: str, name: str, *, algorithm: str, total: int) -> "RemoteIngest":
        del algorithm  # of a digest that is made there
        return RemoteIngest(self, key, name, total)

    def discard_ingest(self, tx: Transaction, key: str) -> bool:
        tx.frees = True
        tx.after_commit(lambda: self._soon(lambda: self._discard_ingest(key)))
        return True

    async def measure(self, keys: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        found = dict.fromkeys(keys, (0, 0))
        if len(keys) == 1:
            with contextlib.suppress(NotFoundError):
                status = await self.store.status(self.namespace, keys[0])
                found[keys[0]] = (status.offset, status.updated_at)
        elif keys:
            for status in await self.store.list_statuses(self.namespace):
                if status.ref in found:
                    found[status.ref] = (status.offset, status.updated_at)
        return found

    def length(self, key: str) -> int:
        return self._lengths.get(key, 0)

    def note_length(self, key: str, length: int) -> None:
        """An ingest that nobody has open any more has so many bytes there."""
        if length:
            self._lengths[key] = length
        else:
            self._lengths.pop(key, None)

    # Holding and removing.

    async def hold(self, digest: str) -> None:
        """From now on the blob is not removed, until `release`.

        Raises:
            UnavailableError: it is being removed, and that takes long.
        """
        try:
            async with asyncio.timeout(WAIT_S):
                while (removal := self._removing.get(digest)) is not None:
                    self._hurry.set()
                    await removal.wait()
        except TimeoutError:
            raise UnavailableError(f"content {digest}: is still being removed after {WAIT_S:.0f} s") from None
        self._held[digest] += 1

    def release(self, digest: str) -> None:
        """End one `hold`."""
        self._held[digest] -= 1
        if not self._held[digest]:
            del self._held[digest]
            if digest in self._doomed:
                self._wake.set()

    def release_after(self, tx: Transaction, digest: str) -> None:
        """End one `hold` when `tx` is durable: not earlier, for until then nobody sees the row that it writes."""
        tx.after_commit(lambda: self._soon(lambda: self.release(digest)))

    def doom(self, digest: str) -> None:
        """Remove a blob that may have no row, once nobody holds it."""
        self._doomed.add(digest)
        self._wake.set()

    def sweep(self) -> None:
        """Begin to look for what a crash has left there; from any thread."""
        self._soon(self._begin_sweep)

    def _begin_sweep(self) -> None:
        self._sweeping = True
        self._wake.set()

    def _discard_ingest(self, key: str) -> None:
        self.note_length(key, 0)
        self._aborted.add(key)
        self._wake.set()

    def _soon(self, work: Callable[[], None]) -> None:
        loop = self._loop
        if loop is not None:  # else the daemon stops, and the next start sweeps
            with contextlib.suppress(RuntimeError):  # just closed
                loop.call_soon_threadsafe(work)

    async def _run(self) -> None:
        delay = RETRY_S
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._tidy()
            except Exception as error:
                # Whatever it is, it must not end this task: what is noted stays so, and is tried again.
                log.warning(
                    "content elsewhere cannot be removed yet",
                    extra={"error": str(error), "again_s": delay},
                    exc_info=not isinstance(error, OrlopError),
                )
                self._hurry.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._hurry.wait()
                delay = min(delay * 2, RETRY_MAX_S)
                self._wake.set()
            else:
                delay = RETRY_S

    async def _tidy(self) -> None:
        """Remove what is noted and can go. Raises what was answered; what was not removed stays noted."""
        failures: list[OrlopError] = []
        if self._sweeping:
            await _tried(self._find_rowless(), failures)
        for key in list(self._aborted):
            await _tried(self._abort(key), failures)
        for digest in list(self._doomed):
            if not self._held[digest]:
                await _tried(self._remove(digest), failures)
        if failures:
            raise failures[0]

    async def _abort(self, key: str) -> None:
        if not self._has_row("ingests", "key", key):
            with contextlib.suppress(NotFoundError):
                await self.store.abort(self.namespace, key)
                failpoints.reach("content.remote.aborted")
        self._aborted.discard(key)

    async def _remove(self, digest: str) -> None:
        """Remove a blob that nobody holds, unless it has a row.

        If it is not known what became of the request, it may still be carried out: then the digest counts as being
        removed until a later one is answered.
        """
        has_row = self._has_row("blobs", "digest", digest)
        if not has_row or digest in self._removing:
            await self._delete(digest)
        if not has_row:
            self.note_there(digest)  # it is not missed
        self._doomed.discard(digest)

    async def _delete(self, digest: str) -> None:
        removal = self._removing.setdefault(digest, asyncio.Event())
        with contextlib.suppress(NotFoundError):
            await self.store.delete(self.namespace, digest)
            failpoints.reach("content.remote.removed")
        self._removing.pop(digest, None)
        removal.set()

    def _has_row(self, table: str, column: str, value: str) -> bool:
        return self._db.one(f"SELECT 1 FROM {table} WHERE {column} = ?", (value,)) is not None

    async def _find_rowless(self) -> None:
        """Note what is there and has no row; tell of rows whose bytes are not."""
        known = await asyncio.to_thread(self._known)
        found = set()
        async for info in self.store.walk(self.namespace):
            found.add(str(info.digest))
        rowless = found - known
        for digest in rowless:
            self.doom(digest)
        for status in await self.store.list_statuses(self.namespace):
            if not self._has_row("ingests", "key", status.ref):
                self._aborted.add(status.ref)
            else:
                self._lengths.setdefault(status.ref, status.offset)
        if rowless or self._aborted:
            counts = {"blobs": len(rowless), "ingests": len(self._aborted)}
            log.warning("content elsewhere: removing what had no row", extra=counts)
        self._sweeping = False
        for digest in sorted(known - found):
            if self._has_row("blobs", "digest", digest):
                self.note_missing(digest)
                log.error(
                    "content: there is a record but the bytes have gone; fetch them again", extra={"digest": digest}
                )

    def _known(self) -> set[str]:
        return {row["digest"] for row in self._db.all("SELECT digest FROM blobs")}


async def _tried(work: Awaitable[None], failures: list[OrlopError]) -> None:
    """One thing to do of many: a failure is noted, but if nobody answers the others need not be tried."""
    try:
        await work
    except UnavailableError:
        raise
    except OrlopError as error:
        failures.append(error)


class _RemoteReader:
    """See `orlop.core.content.Reader`. What is there is looked at with the first read."""

    fd: int | None = None

    def __init__(self, blobs: RemoteBlobs, digest: str, size: int) -> None:
        self._blobs = blobs
        self._digest = digest
        self._reader: Reader | None = None
        self._closed = False
        self.size = size

    async def read_at(self, offset: int, length: int) -> bytes:
        if length <= 0 or offset >= self.size:
            return b""
        try:
            if self._reader is None:
                self._reader = await self._open()
            data = await self._reader.read_at(offset, length)
        except (NotFoundError, OutOfRangeError) as error:
            raise self._lost("there is a record of it, but its bytes have gone") from error
        except DataLossError as error:
            raise self._lost(error.text) from error
        if not data:
            raise self._lost(f"ends at {offset} of {self.size} bytes")
        if offset + len(data) >= self.size:
            self._blobs.note_there(self._digest)
        return data

    async def _open(self) -> Reader:
        reader = await self._blobs.store.reader(self._blobs.namespace, self._digest)
        failpoints.reach("content.remote.read")
        if reader.size != self.size:
            reader.close()
            raise DataLossError(f"{reader.size} bytes are there instead of {self.size}")
        return reader

    def _lost(self, why: str) -> DataLossError:
        """Whoever brings it again is let write it."""
        self._blobs.note_missing(self._digest)
        what = f"content {self._digest}: "
        return DataLossError(f"{what}{why.removeprefix(what)}")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._reader is not None:
                self._reader.close()
            self._blobs.release(self._digest)


class RemoteIngest:
    """See `orlop.core.content.blobs.Ingest`."""

    def __init__(self, blobs: RemoteBlobs, key: str, name: str, total: int) -> None:
        self._blobs = blobs
        self._key = key
        self._name = name
        self._total = total
        self._writer: Writer | None = None
        self._placed: Digest | None = None
        self.written_at = 0

    @property
    def offset(self) -> int:
        return 0 if self._writer is None else self._writer.status().offset

    async def exists(self) -> bool:
        return (await self._blobs.measure([self._key]))[self._key] != (0, 0)

    async def open(self, *, fresh: bool) -> None:
        self._writer = await self._blobs.store.writer(self._blobs.namespace, self._key, total=self._total)
        failpoints.reach("content.remote.opened")
        self.written_at = self._writer.status().updated_at
        if fresh and self.offset:
            await self._writer.truncate()

    def follow(self, size: int) -> Reader | None:
        del size
        return None

    def digest(self) -> Digest:
        if self._placed is not None:
            return self._placed
        return EMPTY_SHA256 if self._writer is None else self._writer.digest()

    async def write(self, data: bytes) -> None:
        await self._open_writer().write(data)
        failpoints.reach("content.remote.written")

    async def truncate(self) -> None:
        await self._open_writer().truncate()
        failpoints.reach("content.remote.truncated")

    async def place(self, expected: str) -> Digest:
        writer, digest = self._open_writer(), self.digest()
        if expected.partition(":")[0] in {"", digest.algorithm}:
            require_expected(digest, expected)
        else:
            digest = Digest.parse(expected)  # by another algorithm, in which it is judged there
        await self._blobs.hold(digest)
        try:
            await self._commit(writer, digest)
        except BaseException:
            self._let_go(digest)
            raise
        self._blobs.note_placed(digest)
        self._placed = digest
        return digest

    async def _commit(self, writer: Writer, digest: Digest) -> None:
        try:
            info = await writer.commit(size=self.offset, expected=digest, labels=_ROOT)
        except AlreadyExistsError:
            await self._keep_there(digest)
        else:
            if info.digest != digest:
                raise DataLossError(f"ingest {self._name}: {info.digest} was made of what is {digest}")
        failpoints.reach("content.remote.committed")

    async def _keep_there(self, digest: Digest) -> None:
        """What is there already must be kept there like what we bring."""
        try:
            await self._blobs.store.update(self._blobs.namespace, digest, _ROOT, [f"labels.{GC_ROOT}"])
        except (FailedPreconditionError, UnimplementedError):
            return  # a store without labels collects nothing
        except NotFoundError as error:
            raise UnavailableError(f"content {digest}: was removed there while it was committed") from error

    def _let_go(self, digest: str) -> None:
        self._blobs.doom(digest)  # it may have become a blob there; if it has got a row meanwhile it stays
        self._blobs.release(digest)

    def recorded(self, tx: Transaction) -> None:
        assert self._placed is not None
        self._blobs.release_after(tx, self._placed)

    async def take_back(self) -> None:
        """There is no way back into the ingest: whoever tries again sends the bytes again."""
        assert self._placed is not None
        self._let_go(self._placed)
        self._blobs.note_length(self._key, 0)
        self._writer = None

    async def close(self, *, keep: bool) -> None:
        if self._writer is not None:
            self._blobs.note_length(self._key, self.offset if keep else 0)
            await self._writer.close()

    async def remove(self) -> None:
        await self.close(keep=False)

    def _open_writer(self) -> Writer:
        if self._writer is None:
            raise FailedPreconditionError(f"ingest {self._name}: is not open")
        return self._writer
