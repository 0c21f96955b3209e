"""The manager of mounts: activations of all namespaces, performed below one directory and recorded in rows.

    activate      row (not complete), then the mounts, then the row completed
    performed     the same for a block of code, without completing the row
    deactivate    row removed, then the mounts undone
    collected     the same, the second part behind the collector's transaction
    start         rows whose mounts are not all there go, with what is left of them; so do directories without a row

So a crash between any two steps leaves what the next start finds, and never a row that claims more than there is. What
could not be undone because somebody uses it is tried again after each collection and at each start.

Operations on one name wait for each other; mounting and unmounting is done in an executor.

Source: containerd's core/mount/manager/manager.go.
"""

import asyncio
import contextlib
import logging
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from orlop.base.errdefs import InvalidArgumentError, OrlopError, UnimplementedError
from orlop.core.metadata import Database, Transaction
from orlop.core.metadata.mounts import Entry, MountStore
from orlop.core.mount import Mount, directories, plans
from orlop.core.mount.activation import Activation, ActiveMount, Handler
from orlop.core.mount.perform import as_error, mounts_below

T = TypeVar("T")

log: Final = logging.getLogger(__name__)

WORKERS: Final = 4
# As containerd counts them, in one byte.
MOUNTS_LIMIT: Final = 255
# As long as containerd tries again while a mount is busy.
PATIENCE_S: Final = 2.5


class _Performed(NamedTuple):
    """A plan that was carried out, and the number of its row."""

    number: int
    active: Sequence[ActiveMount]
    system: Sequence[Mount]


