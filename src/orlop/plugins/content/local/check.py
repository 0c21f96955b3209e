"""The content store's check: every blob has the bytes that its digest says, and nothing lies here that has no row.

    blob-missing, blob-truncated, blob-corrupt, blob-unreadable     a row, and not its bytes
    blob-orphan, ingest-orphan                                      bytes, and no row
    foreign-file                                                    nothing of ours

Wrong bytes are thrown away and their record stays: it says who wants the blob, and whoever brings it again is let write
it (see `core.content.opening`). Until then who reads it is told, instead of being handed something else.

A blob's file never changes after it has got its name, so its inode tells whether a suspect is still what was looked at.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orlop.base.errdefs import UnavailableError
from orlop.base.labels import DISTRIBUTION_SOURCE
from orlop.core.fsck import Finding
from orlop.core.fsck.checks import Order
from orlop.core.metadata import Transaction
from orlop.core.metadata.rows import decode_map
from orlop.oci.digest import Digest, new_hash
from orlop.plugins.content.local import sweep
from orlop.plugins.content.local.ingest import cut_to_synced

if TYPE_CHECKING:
    from orlop.plugins.content.local.store import LocalStore

log: Final = logging.getLogger(__name__)

PAGE: Final = 256
# What was committed so long before the last blob is checked after an unclean stop: more than a kernel keeps to itself.
LATELY_NS: Final = 300 * 10**9
_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A blob that seems damaged: what is wrong, and which file was looked at."""

    digest: str
    size: int
    kind: str
    wrong: str
    inode: int | None = None


