"""The check of snapshots: each row has its bytes, and all bytes have a row.

    snapshot-missing    a row, and nothing on disk
    snapshot-lost       a row whose files may be incomplete: the machine or its disk failed before they were synced
    snapshot-orphan     something on disk, and no row

Bytes come before the row and go after it, and a number is never used again. So what had a row before and after a look
at the disk must have been there, and what has neither a row nor somebody who makes or removes it is nobody's.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from orlop.base.errdefs import OrlopError
from orlop.core.fsck import Finding, Unchecked
from orlop.core.fsck.checks import Order
from orlop.core.metadata import Database, Transaction
from orlop.core.snapshots import Kind, rows, upkeep
from orlop.core.snapshots.store import Store
from orlop.core.snapshots.stores import Stores

_ROWS: Final = "SELECT number, namespace, name, kind, synced_at FROM snapshots WHERE snapshotter = ? ORDER BY number"
_WAIT_S: Final = 0.2
_AGAIN: Final = "its layer is unpacked again once it and what is built on it have been removed"


class SnapshotsCheck:
    """See `orlop.core.fsck.Check`."""

    what = "snapshots"

    def __init__(self, db: Database, stores: Stores) -> None:
        self._db = db
        self._stores = stores

    def run(self, order: Order) -> Iterator[Finding | Unchecked]:
        while not self._stores.swept.wait(_WAIT_S):
            order.go_on()
        for store in self._stores.values():
            try:
                yield from self._check(order, store)
            except (OSError, OrlopError) as error:  # one behind a socket may not answer; the others do
                yield Unchecked(what=f"snapshots of {store.name}", why=str(error))

    def _check(self, order: Order, store: Store) -> Iterator[Finding]:
        before = {row["number"] for row in self._db.all(_ROWS, (store.name,))}
        on_disk = set(store.snapshotter.numbers())
        known = self._db.all(_ROWS, (store.name,))
        yield from self._orphans(order, store, sorted(on_disk - {row["number"] for row in known}))
        for row in known:
            order.go_on()
            if row["number"] in before - on_disk and self._is_missing(store, row["number"]):
                yield self._missing(order, store, row)
            elif row["synced_at"] == rows.LOST:
                yield _of(
                    store,
                    row,
                    kind="snapshot-lost",
                    wrong="may be incomplete: its files were not on disk when the machine or the disk failed",
                    mends=_AGAIN,
                )

    def _orphans(self, order: Order, store: Store, suspects: Sequence[int]) -> Iterator[Finding]:
        confirmed = self._db.write_sync(lambda tx: [number for number in suspects if _is_nobodys(tx, store, number)])
        if not confirmed:
            return
        there = set(store.snapshotter.numbers())
        for number in confirmed:
            if number not in there:
                continue
            mended = order.repair and upkeep.throw_away(self._db, store, number)
            yield Finding(
                kind="snapshot-orphan",
                object=str(store.snapshotter.home(number) or f"{store.name}/{number}"),
                wrong="it is here, and there is no record of it",
                mends="thrown away" if mended else "--repair throws it away",
                mended=mended,
            )

    def _is_missing(self, store: Store, number: int) -> bool:
        return store.snapshotter.home(number) is None or self._db.write_sync(
            lambda tx: upkeep.has_no_bytes(tx, store, number)
        )

    def _missing(self, order: Order, store: Store, row: rows.Row) -> Finding:
        found = _of(
            store, row, kind="snapshot-missing", wrong="there is a record of it, but its files have gone", mends=""
        )
        if row["kind"] == Kind.COMMITTED or not upkeep.can_make_again(store):
            if order.repair:  # so that nobody builds on nothing
                self._db.write_sync(lambda tx: upkeep.without_bytes(tx, store, row["number"]))
            return found.after(False, _AGAIN)
        if not order.repair:
            return found.after(False, "--repair makes it again, empty")
        made = self._db.write_sync(lambda tx: upkeep.without_bytes(tx, store, row["number"]))
        return found.after(bool(made), "made again, empty: what was written to it is lost")


def _is_nobodys(tx: Transaction, store: Store, number: int) -> bool:
    return not store.is_moving(number) and tx.one("SELECT 1 FROM snapshots WHERE number = ?", (number,)) is None


def _of(store: Store, row: rows.Row, *, kind: str, wrong: str, mends: str) -> Finding:
    return Finding(
        kind=kind,
        object=f"{store.name}/{row['name']}",
        namespaces=(row["namespace"],),
        wrong=wrong,
        mends=mends,
    )
