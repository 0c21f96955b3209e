"""The scheduler: who asks gets a collection that began afterwards; deletions get one soon; nothing comes of nothing."""

import asyncio
import contextlib
import threading
from typing import Any

import pytest

from orlop.base.errdefs import ResourceExhaustedError, UnavailableError
from orlop.core.gc import Policy, Scheduler, Stats
from orlop.core.gc.mark import Kind
from orlop.core.gc.scheduler import PART, SMALL_PART
from orlop.core.metadata import Database


class Recorder:
    """A collector that counts, can be held and can be made to fail."""

    def __init__(self):
        self.count = 0
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.error = None
        self.garbage = 0
        self.space = PART
        self.expiry = None
        self.waiting = 0
        self.done = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def collect(self, tx, limit):
        self.entered.set()
        if self.garbage:
            if limit > self.space:
                raise ResourceExhaustedError("no space left")
            count, self.garbage = min(limit, self.garbage), max(self.garbage - limit, 0)
            return Stats(removed={Kind.CONTENT: count}, freed_bytes=count)
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        self.count += 1
        tx.after_commit(lambda: self.loop.call_soon_threadsafe(self.done.set))
        return Stats(next_expiry=self.expiry, waiting=self.waiting)

    async def next(self):
        await asyncio.wait_for(self.done.wait(), 10)
        self.done.clear()


@contextlib.asynccontextmanager
async def running(tmp_path, policy=None, **options):
    with Database(tmp_path / "meta.db") as db:
        recorder: Any = Recorder()  # stands in for the collector
        scheduler = Scheduler(db, recorder, policy or Policy(startup_delay_s=0), **options)
        db.on_mutation = scheduler.mutated
        task = asyncio.create_task(scheduler.run())
        try:
            yield db, scheduler, recorder
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def test_it_collects_once_after_start_and_sweeps_before(tmp_path):
    seen = []

    async def main():
        async with running(tmp_path, first=[lambda: seen.append("swept")]) as (_db, _scheduler, recorder):
            await recorder.next()
            assert (recorder.count, seen) == (1, ["swept"])

    asyncio.run(main())


def test_a_failing_sweep_does_not_stop_it(tmp_path, caplog):
    def fail():
        raise OSError("disk on fire")

    async def main():
        async with running(tmp_path, first=[fail]) as (_db, _scheduler, recorder):
            await recorder.next()

    asyncio.run(main())
    assert "sweep after start failed" in caplog.text


def test_who_asks_during_a_collection_waits_for_the_next_one(tmp_path):
    async def main():
        async with running(tmp_path) as (_db, scheduler, recorder):
            await recorder.next()
            recorder.gate.clear()
            recorder.entered.clear()
            first = asyncio.create_task(scheduler.collect())
            await asyncio.to_thread(recorder.entered.wait, 10)
            later = [asyncio.create_task(scheduler.collect()) for _ in range(3)]
            await asyncio.sleep(0)
            recorder.gate.set()
            await first
            assert not any(task.done() for task in later)
            await asyncio.gather(*later)
            assert recorder.count == 3

    asyncio.run(main())


def test_who_asks_does_not_wait_for_the_startup_delay(tmp_path):
    async def main():
        async with running(tmp_path, Policy(startup_delay_s=1000)) as (_db, scheduler, _recorder):
            await asyncio.wait_for(scheduler.collect(), 10)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("policy", "deletion", "count", "collects"),
    [
        (Policy(startup_delay_s=0), True, 1, True),
        (Policy(startup_delay_s=0), False, 99, False),
        (Policy(startup_delay_s=0), False, 100, True),
        (Policy(startup_delay_s=0, mutation_threshold=0), False, 300, False),
        (Policy(startup_delay_s=0, pause_threshold=1e-9, deletion_threshold=3), True, 3, True),
        (Policy(startup_delay_s=0, pause_threshold=1e-9, deletion_threshold=3), True, 2, False),
    ],
)
def test_what_makes_a_collection_due(tmp_path, policy, deletion, count, collects):
    async def main():
        async with running(tmp_path, policy) as (db, scheduler, recorder):
            await recorder.next()
            await scheduler.collect()
            recorder.done.clear()
            for _ in range(count):
                await db.write(lambda tx: tx.mutated(deletion=deletion))
            if collects:
                await recorder.next()
                assert recorder.count == 3
            else:
                await asyncio.sleep(0)
                due = scheduler._delay()
                assert due is None or due > 1000

    asyncio.run(main())


def test_what_expires_is_collected_when_it_does(tmp_path):
    async def main():
        async with running(tmp_path, Policy(startup_delay_s=0, pause_threshold=0.5)) as (_db, scheduler, recorder):
            await recorder.next()
            recorder.expiry = 1
            await scheduler.collect()
            recorder.done.clear()
            recorder.expiry = None
            await recorder.next()
            assert recorder.count == 3

    asyncio.run(main())


def test_a_failed_collection_tells_those_who_wait_and_is_tried_again(tmp_path, caplog):
    async def main():
        async with running(tmp_path) as (_db, scheduler, recorder):
            await recorder.next()
            recorder.error = RuntimeError("no luck")
            with pytest.raises(RuntimeError, match="no luck"):
                await scheduler.collect()
            recorder.error = None
            await scheduler.collect()
            assert recorder.count == 2

    asyncio.run(main())
    assert "garbage collection failed" in caplog.text


@pytest.mark.parametrize("space", [PART, SMALL_PART])
@pytest.mark.parametrize("garbage", [1, SMALL_PART, PART, PART + 50])
def test_much_is_collected_in_parts_and_without_space_in_small_ones(tmp_path, garbage, space):
    async def main():
        async with running(tmp_path) as (_db, scheduler, recorder):
            await recorder.next()
            recorder.garbage, recorder.space = garbage, space
            stats = await scheduler.collect()
            assert stats.removed == {Kind.CONTENT: garbage}
            assert stats.freed_bytes == garbage
            assert recorder.garbage == 0

    asyncio.run(main())


def test_after_the_end_nobody_waits(tmp_path):
    async def main():
        async with running(tmp_path) as (_db, scheduler, recorder):
            await recorder.next()
            recorder.gate.clear()
            recorder.entered.clear()
            waiting = asyncio.create_task(scheduler.collect())
            await asyncio.to_thread(recorder.entered.wait, 10)
            recorder.gate.set()
        with contextlib.suppress(UnavailableError):
            await waiting
        with pytest.raises(UnavailableError):
            await scheduler.collect()
        scheduler.mutated(1, 1)

    asyncio.run(main())


def test_what_waits_for_a_sync_is_collected_after_it(tmp_path):
    """In the same collection, which who asked for it waits for."""

    async def main():
        def sync():
            recorder.waiting = 0

        async with running(tmp_path, sync=sync) as (_db, scheduler, recorder):
            await recorder.next()
            recorder.waiting = 2
            assert (await scheduler.collect()).waiting == 0
            assert recorder.count == 3

    asyncio.run(main())
