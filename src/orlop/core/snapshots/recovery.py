"""Snapshots whose files a loss of power may have taken are made again: before they are handed out, and after a start.

A committed one is unpacked again from the layer that it came from; an active one of a snapshotter that copies becomes a
copy of its parent again, which is all that was promised of it. Until then the old one is refused. How one takes the
place of the other is in `rebuilding.py`.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

from orlop.base import errdefs
from orlop.base.labels import SNAPSHOT_REF
from orlop.base.settling import settle
from orlop.core.diff import Applied, LayerBlob
from orlop.core.metadata import Database, Transaction
from orlop.core.metadata.rows import decode_map
from orlop.core.mount import Mount
from orlop.core.snapshots import UNPACK_KEY_PREFIX, Kind, inherited, rows, upkeep
from orlop.core.snapshots.origin import Origin
from orlop.core.snapshots.rebuilding import Rebuilding
from orlop.core.snapshots.store import Store
from orlop.core.snapshots.stores import Stores

log: Final = logging.getLogger(__name__)

T = TypeVar("T")

Apply = Callable[[str, LayerBlob, list[Mount]], Awaitable[Applied]]
"""Unpacks a layer of a namespace's content onto mounts."""

_ROW: Final = "SELECT * FROM snapshots WHERE number = ?"
_LAYER: Final = """
    SELECT l.*, b.size_bytes AS blob_bytes FROM layers AS l LEFT JOIN blobs AS b ON b.digest = l.digest
    WHERE l.number = ?
"""
_UNSYNCED: Final = """
    SELECT 1 FROM snapshots AS s LEFT JOIN layers AS l ON l.number = s.layer
    WHERE s.namespace = ? AND coalesce(l.digest, json_extract(s.origin, '$.digest')) = ?
    AND coalesce(l.synced_at, s.synced_at) IS NULL LIMIT 1
"""


class Recovery:
    """The recovery of all stores; each snapshot is made again once, however many wait for it."""

    def __init__(self, db: Database, stores: Stores, apply: Apply) -> None:
        self._db = db
        self._stores = stores
        self._apply = apply
        self._running: dict[int, asyncio.Task[bool]] = {}
        self._all: asyncio.Task[None] | None = None

    def start(self) -> None:
        """From now on what is lost is made again, when it is asked for, and one after the other."""
        for store in self._stores.values():
            store.recover = functools.partial(self.recover, store)
        self._all = asyncio.create_task(self._recover_all(), name="orlop-recovery")

    async def close(self) -> None:
        """End what is under way; it begins anew at the next start."""
        for store in self._stores.values():
            store.recover = None
        tasks = [*self._running.values(), *([self._all] if self._all is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def recover(self, store: Store, number: int) -> bool:
        """Make a lost snapshot whole, and those below it; False if that cannot be, which is logged with the reason."""
        task = self._running.get(number)
        if task is None:
            task = self._running[number] = asyncio.create_task(self._one(store, number))
            task.add_done_callback(lambda _done: self._running.pop(number, None))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise errdefs.UnavailableError(f"snapshot number {number}: the daemon stops") from None
            raise

    async def let_go(self, namespace: str, digest: str) -> None:
        """A blob is about to be deleted: sync what can only be made again as long as it is there."""
        if await asyncio.to_thread(self._db.one, _UNSYNCED, (namespace, digest)) is not None:
            await asyncio.to_thread(self._stores.flush)

    async def _recover_all(self) -> None:
        for store in self._stores.values():
            for row in upkeep.lost_snapshots(self._db, store):
                if not row["name"].startswith(UNPACK_KEY_PREFIX):  # nobody goes on with that
                    await self.recover(store, row["number"])

    async def _one(self, store: Store, number: int) -> bool:
        row = self._db.one(_ROW, (number,))
        if row is None or not rows.is_lost(row):
            return True
        about = {"namespace": row["namespace"], "snapshotter": store.name, "snapshot": row["name"]}
        try:
            for below in self._lost_below(row["parent"]):
                if not await self.recover(store, below):
                    return False
            async with self._again(store, row) as again:
                if not await settle(asyncio.to_thread(again.take_the_place)):
                    raise errdefs.AbortedError(f'snapshot "{row["name"]}": changed while it was made again')
        except Exception as error:
            log.error(
                "snapshot may be incomplete since the machine stopped, and cannot be made again; remove it and unpack"
                " its image again",
                extra={**about, "error": str(error)},
                exc_info=not isinstance(error, errdefs.OrlopError),
            )
            return False
        log.warning("snapshot was not on disk when the machine stopped: made again", extra=about)
        return True

    def _lost_below(self, parent: int | None) -> list[int]:
        """Those of the chain that are lost, the lowest first."""
        found = []
        while parent is not None and (row := self._db.one(_ROW, (parent,))) is not None:
            if rows.is_lost(row):
                found.append(int(row["number"]))
            parent = row["parent"]
        return found[::-1]

    @contextlib.asynccontextmanager
    async def _again(self, store: Store, row: rows.Row) -> AsyncIterator[Rebuilding]:
        """What the snapshot was, beside it."""
        origin = None
        if row["kind"] == Kind.COMMITTED:
            origin = self._origin(row)
            if origin is None:
                raise errdefs.FailedPreconditionError(f'snapshot "{row["name"]}": it is not known which layer it holds')
        if store.snapshotter.place(row["number"]) is None:
            raise errdefs.UnimplementedError(
                f'snapshot "{row["name"]}": snapshotter {store.name} lets nobody replace it'
            )
        await self._db.write(functools.partial(_forget_size, number=row["number"]))
        labels = inherited(decode_map(row["labels"]))
        labels.pop(SNAPSHOT_REF, None)  # says what the content is to those who have it already
        used = row["number"] not in store.lost_at_boot
        again = Rebuilding(self._db, store, row, labels, may_be_mounted=used)
        try:
            await settle(asyncio.to_thread(again.__enter__))
            if origin is not None:
                await self._fill(row["namespace"], origin, again.mounts)
                await settle(asyncio.to_thread(again.finish))
            yield again
        finally:
            await settle(asyncio.to_thread(again.__exit__))

    def _origin(self, row: rows.Row) -> Origin | None:
        if row["layer"] is None:
            return None if row["origin"] is None else Origin.decode(row["origin"])
        layer = self._db.one(_LAYER, (row["layer"],))
        if layer is None:
            return None
        return Origin(
            media_type=layer["media_type"],
            digest=layer["digest"],
            size_bytes=layer["blob_bytes"] or 0,
            diff_id=layer["diff_id"],
        )

    async def _fill(self, namespace: str, origin: Origin, mounts: list[Mount]) -> None:
        layer = LayerBlob(media_type=origin.media_type, digest=origin.digest, size=origin.size_bytes)
        applied = await self._apply(namespace, layer, mounts)
        if applied.digest != origin.diff_id:
            raise errdefs.DataLossError(f"content {origin.digest}: it holds {applied.digest}, not {origin.diff_id}")


def _forget_size(tx: Transaction, number: int) -> None:
    """What is lost counts in no quota, so that there is room to make it again."""
    tx.execute(
        "UPDATE snapshots SET size_bytes = 0, inodes = 0 WHERE number = ? AND synced_at = ?", (number, rows.LOST)
    )
