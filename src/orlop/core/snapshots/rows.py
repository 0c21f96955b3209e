"""Look-ups in table `snapshots`, in a transaction or on a reader's connection.

Column `synced_at` says when a committed snapshot's files were known to be on disk: a time, NULL while only the page
cache has them, or `LOST` when a boot has come between, or the disk did not take them, and they may be incomplete. Of a
snapshotter that copies, an active snapshot is held to the same.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, Protocol

from orlop.base import errdefs, filters
from orlop.core.metadata.rows import decode_map
from orlop.core.snapshots import Info, Kind

Row = sqlite3.Row
LOST: Final = -1

_COLUMNS: Final = """
    s.number, s.namespace, s.name, s.kind, s.labels, s.created_at, s.updated_at, s.size_bytes, s.inodes, s.synced_at,
    s.parent, s.layer, s.origin, p.name AS parent_name
    FROM snapshots AS s LEFT JOIN snapshots AS p ON p.number = s.parent
"""
_BY_NAME: Final = f"SELECT {_COLUMNS} WHERE s.namespace = ? AND s.snapshotter = ? AND s.name = ?"
_ACTIVE: Final = f"SELECT {_COLUMNS} WHERE s.number = ? AND s.snapshotter = ? AND s.kind = ?"
_PAGE: Final = f"SELECT {_COLUMNS} WHERE s.namespace = ? AND s.snapshotter = ? AND s.name > ? ORDER BY s.name LIMIT ?"
_CHAIN: Final = """
    WITH RECURSIVE chain (number, bytes, parent, name, synced_at, depth) AS (
        SELECT number, coalesce(layer, number), parent, name, synced_at, 0 FROM snapshots WHERE number = ?
        UNION ALL
        SELECT s.number, coalesce(s.layer, s.number), s.parent, s.name, s.synced_at, chain.depth + 1
        FROM chain JOIN snapshots AS s ON s.number = chain.parent
    )
    SELECT number, bytes, name, synced_at FROM chain ORDER BY depth
"""


class LostError(errdefs.DataLossError):
    """A snapshot may be incomplete.

    Attributes:
        number: which one; 0 for one that nobody goes on with.
    """

    number: int = 0


class Queries(Protocol):
    """A `Transaction` or a connection."""

    def execute(self, statement: str, parameters: Sequence[Any] = ..., /) -> sqlite3.Cursor: ...


def find(queries: Queries, namespace: str, snapshotter: str, name: str) -> sqlite3.Row | None:
    """The row of that key or name."""
    row: sqlite3.Row | None = queries.execute(_BY_NAME, (namespace, snapshotter, name)).fetchone()
    return row


def get(queries: Queries, namespace: str, snapshotter: str, name: str) -> sqlite3.Row:
    """The row of that key or name.

    Raises:
        NotFoundError: there is none in this namespace.
    """
    row = find(queries, namespace, snapshotter, name)
    if row is None:
        raise errdefs.NotFoundError(f"snapshot {name} does not exist")
    return row


def active(queries: Queries, snapshotter: str, number: int) -> sqlite3.Row | None:
    """The row of an active snapshot, by its number."""
    row: sqlite3.Row | None = queries.execute(_ACTIVE, (number, snapshotter, Kind.ACTIVE)).fetchone()
    return row


def page(queries: Queries, namespace: str, snapshotter: str, after: str, limit: int) -> list[sqlite3.Row]:
    """The next rows in the order of their names (bytes)."""
    return queries.execute(_PAGE, (namespace, snapshotter, after, limit)).fetchall()


def last_unpacked(queries: Queries, namespace: str) -> str | None:
    """The snapshotter of the namespace's newest snapshot that is a layer of an image, as far as that is known."""
    row = queries.execute(
        "SELECT snapshotter FROM snapshots WHERE namespace = ? AND (layer IS NOT NULL OR origin IS NOT NULL)"
        " ORDER BY number DESC LIMIT 1",
        (namespace,),
    ).fetchone()
    return None if row is None else str(row["snapshotter"])


def chain(queries: Queries, number: int | None) -> tuple[int, ...]:
    """Where a committed snapshot and all its parents have their bytes, the nearest first: their numbers, or a layer's.

    None are those of None.

    Raises:
        LostError: a snapshot of the chain may be incomplete since the machine stopped.
    """
    if number is None:
        return ()
    rows = queries.execute(_CHAIN, (number,)).fetchall()
    for row in rows:
        require_whole(row)
    return tuple(row["bytes"] for row in rows)


def is_lost(row: sqlite3.Row) -> bool:
    """Whether the row is of a snapshot that may be incomplete."""
    return bool(row["synced_at"] == LOST)


def require_whole(row: sqlite3.Row) -> None:
    """Raise LostError if the row is of a snapshot that may be incomplete."""
    if is_lost(row):
        raise lost(row["name"], row["number"])


def lost(name: str, number: int = 0) -> LostError:
    """What is said of a snapshot that is refused."""
    # The text says what to do: hints do not cross the wire.
    error = LostError(
        f'snapshot "{name}" may be incomplete since the machine stopped before its files were on disk'
        " (remove it and what is built on it, then unpack its image again)"
    )
    error.number = number
    return error


def bytes_of(row: sqlite3.Row) -> int:
    """The number under which a snapshot's bytes are: its own, or that of the layer that a committed one consists of."""
    number: int = row["number"] if row["layer"] is None or row["kind"] != Kind.COMMITTED else row["layer"]
    return number


def has_children(queries: Queries, number: int) -> bool:
    """Whether a snapshot has this one as its parent."""
    return queries.execute("SELECT 1 FROM snapshots WHERE parent = ? LIMIT 1", (number,)).fetchone() is not None


def info(row: sqlite3.Row) -> Info:
    """A row as its namespace sees it."""
    return Info(
        name=row["name"],
        parent=row["parent_name"] or "",
        kind=Kind(row["kind"]),
        labels=decode_map(row["labels"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def adaptor(found: Info) -> filters.Adaptor:
    """What filters see: `name`, `parent`, `kind` (active, view, committed) and `labels.…`.

    Name and parent are there even when empty. Source: adaptSnapshot in containerd's core/metadata/adaptors.go.
    """

    def field(path: tuple[str, ...]) -> str | None:
        match path[0]:
            case "kind":
                return found.kind.name.lower()
            case "name":
                return found.name
            case "parent":
                return found.parent
            case "labels":
                return found.labels.get(".".join(path[1:]))
        return None

    return field
