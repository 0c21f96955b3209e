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
    from orlop.plugins.content.local.store import LocalStore

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


def sweep(store: "LocalStore") -> Swept:
    """Sweep once; blocks, and may run while the store is used."""
    found, unknown = _blobs(store.root / "blobs")
    known = {row["digest"] for row in store.db.all("SELECT digest FROM blobs")}
    blobs = [digest for batch in _batches(sorted(found - known)) for digest in store.discard_blobs(batch)]
    keys = set(_entries(store.root / "ingest")) - {row["key"] for row in store.db.all("SELECT key FROM ingests")}
    ingests = [key for batch in _batches(sorted(keys)) for key in store.discard_ingests(batch)]
    missing = [digest for digest in sorted(known - found) if _is_missing(store, digest)]
    swept = Swept(blobs=tuple(blobs), ingests=tuple(ingests), missing=tuple(missing), unknown=tuple(unknown))
    _tell(swept)
    return swept


def discard_blobs(store: "LocalStore", tx: Transaction, digests: list[str]) -> list[str]:
    """Throw away those of the blobs that still have no row."""
    return [
        digest
        for digest in digests
        if tx.one("SELECT 1 FROM blobs WHERE digest = ?", (digest,)) is None and store.remove_blob(tx, digest)
    ]


def discard_ingests(store: "LocalStore", tx: Transaction, keys: list[str]) -> list[str]:
    """Throw away those of the ingests' directories that still have no row."""
    return [
        key
        for key in keys
        if tx.one("SELECT 1 FROM ingests WHERE key = ?", (key,)) is None
        and store.trash.take(tx, store.ingest_path(key))
    ]


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


def _is_missing(store: "LocalStore", digest: str) -> bool:
    """Whether a row has no bytes, looked at once more: it may have gone, or come, since the listing."""
    row = store.db.one("SELECT 1 FROM blobs WHERE digest = ?", (digest,))
    return row is not None and not store.blob_path(digest).exists()


def _tell(swept: Swept) -> None:
    if swept.blobs or swept.ingests:
        log.warning(
            "content: removed what had no row", extra={"blobs": len(swept.blobs), "ingests": len(swept.ingests)}
        )
    for digest in swept.missing:
        log.error("content: there is a record but the bytes have gone; fetch them again", extra={"digest": digest})
    for path in swept.unknown:
        log.warning("content: not a blob of ours", extra={"path": str(path)})
