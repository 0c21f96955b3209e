"""The check of snapshots: each row has its bytes, all bytes have a row, and layers are what their blobs say.

    snapshot-missing    a row, and nothing on disk
    snapshot-lost       a row whose files may be incomplete: the machine or its disk failed before they were synced
    snapshot-incomplete an active one, or a view, without a directory of it
    snapshot-orphan     something on disk, and no row
    layer-changed       files of a layer that are not those of its blob
    layer-replaced      what was kept of such a layer for its users, after the last of them

Bytes come before the row and go after it, and a number is never used again. So what had a row before and after a look
at the disk must have been there, and what has neither a row nor somebody who makes or removes it is nobody's.

A layer is unpacked once more beside the one that is there, from below upwards, and compared with it; a committed
snapshot does not change, so what differs then is damage. What is mended so is the layer that was just made.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orlop.base.errdefs import DataLossError, OrlopError
from orlop.base.labels import SNAPSHOT_REF
from orlop.core.content import Store as ContentStore
from orlop.core.diff import Differ
from orlop.core.diff.choice import first_able
from orlop.core.fsck import Finding, Unchecked
from orlop.core.fsck.checks import Order
from orlop.core.fsck.comparing import difference
from orlop.core.fsck.layers import Source, Sources, sources
from orlop.core.metadata import Database, Transaction
from orlop.core.metadata.rows import decode_map
from orlop.core.metadata.trash import Trash
from orlop.core.mount.shown import is_shown
from orlop.core.snapshots import GID_MAPPING, UID_MAPPING, Kind, inherited, rows, upkeep
from orlop.core.snapshots.directories import FILES
from orlop.core.snapshots.rebuilding import Rebuilding, has_room, has_users, replaced
from orlop.core.snapshots.store import Store
from orlop.core.snapshots.stores import Stores

_ROWS: Final = """
    SELECT s.number, s.namespace, s.name, s.kind, s.synced_at, s.size_bytes, s.labels, s.parent, s.layer,
        p.name AS parent_name
    FROM snapshots AS s LEFT JOIN snapshots AS p ON p.number = s.parent WHERE s.snapshotter = ? ORDER BY s.number
