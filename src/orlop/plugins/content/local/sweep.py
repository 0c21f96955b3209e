"""After a start: bring files and rows of the content store together again.

A crash leaves blobs and ingests that have no row; they go into the trash. A blob's row without bytes means that
somebody took the file away: it is told in the log, and stays, since only its owners can say where the bytes come from.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orlop.base.errdefs import InvalidArgumentError
from orlop.core.metadata import Transaction
from orlop.oci.digest import Digest

if TYPE_CHECKING:
    from orlop.plugins.content.local.blobs import LocalBlobs

log: Final = logging.getLogger(__name__)

# Files that are judged in one transaction.
BATCH: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a sweep found: digests and ingest keys thrown away, digests whose bytes are missing, foreign files."""

    blobs: tuple[str, ...] = ()
    ingests: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unknown: tuple[Path, ...] = ()


def sweep(blobs: "LocalBlobs") -> Swept:
    """Sweep once; blocks, and may run while the store is used."""
    found, unknown = blobs_on_disk(blobs.directory / "blobs")
    known = {row["digest"] for row in blobs.db.all("SELECT digest FROM blobs")}
    gone = [digest for batch in batches(sorted(found - known)) for digest in discard_blobs(blobs, batch)]
    keys = set(entries(blobs.directory / "ingest")) - {row["key"] for row in blobs.db.all("SELECT key FROM ingests")}
    ingests = [key for batch in batches(sorted(keys)) for key in discard_ingests(blobs, batch)]
    missing = [digest for digest in sorted(known - found) if _is_missing(blobs, digest)]
    swept = Swept(blobs=tuple(gone), ingests=tuple(ingests), missing=tuple(missing), unknown=tuple(unknown))
    _tell(swept)
    return swept


def orphan_blobs(blobs: "LocalBlobs", digests: list[str]) -> list[str]:
    """Those of the blobs that have no row, and nobody is about to write one."""
    return blobs.db.write_sync(lambda tx: _orphan_blobs(blobs, tx, digests))


def discard_blobs(blobs: "LocalBlobs", digests: list[str]) -> list[str]:
    """Throw away those of the blobs that still have no row; returns which."""
    return blobs.db.write_sync(
        lambda tx: [digest for digest in _orphan_blobs(blobs, tx, digests) if blobs.discard(tx, digest)]
    )


def _orphan_blobs(blobs: "LocalBlobs", tx: Transaction, digests: list[str]) -> list[str]:
    return [
        digest
        for digest in digests
        if tx.one("SELECT 1 FROM blobs WHERE digest = ?", (digest,)) is None
        and not blobs.is_committing(digest)
        and blobs.exists(digest)
    ]


def orphan_ingests(blobs: "LocalBlobs", keys: list[str]) -> list[str]:
    """Those of the ingests' directories that have no row and no writer: one that is ending removes its own."""
    return blobs.db.write_sync(lambda tx: _orphan_ingests(blobs, tx, keys))


def discard_ingests(blobs: "LocalBlobs", keys: list[str]) -> list[str]:
    """Throw away those of the ingests' directories that still have no row; returns which."""
    return blobs.db.write_sync(
        lambda tx: [key for key in _orphan_ingests(blobs, tx, keys) if blobs.discard_ingest(tx, key)]
    )


def _orphan_ingests(blobs: "LocalBlobs", tx: Transaction, keys: list[str]) -> list[str]:
    return [
        key
        for key in keys
        if tx.one("SELECT 1 FROM ingests WHERE key = ?", (key,)) is None
        and key not in blobs.writing
        and blobs.ingest_path(key).exists()
    ]


def blobs_on_disk(directory: Path) -> tuple[set[str], list[Path]]:
    """The digests of all blobs that have a file, and the files whose names are no digests."""
    digests, unknown = set(), []
    for algorithm in entries(directory):
        for name in entries(directory / algorithm):
            try:
                digests.add(str(Digest.parse(f"{algorithm}:{name}")))
            except InvalidArgumentError:
                unknown.append(directory / algorithm / name)
    return digests, unknown


def entries(directory: Path) -> list[str]:
    """The names in a directory; none if it is not there."""
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def batches(items: list[str]) -> Iterator[list[str]]:
    """The items, so many at a time as are judged in one transaction."""
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def _is_missing(blobs: "LocalBlobs", digest: str) -> bool:
    """Whether a row has no bytes, where neither can come or go meanwhile."""

    def look(tx: Transaction) -> bool:
        row = tx.one("SELECT 1 FROM blobs WHERE digest = ?", (digest,))
        return row is not None and not blobs.exists(digest)

    return blobs.db.write_sync(look)


def _tell(swept: Swept) -> None:
    if swept.blobs or swept.ingests:
        log.warning(
            "content: removed what had no row", extra={"blobs": len(swept.blobs), "ingests": len(swept.ingests)}
        )
    for digest in swept.missing:
        log.error("content: there is a record but the bytes have gone; fetch them again", extra={"digest": digest})
    for path in swept.unknown:
        log.warning("content: not a blob of ours", extra={"path": str(path)})
