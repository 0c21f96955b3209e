"""The Tasks service's lists: whose answers they hold when tasks answer late, fail or are gone."""

import asyncio
from typing import Any, cast

import pytest

from orlop.api.runtime.task.v2 import shim_pb2
from orlop.api.services.tasks.v1 import tasks_pb2 as pb
from orlop.base.errdefs import NotFoundError, UnavailableError
from orlop.base.rpc import NAMESPACE_HEADER, Call, Peer
from orlop.core.runtime import Task
from orlop.plugins.services import tasks as service
from orlop.plugins.services.tasks import Tasks


class Asked(Task):
    """Says that it was asked, and answers when `gate` opens, with an error if there is one."""

    def __init__(self, task_id: str, asked: asyncio.Event, gate: asyncio.Event, error: Exception | None) -> None:
        self._id = task_id
        self._asked = asked
        self._gate = gate
        self._error = error
        self.waiting = False

    @property
    def namespace(self) -> str:
        return "apple"

    @property
    def id(self) -> str:
        return self._id

    async def state(self, exec_id: str = "") -> shim_pb2.StateResponse:
        self.waiting = True
        self._asked.set()
        await self._gate.wait()
        if self._error is not None:
            raise self._error
        return shim_pb2.StateResponse(pid=int(self._id))


class Manager:
    def __init__(self, tasks: list[Asked]) -> None:
        self.tasks = tasks

    def of_namespace(self, namespace: str) -> list[Asked]:
        assert namespace == "apple"
        return self.tasks


def listed(count: int, errors: dict[int, Exception]) -> tuple[list[int], int]:
    """The pids of a list of `count` tasks, and how many were asked before the first one answered."""

    async def run() -> tuple[list[int], int]:
        gate, asked_once = asyncio.Event(), asyncio.Event()
        tasks = [Asked(str(number), asked_once, gate, errors.get(number)) for number in range(count)]
        unused = cast("Any", None)
        call = Call(peer=Peer(door="test"), metadata={NAMESPACE_HEADER: "apple"})
        listing = asyncio.create_task(
            Tasks(unused, cast("Any", Manager(tasks)), unused).list(call, pb.ListTasksRequest())
        )
        await asked_once.wait()
        await asyncio.sleep(0)  # by then all that are asked at the same time have been
        asked = sum(task.waiting for task in tasks)
        gate.set()
        return [task.pid for task in (await listing).tasks], asked

    return asyncio.run(run())


def test_tasks_are_asked_together_and_shown_in_order():
    count = 2 * service.AT_ONCE + 3
    assert listed(count, {}) == (list(range(count)), service.AT_ONCE)


def test_who_is_gone_or_does_not_answer_is_left_out(caplog):
    errors = {1: NotFoundError("gone"), 2: UnavailableError("shim is gone"), 3: OSError("broken pipe")}
    assert listed(5, errors) == ([0, 4], 5)
    assert [record.message for record in caplog.records] == ["state of a task"] * 2


def test_a_defect_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        listed(2, {1: ZeroDivisionError()})
