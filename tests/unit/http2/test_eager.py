"""Coroutines that are started at once: what they see of their task, and how they are cancelled."""

import asyncio
import contextvars

import pytest

from orlop.http2 import eager

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")


def run(scenario):
    """Call `scenario` from a callback of the loop, as the door is; it returns the task that is waited for."""

    async def main():
        loop = asyncio.get_running_loop()
        called = loop.create_future()
        loop.call_soon(lambda: called.set_result(scenario(loop)))
        task = await called
        if task is not None:
            await asyncio.wait([task])
        return task

    return asyncio.run(main())


def test_what_does_not_wait_ends_at_once():
    done = []

    async def work():
        done.append(True)

    assert run(lambda loop: eager.start(work(), loop)) is None
    assert done == [True]


def test_what_waits_goes_on_in_a_task():
    seen: list[object] = []

    async def work():
        seen.append("first")
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        seen.append(asyncio.current_task())

    task = run(lambda loop: eager.start(work(), loop))
    assert seen == ["first", task]
    assert task.exception() is None


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_cancelling_reaches_the_coroutine_whenever_it_comes(turns):
    seen = []

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)  # tidying may wait
            seen.append("tidied")

    async def main():
        loop = asyncio.get_running_loop()
        started = loop.create_future()
        loop.call_soon(lambda: started.set_result(eager.start(work(), loop)))
        task = await started
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(main())
    assert seen == ["tidied"]


def test_cancelling_right_after_the_start():
    """Before the task has made a step of its own."""
    seen = []

    async def work():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("told")
            raise

    def scenario(loop):
        task = eager.start(work(), loop)
        assert task is not None
        task.cancel()
        return task

    assert run(scenario).cancelled()
    assert seen == ["told"]


def test_timeouts_and_groups_work_in_the_first_step():
    seen = []

    async def child():
        await asyncio.sleep(0)
        seen.append("child")

    async def work():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        async with asyncio.TaskGroup() as group:
            group.create_task(child())
        with pytest.raises(ExceptionGroup):
            await group_that_fails()
        seen.append("work")

    async def group_that_fails():
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            await asyncio.sleep(60)

    async def fails():
        raise ValueError

    task = run(lambda loop: eager.start(work(), loop))
    assert seen == ["child", "work"]
    assert task.exception() is None


def test_context_variables_stay_the_coroutines_own():
    seen = []

    async def work():
        VARIABLE.set("inside")
        await asyncio.sleep(0)
        seen.append(VARIABLE.get())

    def scenario(loop):
        task = eager.start(work(), loop)
        seen.append(VARIABLE.get())
        return task

    run(scenario)
    assert seen == ["outside", "inside"]


def test_started_by_a_task_it_waits_for_its_turn():
    seen = []

    async def work():
        seen.append("work")

    async def main():
        task = eager.start(work(), asyncio.get_running_loop())
        if task is not None:
            await task

    asyncio.run(main())
    assert seen == ["work"]
