"""What keeps rows and bytes of a store together over crashes and losses of power.

    mark_lost    at start: after a boot, snapshots whose files were never synced are marked
    flush        soon after such commits, and at a clean stop: sync them
    sweep        after start, while requests are served: bytes without a row go, rows without bytes are told

A kill of the daemon alone loses nothing: the page cache is the kernel's. So the boot id, kept in `facts`, tells whether
what was not synced may be incomplete; a clean stop leaves nothing unsynced.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orlop.base import failpoints
from orlop.core.metadata import Database, Transaction
from orlop.core.metadata.rows import decode_map
from orlop.core.snapshots import Kind, Snapshot, inherited, layer_rows, rows
from orlop.core.snapshots.store import Store

log: Final = logging.getLogger(__name__)

_LOST: Final = """
    SELECT number, namespace, name, kind, origin, layer FROM snapshots WHERE snapshotter = ? AND synced_at = ?
    ORDER BY number
"""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a sweep found.

    Attributes:
        thrown_away: numbers that had bytes and no row.
        made_again: active snapshots and views whose directory had not reached the disk; what was in it was not synced.
        missing: committed snapshots without bytes; they are refused from now on.
    """

    thrown_away: tuple[int, ...] = ()
    made_again: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()


def boot_id() -> str:
    """What changes with each boot of the machine."""
    return _BOOT_ID.read_text().strip()


def unsynced(db: Database) -> frozenset[int]:
    """The committed snapshots whose files are not known to be on disk."""
    found = db.all(
        "SELECT s.number FROM snapshots AS s LEFT JOIN layers AS l ON l.number = s.layer WHERE s.kind = ?"
        " AND CASE WHEN s.layer IS NULL THEN s.synced_at ELSE l.synced_at END IS NULL",
        (Kind.COMMITTED,),
    )
    return frozenset(row["number"] for row in found)


def mark_lost(db: Database, store: Store, boot: str) -> int:
    """Mark what was not synced before the machine last stopped; returns how many are marked now."""
    key = f"snapshots/{store.name}/boot-id"

    def write(tx: Transaction) -> None:
        before = tx.one("SELECT value FROM facts WHERE key = ?", (key,))
        if before is not None and before["value"] == boot:
            return
        tx.execute(
            f"UPDATE snapshots SET synced_at = ? WHERE snapshotter = ? AND kind IN ({_kinds(store)})"
            " AND synced_at IS NULL",
            (rows.LOST, store.name),
        )
        tx.execute(
            "UPDATE layers SET synced_at = ? WHERE snapshotter = ? AND synced_at IS NULL", (rows.LOST, store.name)
        )
        tx.execute(
            "INSERT INTO facts (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, boot),
        )
        store.lost_at_boot = frozenset(row["number"] for row in tx.execute(_LOST, (store.name, rows.LOST)).fetchall())

    db.write_sync(write)
    lost = lost_snapshots(db, store)
    for row in lost:
        if row["kind"] == Kind.COMMITTED and row["origin"] is None and row["layer"] is None:
            log.error(
                "snapshot may be incomplete since the machine stopped; remove it and unpack its image again",
                extra={"namespace": row["namespace"], "snapshotter": store.name, "snapshot": row["name"]},
            )
    return len(lost)


def lost_snapshots(db: Database, store: Store) -> list[rows.Row]:
    """The rows of all that may be incomplete, parents before children."""
    return db.all(_LOST, (store.name, rows.LOST))


def flush(db: Database, store: Store) -> int:
    """Sync snapshots and layers that are not yet; blocks. Returns how many there were.

    Raises:
        OSError: the disk does not take them. The kernel tells that once, and the next sync would succeed without the
            bytes, so they count as lost.
    """
    found = db.all(
        f"SELECT number, kind FROM snapshots WHERE snapshotter = ? AND kind IN ({_kinds(store)})"
        " AND synced_at IS NULL AND layer IS NULL",
        (store.name,),
    )
    unsynced_layers = db.all("SELECT number FROM layers WHERE snapshotter = ? AND synced_at IS NULL", (store.name,))
    if not found and not unsynced_layers:
        return 0
    numbers = [row["number"] for row in found]
    of_layers = [row["number"] for row in unsynced_layers]

    def note(tx: Transaction, synced_at: int | None = None) -> None:
        at = tx.now if synced_at is None else synced_at
        for row in found:
            # An active one that has been filled and committed meanwhile is not the one that was synced.
            tx.execute(
                "UPDATE snapshots SET synced_at = ? WHERE number = ? AND kind = ?", (at, row["number"], row["kind"])
            )
        for number in of_layers:
            layer_rows.synced(tx, number, at)

    try:
        store.snapshotter.sync(numbers + of_layers)
        failpoints.reach("snapshots.flush.synced")
    except OSError:
        db.write_sync(lambda tx: note(tx, rows.LOST))
        raise
    db.write_sync(note)
    return len(numbers) + len(of_layers)


def _kinds(store: Store) -> str:
    """The kinds of snapshots that have bytes to be synced, for SQL."""
    kinds = (Kind.COMMITTED, Kind.ACTIVE) if store.copies else (Kind.COMMITTED,)
    return ", ".join(str(int(kind)) for kind in kinds)


