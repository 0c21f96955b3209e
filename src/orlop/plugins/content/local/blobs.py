"""Blobs and ingests as files of this machine.

    <root>/blobs/<algorithm>/<hex>      mode 0444; complete, synced and verified from the moment it has this name
           ingest/<key>/                see `ingest.py`

What guards what:

    the writer of meta.db       the rename of a blob, or of an ingest's directory, into the trash
    `_commits`                  digests whose blob was placed and has no row yet: whoever removes a blob's last record
                                looks here, under `_commits_lock`, and leaves the file to the commit; the transaction
                                that makes the row takes its digest out
"""

import asyncio
import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from orlop.base import failpoints
from orlop.base.settling import settle
from orlop.core.metadata import Database, Transaction
from orlop.core.metadata.trash import Trash
from orlop.core.mount import disk
from orlop.linux.files import SYNC_FILE_RANGE_WRITE, sync_file_range
from orlop.oci.digest import Digest
from orlop.plugins.content.local import sweep as sweeping
from orlop.plugins.content.local.ingest import stat_data
from orlop.plugins.content.local.sweep import Swept
from orlop.plugins.content.local.writing import LocalIngest

T = TypeVar("T")

THREADS: Final = 8
SMALL_SIZE: Final = 256 << 10
"""Bytes up to which a read happens on the event loop: manifests and configurations, which the page cache has."""


class LocalReader:
    """See `orlop.core.content.Reader`."""

    def __init__(self, blobs: "LocalBlobs", fd: int, size: int) -> None:
        self._blobs = blobs
        self.fd: int | None = fd
        self.size = size

    async def read_at(self, offset: int, length: int) -> bytes:
        if min(length, self.size - offset) <= SMALL_SIZE:
            return self.pread(offset, length)
        return await self._blobs.run(lambda: self.pread(offset, length))

    def pread(self, offset: int, length: int) -> bytes:
        """`read_at` for threads."""
        assert self.fd is not None  # closed
        try:
            return os.pread(self.fd, length, offset)
        except OSError as error:
            path = os.readlink(f"/proc/self/fd/{self.fd}")
            raise disk.failure(f"content {path}: read at {offset}", path, error) from error

    def close(self) -> None:
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)


class LocalBlobs:
    """See `orlop.core.content.blobs.Blobs`.

    Attributes:
        writing: keys of the ingests that somebody has open, or is closing.
    """

    def __init__(self, root: Path, db: Database, trash: Trash) -> None:
        self.directory = root
        self.db = db
        self.trash = trash
        self._blobs = f"{root}/blobs/"
        self.writing: set[str] = set()
        self._sweeping = threading.Lock()
        self._swept = False
        self._commits: Counter[str] = Counter()
        self._commits_lock = threading.Lock()
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="orlop-content")
        self._early = ThreadPoolExecutor(1, thread_name_prefix="orlop-content-early")

    def close(self) -> None:
        self._early.shutdown()
        self._executor.shutdown()

    async def run(self, work: Callable[[], T]) -> T:
        """Run blocking work in the store's threads; a caller that is cancelled leaves when it has ended."""
        return await settle(asyncio.get_running_loop().run_in_executor(self._executor, work))

    def write_out(self, fd: int, offset: int, length: int) -> "Future[None]":
        """Have the disk begin with a part of a file, in a thread of its own; `fd` is closed afterwards."""
        try:
            return self._early.submit(_write_out, fd, offset, length)
        except BaseException:
            os.close(fd)
            raise

    # Blobs.

    def path(self, digest: str) -> Path:
        """Where the blob's file is if it is there."""
        parsed = Digest.parse(digest)
        return self.directory / "blobs" / parsed.algorithm / parsed.hex

    def open(self, digest: str, size: int) -> LocalReader | None:
        path = f"{self._blobs}{digest.replace(':', '/')}"  # `path`, without the price of pathlib
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if os.fstat(fd).st_size != size:
            os.close(fd)
            return None
        return self.reader(fd, size)

    def reader(self, fd: int, size: int) -> LocalReader:
        """A reader of a file of so many bytes, which closes `fd`."""
        return LocalReader(self, fd, size)

    def exists(self, digest: str) -> bool:
        """Whether there is a file of that name."""
        return self.path(digest).exists()

    def flaw(self, digest: str, size: int) -> str:
        try:
            length = os.stat(f"{self._blobs}{digest.replace(':', '/')}").st_size
        except FileNotFoundError:
            return "there is a record of it, but its bytes have gone"
        return "" if length == size else f"{length} bytes are there instead of {size}"

    async def look(self, digest: str, size: int) -> None:
        return  # `flaw` tells it all

    def discard(self, tx: Transaction, digest: str) -> bool:
        with self._commits_lock:
            return digest not in self._commits and self.trash.take(tx, self.path(digest))

    # Ingests.

    def ingest(self, key: str, name: str, *, algorithm: str, total: int) -> LocalIngest:
        del total  # how much will come is the `Room`'s to judge
        return LocalIngest(self, self.ingest_path(key), name, algorithm)

    def ingest_path(self, key: str) -> Path:
        """The directory of an ingest."""
        return self.directory / "ingest" / key

    def discard_ingest(self, tx: Transaction, key: str) -> bool:
        return self.trash.take(tx, self.ingest_path(key))

    async def measure(self, keys: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        return {key: stat_data(self.ingest_path(key)) for key in keys}

    def length(self, key: str) -> int:
        return stat_data(self.ingest_path(key))[0]

    def sweep(self) -> Swept:
        with self._sweeping:
            swept = sweeping.sweep(self)
            self._swept = True
            return swept

    def sweep_once(self) -> None:
        """`sweep`, unless it has been done since the start."""
        with self._sweeping:
            if not self._swept:
                sweeping.sweep(self)
                self._swept = True

    # For the ingests.

    def begin_commit(self, digest: str) -> None:
        """From now on nobody removes the blob's file, until `end_commit`."""
        with self._commits_lock:
            self._commits[digest] += 1

    def is_committing(self, digest: str) -> bool:
        """Whether somebody has placed a blob's file, or is about to, and its row is on its way."""
        with self._commits_lock:
            return digest in self._commits

    def end_commit(self, digest: str) -> None:
        with self._commits_lock:
            self._commits[digest] -= 1
            if not self._commits[digest]:
                del self._commits[digest]

    def take_back(self, digest: str, data: Path) -> None:
        """Give a blob's file back to its ingest if there is no row of it and nobody else commits it."""
        path = self.path(digest)
        with self._commits_lock:
            if self._commits[digest] > 1 or not data.parent.is_dir() or not path.exists():
                return
            if self.db.one("SELECT 1 FROM blobs WHERE digest = ?", (digest,)) is None:
                os.rename(path, data)
                failpoints.reach("content.commit.taken-back")
                os.chmod(data, 0o600)


def _write_out(fd: int, offset: int, length: int) -> None:
    try:
        with contextlib.suppress(OSError):  # whoever syncs the file will be told
            sync_file_range(fd, offset, length, SYNC_FILE_RANGE_WRITE)
    finally:
        os.close(fd)