"""
_LAYERS: Final = "SELECT number FROM layers WHERE snapshotter = ?"

log: Final = logging.getLogger(__name__)

_WAIT_S: Final = 0.2
_AGAIN: Final = "removing it and what is built on it: its image is then unpacked again"
_UNKNOWN: Final = (
    "no image here says which blob it was unpacked from: pulling or importing one that does, then --repair again"
)
_LOST: Final = "may be incomplete: its files were not on disk when the machine or the disk failed"


class SnapshotsCheck:
    """See `orlop.core.fsck.checks.Check`."""

    what = "snapshots"

    def __init__(
        self, db: Database, trash: Trash, stores: Stores, content: ContentStore, differs: Sequence[Differ]
    ) -> None:
        self.db = db
        self.trash = trash
        self.differs = differs
        self.stores = stores
        self._content = content

    def run(self, order: Order) -> Iterator[Finding | Unchecked]:
        while not self.stores.swept.wait(_WAIT_S):
            order.go_on()
        known = Sources({})
        if order.repair or not order.quick:
            known = order.wait(sources(self.db, self._content))
        for store in self.stores.values():
            try:
                yield from _Looking(self, order, store, known).run()
            except (OSError, OrlopError) as error:  # one behind a socket may not answer; the others do
                yield Unchecked(what=f"snapshots of {store.name}", why=str(error))


@dataclass(frozen=True, slots=True)
class _Looking:
    """One look at one snapshotter's snapshots."""

    check: SnapshotsCheck
    order: Order
    store: Store
    known: Sources

    @property
    def db(self) -> Database:
        return self.check.db

    def run(self) -> Iterator[Finding | Unchecked]:
        before = {rows.bytes_of(row) for row in self.db.all(_ROWS, (self.store.name,))}
        on_disk = set(self.store.snapshotter.numbers())
        known = self.db.all(_ROWS, (self.store.name,))
        layers = {row["number"] for row in self.db.all(_LAYERS, (self.store.name,))}
        yield from self._orphans(sorted(on_disk - layers - {rows.bytes_of(row) for row in known}))
        damaged: set[int] = set()
        seen: set[int] = set()
        if self.order.after_stop:
            unsynced = self.check.stores.unsynced
            # What a stop of the machine may have taken is made again by `core.snapshots.recovery`.
            known = [row for row in known if row["number"] in unsynced and row["synced_at"] != rows.LOST]
            log.info("checking snapshots", extra={"snapshotter": self.store.name, "unsynced": len(known)})
        for row in _from_below(known):
            self.order.go_on()
            number = rows.bytes_of(row)
            if number in seen:
                continue  # a layer that was looked at for another who has it
            seen.add(number)
            for one in self._snapshot(row, number in before - on_disk, damaged):
                if not (isinstance(one, Finding) and one.mended):
                    damaged.add(row["number"])
                yield one

    def _snapshot(self, row: rows.Row, may_be_missing: bool, damaged: set[int]) -> Iterator[Finding | Unchecked]:
        number, kind = rows.bytes_of(row), Kind(row["kind"])
        lacks = self.store.snapshotter.lacks(number, kind)
        if (may_be_missing or (lacks and kind == Kind.COMMITTED)) and self._is_missing(number):
            yield self._missing(row)
        elif row["synced_at"] == rows.LOST:
            yield self._rebuilt(row, "snapshot-lost", _LOST)
        elif lacks and kind != Kind.COMMITTED:
            yield from self._incomplete(row)
        elif kind == Kind.COMMITTED:
            yield from self._replaced(row)
            if not self.order.quick and (source := self._source(row)) is not None:
                if row["parent"] in damaged and not self.store.snapshotter.stacked:
                    yield self._unchecked(row, "it is made out of its parent, which is damaged")
                else:
                    yield from self._layer(row, source)

    # Bytes without a row.

    def _orphans(self, suspects: Sequence[int]) -> Iterator[Finding]:
        store = self.store
        confirmed = self.db.write_sync(lambda tx: [number for number in suspects if _is_nobodys(tx, store, number)])
        there = set(store.snapshotter.numbers()) if confirmed else set()
        for number in confirmed:
            if number not in there:
                continue
            mended = self.order.repair and upkeep.throw_away(self.db, store, number)
            yield Finding(
                kind="snapshot-orphan",
                object=str(store.snapshotter.home(number) or f"{store.name}/{number}"),
                wrong="it is here, and there is no record of it",
                mends="thrown away" if mended else "--repair throws it away",
                mended=mended,
            )

    def _replaced(self, row: rows.Row) -> Iterator[Finding]:
        """What nobody can have mounted any more."""
        number = rows.bytes_of(row)
        for path in replaced(self.store, number):

            def remove(tx: Transaction, path: Path = path) -> bool | None:
                if not path.exists() or has_users(tx, number):
                    return None
                return self.order.repair and self.check.trash.take(tx, path)

            gone = self.db.write_sync(remove)
            if gone is not None:
                yield Finding(
                    kind="layer-replaced",
                    object=str(path),
                    namespaces=self._namespaces(row),
                    wrong="was kept for those who had it mounted, and nobody has",
                    mends="thrown away" if gone else "--repair throws it away",
                    mended=gone,
                )

    # Rows without their bytes.

    def _is_missing(self, number: int) -> bool:
        store = self.store
        return store.snapshotter.home(number) is None or self.db.write_sync(
            lambda tx: upkeep.has_no_bytes(tx, store, number)
        )

    def _missing(self, row: rows.Row) -> Finding | Unchecked:
        wrong = "there is a record of it, but its files have gone"
        store, repair = self.store, self.order.repair
        again = row["kind"] != Kind.COMMITTED and upkeep.can_make_again(store)
        number = rows.bytes_of(row)
        done = self.db.write_sync(lambda tx: upkeep.without_bytes(tx, store, number)) if repair else None
        if not again:  # a committed one is refused from now on, so that nobody builds on nothing
            return self._rebuilt(row, "snapshot-missing", wrong)
        mends = "made again, empty: what was written to it is lost" if done else "--repair makes it again, empty"
        return self._of(row, kind="snapshot-missing", wrong=wrong, mends=mends).after(bool(done))

    def _incomplete(self, row: rows.Row) -> Iterator[Finding]:
        """An active snapshot, or a view, of which a directory is missing."""
        store, number = self.store, rows.bytes_of(row)
        used = _is_mounted(store, number)

        def look(tx: Transaction) -> tuple[Sequence[Path], bool]:
            lacking = upkeep.lacks(tx, store, number)
            return lacking, bool(lacking) and self.order.repair and not used and upkeep.complete(tx, store, number)

        try:
            lacking, done = self.db.write_sync(look)
        except (OSError, OrlopError) as error:
            lacking, done = self.db.write_sync(lambda tx: upkeep.lacks(tx, store, number)), False
            mends = f"another look: {error}"
        else:
            mends = _mended_by(lacking, used=used, done=done, can=upkeep.can_make_again(store))
        if lacking:
            wrong = f"it has no directory {' and no '.join(path.name for path in lacking)}"
            yield self._of(row, kind="snapshot-incomplete", wrong=wrong, mends=mends).after(done)

    # Layers and their blobs.

    def _source(self, row: rows.Row) -> Source | None:
        """Where a snapshot's layer comes from, if it can be unpacked beside it."""
        found = self._origin(row)
        return found if isinstance(found, Source) else None

    def _origin(self, row: rows.Row) -> Source | str:
        """Where a snapshot's layer comes from; else why it cannot be unpacked beside it, and what would help."""
        found = self.known.find(row["namespace"], row["name"])
        if row["kind"] != Kind.COMMITTED or self.store.snapshotter.opened(rows.bytes_of(row)) is None:
            return _AGAIN
        if found is None or found.parent != (row["parent_name"] or ""):
            return f"{_UNKNOWN}; else {_AGAIN}"
        labels = decode_map(row["labels"])
        if UID_MAPPING in labels or GID_MAPPING in labels:
            return f"it cannot be unpacked beside, for its owners are mapped: {_AGAIN}"
        if found.blob.digest in self.order.damaged:
            return f"its blob {found.blob.digest} is damaged or gone: pulling or importing that, then --repair again"
        return found

    def _rebuilt(self, row: rows.Row, kind: str, wrong: str) -> Finding | Unchecked:
        """A snapshot whose files count for nothing: put its layer in its place."""
        found = self._of(row, kind=kind, wrong=wrong, mends=_AGAIN)
        if self.order.quick and not self.order.repair:
            return found.after(False, "--repair unpacks it again, if its blob is known")  # which was not asked
        source = self._origin(row)
        if isinstance(source, str):
            return found.after(False, source)
        if not self.order.repair:
            return found.after(False, f"--repair unpacks it from {source.blob.digest}")
        try:
            with self._unpacked(row, source) as again:
                if again.take_the_place():
                    return found.after(True, f"unpacked again from {source.blob.digest}")
        except (OSError, OrlopError) as error:
            return found.after(False, f"{_AGAIN} (it cannot be unpacked beside: {error})")
        return found

    def _layer(self, row: rows.Row, source: Source) -> Iterator[Finding | Unchecked]:
        if not has_room(self.store, rows.bytes_of(row), row["size_bytes"]):
            yield self._unchecked(row, "there is no space to unpack it beside")
            return
        try:
            with self._unpacked(row, source) as again:
                wrong = self._difference(rows.bytes_of(row), again.spare)
                if wrong is None or not self._is_here(row):
                    return
                yield self._changed(row, source, again, wrong)
        except (OSError, OrlopError) as error:
            if self._is_here(row) and self._has_blob(source):
                yield self._unchecked(row, str(error))

    def _changed(self, row: rows.Row, source: Source, again: Rebuilding, wrong: str) -> Finding:
        found = self._of(row, kind="layer-changed", wrong=wrong, mends="")
        if not self.order.repair:
            return found.after(False, f"--repair unpacks it again from {source.blob.digest}")
        if not again.take_the_place():
            return found.after(False, "another look: it was changed meanwhile")
        return found.after(
            True, f"unpacked again from {source.blob.digest}; what runs keeps the files that it began with"
        )

    @contextlib.contextmanager
    def _unpacked(self, row: rows.Row, source: Source) -> Iterator[Rebuilding]:
        """The snapshot's layer, unpacked beside it."""
        labels = inherited(decode_map(row["labels"]))
        labels.pop(SNAPSHOT_REF, None)  # says what the content is to those who have it already
        with Rebuilding(self.db, self.store, row, labels) as again:
            applied = self.order.wait(
                first_able(self.check.differs, lambda one: one.apply(source.namespace, source.blob, again.mounts))
            )
            if applied.digest != source.diff_id:
                raise DataLossError(f"blob {source.blob.digest} unpacks to {applied.digest}, not {source.diff_id}")
            again.finish()
            yield again

    def _difference(self, actual: int, wanted: int) -> str | None:
        """What is wrong with the snapshot `actual`, in words."""
        snapshotter = self.store.snapshotter
        shown, fresh = snapshotter.opened(actual), snapshotter.opened(wanted)
        assert shown is not None
        assert fresh is not None
        with fresh as right:
            try:
                with shown as left:
                    return difference(left, right, self.order.go_on)
            except DataLossError as error:
                return error.text

    def _is_here(self, row: rows.Row) -> bool:
        """Whether it is still the committed snapshot that was looked at, where nobody removes it meanwhile."""
        query = "SELECT 1 FROM snapshots WHERE number = ? AND kind = ?"
        return self.db.write_sync(lambda tx: tx.one(query, (row["number"], Kind.COMMITTED)) is not None)

    def _has_blob(self, source: Source) -> bool:
        query = "SELECT 1 FROM content WHERE namespace = ? AND digest = ?"
        return self.db.one(query, (source.namespace, source.blob.digest)) is not None

    def _of(self, row: rows.Row, *, kind: str, wrong: str, mends: str) -> Finding:
        return Finding(
            kind=kind,
            object=f"{self.store.name}/{row['name']}",
            namespaces=self._namespaces(row),
            wrong=wrong,
            mends=mends,
        )

    def _namespaces(self, row: rows.Row) -> tuple[str, ...]:
        """Those whose snapshots have a row's bytes."""
        if rows.bytes_of(row) == row["number"]:
            return (row["namespace"],)
        query = "SELECT DISTINCT namespace FROM snapshots WHERE layer = ? ORDER BY namespace"
        return tuple(found["namespace"] for found in self.db.all(query, (row["layer"],)))

    def _unchecked(self, row: rows.Row, why: str) -> Unchecked:
        return Unchecked(what=f"layer {self.store.name}/{row['name']} ({row['namespace']})", why=why)


