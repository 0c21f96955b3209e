"""The files of one ingest.

    <root>/ingest/<key>/data     the bytes so far
                        ref      `<namespace>/<ref>`, for people and for fsck
                        synced   `<boot id> <bytes>`: the boot in which it was last written, and how much is synced

After a loss of power the end of `data` may be anything, so of an ingest from another boot only the synced part counts.
In the same boot the page cache has everything, also when the daemon was killed. What `synced` says is on disk before a
writer is closed, and before bytes that it counts are given up; it is replaced as a whole, for half of it would say 0.

All of this blocks; it belongs in a thread, small writes aside.
"""

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orlop.base import failpoints
from orlop.core.mount import disk
from orlop.oci.digest import Digest, new_hash

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

BUFFER_SIZE: Final = 1 << 20
DATA: Final = "data"
SYNCED: Final = "synced"

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Ingest:
    """The open data file of an ingest, with the running hash of what is in it.

    Attributes:
        offset: bytes written; the file always ends there.
    """

    def __init__(self, directory: Path, name: str, algorithm: str = "sha256") -> None:
        self.directory = directory
        self.name = name
        self.algorithm = algorithm
        self.offset = 0
        self._noted = _Noted(boot="", count=0)
        self._hash: Hash = new_hash(algorithm)
        self._fd = -1

    @property
    def data(self) -> Path:
        return self.directory / DATA

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def open(self, *, fresh: bool) -> None:
        """Create the files, or open them and hash what is there. `fresh` forgets what there may be.

        Raises:
            ResourceExhaustedError: the disk is full.
        """
        with self._disk("open"):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self.data, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                noted = None if fresh else _Noted.read(self.directory)
                self._noted = noted or _Noted(boot="", count=0)
                length = 0 if noted is None else noted.trusted(os.fstat(self._fd).st_size)
                os.ftruncate(self._fd, length)
                self._hash = hash_file(self._fd, length, self.algorithm)
                self.offset = length
                failpoints.reach("content.ingest.made")
                (self.directory / "ref").write_text(self.name)
                self._note_synced(min(self._noted.count, length))
            except BaseException:
                self._close()
                raise

    def write(self, data: bytes | memoryview) -> None:
        """Append all of `data`.

        Raises:
            ResourceExhaustedError: the disk is full; the file ends where it did before.
        """
        with self._disk(f"write at {self.offset}"):
            view = memoryview(data)
            try:
                at = self.offset
                while view:
                    count = os.pwrite(self._fd, view, at)
                    at += count
                    view = view[count:]
                    failpoints.reach("content.ingest.written")
            except OSError:
                with contextlib.suppress(OSError):  # a failing disk; the first error counts
                    os.ftruncate(self._fd, self.offset)
                raise
        self._hash.update(data)
        self.offset = at

    def truncate(self) -> None:
        """Forget all bytes."""
        with self._disk("truncate"):
            self._note_synced(0)
            os.ftruncate(self._fd, 0)
            failpoints.reach("content.ingest.truncated")
        self._hash = new_hash(self.algorithm)
        self.offset = 0

    def digest(self) -> Digest:
        """The digest of the bytes so far."""
        return Digest.of_hash(self._hash, self.algorithm)

    def rehash(self, algorithm: str) -> Digest:
        """The digest of the bytes so far by another algorithm: reads them all again, and goes on with that one."""
        if algorithm != self.algorithm:
            self._hash = hash_file(self._fd, self.offset, algorithm)
            self.algorithm = algorithm
        return self.digest()

    def handle(self) -> int:
        """Another descriptor of the data, the caller's to close."""
        return os.dup(self._fd)

    def for_reading(self) -> int:
        """Another, with an offset of its own, with which nobody can write."""
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)

    def sync(self) -> None:
        """Have the bytes on disk: fsync(2).

        If that fails none of them counts any more. The kernel tells once of a page that it could not write, and takes
        it for clean then: the next fsync would succeed, and the bytes be gone with the page cache.
        """
        with self._disk("sync"):
            try:
                os.fsync(self._fd)
                failpoints.reach("content.ingest.synced")
            except OSError:
                self._distrust()
                raise

    def close(self, *, keep: bool) -> None:
        """Close the file; `keep` has the bytes on disk and noted before, for whoever resumes. Idempotent."""
        if self.closed:
            return
        try:
            if keep and self.directory.exists():
                self.sync()
                # An abort takes the directory away at any time; then there is nothing to keep.
                with self._disk("close"), contextlib.suppress(FileNotFoundError):
                    self._note_synced(self.offset)
        finally:
            self._close()

    def remove(self) -> None:
        """Remove the directory with all that is in it."""
        shutil.rmtree(self.directory, ignore_errors=True)  # what stays has no row and goes with the next start's sweep
        failpoints.reach("content.ingest.removed")

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _distrust(self) -> None:
        self._hash = new_hash(self.algorithm)
        self.offset = 0
        with contextlib.suppress(OSError):  # then the file stays longer, and its digest will not be the expected one
            os.ftruncate(self._fd, 0)
        self._noted = _Noted(boot="", count=0)
        with contextlib.suppress(OSError):  # without it nothing counts, and no disk need be written for that
            os.unlink(self.directory / SYNCED)

    def _note_synced(self, count: int) -> None:
        note = _Noted(boot=boot_id(), count=count)
        if note != self._noted:
            note.write(self.directory, durably=count > 0 or self._noted.count > 0)
            self._noted = note
        failpoints.reach("content.ingest.noted")

    def _disk(self, phase: str) -> contextlib.AbstractContextManager[None]:
        return disk.in_words(f"ingest {self.name}: {phase}", self.directory.parent)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Noted:
    """What the file `synced` says.

    Attributes:
        boot: in which the data were last written.
        count: bytes of them that are on disk.
    """

    boot: str
    count: int

    @classmethod
    def read(cls, directory: Path) -> "_Noted | None":
        """None if there is no such file, or if it was not on disk when the machine stopped."""
        try:
            boot, count = (directory / SYNCED).read_text().split()
            return cls(boot=boot, count=int(count))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, directory: Path, *, durably: bool) -> None:
        """Replace the file; what it was before is there until it is all of this."""
        path = directory / (f"{SYNCED}.new" if durably else SYNCED)
        with open(path, "w") as file:
            file.write(f"{self.boot} {self.count}\n")
            if durably:
                file.flush()
                os.fsync(file.fileno())
        if durably:
            os.rename(path, directory / SYNCED)
            sync_directory(directory)

    def trusted(self, length: int) -> int:
        """How many of so many bytes can be relied on."""
        return length if self.boot == boot_id() else min(length, self.count)


