"""The snapshots of all namespaces in one snapshotter: names, labels and leases in front of numbers.

    prepare, view     bytes, then row; where the snapshotter is quick, both in one write transaction
    commit            files synced, then the row changes its name and kind; the number stays
    remove            row deleted and directory renamed into the trash, in one transaction

What this promises is containerd's (core/metadata/snapshot.go, core/snapshots/storage and its test suite), error classes
included. Reads answer from this thread's database connection and do not wait; whatever walks a tree, copies or syncs
runs in the executor.

One exception to "when a call returns it is durable": a snapshot that an unpacker filled out of a blob (see
`note_usage`) is committed before its files are synced. `upkeep` syncs it soon after. If a boot came between, it is made
again out of the blob (`recovery.py`) before it is handed out, and refused if that cannot be.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from orlop.base import errdefs, failpoints, fieldmask, filters
from orlop.base import labels as labelling
from orlop.core import trees
from orlop.core.metadata import Database, Transaction
from orlop.core.metadata.rows import check_key, decode_map
from orlop.core.metadata.trash import Trash
from orlop.core.mount import Mount
from orlop.core.snapshots import (
    UNPACK_KEY_PREFIX,
    Info,
    Kind,
    Snapshot,
    Snapshotter,
    Usage,
    inherited,
    layer_rows,
    rows,
)
from orlop.core.snapshots.failures import in_words
from orlop.core.snapshots.layers import Layers
from orlop.core.snapshots.ledger import Commit, Creation, Ledger, as_snapshot
from orlop.core.snapshots.numbers import Numbers
from orlop.core.snapshots.origin import Origin
from orlop.core.snapshots.removal import Removal

T = TypeVar("T")

log: Final = logging.getLogger(__name__)

PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class _Noted:
    """What an unpacker said of the layer in an active snapshot."""

    usage: Usage
    origin: Origin | None


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a write for a new snapshot came to: the snapshot, or the error to raise; and whether there is a row."""

    snapshot: Snapshot
    error: errdefs.OrlopError | None = None
    written: bool = True


