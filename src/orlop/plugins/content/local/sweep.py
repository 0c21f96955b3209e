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
    found, unknown = _blobs(blobs.directory / "blobs")
    known = {row["digest"] for row in blobs.db.all("SELECT digest FROM blobs")}
    gone = [digest for batch in _batches(sorted(found - known)) for digest in discard_blobs(blobs, batch)]
    keys = set(_entries(blobs.directory / "ingest")) - {row["key"] for row in blobs.db.all("SELECT key FROM ingests")}
    ingests = [key for batch in _batches(sorted(keys)) for key in discard_ingests(blobs, batch)]
    missing = [digest for digest in sorted(known - found) if _is_missing(blobs, digest)]
    swept = Swept(blobs=tuple(gone), ingests=tuple(ingests), missing=tuple(missing), unknown=tuple(unknown))
    _tell(swept)
    return swept


def discard_blobs(blobs: "LocalBlobs", digests: list[str]) -> list[str]:
    """Throw away those of the blobs that still have no row; returns which."""

    def discard(tx: Transaction) -> list[str]:
        rowless = (one for one in digests if tx.one("SELECT 1 FROM blobs WHERE digest = ?", (one,)) is None)
        return [digest for digest in rowless if blobs.discard(tx, digest)]

    return blobs.db.write_sync(discard)


def discard_ingests(blobs: "LocalBlobs", keys: list[str]) -> list[str]:
    """Throw away those of the ingests' directories that still have no row; returns which."""

    def discard(tx: Transaction) -> list[str]:
        rowless = (one for one in keys if tx.one("SELECT 1 FROM ingests WHERE key = ?", (one,)) is None)
        return [key for key in rowless if blobs.discard_ingest(tx, key)]

    return blobs.db.write_sync(discard)


def _blobs(directory: Path) -> tuple[set[str], list[Path]]:
    digests, unknown = set(), []
    for algorithm in _entries(directory):
        for name in _entries(directory / algorithm):
            try:
                digests.add(str(Digest.parse(f"{algorithm}:{name}")))
            except InvalidArgumentError:
                unknown.append(directory / algorithm / name)
    return digests, unknown


def _entries(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _batches(items: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def _is_missing(blobs: "LocalBlobs", digest: str) -> bool:
    """Whether a row has no bytes, looked at once more: it may have gone, or come, since the listing."""
    row = blobs.db.one("SELECT 1 FROM blobs WHERE digest = ?", (digest,))
    return row is not None and not blobs.exists(digest)


def _tell(swept: Swept) -> None:
    if swept.blobs or swept.ingests:
        log.warning(
            "content: removed what had no row", extra={"blobs": len(swept.blobs), "ingests": len(swept.ingests)}
        )
    for digest in swept.missing:
        log.error("content: there is a record but the bytes have gone; fetch them again", extra={"digest": digest})
    for path in swept.unknown:
        log.warning("content: not a blob of ours", extra={"path": str(path)})
