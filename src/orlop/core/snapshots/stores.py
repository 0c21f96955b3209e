"""All snapshotters' stores, as one value with a life: what services, unpackers and the collector get hold of."""

import asyncio
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self

from orlop.base.errdefs import InvalidArgumentError, OrlopError
from orlop.core.metadata import Database
from orlop.core.metadata.trash import Trash
from orlop.core.mount import Mount
from orlop.core.mount.options import value
from orlop.core.snapshots import Snapshotter, Usage, rows, upkeep
from orlop.core.snapshots.layers import Shared
from orlop.core.snapshots.numbers import Numbers
from orlop.core.snapshots.origin import Origin
from orlop.core.snapshots.store import Store

log: Final = logging.getLogger(__name__)

WORKERS: Final = 4
# After a commit without sync: long enough for the other layers of an image, short enough to be soon.
FLUSH_DELAY_S: Final = 2.0


class Stores(Mapping[str, Store]):
    """A context manager over the stores by snapshotter.

    Entering looks after what the last stop left (`upkeep.mark_lost`) and sweeps in the background; leaving syncs what
    is unsynced. It must lie inside the contexts of the database and the trash.

    Attributes:
        swept: set when the sweep after the start is through.
        unsynced: numbers of the committed snapshots whose files were not known to be on disk at the start.
    """

    def __init__(self, db: Database, trash: Trash, snapshotters: Mapping[str, Snapshotter]) -> None:
        self._db = db
        self._trash = trash
        self._snapshotters = snapshotters
        self._stores: dict[str, Store] = {}
        self._executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="orlop-snapshots")
        self._wake = threading.Event()
        self._stop = threading.Event()
        self.swept = threading.Event()
        self.unsynced: frozenset[int] = frozenset()
        self._thread = threading.Thread(target=self._run, name="orlop-snapshot-upkeep", daemon=True)

    def __enter__(self) -> Self:
        on_disk = [_highest(name, one) for name, one in self._snapshotters.items()]
        numbers = Numbers(self._db, at_least=max(on_disk, default=0))
        boot = upkeep.boot_id()
        self.unsynced = upkeep.unsynced(self._db)
        for name, snapshotter in self._snapshotters.items():
            store = Store(name, snapshotter, db=self._db, trash=self._trash, numbers=numbers, executor=self._executor)
            store.on_unsynced = self._wake.set
            upkeep.mark_lost(self._db, store, boot)
            self._stores[name] = store
        self._wake.set()  # an earlier daemon that was killed may not have come to its flush
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._executor.shutdown()
        self.flush()

    async def stop(self) -> None:
        """Stop unpacking layers that snapshots have in common."""
        await asyncio.gather(*(store.layers.close() for store in self._stores.values()))

    async def aclose(self) -> None:
        """Leave the context without blocking the event loop."""
        await asyncio.get_running_loop().run_in_executor(None, self.__exit__, None, None, None)

    def __getitem__(self, name: str) -> Store:
        return self._stores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stores)

    def __len__(self) -> int:
        return len(self._stores)

    def named(self, name: str) -> Store:
        """The store of the snapshotter that a request names.

        Raises:
            InvalidArgumentError: it names none, or one that is not loaded here.
        """
        if not name:
            raise InvalidArgumentError("snapshotter argument missing")
        store = self._stores.get(name)
        if store is None:
            raise InvalidArgumentError(
                f"snapshotter not loaded: {name}", hint=f"loaded are: {', '.join(self._stores) or 'none'}"
            )
        return store

    def note_applied(self, mounts: Sequence[Mount], usage: Usage, origin: Origin | None = None) -> None:
        """Say that a whole layer out of a durable blob was unpacked into `mounts`, and what it takes there.

        For who has the mounts of an active snapshot and not its key, as the diff service; see `Store.note_usage`.
        Mounts that are no snapshot's are ignored.
        """
        found = self._located(mounts)
        if found is not None:
            store, number = found
            store.note_applied(number, usage, origin)

    def image(self, mounts: Sequence[Mount]) -> str | None:
        """Where a layer to be unpacked into `mounts` may be put as an image instead; see `Snapshotter.image`."""
        found = self._located(mounts)
        if found is None:
            return None
        store, number = found
        return store.image(number)

    async def shared(self, namespace: str, mounts: Sequence[Mount]) -> Shared | None:
        """The snapshot that `mounts` are of, if it may have its layer in common with others; see `Layers.shared`."""
        found = self._located(mounts)
        if found is None:
            return None
        store, number = found
        return await store.layers.shared(namespace, number, mounts)

    def image_of(self, mounts: Sequence[Mount]) -> str | None:
        """`image` for a layer that snapshots have in common: `mounts` are of its own number, which has no row yet."""
        found = self._located(mounts)
        return found[0].snapshotter.image(found[1]) if found is not None else None

    def _located(self, mounts: Sequence[Mount]) -> tuple[Store, int] | None:
        """The active snapshot that `mounts` write to."""
        for path in _written_through(mounts):
            for store in self._stores.values():
                number = store.snapshotter.locate(path)
                if number is not None:
                    return store, number
        return None

    def room_beside(self, mounts: Sequence[Mount]) -> Path | None:
        """The directory of directories in which that of the snapshot lies which these mounts are of.

        None if they are no snapshot's, or one's of a snapshotter whose layers depend on what is below them, or of one
        that is only made to be compared.
        """
        found = self._located(mounts)
        if found is None or not _makes_layers_alone(found[0].snapshotter):
            return None
        store, number = found
        if store.is_spare(number):
            return None
        home = store.snapshotter.home(number)
        return None if home is None else home.parent

    def rooms(self) -> list[Path]:
        """What `room_beside` can answer."""
        homes = (one.home(0) for one in self._snapshotters.values() if _makes_layers_alone(one))
        return [home.parent for home in homes if home is not None]

    def last_room(self, namespace: str) -> Path | None:
        """That in which the last layer was unpacked for a namespace, as far as there is a snapshot of it."""
        name = self._db.read(lambda queries: rows.last_unpacked(queries, namespace))
        store = self._stores.get(name) if name is not None else None
        if store is None or not _makes_layers_alone(store.snapshotter):
            return None
        home = store.snapshotter.home(0)
        return None if home is None else home.parent

    def makes_images(self, room: Path) -> bool:
        """Whether layers in a `room_beside` are images; see `Snapshotter.image`."""
        return any(one.home(0) == room / "0" and one.image(0) is not None for one in self._snapshotters.values())

    async def cleanup(self, name: str) -> None:
        """Remove what has no row, and have the snapshotter free what removed snapshots still take."""
        store = self.named(name)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, store.removal.finish)
        await loop.run_in_executor(self._executor, upkeep.sweep, self._db, store)
        await loop.run_in_executor(self._executor, store.snapshotter.cleanup)

    def flush(self) -> None:
        """Sync now what is unsynced; blocks. What cannot be synced is refused from then on, and logged."""
        for store in self._stores.values():
            self._flush(store)

    def _run(self) -> None:
        for store in self._stores.values():
            try:
                upkeep.sweep(self._db, store)
            except Exception:
                # The store works all the same; what was not swept is found next time.
                log.exception("snapshots: sweep failed", extra={"snapshotter": store.name})
        self.swept.set()
        if self.unsynced:
            self._wake.set()  # of a daemon that was killed: the page cache has them still
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            if self._stop.wait(FLUSH_DELAY_S):
                return
            self.flush()

    def _flush(self, store: Store) -> None:
        try:
            upkeep.flush(self._db, store)
        except Exception:
            # If even that could not be noted, they stay unsynced in their rows and are tried with the next ones.
            log.exception("snapshots: sync failed", extra={"snapshotter": store.name})


def _makes_layers_alone(snapshotter: Snapshotter) -> bool:
    """Whether a layer can be made before those below it are known, and put in its place later."""
    return "rebase" in snapshotter.capabilities or snapshotter.image(0) is not None


def _highest(name: str, snapshotter: Snapshotter) -> int:
    """The highest number that the snapshotter has something of; 0 if one behind a socket does not answer now."""
    try:
        return max(snapshotter.numbers(), default=0)
    except OrlopError as error:
        log.warning("snapshotter does not answer", extra={"snapshotter": name, "error": str(error)})
        return 0


def _written_through(mounts: Sequence[Mount]) -> Iterator[str]:
    """The directories that get what is written to `mounts`: an overlay's upper one, a writable bind's source."""
    for mount in mounts:
        upper = value(mount.options, "upperdir")
        if upper is not None:
            yield upper
        elif mount.type == "bind" and "ro" not in mount.options:
            yield mount.source
