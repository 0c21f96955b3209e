"""The rows of content: who has a right to which blob, and the ingests.

    blobs      one row per blob in the store, while a namespace has a record of it or an ingest claims it
    content    a namespace's record. The oldest one pays: its `size_bytes` is the blob's, that of the others is 0
    ingests    `expected` is set where the ingest claims a blob that is there already, so that it stays until the
               commit; the label `containerd.io/gc.expire` says when an ingest that no lease holds may go

All functions that write take a `Transaction`. Files are the content store's part.

Source: containerd's core/metadata/content.go.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from orlop.base import fieldmask
from orlop.base import filters as filter_language
from orlop.base import labels as label_rules
from orlop.base.errdefs import InvalidArgumentError, NotFoundError
from orlop.core.content import Info, adapt_info
from orlop.core.metadata.database import Database, Transaction
from orlop.core.metadata.rows import PAGE_SIZE, decode_map, encode_map
from orlop.oci.digest import Digest

INGEST_LIFETIME_S: Final = 24 * 3600
"""How long an ingest that no lease holds is kept after it was last opened; containerd's value."""

_INFO: Final = (
    "SELECT c.digest, b.size_bytes, c.created_at, c.updated_at, c.labels"
    " FROM content c JOIN blobs b ON b.digest = c.digest WHERE c.namespace = ?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestRow:
    """An ingest as the database knows it; `key` names its directory."""

    namespace: str
    ref: str
    key: str
    expected: str
    total: int
    started_at: int
    updated_at: int


def find(db: Database, namespace: str, digest: str) -> Info | None:
    """The namespace's record of a blob."""
    row = db.one(_INFO + " AND c.digest = ?", (namespace, digest))
    return None if row is None else _info(row)


def get(db: Database, namespace: str, digest: str) -> Info:
    """The namespace's record of a blob. Raises NotFoundError."""
    info = find(db, namespace, digest)
    if info is None:
        raise absent(digest)
    return info


def absent(digest: str) -> NotFoundError:
    """What is said of a digest that the namespace has no record of."""
    return NotFoundError(f"content digest {digest}")


def page(
    db: Database, namespace: str, filters: Sequence[str], *, after: str = "", limit: int = PAGE_SIZE
) -> tuple[list[Info], str]:
    """The matching records among the next `limit` after a digest, and the digest to go on after, empty at the end."""
    matches = filter_language.parse_all(filters)
    rows = db.all(_INFO + " AND c.digest > ? ORDER BY c.digest LIMIT ?", (namespace, after, limit))
    infos = [_info(row) for row in rows]
    last = infos[-1].digest if len(infos) == limit else ""
    return [info for info in infos if matches(adapt_info(info))], last


def update(tx: Transaction, namespace: str, digest: str, labels: Mapping[str, str], paths: Sequence[str]) -> Info:
    """Change labels. Raises NotFoundError, InvalidArgumentError."""
    row = tx.one(_INFO + " AND c.digest = ?", (namespace, digest))
    if row is None:
        raise absent(digest)
    merged = decode_map(row["labels"])
    for path in fieldmask.parse(
        paths or ("labels",), fields={"labels"}, maps={"labels"}, what=f'content info "{digest}"'
    ):
        merged = fieldmask.merge(merged, labels, path.key)
    check_labels(merged)
    tx.execute(
        "UPDATE content SET labels = ?, updated_at = ? WHERE namespace = ? AND digest = ?",
        (encode_map(merged), tx.now, namespace, digest),
    )
    tx.mutated()
    return Info(
        digest=Digest(digest),
        size=row["size_bytes"],
        created_at=row["created_at"],
        updated_at=tx.now,
        labels=merged,
    )


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises InvalidArgumentError for a label that is too long."""
    try:
        label_rules.validate_all(labels)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"info.Labels: {error.text}") from None


def has(tx: Transaction, namespace: str, digest: str) -> bool:
    """Whether the namespace has a record of the blob."""
    return tx.one("SELECT 1 FROM content WHERE namespace = ? AND digest = ?", (namespace, digest)) is not None


def blob_size(source: Database | Transaction, digest: str) -> int | None:
    """The size of a blob that is in the store for anybody."""
    row = source.one("SELECT size_bytes FROM blobs WHERE digest = ?", (digest,))
    return None if row is None else int(row["size_bytes"])


def correct_size(tx: Transaction, digest: str, size: int) -> None:
    """Have the rows of a blob say how long its bytes are, which were brought again and are what its digest says."""
    query = "UPDATE blobs SET size_bytes = ?2 WHERE digest = ?1 AND size_bytes <> ?2"
    if tx.execute(query, (digest, size)).rowcount:
        _charge(tx, digest)


def is_lent(tx: Transaction, digest: str) -> bool:
    """Whether a namespace that is labelled as shareable has the blob."""
    rows = tx.execute(
        "SELECT n.labels FROM content c JOIN namespaces n ON n.name = c.namespace WHERE c.digest = ?", (digest,)
    )
    return any(decode_map(row["labels"]).get(label_rules.NAMESPACE_SHAREABLE) == "true" for row in rows)


def insert(
    tx: Transaction, namespace: str, digest: str, size: int, labels: Mapping[str, str], *, owner_uid: int | None
) -> Info:
    """Give the namespace a record of a blob whose bytes are in place; it has none yet."""
    tx.ensure_namespace(namespace)
    tx.execute(
        "INSERT INTO blobs (digest, size_bytes, created_at, used_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (digest, size, tx.now, tx.now),
    )
    paid = tx.one("SELECT 1 FROM content WHERE digest = ?", (digest,)) is not None
    tx.execute(
        "INSERT INTO content (namespace, digest, owner_uid, size_bytes, created_at, updated_at, used_at, labels)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (namespace, digest, owner_uid, 0 if paid else size, tx.now, tx.now, tx.now, encode_map(labels)),
    )
    tx.quotas.added_bytes(tx, namespace, size)
    tx.mutated()
    return Info(
        digest=Digest(digest),
        size=size,
        created_at=tx.now,
        updated_at=tx.now,
        labels={key: value for key, value in labels.items() if value},
    )


def delete(tx: Transaction, namespace: str, digest: str) -> bool:
    """Remove the namespace's record; returns whether nobody needs the blob any more, whose row is gone then.

    Raises:
        NotFoundError: there is no record.
    """
    if not tx.execute("DELETE FROM content WHERE namespace = ? AND digest = ?", (namespace, digest)).rowcount:
        raise absent(digest)
    _charge(tx, digest)
    return forget_blob(tx, digest)


def _charge(tx: Transaction, digest: str) -> None:
    """Have the oldest record pay for its blob."""
    tx.execute(
        "UPDATE content SET size_bytes = (SELECT size_bytes FROM blobs WHERE digest = ?1)"
        " WHERE digest = ?1 AND namespace ="
        " (SELECT namespace FROM content WHERE digest = ?1 ORDER BY created_at, namespace LIMIT 1)",
        (digest,),
    )


def forget_blob(tx: Transaction, digest: str) -> bool:
    """Remove a blob's row if no record and no ingest needs it; returns whether it has none now."""
    tx.execute(
        "DELETE FROM blobs WHERE digest = ?1 AND NOT EXISTS (SELECT 1 FROM content WHERE digest = ?1)"
        " AND NOT EXISTS (SELECT 1 FROM ingests WHERE expected = ?1)",
        (digest,),
    )
    return tx.one("SELECT 1 FROM blobs WHERE digest = ?", (digest,)) is None


def find_ingest(source: Database | Transaction, namespace: str, ref: str) -> IngestRow | None:
    """An ingest by its ref."""
    row = source.one("SELECT * FROM ingests WHERE namespace = ? AND ref = ?", (namespace, ref))
    return None if row is None else _ingest(row)


def list_ingests(db: Database, namespace: str) -> list[IngestRow]:
    """The namespace's ingests in the order of their refs."""
    return [_ingest(row) for row in db.all("SELECT * FROM ingests WHERE namespace = ? ORDER BY ref", (namespace,))]


def open_ingest(
    tx: Transaction, namespace: str, ref: str, *, key: str, expected: str, total: int, owner_uid: int | None, held: bool
) -> IngestRow:
    """Make the ingest's row, or take the one that is there (with its own `key`); `held` says that a lease holds it."""
    tx.ensure_namespace(namespace)
    labels = {} if held else {label_rules.GC_EXPIRE: _expiry(tx.now)}
    tx.execute(
        "INSERT INTO ingests (namespace, ref, key, expected, total, owner_uid, created_at, updated_at, used_at, labels)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (namespace, ref) DO UPDATE SET used_at = excluded.used_at,"
        " expected = excluded.expected, labels = CASE excluded.labels WHEN '{}' THEN labels ELSE excluded.labels END",
        (namespace, ref, key, expected, total, owner_uid, tx.now, tx.now, tx.now, encode_map(labels)),
    )
    tx.mutated()
    row = find_ingest(tx, namespace, ref)
    assert row is not None
    return row


def delete_ingest(tx: Transaction, namespace: str, ref: str) -> IngestRow | None:
    """Remove an ingest's row; returns what it was. A blob that it claimed is the caller's to forget."""
    row = find_ingest(tx, namespace, ref)
    if row is not None:
        tx.execute("DELETE FROM ingests WHERE namespace = ? AND ref = ?", (namespace, ref))
    return row


def _expiry(now: int) -> str:
    at = datetime.fromtimestamp(now / 1e9 + INGEST_LIFETIME_S, UTC)
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


def _info(row: sqlite3.Row) -> Info:
    digest, size, created_at, updated_at, labels = row
    return Info(
        digest=Digest(digest), size=size, created_at=created_at, updated_at=updated_at, labels=decode_map(labels)
    )


def _ingest(row: sqlite3.Row) -> IngestRow:
    return IngestRow(
        namespace=row["namespace"],
        ref=row["ref"],
        key=row["key"],
        expected=row["expected"],
        total=row["total"],
        started_at=row["created_at"],
        updated_at=row["updated_at"],
    )
