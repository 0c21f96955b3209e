"""The task monitor: what the cgroups of all tasks say, for whoever exposes metrics."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.any_pb2 import Any as AnyMessage

from orlop.api.cgroups.v1 import metrics_pb2 as v1
from orlop.api.cgroups.v2 import metrics_pb2 as v2
from orlop.base.errdefs import OrlopError
from orlop.core.kinds import RUNTIME, TASK_MONITOR
from orlop.core.metrics import Sample, cgroup1, cgroup2, samples
from orlop.core.plugin import Context, Registration
from orlop.core.runtime import Task, TaskManager

log: Final = logging.getLogger(__name__)

AT_ONCE: Final = 32
TIMEOUT_S: Final = 5.0


@dataclass(slots=True)
class Config:
    """The plug-in's section of the configuration."""

    no_prometheus: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSamples:
    """What one task's cgroup says."""

    namespace: str
    id: str
    samples: Sequence[Sample]


class Monitor:
    """Asks the shims when it is asked."""

    def __init__(self, tasks: TaskManager, *, quiet: bool = False) -> None:
        self._tasks = tasks
        self._quiet = quiet

    async def collect(self) -> Sequence[TaskSamples]:
        """The samples of every task whose shim answers in time; of the others nothing, which is logged."""
        if self._quiet:
            return []
        slots = asyncio.Semaphore(AT_ONCE)
        found = await asyncio.gather(*(self._one(task, slots) for task in self._tasks.all()))
        return [one for one in found if one is not None]

    async def _one(self, task: Task, slots: asyncio.Semaphore) -> TaskSamples | None:
        try:
            async with slots, asyncio.timeout(TIMEOUT_S):
                packed = await task.stats()
        except (OrlopError, OSError, TimeoutError) as error:
            log.debug("metrics of a task", extra={"namespace": task.namespace, "id": task.id, "error": str(error)})
            return None
        return TaskSamples(namespace=task.namespace, id=task.id, samples=list(decode(packed)))


def decode(packed: AnyMessage) -> Sequence[Sample]:
    """The samples in a shim's answer; none of a type that is not known (a foreign runtime's)."""
    name = packed.type_url.rpartition("/")[2]
    if name == v1.Metrics.DESCRIPTOR.full_name:
        return list(samples(cgroup1.FAMILIES, v1.Metrics.FromString(packed.value)))
    if name == v2.Metrics.DESCRIPTOR.full_name:
        return list(samples(cgroup2.FAMILIES, v2.Metrics.FromString(packed.value)))
    return []


def _init(context: Context) -> Monitor:
    return Monitor(context.get(RUNTIME), quiet=context.config.no_prometheus)


REGISTRATION: Final = Registration(kind=TASK_MONITOR, id="cgroups", requires=(RUNTIME,), config=Config, init=_init)