def cut_to_synced(directory: Path) -> int:
    """Cut the data of an ingest that nobody has open to what can be relied on; returns how many bytes went."""
    noted = _Noted.read(directory)
    try:
        length = (directory / DATA).stat().st_size
    except FileNotFoundError:
        return 0  # nothing is there yet
    if noted is None:
        return 0  # `Ingest.open` begins anew
    keep = noted.trusted(length)
    if keep < length:
        os.truncate(directory / DATA, keep)
    return length - keep


def hash_file(fd: int, length: int, algorithm: str) -> "Hash":
    """Hash the first `length` bytes of a file."""
    state = new_hash(algorithm)
    at = 0
    while at < length:
        part = os.pread(fd, min(BUFFER_SIZE, length - at), at)
        if not part:
            break
        state.update(part)
        at += len(part)
    return state


def stat_data(directory: Path) -> tuple[int, int]:
    """Bytes of an ingest's data that count, and when they were last written (nanoseconds); zeros if there is none."""
    try:
        found = os.stat(directory / DATA)
    except FileNotFoundError:
        return 0, 0
    noted = _Noted.read(directory)
    return (0 if noted is None else noted.trusted(found.st_size)), found.st_mtime_ns


def sync_directory(path: Path) -> None:
    """Have a directory's entries on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def boot_id() -> str:
    """The kernel's name for this boot."""
    return _BOOT_ID.read_text().strip()
