"""When to collect: soon after something was deleted, yet never for more than a small part of the time.

After a collection that took `t` seconds on average, the next one that nobody waits for comes no sooner than
`t / pause_threshold - t` later. It comes if something was deleted, if very much was changed, or if something expires;
when nothing happens, nothing wakes up.
"""

import asyncio
import functools
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from orlop.base.errdefs import ResourceExhaustedError, UnavailableError
from orlop.core.gc.collector import Collector, Stats
from orlop.core.gc.mark import Kind
from orlop.core.metadata import Database

log: Final = logging.getLogger(__name__)

# The average is never taken as less, so that small databases are not collected all the time.
MINIMUM_S: Final = 0.005
MAXIMUM_PAUSE: Final = 0.5
# Without a pause threshold: containerd's first interval.
INTERVAL_S: Final = 1.0
RETRY_S: Final = 1.0
PART: Final = 5000
"""What is removed in one transaction: about half a second, after marking, in which nobody else writes."""
SMALL_PART: Final = 200
"""The same where there is no space for more: each part frees some for the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Thresholds; names and defaults are those of containerd's plug-in.

    Attributes:
        pause_threshold: the part of the time that collections may hold the writer, at most 0.5; 0 for no bound.
        deletion_threshold: deletions after which a collection does not wait for its turn; 0 for never.
        mutation_threshold: changes after which a collection is due though nothing was deleted; 0 for never.
        schedule_delay_s: how long one that is asked for waits for company.
        startup_delay_s: until the first one.
    """

    pause_threshold: float = 0.02
    deletion_threshold: int = 0
    mutation_threshold: int = 100
    schedule_delay_s: float = 0.0
    startup_delay_s: float = 0.1


