"""The restart monitor: containers whose labels say so are started again when they have ended.

Every `interval` it compares what the labels want with what is. An exit wakes it at once for a container that has run
for at least one interval; one that ends sooner waits for its turn, so that a program which fails at start does not fail
all the time. It is a client of the services, like any other: what it does shows in events and obeys the same checks.

Source: plugins/restart of containerd.
"""

import asyncio
import contextlib
import inspect
import logging
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import DecodeError, Message

from orlop.api.events import task_pb2 as task_events
from orlop.api.services.containers.v1 import containers_pb2
from orlop.api.services.snapshots.v1 import snapshots_pb2
from orlop.api.services.tasks.v1 import tasks_pb2
from orlop.api.types.task import task_pb2
from orlop.base import durations, json_text
from orlop.base.errdefs import NotFoundError
from orlop.base.rpc import NAMESPACE_HEADER, Call, Peer, Service
from orlop.core.containers import Container
from orlop.core.events import Exchange, Subscription
from orlop.core.kinds import EVENT, GRPC, METADATA, MONITOR
from orlop.core.metadata.containers import ContainerStore
from orlop.core.plugin import Context, Registration
from orlop.core.runtime import restart

log: Final = logging.getLogger(__name__)

PEER: Final = Peer(door="restart monitor")
EXIT: Final = "/tasks/exit"
KILL_TIMEOUT_S: Final = 30.0
# A client that waits for the exit reads it and deletes the task by itself; it is given this long.
GRACE_S: Final = 1.0


@dataclass(slots=True)
class Config:
    """The plug-in's section of the configuration."""

    interval: str = "10s"

    def interval_s(self) -> float:
        """In seconds; 0 is the default, as in containerd. Raises InvalidArgumentError for a duration that is none."""
        return max(durations.parse(self.interval), 0) / 1e9 or 10.0


