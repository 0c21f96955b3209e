"""Table `layers`: which there are, which snapshots refer to them, and when they go. What they are is in `layers`."""

from collections.abc import Iterable
from dataclasses import dataclass

from orlop.base import errdefs
from orlop.core.metadata import Transaction
from orlop.core.snapshots import Kind, Usage, rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What makes a layer's files: the blob, how it is read, and the numbers of what is below, the nearest first."""

    below: tuple[int, ...]
    digest: str
    media_type: str

    @property
    def path(self) -> str:
        """`below` as the table has it."""
        return ",".join(map(str, self.below))


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """A layer that is unpacked: digest and length of its tar, and what it takes on disk."""

    diff_id: str
    size: int
    usage: Usage


def insert(tx: Transaction, snapshotter: str, number: int, key: Key, filled: Filled, waiting: Iterable[int]) -> bool:
    """Write the row of a layer, and have the active snapshots that wait refer to it; False if none is left."""
    wanted = [one for one in set(waiting) if _is_there(tx, one, key)]
    if not wanted:
        return False
    tx.execute(
        "INSERT INTO layers (number, snapshotter, below, digest, media_type, diff_id, tar_bytes, size_bytes, inodes,"
        " created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            number,
            snapshotter,
            key.path,
            key.digest,
            key.media_type,
            filled.diff_id,
            filled.size,
            filled.usage.size,
            filled.usage.inodes,
            tx.now,
        ),
    )
    for one in wanted:
        refer(tx, one, key, number)
    return True


def release(tx: Transaction, layer: int | None) -> bool:
    """Delete a layer's row if no snapshot refers to it any more; then its bytes are to go, too."""
    if layer is None or tx.one("SELECT 1 FROM snapshots WHERE layer = ? LIMIT 1", (layer,)):
        return False
    tx.execute("DELETE FROM layers WHERE number = ?", (layer,))
    return True


def synced(tx: Transaction, number: int, at: int) -> None:
    """Note of a layer, and of all snapshots that consist of it, when its files were on disk; or `rows.LOST`."""
    tx.execute("UPDATE layers SET synced_at = ? WHERE number = ?", (at, number))
    tx.execute("UPDATE snapshots SET synced_at = ? WHERE layer = ? AND kind = ?", (at, number, Kind.COMMITTED))


def get(queries: rows.Queries, number: int, name: str) -> rows.Row:
    """A layer's row, which a snapshot of that key refers to.

    Raises:
        DataLossError: it may be incomplete since the machine stopped.
    """
    row: rows.Row = queries.execute("SELECT * FROM layers WHERE number = ?", (number,)).fetchone()
    if row["synced_at"] == rows.LOST:
        raise rows.lost(name)
    return row


def find(queries: rows.Queries, snapshotter: str, key: Key) -> rows.Row | None:
    row: rows.Row | None = queries.execute(
        "SELECT * FROM layers WHERE snapshotter = ? AND digest = ? AND below = ? AND media_type = ?"
        " AND synced_at IS NOT ? LIMIT 1",
        (snapshotter, key.digest, key.path, key.media_type, rows.LOST),
    ).fetchone()
    return row


def check(queries: rows.Queries, number: int, key: Key, layer: int | None) -> None:
    """Whether an active snapshot may refer to a layer; None for one that is not there yet.

    Raises:
        NotFoundError, FailedPreconditionError, AbortedError, DataLossError: it may not.
    """
    row = queries.execute(
        "SELECT name, parent, layer FROM snapshots WHERE number = ? AND kind = ?", (number, Kind.ACTIVE)
    ).fetchone()
    if row is None:
        raise errdefs.NotFoundError(f"layer {key.digest}: the snapshot that it is unpacked for is not there any more")
    if rows.chain(queries, row["parent"]) != key.below:
        raise errdefs.AbortedError(f'snapshot "{row["name"]}": what is below it was replaced')
    if row["layer"] is None or row["layer"] == layer:
        return
    of = queries.execute("SELECT digest FROM layers WHERE number = ?", (row["layer"],)).fetchone()
    if layer is not None or of["digest"] != key.digest:
        raise errdefs.FailedPreconditionError(f'snapshot "{row["name"]}": layer {of["digest"]} is unpacked there')


def refer(tx: Transaction, number: int, key: Key, layer: int) -> None:
    check(tx, number, key, layer)
    tx.execute("UPDATE snapshots SET layer = ? WHERE number = ?", (layer, number))


def _is_there(tx: Transaction, number: int, key: Key) -> bool:
    try:
        check(tx, number, key, None)
    except errdefs.OrlopError:
        return False  # whoever waits with it is told
    return True