def sweep(db: Database, store: Store) -> Swept:
    """Bring bytes and rows together again; blocks, and may run while the store is used."""
    on_disk = sorted(store.snapshotter.numbers())
    known = db.all("SELECT number, namespace, name, kind, layer FROM snapshots WHERE snapshotter = ?", (store.name,))
    shared = [row["number"] for row in db.all("SELECT number FROM layers WHERE snapshotter = ?", (store.name,))]
    orphans = set(on_disk).difference(shared, (rows.bytes_of(row) for row in known))
    thrown_away = [number for number in sorted(orphans) if throw_away(db, store, number)]
    made_again: list[int] = []
    missing: list[int] = []
    owners = {number: {"layer": number} for number in shared}
    owners |= {
        row["number"]: {"namespace": row["namespace"], "snapshot": row["name"]}
        for row in known
        if rows.bytes_of(row) == row["number"]
    }
    for number, owner in owners.items():
        home = store.snapshotter.home(number)
        if home is None or os.path.isdir(home):
            continue
        again = db.write_sync(lambda tx, number=number: without_bytes(tx, store, number))  # type: ignore[misc]
        if again is not None:
            (made_again if again else missing).append(number)
            log.error(
                "snapshot had no directory: made anew, empty" if again else "snapshot has no directory: refused",
                extra={"snapshotter": store.name, **owner},
            )
    return Swept(thrown_away=tuple(thrown_away), made_again=tuple(made_again), missing=tuple(missing))


def throw_away(db: Database, store: Store, number: int) -> bool:
    """Remove what has no row; under the writer's lock, because a row may just be on its way."""

    def write(tx: Transaction) -> bool:
        if store.is_moving(number) or has_row(tx, number):
            return False
        store.removal.throw_away(tx, number)
        return True

    gone = db.write_sync(write)
    if gone:
        store.snapshotter.remove(number)
        log.warning("removed what had no row", extra={"snapshotter": store.name, "number": number})
    return gone


def has_row(tx: Transaction, number: int) -> bool:
    """Whether the bytes under a number are known: a layer's, or a snapshot's that does not consist of one."""
    if tx.one("SELECT 1 FROM layers WHERE number = ?", (number,)):
        return True
    row = tx.one("SELECT number, kind, layer FROM snapshots WHERE number = ?", (number,))
    return row is not None and rows.bytes_of(row) == number


def has_no_bytes(tx: Transaction, store: Store, number: int) -> bool:
    """Whether there is a row and no directory, or no files in it. Removal renames and deletes in one transaction, so in
    here it is true.

    False for a snapshotter that shows no directories.
    """
    home = store.snapshotter.home(number)
    if home is None or not has_row(tx, number):
        return False
    row = tx.one("SELECT kind FROM snapshots WHERE number = ?", (number,))
    kind = Kind.COMMITTED if row is None else Kind(row["kind"])
    # An active one that lacks a part of it has what is in the others.
    return not os.path.isdir(home) or (kind == Kind.COMMITTED and bool(store.snapshotter.lacks(number, kind)))


def can_make_again(store: Store) -> bool:
    """Whether an active snapshot or a view can be made in a transaction."""
    return "prepare" in store.snapshotter.quick


def without_bytes(tx: Transaction, store: Store, number: int) -> bool | None:
    """A row whose directory is not there: make an active one again (True), mark a committed one or a layer (False).

    None if all is well by now.
    """
    if not has_no_bytes(tx, store, number):
        return None
    row = tx.one("SELECT parent, kind, labels FROM snapshots WHERE number = ?", (number,))
    if row is None:
        layer_rows.synced(tx, number, rows.LOST)
        return False
    if row["kind"] == Kind.COMMITTED or not can_make_again(store):
        tx.execute("UPDATE snapshots SET synced_at = ? WHERE number = ?", (rows.LOST, number))
        return False
    store.snapshotter.prepare(_snapshot(tx, number, row))
    return True


def lacks(tx: Transaction, store: Store, number: int) -> Sequence[Path]:
    """Which directories of an active snapshot or a view are missing though it has others; none if it is no such."""
    row = tx.one("SELECT kind FROM snapshots WHERE number = ?", (number,))
    if row is None or row["kind"] == Kind.COMMITTED:
        return ()
    return store.snapshotter.lacks(number, Kind(row["kind"]))


def complete(tx: Transaction, store: Store, number: int) -> bool:
    """Make what an active snapshot or a view lacks; returns whether it is whole now.

    Raises:
        LostError: what is below may be incomplete.
        OSError: from the file system.
    """
    row = tx.one("SELECT parent, kind, labels FROM snapshots WHERE number = ?", (number,))
    assert row is not None
    return store.snapshotter.complete(_snapshot(tx, number, row))


def _snapshot(tx: Transaction, number: int, row: rows.Row) -> Snapshot:
    """As its snapshotter was told of it."""
    labels = inherited(decode_map(row["labels"]))
    return Snapshot(number=number, parents=rows.chain(tx, row["parent"]), kind=Kind(row["kind"]), labels=labels)