class ContentCheck:
    """See `orlop.core.fsck.Check`."""

    what = "content"

    def __init__(self, store: "LocalStore") -> None:
        self._store = store
        self._blobs = store.blobs

    def run(self, order: Order) -> Iterator[Finding]:
        self._blobs.sweep_once()  # what a crash has left is swept after the start, and is no finding
        since = 0
        if order.after_stop:
            since = self._lately()
            self._cut_ingests(order)
        else:
            yield from self._without_rows(order)
        after = ""
        while page := self._page(after, since):
            after = page[-1][0]
            for digest, size in page:
                order.go_on()
                suspect = self._look(order, digest, size)
                if suspect is not None and self._confirmed(suspect):
                    order.damaged.add(digest)
                    yield self._judge(order, suspect)

    # Bytes without a row.

    def _without_rows(self, order: Order) -> Iterator[Finding]:
        here = self._blobs
        files, foreign = sweep.blobs_on_disk(here.directory / "blobs")
        blobs = sorted(files - {row["digest"] for row in here.db.all("SELECT digest FROM blobs")})
        keys = set(sweep.entries(here.directory / "ingest")) - {
            row["key"] for row in here.db.all("SELECT key FROM ingests")
        }
        for batch in sweep.batches(blobs):
            found = sweep.discard_blobs(here, batch) if order.repair else sweep.orphan_blobs(here, batch)
            for digest in found:
                yield _orphan("blob-orphan", digest, order)
        for batch in sweep.batches(sorted(keys)):
            found = sweep.discard_ingests(here, batch) if order.repair else sweep.orphan_ingests(here, batch)
            for key in found:
                yield _orphan("ingest-orphan", str(here.ingest_path(key)), order)
        for path in foreign:
            if os.path.lexists(path):
                yield Finding(
                    kind="foreign-file",
                    object=str(path),
                    wrong="lies where blobs are, and its name is no digest",
                    mends="whoever put it there takes it away",
                )

    # Rows without their bytes.

    def _page(self, after: str, since: int) -> list[tuple[str, int]]:
        rows = self._blobs.db.all(
            "SELECT digest, size_bytes FROM blobs WHERE digest > ? AND created_at >= ? ORDER BY digest LIMIT ?",
            (after, since, PAGE),
        )
        return [(row["digest"], row["size_bytes"]) for row in rows]

    # After an unclean stop.

    def _lately(self) -> int:
        """From when on blobs are checked: a while before the last one came, in nanoseconds since the epoch."""
        row = self._blobs.db.one("SELECT max(created_at) AS at FROM blobs")
        since = 0 if row is None or row["at"] is None else row["at"] - LATELY_NS
        count = self._blobs.db.one("SELECT count(*) AS count FROM blobs WHERE created_at >= ?", (since,))
        log.info("checking blobs", extra={"lately_committed": 0 if count is None else count["count"]})
        return since

    def _cut_ingests(self, order: Order) -> None:
        """Cut what a loss of power may have garbled off the ends of ingests; whoever opens one would do so too."""
        for row in self._blobs.db.all("SELECT namespace, ref, key FROM ingests"):
            order.go_on()
            try:
                self._store.try_lock(row["namespace"], row["ref"])
            except UnavailableError:
                continue  # somebody has it open, and has cut it
            try:
                cut = cut_to_synced(self._blobs.ingest_path(row["key"]))
            finally:
                self._store.unlock(row["namespace"], row["ref"])
            if cut:
                log.warning(
                    "fsck: cut an ingest to what was on disk",
                    extra={"namespace": row["namespace"], "ref": row["ref"], "bytes": cut},
                )

    def _look(self, order: Order, digest: str, size: int) -> _Suspect | None:
        try:
            fd = os.open(self._blobs.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return _Suspect(digest, size, "blob-missing", "there is a record of it, but its bytes have gone")
        except OSError as error:
            return _Suspect(digest, size, "blob-unreadable", f"cannot be opened: {error.strerror}")
        try:
            found = os.fstat(fd)
            if found.st_size != size:
                wrong = f"has {found.st_size} bytes, its record says {size}"
                return _Suspect(digest, size, "blob-truncated", wrong, found.st_ino)
            if order.quick:
                return None
            try:
                actual = _digest_of(order, fd, Digest.parse(digest).algorithm)
            except OSError as error:
                return _Suspect(digest, size, "blob-unreadable", f"cannot be read: {error.strerror}", found.st_ino)
            if actual != digest:
                return _Suspect(digest, size, "blob-corrupt", f"its bytes have the digest {actual}", found.st_ino)
            return None
        finally:
            os.close(fd)

    def _confirmed(self, suspect: _Suspect) -> bool:
        return self._blobs.db.write_sync(lambda tx: self._holds(tx, suspect))

    def _holds(self, tx: Transaction, suspect: _Suspect) -> bool:
        """Whether what was seen is so still, where nobody changes it: the row is there, and that very file or none."""
        row = tx.one("SELECT size_bytes FROM blobs WHERE digest = ?", (suspect.digest,))
        if row is None or row["size_bytes"] != suspect.size or self._blobs.is_committing(suspect.digest):
            return False
        try:
            inode: int | None = os.lstat(self._blobs.path(suspect.digest)).st_ino
        except FileNotFoundError:
            inode = None
        # A file that cannot even be opened has not been identified; it is there still.
        return inode == suspect.inode or (suspect.kind == "blob-unreadable" and suspect.inode is None)

    def _judge(self, order: Order, suspect: _Suspect) -> Finding:
        namespaces, sources = self._owners(suspect.digest)
        where = f" from {', '.join(sources)}" if sources else ""
        mends = f"the next pull or import of it{where}: the store takes its bytes again"
        wrong = order.repair and suspect.kind != "blob-missing"
        if wrong and self._blobs.db.write_sync(lambda tx: self._throw_away(tx, suspect)):
            mends += "; the wrong ones have been thrown away"
        return Finding(
            kind=suspect.kind, object=suspect.digest, namespaces=namespaces, wrong=suspect.wrong, mends=mends
        )

    def _throw_away(self, tx: Transaction, suspect: _Suspect) -> bool:
        return self._holds(tx, suspect) and self._blobs.trash.take(tx, self._blobs.path(suspect.digest))

    def _owners(self, digest: str) -> tuple[tuple[str, ...], list[str]]:
        """Who has a record of a blob, and the repositories that it is known to be in."""
        rows = self._blobs.db.all(
            "SELECT namespace, labels FROM content WHERE digest = ? ORDER BY namespace", (digest,)
        )
        sources = {
            f"{key.removeprefix(f'{DISTRIBUTION_SOURCE}.')}/{repository}"
            for row in rows
            for key, value in decode_map(row["labels"]).items()
            if key.startswith(DISTRIBUTION_SOURCE)
            for repository in value.split(",")
        }
        return tuple(row["namespace"] for row in rows), sorted(sources)


def _digest_of(order: Order, fd: int, algorithm: str) -> str:
    state = new_hash(algorithm)
    while piece := os.read(fd, _READ_BYTES):
        state.update(piece)
        order.go_on()
    return str(Digest.of_hash(state, algorithm))


def _orphan(kind: str, name: str, order: Order) -> Finding:
    return Finding(
        kind=kind,
        object=name,
        wrong="its bytes are here, and there is no record of it",
        mends="thrown away" if order.repair else "--repair throws it away",
        mended=order.repair,
    )