class MountManager:
    """Activations of mounts. `reconcile()` comes before anything else, `aclose()` last.

    Args:
        targets: the directory in which mounts are performed; made by `reconcile`.
        handlers: by the type of mount that each performs.
        roots: directories beneath which transforms may make files; `targets` is one in any case.
        patience_s: how long to try again while a mount that is to be undone is busy.
    """

    def __init__(
        self,
        db: Database,
        targets: Path,
        handlers: Mapping[str, Handler],
        *,
        roots: Sequence[Path] = (),
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._db = db
        self._store = MountStore(db)
        self._targets = targets
        self._handlers = dict(handlers)
        self._patience_s = patience_s
        self._roots = [str(root) for root in (targets, *roots)]
        self._executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="orlop-mounts")
        self._locks: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}
        self._running: set[asyncio.Task[Any]] = set()  # Any: what each comes to is its caller's affair
        self._busy: set[int] = set()
        self._undoing: set[int] = set()
        self._busy_lock = threading.Lock()

    # ---- what clients ask for

    async def activate(
        self,
        namespace: str,
        name: str,
        mounts: Sequence[Mount],
        *,
        labels: Mapping[str, str] | None = None,
        temporary: bool = False,
        lease: str = "",
        claimed: Collection[str] = (),
        owner_uid: int | None = None,
    ) -> Activation:
        """Perform what of `mounts` the system cannot, and say what is left to mount.

        When this returns, the mounts stand and survive this process; when it raises, nothing stays.

        Args:
            temporary: perform all of them; what is left is a bind mount of the result.
            lease: holds the activation as long as the lease is there.
            claimed: types and transforms that the caller does by itself.

        Raises:
            UnimplementedError: nothing of them needs this: mount them as they are.
            InvalidArgumentError: there are more than MOUNTS_LIMIT of them.
            AlreadyExistsError: there is an activation of that name.
            OrlopError: see `directories.perform_plan`.
        """
        plan = self._plan(mounts, temporary=temporary, claimed=claimed)
        if plan is None:
            raise UnimplementedError
        return await self._to_the_end(
            self._activate(namespace, name, plan, labels or {}, temporary, lease, owner_uid), namespace, name
        )

    @contextlib.asynccontextmanager
    async def performed(self, namespace: str, mounts: Sequence[Mount]) -> AsyncIterator[Sequence[Mount]]:
        """What is left to mount of `mounts`, for a block of the daemon's own; what was performed is undone after it.

        Nobody else sees such an activation, and the collector leaves it alone: its row is one that a crash leaves.
        Raises as `activate`, except that mounts that need nobody are given as they are.
        """
        plan = self._plan(mounts)
        if plan is None:
            yield mounts
            return
        name = f"orlop-{uuid.uuid4().hex}"
        performing = self._start(self._perform(namespace, name, plan), namespace, name)
        try:
            yield (await asyncio.shield(performing)).system
        finally:
            await self._to_the_end(self._undo(performing, namespace, name), namespace, name)

    async def deactivate(self, namespace: str, name: str) -> None:
        """Undo an activation.

        Raises:
            NotFoundError: there is none of that name.
            FailedPreconditionError: somebody uses it. The activation is gone all the same; its mounts are undone
                later.
        """
        await self._to_the_end(self._deactivate(namespace, name), namespace, name)

    async def deactivate_all(self) -> None:
        """Undo all activations of all namespaces; what is busy is logged and left to the next start."""
        for entry in self._store.entries():
            try:
                await self.deactivate(entry.namespace, entry.name)
            except OrlopError as error:
                fields = {"namespace": entry.namespace, "mount": entry.name, "error": str(error)}
                log.warning("an activation's mounts are left", extra=fields)

    def exists(self, namespace: str, name: str) -> bool:
        """Whether there is an activation of that name."""
        return self._store.exists(namespace, name)

    def info(self, namespace: str, name: str) -> Activation:
        """An activation. Raises NotFoundError."""
        return self._store.get(namespace, name)

    async def update(
        self, namespace: str, name: str, labels: Mapping[str, str], paths: Sequence[str] = ()
    ) -> Activation:
        """Change the labels of an activation; see `MountStore.update`."""
        return await self._db.write(lambda tx: self._store.update(tx, namespace, name, labels, paths))

    def pages(self, namespace: str, filters: Sequence[str] = ()) -> Iterator[Sequence[Activation]]:
        """Activations in the order of their names; see `MountStore.pages`."""
        return self._store.pages(namespace, filters)

    # ---- what the collector asks for

    def remove(self, tx: Transaction, number: int) -> None:
        """Remove an activation: its row within `tx`, its mounts after that."""
        self._store.remove(tx, number)
        self._undoing.add(number)
        tx.on_rollback(lambda: self._undoing.discard(number))
        tx.after_commit(lambda: self._later(number))

    def collected(self) -> None:
        """Try again what was busy; called after each collection, on any thread."""
        with self._busy_lock:
            numbers, self._busy = self._busy, set()
        for number in numbers:
            self._later(number)

    # ---- what a check asks for

    def orphans(self) -> list[int]:
        """Numbers of which there is something, and neither a row nor somebody who is undoing it; blocks."""
        there = self._numbers()

        def look(tx: Transaction) -> list[int]:
            known = {entry["number"] for entry in tx.execute("SELECT number FROM mounts")}
            with self._busy_lock:
                return sorted(there - known - self._undoing - self._busy)

        suspects = self._db.write_sync(look)
        return [number for number in suspects if self.directory(number).exists()]

    def broken(self) -> list[Entry]:
        """Activations of which not everything is mounted any more; blocks."""
        mounted = set(mounts_below("/"))
        return [
            entry
            for entry in self._store.entries()
            if entry.activation is not None
            and not directories.is_whole(entry.activation.active, self._handlers, mounted)
            and entry.number in {one.number for one in self._store.entries() if one.activation is not None}
            and not directories.is_whole(entry.activation.active, self._handlers, set(mounts_below("/")))
        ]

    def directory(self, number: int) -> Path:
        """Where an activation's mounts are performed."""
        return self._targets / str(number)

    def undo(self, number: int) -> None:
        """Undo what is left of a number without a row. Raises OrlopError: somebody uses it."""
        self._undoing.add(number)
        self._remove(number)

    # ---- life

    async def reconcile(self) -> None:
        """Make rows and mounts agree; before anything is activated."""
        await self._work(self._reconcile)

    async def aclose(self) -> None:
        """Finish what is running; activations stay."""
        if self._running:
            await asyncio.wait(self._running)
        await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)

    # ---- the work

    def _plan(
        self, mounts: Sequence[Mount], *, temporary: bool = False, claimed: Collection[str] = ()
    ) -> plans.Plan | None:
        if len(mounts) > MOUNTS_LIMIT:
            raise InvalidArgumentError(f"too many mounts ({len(mounts)}): maximum {MOUNTS_LIMIT}")
        return plans.make(mounts, handled=self._handlers, temporary=temporary, claimed=claimed)

    async def _activate(
        self,
        namespace: str,
        name: str,
        plan: plans.Plan,
        labels: Mapping[str, str],
        temporary: bool,
        lease: str,
        owner_uid: int | None,
    ) -> Activation:
        done = await self._perform(
            namespace, name, plan, labels=labels, temporary=temporary, lease=lease, owner_uid=owner_uid
        )
        async with self._undone_on_failure(done.number):
            return await self._db.write(lambda tx: self._store.complete(tx, done.number, done.active, done.system))

    async def _perform(
        self,
        namespace: str,
        name: str,
        plan: plans.Plan,
        *,
        labels: Mapping[str, str] | None = None,
        temporary: bool = False,
        lease: str = "",
        owner_uid: int | None = None,
    ) -> _Performed:
        """Everything except completing the row."""
        number, stale = await self._db.write(
            lambda tx: self._begin(tx, namespace, name, labels or {}, lease=lease, owner_uid=owner_uid)
        )
        async with self._undone_on_failure(number):
            if stale is not None:
                await self._work(lambda: self._remove_quietly(stale))
            directory = self._targets / str(number)
            active, system = await self._work(
                lambda: directories.perform_plan(plan, directory, self._handlers, self._roots, temporary=temporary)
            )
        return _Performed(number, active, system)

    def _begin(
        self,
        tx: Transaction,
        namespace: str,
        name: str,
        labels: Mapping[str, str],
        *,
        lease: str,
        owner_uid: int | None,
    ) -> tuple[int, int | None]:
        number, stale = self._store.begin(tx, namespace, name, labels, lease=lease, owner_uid=owner_uid)
        if stale is not None:
            self._undoing.add(stale)
            tx.on_rollback(lambda: self._undoing.discard(stale))
        return number, stale

    def _take(self, tx: Transaction, namespace: str, name: str) -> int:
        number = self._store.take(tx, namespace, name)
        self._undoing.add(number)
        tx.on_rollback(lambda: self._undoing.discard(number))
        return number

    @contextlib.asynccontextmanager
    async def _undone_on_failure(self, number: int) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            # The mounts first: a row without them is what the next start knows how to deal with.
            await self._work(lambda: self._remove_quietly(number))
            await self._db.write(lambda tx: self._store.remove(tx, number))
            raise

    async def _undo(self, performing: "asyncio.Task[_Performed]", namespace: str, name: str) -> None:
        await asyncio.wait([performing])
        if performing.cancelled() or performing.exception() is not None:
            return  # and undone
        try:
            await self._deactivate(namespace, name)
        except OrlopError as error:
            log.warning("mounts are left for now", extra={"number": performing.result().number, "error": str(error)})

    async def _deactivate(self, namespace: str, name: str) -> None:
        number = await self._db.write(lambda tx: self._take(tx, namespace, name))
        await self._work(lambda: self._remove(number))

    def _remove(self, number: int) -> None:
        """Undo the mounts of a number without a row; what is busy, or fails, is remembered."""
        try:
            directories.remove(self._targets / str(number), self._handlers, patience_s=self._patience_s)
        except (OrlopError, OSError):
            with self._busy_lock:
                self._busy.add(number)
            raise
        finally:
            self._undoing.discard(number)

    def _remove_quietly(self, number: int) -> None:
        try:
            self._remove(number)
        except (OrlopError, OSError) as error:
            log.warning("mounts of an activation are left", extra={"number": number, "error": str(error)})

    def _later(self, number: int) -> None:
        with contextlib.suppress(RuntimeError):  # closed: the next start finds it
            self._executor.submit(self._remove_quietly, number)

    def _reconcile(self) -> None:
        self._targets.mkdir(mode=0o700, parents=True, exist_ok=True)
        alive = set()
        mounted = set(mounts_below("/"))
        for entry in self._store.entries():
            if entry.activation is not None and directories.is_whole(entry.activation.active, self._handlers, mounted):
                alive.add(entry.number)
                continue
            fields = {"namespace": entry.namespace, "mount": entry.name, "number": entry.number}
            log.warning("an activation's mounts are not there any more", extra=fields)
            self._db.write_sync(lambda tx, number=entry.number: self._store.remove(tx, number))  # type: ignore[misc]
        for number in self._numbers() - alive:
            self._remove_quietly(number)

    def _numbers(self) -> set[int]:
        try:
            return {int(path.name) for path in self._targets.iterdir() if path.name.isdecimal()}
        except OSError as error:
            raise as_error(f"read {self._targets}", error) from error

    # ---- order

    async def _to_the_end(self, work: Coroutine[None, None, T], namespace: str, name: str) -> T:
        """Do `work` when the name is free, and to its end even when the caller goes away."""
        return await asyncio.shield(self._start(work, namespace, name))

    def _start(self, work: Coroutine[None, None, T], namespace: str, name: str) -> "asyncio.Task[T]":
        async def run() -> T:
            async with self._named(namespace, name):
                return await work

        task = asyncio.get_running_loop().create_task(run(), name=f"mounts of {namespace}/{name}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _work(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    @contextlib.asynccontextmanager
    async def _named(self, namespace: str, name: str) -> AsyncIterator[None]:
        """One at a time for each name."""
        key = (namespace, name)
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = (lock, users - 1)
