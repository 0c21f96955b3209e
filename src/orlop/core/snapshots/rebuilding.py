"""A snapshot made once more, beside the one that is there, to be compared with it or to take its place.

    with Rebuilding(...) as again:
        … its layer is unpacked into `again.mounts` …
        again.finish()
        again.take_the_place()

The new one has a number and no row, so that a crash leaves what the next start sweeps. Taking the place is one
transaction: the directories change places at once, what was there goes into the trash, and the row says that its files
are on disk. Whoever has the old one mounted keeps it: below a container that runs nothing may vanish, so it stays in
the snapshot's directory until nobody can have it any more.
"""

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

from orlop.core.metadata import Database, Transaction
from orlop.core.mount import Mount
from orlop.core.snapshots import Kind, Snapshot, Usage, layer_rows, rows
from orlop.core.snapshots.directories import exchange
from orlop.core.snapshots.store import Store

REPLACED: Final = ".replaced-"
# Of a file system's space this much is left to others, beside what the snapshot took when it was committed.
MARGIN_BYTES: Final = 64 << 20
_USERS: Final = """
    WITH RECURSIVE own (number, kind) AS (
        SELECT number, kind FROM snapshots WHERE number = ?1 OR layer = ?1
    ),
    above (number, kind) AS (
        SELECT number, kind FROM own WHERE number <> ?1
        UNION
        SELECT s.number, s.kind FROM own JOIN snapshots AS s ON s.parent = own.number
        UNION
        SELECT s.number, s.kind FROM above JOIN snapshots AS s ON s.parent = above.number
    )
    SELECT 1 FROM above WHERE kind <> ?2 LIMIT 1
"""


class Rebuilding:
    """A context manager that blocks; entering makes an active snapshot on the same parents.

    Args:
        row: of the snapshot; what is made again are the bytes that it has, its own or a layer's.
        labels: those that its snapshotter is told.
        may_be_mounted: whether somebody may have the old ones mounted.

    Raises on entering:
        DataLossError: what is below may be incomplete itself.
        OSError, OrlopError: from the snapshotter.
    """

    def __init__(
        self, db: Database, store: Store, row: rows.Row, labels: Mapping[str, str], *, may_be_mounted: bool = True
    ) -> None:
        self._db = db
        self._store = store
        self._row = row
        self._number = rows.bytes_of(row)
        self._labels = labels
        self._may_be_mounted = may_be_mounted
        self._stack = contextlib.ExitStack()
        self.mounts: list[Mount] = []
        self.spare = 0

    def __enter__(self) -> Self:
        snapshotter = self._store.snapshotter
        parents = self._db.read(lambda queries: rows.chain(queries, self._row["parent"]))
        with contextlib.ExitStack() as stack:
            self.spare = self._store.take_spare()
            stack.callback(self._store.drop_spare, self.spare)
            self._snapshot = Snapshot(number=self.spare, parents=parents, kind=Kind.ACTIVE, labels=self._labels)
            snapshotter.prepare(self._snapshot)
            self.mounts = snapshotter.mounts(self._snapshot)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def finish(self) -> None:
        """Freeze what has been unpacked."""
        self._store.snapshotter.commit(self._snapshot)

    def take_the_place(self) -> bool:
        """Put the new one in the place of the old one; False if that is no longer the snapshot it was.

        Raises:
            OSError: from the file system; nothing has changed then.
        """
        here, there = self._places()
        snapshotter = self._store.snapshotter
        snapshotter.sync((self.spare,))
        kind = Kind(self._row["kind"])
        usage = Usage() if kind == Kind.ACTIVE else snapshotter.usage(replace(self._snapshot, kind=kind))
        return self._db.write_sync(lambda tx: self._swap(tx, here, there, usage))

    def _places(self) -> tuple[Path, Path]:
        here, there = (self._store.snapshotter.place(number) for number in (self.spare, self._number))
        assert here is not None
        assert there is not None
        return here, there

    def _swap(self, tx: Transaction, here: Path, there: Path, usage: Usage) -> bool:
        row = tx.one("SELECT kind, parent, layer FROM snapshots WHERE number = ?", (self._row["number"],))
        if row is None or row["kind"] != self._row["kind"]:
            return False
        if (row["parent"], row["layer"]) != (self._row["parent"], self._row["layer"]):
            return False
        snapshotter = self._store.snapshotter
        tx.on_rollback(lambda: snapshotter.exchanged(self._number))  # the last one: all is as it was
        if os.path.lexists(there):
            exchange(here, there)
            tx.on_rollback(lambda: exchange(here, there))
            kept_for_users = self._may_be_mounted and has_users(tx, self._number)
            if kept_for_users and snapshotter.home(self._number) is not None:
                kept = there / f"{REPLACED}{self.spare}"
                os.rename(here, kept)
                tx.on_rollback(lambda: os.rename(kept, here))
        else:
            os.rename(here, there)
            tx.on_rollback(lambda: os.rename(there, here))
        snapshotter.exchanged(self._number)
        # Before the row says so: a row that is there and a rename that is not would be a snapshot that seems whole.
        _sync(there.parent)
        if row["layer"] is None:
            tx.execute("UPDATE snapshots SET synced_at = ? WHERE number = ?", (tx.now, self._number))
        else:
            layer_rows.synced(tx, self._number, tx.now)
        tx.execute(
            "UPDATE snapshots SET size_bytes = ?, inodes = ? WHERE kind = ? AND ? IN (number, layer)",
            (usage.size, usage.inodes, row["kind"], self._number),
        )
        self._store.removal.throw_away(tx, self.spare)
        return True


def has_users(queries: rows.Queries, number: int) -> bool:
    """Whether an active snapshot or a view lies above the bytes of a number, so that somebody may have mounted them."""
    return queries.execute(_USERS, (number, Kind.COMMITTED)).fetchone() is not None


def replaced(store: Store, number: int) -> list[Path]:
    """What was kept of a snapshot for its users when it was rebuilt."""
    home = store.snapshotter.home(number)
    try:
        return [] if home is None else list(home.glob(f"{REPLACED}*"))
    except FileNotFoundError:
        return []  # it is being removed


def has_room(store: Store, number: int, size: int) -> bool:
    """Whether a snapshot that takes `size` bytes fits beside itself, and leaves some for others."""
    place = store.snapshotter.place(number)
    assert place is not None
    return shutil.disk_usage(place.parent).free > size + size // 8 + MARGIN_BYTES


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