class Scheduler:
    """Runs collections; `run` is a task of whoever owns the scheduler.

    Args:
        first: blocking work for a thread before the first collection: the sweeps of what a crash has left.
        sync: blocking work for a thread that syncs snapshots, for whose sake a collection has kept blobs.
    """

    def __init__(
        self,
        db: Database,
        collector: Collector,
        policy: Policy,
        *,
        first: Sequence[Callable[[], object]] = (),
        sync: Callable[[], object] = lambda: None,
    ) -> None:
        self._db = db
        self._collector = collector
        self._policy = policy
        self._first = first
        self._sync = sync
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._waiters: list[asyncio.Future[Stats]] = []
        self._mutations = 0
        self._deletions = 0
        self._spent_s = 0.0
        self._earliest = 0.0
        self._expiry: int | None = None
        self._closed = False
        self._counting = threading.Lock()  # the writer's thread counts up, the event loop begins anew
        self.collections = 0
        self.last: Stats | None = None
        self.after: list[Callable[[], Awaitable[None]]] = []
        """Called after each collection, for what is bound to leases and is in no database."""

    def follow(self, policy: Policy) -> None:
        """Judge by other thresholds from now on."""
        self._policy = policy
        self._wake.set()

    async def collect(self) -> Stats:
        """Wait for a collection that began after this call.

        Raises:
            UnavailableError: the daemon stops.
            Whatever made the collection fail.
        """
        if self._closed:
            raise UnavailableError("garbage collection: stopped")
        waiter: asyncio.Future[Stats] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wake.set()
        return await waiter

    def mutated(self, mutations: int, deletions: int) -> None:
        """`Database.on_mutation`: called on the writer's thread after each commit that changed something."""
        with self._counting:
            asked = self._urgency()
            self._mutations += mutations
            self._deletions += deletions
            if self._urgency() == asked:
                return  # what is due is due already; the event loop need not hear of every commit
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wake.set)

    async def run(self) -> None:
        """Collect when it is time, until cancelled."""
        self._loop = asyncio.get_running_loop()
        try:
            await self._sleep(self._policy.startup_delay_s, lambda: bool(self._waiters))
            for work in self._first:
                await self._prepare(work)
            while True:
                await self._once()
                await self._until_due()
        finally:
            self._closed = True
            self._loop = None
            self._answer(error=UnavailableError("garbage collection: stopped"))

    def _urgency(self) -> int:
        """What the counts ask for: nothing, a collection in its turn, or one that does not wait for it."""
        if 0 < self._policy.deletion_threshold <= self._deletions:
            return 2
        return 1 if self._deletions or 0 < self._policy.mutation_threshold <= self._mutations else 0

    def _delay(self) -> float | None:
        """Seconds until a collection is due, or None if nothing asks for one."""
        policy = self._policy
        if self._waiters or 0 < policy.deletion_threshold <= self._deletions:
            return policy.schedule_delay_s
        turn = max(self._earliest - time.monotonic(), 0.0)
        if self._deletions or 0 < policy.mutation_threshold <= self._mutations:
            return turn
        if self._expiry is not None:
            return max((self._expiry - time.time_ns()) / 1e9, turn)
        return None

    async def _until_due(self) -> None:
        while True:
            self._wake.clear()
            delay = self._delay()
            if delay is not None and delay <= 0:
                return
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                if delay is not None and self._delay() is not None:
                    return

    async def _sleep(self, seconds: float, enough: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not enough():
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            return

    async def _prepare(self, work: Callable[[], object], what: str = "sweep after start") -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(None, work)
        except Exception:
            # What was left over stays for the next start or collection; collecting works without.
            log.exception("%s failed", what)

    async def _once(self) -> None:
        with self._counting:
            self._mutations = self._deletions = 0
        waiters, self._waiters = self._waiters, []
        try:
            stats = await self._collect()
            if stats.waiting:
                await self._prepare(self._sync, "sync before a collection")
                stats = _sum(stats, await self._collect())
        except Exception as error:
            log.exception("garbage collection failed")
            self._earliest = time.monotonic() + RETRY_S
            with self._counting:
                self._deletions += 1
            self._answer(waiters, error=error)
            return
        except BaseException:
            self._waiters = waiters + self._waiters
            raise
        self.collections += 1
        self.last = stats
        self._expiry = stats.next_expiry
        self._spent_s += stats.elapsed_s
        self._earliest = time.monotonic() + self._interval_s()
        if stats.removed:
            log.info(
                "collected garbage",
                extra={
                    "removed": {kind.name.lower(): count for kind, count in stats.removed.items()},
                    "freed_bytes": stats.freed_bytes,
                    "ms": round(stats.elapsed_s * 1000, 1),
                },
            )
        for follow in self.after:
            try:
                await follow()
            except Exception:
                log.exception("after the collection")
        self._answer(waiters, stats=stats)

    async def _collect(self) -> Stats:
        """One collection: in parts if much goes, so that others write in between, and in small ones on a full disk."""
        parts: list[Stats] = []
        limit, more = PART, True
        while more:
            try:
                part = await self._db.write(functools.partial(self._collector.collect, limit=limit))
            except ResourceExhaustedError:
                if limit == SMALL_PART:
                    raise
                log.warning("garbage collection: no space to remove much at once: in small parts")
                limit = SMALL_PART
                continue
            parts.append(part)
            more = sum(part.removed.values()) == limit
        return _sum(*parts)

    def _interval_s(self) -> float:
        pause = min(max(self._policy.pause_threshold, 0.0), MAXIMUM_PAUSE)
        if not pause:
            return INTERVAL_S
        average = max(self._spent_s / self.collections, MINIMUM_S)
        return average / pause - average

    def _answer(
        self,
        waiters: Sequence[asyncio.Future[Stats]] | None = None,
        *,
        stats: Stats | None = None,
        error: BaseException | None = None,
    ) -> None:
        if waiters is None:
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if stats is not None:
                waiter.set_result(stats)
            elif error is not None:
                waiter.set_exception(error)


def _sum(*parts: Stats) -> Stats:
    """Collections that followed each other, as one."""
    removed: Counter[Kind] = sum((Counter(part.removed) for part in parts), Counter())
    return replace(
        parts[-1],
        removed=dict(removed),
        freed_bytes=sum(part.freed_bytes for part in parts),
        mark_s=sum(part.mark_s for part in parts),
        sweep_s=sum(part.sweep_s for part in parts),
    )
