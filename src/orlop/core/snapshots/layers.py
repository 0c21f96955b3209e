"""Layers that snapshots of several namespaces have in common: unpacked once, on disk once.

A layer's blob, unpacked onto the same snapshots, is the same files. So an unpacker's snapshot (its key begins with
`extract-`) is not filled: the layer goes into a directory with a number of its own, which nobody but the daemon ever
writes to, and a row in table `layers` says what it is. The snapshot's row refers to it, in whatever namespace, and has
no bytes of its own from its commit on:

    snapshots   a/extract-…   layer ─┐
                a/sha256:…    layer ─┼─▶  layers 12: blob sha256:… on [9, 7]   ─▶  <root>/12/
                b/sha256:…    layer ─┘

Who names a blob must have it, which the differ has looked at; who only knows a ChainID gets nothing. A directory that
was handed out to be written to is never shared: what one tenant could have changed, another must not run.

Many who want the same layer at the same time wait for one piece of work. It belongs to none of them: it goes on while
somebody waits, ends with the last, and if it fails for a reason that is its starter's (a quota), the next one does it.
A layer goes with the last row that refers to it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final, TypeVar

from orlop.base import errdefs, failpoints
from orlop.base.settling import settle
from orlop.core.metadata import Database, Transaction
from orlop.core.metadata.rows import decode_map
from orlop.core.mount import Mount
from orlop.core.snapshots import (
    GID_MAPPING,
    UID_MAPPING,
    UNPACK_KEY_PREFIX,
    Kind,
    Snapshot,
    Snapshotter,
    Usage,
    layer_rows,
    rows,
)
from orlop.core.snapshots.failures import in_words
from orlop.core.snapshots.layer_rows import Filled, Key
from orlop.core.snapshots.ledger import as_snapshot
from orlop.core.snapshots.numbers import Numbers

A = TypeVar("A")
T = TypeVar("T")

# Such failures are of the blob itself: whoever else waits would meet them too.
_OF_THE_BLOB: Final = (errdefs.InvalidArgumentError, errdefs.UnimplementedError)


Unpack = Callable[[Sequence[Mount]], Awaitable[Filled]]
"""Fills a new directory through its mounts. When it raises, all is removed."""


@dataclass(slots=True)
class _Work:
    """A layer that is being unpacked, and the snapshots that wait for it."""

    task: "asyncio.Task[None]"
    waiting: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """An active snapshot that may have its layer in common with others."""

    layers: "Layers"
    number: int
    below: tuple[int, ...]

    async def fill(self, digest: str, media_type: str, unpack: Unpack) -> Filled:
        """See `Layers.fill`."""
        return await self.layers.fill(self.number, Key(below=self.below, digest=digest, media_type=media_type), unpack)


class Layers:
    """The layers of one store. Belongs to one event loop.

    Args:
        name: the snapshotter's.
        making: numbers that have no row yet, which the sweep leaves alone.
        unmake: removes what there is of a number, some time soon.
    """

    def __init__(
        self,
        name: str,
        snapshotter: Snapshotter,
        *,
        db: Database,
        numbers: Numbers,
        executor: Executor,
        making: set[int],
        unmake: Callable[[int], None],
    ) -> None:
        self._name = name
        self._snapshotter = snapshotter
        self._db = db
        self._numbers = numbers
        self._executor = executor
        self._making = making
        self._unmake = unmake
        self._freezes = type(snapshotter).commit is not Snapshotter.commit
        self._works: dict[Key, _Work] = {}
        self._closed = False

    async def shared(self, namespace: str, number: int, mounts: Sequence[Mount]) -> Shared | None:
        """The active snapshot, of which these are the mounts, as one that may have its layer in common with others.

        None where it may not: it is no unpacker's or another namespace's, maps ids, holds something already, or its
        snapshotter does not share.

        Raises:
            DataLossError: a snapshot below may be incomplete since the machine stopped.
        """
        row = self._db.read(lambda queries: rows.active(queries, self._name, number))
        if row is None or not self._snapshotter.shares:
            return None
        labels = decode_map(row["labels"])
        mine = row["namespace"] == namespace and row["name"].startswith(UNPACK_KEY_PREFIX)
        if not mine or UID_MAPPING in labels or GID_MAPPING in labels:
            return None
        below = self._db.read(lambda queries: rows.chain(queries, row["parent"]))
        with in_words(f'snapshot "{row["name"]}": unpack'):
            snapshot = as_snapshot(row, below)
            if row["layer"] is None and not await self._called(self._snapshotter.untouched, snapshot):
                return None
            if await self._mounts(snapshot) != list(mounts):
                return None
        return Shared(layers=self, number=number, below=below)

    async def fill(self, number: int, key: Key, unpack: Unpack) -> Filled:
        """Have an active snapshot consist of a layer: one that is there, is under way, or is unpacked now.

        Raises:
            NotFoundError: the snapshot has gone meanwhile.
            FailedPreconditionError: it has another layer.
            OrlopError: what `unpack` raises.
        """
        while True:
            found = await self._referred(number, key)
            if found is not None:
                return found
            if self._closed:
                raise errdefs.UnavailableError(f"layer {key.digest}: the daemon is being stopped")
            work = self._works.get(key)
            leads = work is None
            if work is None:
                work = self._begin(key, unpack)
            work.waiting.append(number)
            try:
                await asyncio.wait([work.task])
            finally:
                work.waiting.remove(number)
                if not work.waiting:
                    work.task.cancel()
            error = None if work.task.cancelled() else work.task.exception()
            if error is not None and (leads or isinstance(error, _OF_THE_BLOB)):
                raise error

    async def close(self) -> None:
        """Stop what is under way."""
        self._closed = True
        tasks = [work.task for work in self._works.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _begin(self, key: Key, unpack: Unpack) -> _Work:
        task = asyncio.create_task(self._run(key, unpack), name=f"layer {key.digest}")
        # Also of one that is cancelled before its first step; it runs before those who wait go on.
        task.add_done_callback(lambda _done: self._works.pop(key))
        self._works[key] = work = _Work(task)
        return work

    async def _referred(self, number: int, key: Key) -> Filled | None:
        """The layer, if there is one; the snapshot's row refers to it then."""
        self._db.read(lambda queries: layer_rows.check(queries, number, key, None))
        if self._db.read(lambda queries: layer_rows.find(queries, self._name, key)) is None:
            return None

        def write(tx: Transaction) -> Filled | None:
            row = layer_rows.find(tx, self._name, key)
            if row is None:
                return None
            layer_rows.refer(tx, number, key, row["number"])
            return Filled(diff_id=row["diff_id"], size=row["tar_bytes"], usage=Usage(row["size_bytes"], row["inodes"]))

        return await self._db.write(write)

    async def _run(self, key: Key, unpack: Unpack) -> None:
        """Unpack a layer, and have the rows of all who wait refer to it."""
        number = self._numbers.take()
        snapshot = Snapshot(number=number, parents=key.below, kind=Kind.ACTIVE)
        kept = False

        def insert(filled: Filled) -> Callable[[Transaction], bool]:
            def write(tx: Transaction) -> bool:
                self._numbers.keep(tx, number)
                return layer_rows.insert(tx, self._name, number, key, filled, self._works[key].waiting)

            return write

        async def record(filled: Filled) -> None:
            nonlocal kept
            if self._freezes:
                await self._work(key, self._snapshotter.commit, snapshot)
            failpoints.reach("snapshots.layer.filled")
            kept = await self._db.write(insert(filled))
            failpoints.reach("snapshots.layer.recorded")

        self._making.add(number)
        try:
            await settle(self._work(key, self._snapshotter.prepare, snapshot))
            filled = await unpack(await self._mounts(snapshot))
            await settle(record(filled))
        finally:
            if kept:
                self._making.discard(number)
            else:
                self._unmake(number)

    async def _mounts(self, snapshot: Snapshot) -> list[Mount]:
        if "mounts" in self._snapshotter.quick:
            return self._snapshotter.mounts(snapshot)
        with in_words(f"mounts of number {snapshot.number}"):
            return await self._called(self._snapshotter.mounts, snapshot)

    async def _work(self, key: Key, function: Callable[[Snapshot], T], snapshot: Snapshot) -> T:
        with in_words(f"layer {key.digest}: number {snapshot.number}"):
            return await self._called(function, snapshot)

    async def _called(self, function: Callable[[A], T], argument: A) -> T:
        return await asyncio.wrap_future(self._executor.submit(function, argument))