class Monitor:
    """Runs until it is cancelled; `run` is a task of whoever owns it."""

    def __init__(
        self, containers: ContainerStore, services: Mapping[str, Service], events: Exchange, interval_s: float
    ) -> None:
        self._containers = containers
        self._services = services
        self._events = events
        self.interval_s = interval_s
        self._busy: set[tuple[str, str]] = set()
        self._started: dict[tuple[str, str], float] = {}

    async def run(self) -> None:
        """Look at all containers at once and then every interval; at exits look at the one that has ended."""
        with Subscription(self._events, lambda envelope: envelope.topic == EXIT) as exits:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch(exits, group), name="restart-exits")
                while True:
                    await self.reconcile()
                    await asyncio.sleep(self.interval_s)

    async def reconcile(self) -> None:
        """Make every container that has a wish in its labels what it wishes to be. Failures are logged."""
        wishes = self._containers.restarted()
        known = {(namespace, container.id) for namespace, container in wishes}
        for gone in self._started.keys() - known:
            del self._started[gone]
        await asyncio.gather(*(self._reconcile_one(namespace, container.id) for namespace, container in wishes))

    async def _watch(self, exits: Subscription, group: asyncio.TaskGroup) -> None:
        async for envelope in exits:
            try:
                event = task_events.TaskExit.FromString(envelope.event.value)
            except DecodeError:
                continue  # anybody may publish
            key = (envelope.namespace, event.container_id)
            ran_s = time.monotonic() - self._started.get(key, -self.interval_s)
            if event.id == event.container_id and ran_s >= self.interval_s and self._has_wish(*key):
                group.create_task(self._ended(*key))

    def _has_wish(self, namespace: str, container_id: str) -> bool:
        with contextlib.suppress(NotFoundError):
            return restart.STATUS_LABEL in self._containers.get(namespace, container_id).labels
        return False

    async def _ended(self, namespace: str, container_id: str) -> None:
        await asyncio.sleep(min(GRACE_S, self.interval_s))
        await self._reconcile_one(namespace, container_id)

    async def _reconcile_one(self, namespace: str, container_id: str) -> None:
        key = (namespace, container_id)
        if key in self._busy:
            return
        self._busy.add(key)
        try:
            await self._make_true(namespace, self._containers.get(namespace, container_id))
        except NotFoundError:
            pass  # deleted meanwhile
        except Exception as error:  # whatever is in one container's spec must not end the watch over all others
            fields = {"namespace": namespace, "id": container_id, "error": str(error)}
            log.error("restart monitor: container is left as it is", extra=fields)
        finally:
            self._busy.discard(key)

    async def _make_true(self, namespace: str, container: Container) -> None:
        wish = container.labels[restart.STATUS_LABEL]
        process = await self._process(namespace, container.id)
        status = task_pb2.Status.Name(process.status).lower() if process is not None else ""
        if wish == status or (wish == "running" and status in ("paused", "pausing")):
            return
        if status in ("", "created") and time.time_ns() - container.updated_at < self.interval_s * 1e9:
            return  # its client is about to start it
        if wish == "stopped":
            await self._kill(namespace, container.id)
        elif wish == "running":
            exit_status = process.exit_status if process is not None else 0
            if restart.shall_start(container.labels, exit_status):
                await self._start(namespace, container)

    async def _process(self, namespace: str, container_id: str) -> task_pb2.Process | None:
        try:
            answer = await self._ask("tasks", "Get", tasks_pb2.GetRequest(container_id=container_id), namespace)
        except NotFoundError:
            return None
        process: task_pb2.Process = answer.process
        return process

    async def _start(self, namespace: str, container: Container) -> None:
        """Count, clear what is left of the last task, and start anew."""
        await self._count(namespace, container)
        await self._kill(namespace, container.id)
        rootfs: list[Any] = []
        if container.snapshot_key:
            request = snapshots_pb2.MountsRequest(snapshotter=container.snapshotter, key=container.snapshot_key)
            rootfs = list((await self._ask("snapshots", "Mounts", request, namespace)).mounts)
        uri = container.labels.get(restart.LOG_LABEL, "")
        terminal = bool(uri) and _has_terminal(container)
        create = tasks_pb2.CreateTaskRequest(
            container_id=container.id,
            rootfs=rootfs,
            stdout=uri,
            stderr="" if terminal else uri,
            terminal=terminal,
        )
        await self._ask("tasks", "Create", create, namespace)
        await self._ask("tasks", "Start", tasks_pb2.StartRequest(container_id=container.id), namespace)
        self._started[namespace, container.id] = time.monotonic()
        log.info("container is started again", extra={"namespace": namespace, "id": container.id})

    async def _count(self, namespace: str, container: Container) -> None:
        times = str(restart.count(container.labels) + 1)
        request = containers_pb2.UpdateContainerRequest(
            container=containers_pb2.Container(id=container.id, labels={restart.COUNT_LABEL: times}),
            update_mask=FieldMask(paths=[f"labels.{restart.COUNT_LABEL}"]),
        )
        await self._ask("containers", "Update", request, namespace)

    async def _kill(self, namespace: str, container_id: str) -> None:
        """End and delete the container's task, if it has one."""
        if await self._process(namespace, container_id) is None:
            return
        kill = tasks_pb2.KillRequest(container_id=container_id, signal=signal.SIGKILL, all=True)
        with contextlib.suppress(NotFoundError):  # it has ended already
            await self._ask("tasks", "Kill", kill, namespace)
        async with asyncio.timeout(KILL_TIMEOUT_S):
            await self._ask("tasks", "Wait", tasks_pb2.WaitRequest(container_id=container_id), namespace)
        await self._ask("tasks", "Delete", tasks_pb2.DeleteTaskRequest(container_id=container_id), namespace)

    async def _ask(self, service: str, method: str, request: Message, namespace: str) -> Any:
        """Call a service's handler. Any: the answer's class depends on the method."""
        call = Call(peer=PEER, metadata={NAMESPACE_HEADER: namespace})
        answer = self._services[service].methods[method].handler(call, request)
        return await answer if inspect.isawaitable(answer) else answer


def _has_terminal(container: Container) -> bool:
    spec = json_text.loads(AnyMessage.FromString(container.spec or b"").value or b"{}")
    return bool((spec.get("process") or {}).get("terminal"))


async def _init(context: Context) -> Monitor:
    context.capabilities += restart.POLICIES
    store = ContainerStore(context.get(METADATA))
    monitor = Monitor(store, context.all(GRPC), context.get(EVENT), context.config.interval_s())
    task = asyncio.get_running_loop().create_task(monitor.run(), name="orlop-restart")

    async def close() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def follow(config: Config) -> None:
        monitor.interval_s = config.interval_s()

    context.on_close(close)
    context.on_reload(follow)
    return monitor


REGISTRATION: Final = Registration(
    kind=MONITOR, id="restart", requires=(EVENT, METADATA, GRPC), config=Config, init=_init
)