def _is_nobodys(tx: Transaction, store: Store, number: int) -> bool:
    return not store.is_moving(number) and not upkeep.has_row(tx, number)


def _is_mounted(store: Store, number: int) -> bool:
    """Whether somebody may have an active snapshot mounted, though its directories have gone; rather once too often."""
    home = store.snapshotter.home(number)
    if home is None:
        return False
    return is_shown(f"/{home.parent.name}/{home.name}/{FILES}")


def _mended_by(lacking: Sequence[Path], *, used: bool, done: bool, can: bool) -> str:
    lost = "; what was written to it is lost" if any(path.name == FILES for path in lacking) else ""
    if used:
        return "ending who has it mounted, who may write to what was there; then --repair makes it"
    if done:
        return f"made again, empty{lost}"
    return f"--repair makes it again, empty{lost}" if can else "removing it: it cannot be made without its parents"


def _from_below(known: Sequence[rows.Row]) -> list[rows.Row]:
    """The rows, each after its parent."""
    depths: dict[int, int] = {}
    parents = {row["number"]: row["parent"] for row in known}
    for number in parents:
        chain, at = [], number
        while at in parents and at not in depths:
            chain.append(at)
            at = parents[at]
        above = depths.get(at, 0)
        for distance, one in enumerate(reversed(chain), start=1):
            depths[one] = above + distance
    return sorted(known, key=lambda row: (depths[row["number"]], row["number"]))