class Store:
    """The snapshots of one snapshotter.

    Args:
        name: the snapshotter's id, such as `overlayfs`.
        executor: where blocking work is done; several stores may share it.

    Attributes:
        removal: takes what has gone out of the snapshotter.
        recover: makes a lost snapshot whole, by its number; False if it cannot.
        lost_at_boot: numbers of those that were lost when the machine stopped: nobody has them mounted.
    """

    def __init__(
        self, name: str, snapshotter: Snapshotter, *, db: Database, trash: Trash, numbers: Numbers, executor: Executor
    ) -> None:
        self.name = name
        self.snapshotter = snapshotter
        self.making: set[int] = set()
        self.on_unsynced: Callable[[], None] | None = None
        self.recover: Callable[[int], Coroutine[Any, Any, bool]] | None = None
        self.lost_at_boot: frozenset[int] = frozenset()
        self._db = db
        self._numbers = numbers
        self._executor = executor
        self._ledger = Ledger(name, can_rebase="rebase" in snapshotter.capabilities)
        self._applied: dict[int, _Noted] = {}
        self.removal = Removal(
            name,
            snapshotter,
            trash=trash,
            executor=executor,
            forget=lambda number: self._applied.pop(number, None),
        )
        self._spare: set[int] = set()
        self.layers = Layers(
            name,
            snapshotter,
            db=db,
            numbers=numbers,
            executor=executor,
            making=self.making,
            unmake=self._unmake_later,
        )
        self._shows_labels = type(snapshotter).shown_labels is not Snapshotter.shown_labels

    # -- reading ----------------------------------------------------------------------------------------------------

    def stat(self, namespace: str, key: str) -> Info:
        """What the namespace knows of an active, view or committed snapshot.

        Raises:
            NotFoundError: there is none of that key or name.
        """
        return self._shown(self._db.read(lambda queries: rows.get(queries, namespace, self.name, key)))

    def walk(self, namespace: str, filter_texts: Iterable[str] = ()) -> Iterator[Info]:
        """All snapshots that match, in the order of their names; read page by page, so not at one point in time.

        Filters know `name`, `parent`, `kind` and `labels.…`.

        Raises:
            InvalidArgumentError: a filter is wrong; at once, not when iterating.
        """
        return self._walk(namespace, filters.parse_all(filter_texts))

    def _walk(self, namespace: str, match: filters.Filter) -> Iterator[Info]:
        after = ""
        while True:
            page = self._db.read(functools.partial(self._page, namespace, after))
            for row in page:
                found = self._shown(row)
                if match.always or match(rows.adaptor(found)):
                    yield found
            if len(page) < PAGE:
                return
            after = page[-1]["name"]

    def _shown(self, row: rows.Row) -> Info:
        found = rows.info(row)
        if not self._shows_labels:
            return found
        more = self.snapshotter.shown_labels(rows.bytes_of(row), found.kind)
        return replace(found, labels={**more, **found.labels}) if more else found

    def _page(self, namespace: str, after: str, queries: rows.Queries) -> list[rows.Row]:
        return rows.page(queries, namespace, self.name, after, PAGE)

    async def mounts(self, namespace: str, key: str) -> list[Mount]:
        """The mounts of an active snapshot or a view.

        Raises:
            NotFoundError: there is none of that key.
            FailedPreconditionError: it is committed.
            DataLossError: a snapshot below may be incomplete since the machine stopped.
        """

        async def attempt() -> list[Mount]:
            snapshot = self._db.read(lambda queries: self._ledger.mountable(queries, namespace, key))
            return await self._mounts(key, snapshot)

        return await self._whole(attempt)

    async def usage(self, namespace: str, key: str) -> Usage:
        """What the snapshot itself takes: of an active one measured now, of a committed one as it was then.

        Raises:
            NotFoundError: there is none of that key or name.
        """
        row = self._db.read(lambda queries: rows.get(queries, namespace, self.name, key))
        if row["kind"] != Kind.ACTIVE:
            return Usage(row["size_bytes"], row["inodes"])
        snapshot = as_snapshot(row, self._db.read(lambda queries: rows.chain(queries, row["parent"])))
        measured = await self._work(f'snapshot "{key}": measure', self.snapshotter.usage, snapshot)
        return measured if row["layer"] is None else measured + self._layer_usage(row["layer"], key)

    # -- making -----------------------------------------------------------------------------------------------------

    async def prepare(
        self,
        namespace: str,
        key: str,
        parent: str = "",
        *,
        labels: Mapping[str, str] | None = None,
        lease: str = "",
        owner_uid: int | None = None,
    ) -> list[Mount]:
        """Make an active snapshot on top of `parent`, or of nothing, and return its mounts.

        Args:
            lease: adds the snapshot to this lease; also one that exists already.
            owner_uid: of the client, where known.

        Raises:
            AlreadyExistsError: the key is in use, or the target of the label `containerd.io/snapshot.ref` is there.
            NotFoundError: the parent or the lease does not exist.
            InvalidArgumentError: the parent is not committed; the key is empty or too long; a label is too long.
            DataLossError: a snapshot below may be incomplete since the machine stopped.
            ResourceExhaustedError: the file system is full.
        """
        return await self._create(
            Creation(
                kind=Kind.ACTIVE,
                namespace=namespace,
                key=key,
                parent=parent,
                labels=labels or {},
                lease=lease,
                owner_uid=owner_uid,
            )
        )

    async def view(
        self,
        namespace: str,
        key: str,
        parent: str = "",
        *,
        labels: Mapping[str, str] | None = None,
        lease: str = "",
        owner_uid: int | None = None,
    ) -> list[Mount]:
        """`prepare`, read-only: cannot be committed, and is removed when it is no longer wanted."""
        return await self._create(
            Creation(
                kind=Kind.VIEW,
                namespace=namespace,
                key=key,
                parent=parent,
                labels=labels or {},
                lease=lease,
                owner_uid=owner_uid,
            )
        )

    async def commit(
        self,
        namespace: str,
        name: str,
        key: str,
        *,
        labels: Mapping[str, str] | None = None,
        parent: str = "",
        lease: str = "",
    ) -> None:
        """Turn the active snapshot `key` into the committed `name`; the key is free afterwards.

        Labels are not inherited from the active one. Its files are on disk when this returns, but for what an unpacker
        made (see `note_usage`).

        Args:
            parent: for a snapshot prepared on nothing: put it on this one ("rebase"), if the snapshotter can.
            lease: adds the committed snapshot and takes off the active one.

        Raises:
            AlreadyExistsError: the name is in use.
            NotFoundError: there is no such key, parent or lease.
            FailedPreconditionError: the key is not an active snapshot; the parent is not committed.
            InvalidArgumentError: it has another parent already; a name or label is wrong.
            UnimplementedError: the snapshotter cannot rebase.
        """
        check_key(name, "snapshot name")
        commit = Commit(namespace=namespace, name=name, key=key, parent=parent, labels=_checked(labels), lease=lease)
        await self._whole(lambda: self._commit(commit))

    async def _commit(self, commit: Commit) -> None:
        key = commit.key
        found = self._db.read(lambda queries: self._ledger.committable(queries, commit))
        if found is not None and found.layer is not None:
            await self._require_untouched(found.snapshot.number, key)
            commit = replace(commit, ready=found, usage=self._layer_usage(found.layer, key), synced=False)
        elif found is not None:
            noted = self._applied.get(found.snapshot.number) if key.startswith(UNPACK_KEY_PREFIX) else None
            frozen = replace(found.snapshot, labels=inherited(commit.labels))
            usage = await self._work(f'snapshot "{key}": commit', self._freeze, frozen, noted)
            origin = None if noted is None else noted.origin
            commit = replace(commit, ready=found, usage=usage, synced=noted is None, origin=origin)
        error = await self._db.write(lambda tx: self._write_commit(tx, commit))
        if error is not None:
            raise error
        if found is not None:
            self._applied.pop(found.snapshot.number, None)
        if not commit.synced and self.on_unsynced is not None:
            self.on_unsynced()

    def _write_commit(self, tx: Transaction, commit: Commit) -> errdefs.AlreadyExistsError | None:
        error = self._ledger.commit(tx, commit)
        if error is None and commit.ready is not None and commit.ready.layer is not None:
            self.removal.let_all_go(tx, [commit.ready.snapshot.number])  # its bytes are the layer's
        return error

    def _layer_usage(self, layer: int, key: str) -> Usage:
        row = self._db.read(lambda queries: layer_rows.get(queries, layer, key))
        return Usage(row["size_bytes"], row["inodes"])

    async def _require_untouched(self, number: int, key: str) -> None:
        row = self._db.read(lambda queries: rows.active(queries, self.name, number))
        if row is None:
            return  # the transaction says so
        snapshot = as_snapshot(row, self._db.read(lambda queries: rows.chain(queries, row["parent"])))
        if not await self._work(f'snapshot "{key}": commit', self.snapshotter.untouched, snapshot):
            raise errdefs.FailedPreconditionError(
                f'snapshot "{key}": something was written there beside the layer that was unpacked for it',
                hint=f"prepare it under a key that does not begin with {UNPACK_KEY_PREFIX}",
            )

    async def remove(self, namespace: str, key: str, *, lease: str = "") -> None:
        """Remove a snapshot of any kind that has no children; its bytes are unlinked later.

        Raises:
            NotFoundError: there is none of that key or name.
            FailedPreconditionError: it has children.
        """

        def write(tx: Transaction) -> None:
            row = rows.get(tx, namespace, self.name, key)
            if rows.has_children(tx, row["number"]):
                raise errdefs.FailedPreconditionError(f'cannot remove snapshot "{key}" with child')
            self._ledger.release(tx, namespace, lease, key)
            self.delete(tx, row["number"])

        await self._db.write(write)

    def delete(self, tx: Transaction, number: int) -> None:
        """Delete a snapshot without children as part of `tx`: row, directory, event. For the collector, and `remove`.

        Raises:
            NotFoundError: no snapshot of this snapshotter has the number.
            sqlite3.IntegrityError: it has children; remove those first.
            FailedPreconditionError: its directory is in use as a mount point.
        """
        self.removal.let_all_go(tx, self._ledger.delete(tx, number))

    async def update(self, namespace: str, name: str, labels: Mapping[str, str], *, paths: Sequence[str] = ()) -> Info:
        """Change labels: all of them, or the keys that `paths` names (`labels.<key>`); nothing else can be changed.

        Raises:
            NotFoundError: there is no such snapshot.
            InvalidArgumentError: no name; a path that is not `labels` or below; a label is too long.
        """
        check_key(name, "snapshot name")
        parsed = fieldmask.parse(paths, fields=("labels",), maps=("labels",), what=f'snapshot "{name}"')

        def write(tx: Transaction) -> Info:
            row = rows.get(tx, namespace, self.name, name)
            current = decode_map(row["labels"])
            keys: list[str | None] = [path.key for path in parsed]
            for key in keys or [None]:
                current = fieldmask.merge(current, labels, key)
            _checked(current)
            self._ledger.relabel(tx, row["number"], current)
            return rows.info(rows.get(tx, namespace, self.name, name))

        return await self._db.write(write)

    def note_usage(self, namespace: str, key: str, usage: Usage) -> None:
        """Say that an unpacker has filled the active snapshot `key` out of a durable blob, and what it takes.

        If its key is an unpacker's (begins with `extract-`), `commit` believes that and neither measures nor syncs: the
        files are synced soon after, and what a loss of power takes until then is unpacked again. A snapshotter whose
        snapshots are whole measures all the same. Unknown keys are ignored.
        """
        with contextlib.suppress(errdefs.NotFoundError):
            row = self._db.read(lambda queries: rows.get(queries, namespace, self.name, key))
            self.note_applied(row["number"], usage)

    def note_applied(self, number: int, usage: Usage, origin: Origin | None = None) -> None:
        """`note_usage` by the snapshot's number.

        Args:
            origin: the layer, from which it can be made again.
        """
        self._applied[number] = _Noted(usage, origin)

    def image(self, number: int) -> str | None:
        """Where a layer for this snapshot may be put as an image (`Snapshotter.image`); only an unpacker's has such."""
        if self.is_spare(number):
            return self.snapshotter.image(number)
        row = self._db.read(
            lambda queries: queries.execute(
                "SELECT name, kind FROM snapshots WHERE number = ? AND snapshotter = ?", (number, self.name)
            ).fetchone()
        )
        if row is None or row["kind"] != Kind.ACTIVE or not row["name"].startswith(UNPACK_KEY_PREFIX):
            return None
        return self.snapshotter.image(number)

    # -- in the transaction -----------------------------------------------------------------------------------------

    async def _create(self, creation: Creation) -> list[Mount]:
        check_key(creation.key, "snapshot key")
        _checked(creation.labels)
        return await self._whole(lambda: self._attempt(creation))

    async def _attempt(self, creation: Creation) -> list[Mount]:
        number = self._numbers.take()
        if "prepare" in self.snapshotter.quick:
            outcome = await self._db.write(lambda tx: self._write_create(tx, creation, number))
        else:
            outcome = await self._create_slowly(creation, number)
        if outcome.error is not None:
            raise outcome.error
        if self.copies and self.on_unsynced is not None:
            self.on_unsynced()
        return await self._mounts(creation.key, outcome.snapshot)

    @property
    def copies(self) -> bool:
        """Whether an active snapshot begins with bytes of its own, which a loss of power may take."""
        return self.snapshotter.whole

    async def _whole(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Attempt what hands out or builds on snapshots; those among them that were lost are made again first."""
        while True:
            try:
                return await attempt()
            except rows.LostError as error:
                if not error.number or self.recover is None or not await self.recover(error.number):
                    raise

    async def _create_slowly(self, creation: Creation, number: int) -> _Outcome:
        """Make the snapshot in the executor, then its row; who is cancelled in between leaves nothing behind."""
        snapshot, error = self._db.read(lambda queries: self._ledger.creatable(queries, creation, number))
        if error is not None:
            # Only a write can add to a lease what exists; if it has gone meanwhile, the writer waits for us this once.
            return await self._db.write(lambda tx: self._write_create(tx, creation, number))
        self.making.add(number)
        making = self._executor.submit(self._make, creation, snapshot)
        try:
            was_there = await self._made(creation, number, making)
            writing = self._db.submit(lambda tx: self._write_create(tx, creation, number, (snapshot, was_there)))
        except BaseException:
            making.add_done_callback(lambda _done: self._unmake_later(number))
            raise
        writing.add_done_callback(lambda done: self._settle(number, done))
        return await asyncio.wrap_future(writing)

    async def _made(self, creation: Creation, number: int, making: "Future[bool]") -> bool:
        """What `_make` says; if it failed since the parent was removed beside it, that is the error."""
        try:
            return await asyncio.wrap_future(making)
        except Exception:  # whatever a snapshotter of somebody else's raises where files vanish under it
            self._db.read(lambda queries: self._ledger.creatable(queries, creation, number))
            raise

    def _settle(self, number: int, done: "Future[_Outcome]") -> None:
        """After the row's transaction: keep the snapshot, or take it back if there is no row."""
        if done.cancelled() or done.exception() is not None or not done.result().written:
            self._unmake_later(number)
        else:
            self.making.discard(number)

    def _write_create(
        self, tx: Transaction, creation: Creation, number: int, made: tuple[Snapshot, bool] | None = None
    ) -> _Outcome:
        """Check, make the snapshot unless that is done, and write its row.

        Args:
            made: what `_make` was given and returned, if it has been called.
        """
        snapshot, error = self._ledger.creatable(tx, creation, number)
        if error is not None:
            self._ledger.hold_existing(tx, creation)
            return _Outcome(snapshot, error, written=False)
        if made is None:
            tx.on_rollback(lambda: self._unmake(number))
            was_there = self._make(creation, snapshot)
        elif made[0].parents == snapshot.parents:
            was_there = made[1]
        else:
            raise errdefs.AbortedError(f'snapshot "{creation.key}": its parent was replaced while it was made')
        self._numbers.keep(tx, number)
        self._ledger.insert(tx, creation, snapshot, was_there=was_there)
        if was_there:
            error = errdefs.AlreadyExistsError(f'target snapshot "{creation.target}" from snapshotter')
        return _Outcome(snapshot, error)

    def _make(self, creation: Creation, snapshot: Snapshot) -> bool:
        """Have the snapshotter make it; True if it had the target of the request committed already."""
        try:
            with in_words(f'snapshot "{creation.key}": {"view" if creation.kind == Kind.VIEW else "prepare"}'):
                self.snapshotter.prepare(snapshot)
        except errdefs.AlreadyExistsError:
            if creation.target:
                return True
            raise
        return False

    def _freeze(self, snapshot: Snapshot, noted: _Noted | None) -> Usage:
        """All of a commit that is done on disk."""
        self.snapshotter.commit(snapshot)
        if noted is None:
            self.snapshotter.sync((snapshot.number,))
            failpoints.reach("snapshots.commit.synced")
        elif not self.snapshotter.whole:
            return noted.usage
        return self.snapshotter.usage(snapshot)

    def is_moving(self, number: int) -> bool:
        """Whether a snapshot is being made, and has no row yet, or removed, and has none any more."""
        return number in self.making or self.removal.is_going(number)

    def take_spare(self) -> int:
        """A number for a snapshot that gets no row: nobody sweeps it before `drop_spare`. For who makes one anew."""
        number = self._numbers.take()
        self.making.add(number)
        self._spare.add(number)
        return number

    def is_spare(self, number: int) -> bool:
        """Whether `take_spare` gave it out, and it is not dropped yet."""
        return number in self._spare

    def drop_spare(self, number: int) -> None:
        """Throw away what there is of a spare number; blocks."""
        try:
            self._db.write_sync(lambda tx: self.removal.throw_away(tx, number))
        finally:
            self.removal.let_go(number)
            self._spare.discard(number)
            self.making.discard(number)

    # -- outside ----------------------------------------------------------------------------------------------------

    def _unmake(self, number: int) -> None:
        """Take back what got no row. Its directory holds nothing yet, copies, or a layer."""
        home = self.snapshotter.home(number)
        if home is not None:
            with contextlib.suppress(OSError):  # what cannot be removed now is found by the next sweep
                trees.remove(home)
        self.removal.let_go(number)
        self.making.discard(number)

    def _unmake_later(self, number: int) -> None:
        with contextlib.suppress(RuntimeError):  # the executor has been shut down; the next sweep finds it
            self._executor.submit(self._unmake, number)

    async def _mounts(self, key: str, snapshot: Snapshot) -> list[Mount]:
        if "mounts" in self.snapshotter.quick:
            return self.snapshotter.mounts(snapshot)
        return await self._work(f'snapshot "{key}": mounts', self.snapshotter.mounts, snapshot)

    async def _work(self, what: str, function: Callable[..., T], *arguments: Any) -> T:
        with in_words(what):
            return await asyncio.wrap_future(self._executor.submit(function, *arguments))


def _checked(labels: Mapping[str, str] | None) -> Mapping[str, str]:
    try:
        labelling.validate_all(labels or {})
    except errdefs.InvalidArgumentError as error:
        raise errdefs.InvalidArgumentError(f"info.Labels: {error.text}") from None
    return labels or {}
