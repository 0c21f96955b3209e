"""An ingest for the writer that has it: small data are written on the event loop, big ones in threads.

The order in which it becomes a blob: sync the data; check the digest; say that this digest is being committed, so that
nobody who removes its last record takes the file away; rename into place; sync the directory. What a crash leaves is
an ingest, or a blob without a row, which is swept.
"""

import contextlib
import logging
import os
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orlop.base import failpoints
from orlop.core.content import Reader
from orlop.core.content.blobs import require_expected
from orlop.core.metadata import Transaction
from orlop.core.mount import disk
from orlop.oci.digest import HEX_LENGTHS, Digest
from orlop.plugins.content.local.ingest import Ingest, stat_data, sync_directory

if TYPE_CHECKING:
    from orlop.plugins.content.local.blobs import LocalBlobs

log: Final = logging.getLogger(__name__)

INLINE_SIZE: Final = 64 << 10
"""Bytes up to which a write happens on the event loop: hashing and copying them takes less than a thread's wake-up."""
EARLY_SIZE: Final = 8 << 20
"""Bytes of which the disk is told while more are coming, so that the commit waits for the last of them only."""


class LocalIngest:
    """See `orlop.core.content.blobs.Ingest`."""

    def __init__(self, blobs: "LocalBlobs", directory: Path, name: str, algorithm: str) -> None:
        self._blobs = blobs
        self._key = directory.name
        self._placed: Digest | None = None
        self.files = Ingest(directory, name, algorithm)
        self.written_at = 0
        self._early = 0  # bytes that the disk has been told of
        self._telling: Future[None] | None = None

    @property
    def offset(self) -> int:
        return self.files.offset

    async def exists(self) -> bool:
        return self.files.data.exists()

    async def open(self, *, fresh: bool) -> None:
        await self._blobs.run(lambda: self._open(fresh))

    def _open(self, fresh: bool) -> None:
        self._blobs.writing.add(self._key)
        try:
            self.files.open(fresh=fresh)
        except BaseException:
            self._blobs.writing.discard(self._key)
            raise
        self.written_at = stat_data(self.files.directory)[1]
        self._early = self.files.offset

    def follow(self, size: int) -> Reader | None:
        return self._blobs.reader(self.files.for_reading(), size)

    def digest(self) -> Digest:
        return self.files.digest()

    async def write(self, data: bytes) -> None:
        if len(data) <= INLINE_SIZE:
            self.files.write(data)
        else:
            await self._blobs.run(lambda: self.files.write(data))
        if self.files.offset - self._early >= EARLY_SIZE:
            self._write_out()

    def _write_out(self) -> None:
        """Have the disk begin, unless it has not even heard the last time."""
        if self._telling is None or self._telling.done():
            end = self.files.offset // EARLY_SIZE * EARLY_SIZE
            self._telling = self._blobs.write_out(self.files.handle(), self._early, end - self._early)
            self._early = end

    async def truncate(self) -> None:
        await self._blobs.run(self.files.truncate)
        self._early = 0

    async def place(self, expected: str) -> Digest:
        return await self._blobs.run(lambda: self._place(expected))

    def _place(self, expected: str) -> Digest:
        algorithm = expected.partition(":")[0]
        digest = self.files.rehash(algorithm) if algorithm in HEX_LENGTHS else self.files.digest()
        require_expected(digest, expected)
        self.files.sync()
        self._blobs.begin_commit(digest)
        try:
            self._rename(self._blobs.path(digest))
        except BaseException:
            with contextlib.suppress(OSError):  # what has no row is swept after the next start
                self._blobs.take_back(digest, self.files.data)
            self._blobs.end_commit(digest)
            raise
        self._placed = digest
        return digest

    def _rename(self, target: Path) -> None:
        with disk.in_words(f"ingest {self.files.name}: commit", self._blobs.directory):
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._is_there(target):
                os.chmod(self.files.data, 0o444)
                os.rename(self.files.data, target)
                failpoints.reach("content.commit.renamed")
            # Also if another commit has placed it, which may not have come so far yet.
            sync_directory(target.parent)
            failpoints.reach("content.commit.synced")

    def _is_there(self, target: Path) -> bool:
        """Whether the blob is there as long as it must be; one that was cut gets the whole file in its place."""
        try:
            return target.stat().st_size == self.offset
        except FileNotFoundError:
            return False

    def recorded(self, tx: Transaction) -> None:
        """With the transaction the commit ends, not when its caller hears of it: who deletes the record right
        afterwards must take the file as well.
        """
        digest = self._placed
        assert digest is not None
        self._blobs.end_commit(digest)
        tx.on_rollback(lambda: self._blobs.begin_commit(digest))

    async def take_back(self) -> None:
        await self._blobs.run(self._take_back)

    def _take_back(self) -> None:
        digest, self._placed = self._placed, None
        assert digest is not None
        try:
            self._blobs.take_back(digest, self.files.data)
        except OSError as error:
            # What has no row is swept after the next start; the caller is to be told why there was no commit.
            log.warning("blob cannot be given back to its ingest", extra={"digest": digest, "error": str(error)})
        finally:
            self._blobs.end_commit(digest)

    async def close(self, *, keep: bool) -> None:
        await self._blobs.run(lambda: self._close(keep))

    def _close(self, keep: bool) -> None:
        try:
            self.files.close(keep=keep)
        finally:
            self._blobs.writing.discard(self._key)

    async def remove(self) -> None:
        await self._blobs.run(self._remove)

    def _remove(self) -> None:
        self.files.close(keep=False)
        failpoints.reach("content.commit.recorded")
        self.files.remove()
        self._blobs.writing.discard(self._key)
