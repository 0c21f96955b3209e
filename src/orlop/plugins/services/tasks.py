"""The Tasks service: containers' processes, through the shims that hold them.

Source: plugins/services/tasks/local.go of containerd for what is checked, in which order and with which words.
"""

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from orlop.api.runtime.task.v2 import shim_pb2
from orlop.api.services.tasks.v1 import tasks_pb2
from orlop.api.types import descriptor_pb2, metrics_pb2
from orlop.api.types.runc.options.oci_pb2 import CheckpointOptions, Options
from orlop.api.types.task import task_pb2
from orlop.base import filters, namespaces
from orlop.base.errdefs import InvalidArgumentError, NotFoundError, OrlopError, UnknownError, from_status
from orlop.base.quoting import quote
from orlop.base.rpc import Call, Service, bind
from orlop.core.diff import LayerBlob
from orlop.core.kinds import CONTENT, DIFFER, GRPC, METADATA, RUNTIME
from orlop.core.metadata.containers import ContainerStore
from orlop.core.mount import Mount
from orlop.core.plugin import Context, Registration
from orlop.core.runtime import CreateOptions, Task, TaskManager
from orlop.core.runtime.bundle import Bootstrap
from orlop.core.runtime.checkpoints import Checkpoints, scratch
from orlop.core.runtime.tasks import ProcessIO
from orlop.oci import media_types

log: Final = logging.getLogger(__name__)

# Shims' answers that a list waits for at the same time: one that hangs holds up a batch once, and no queue grows long.
AT_ONCE: Final = 64

A = TypeVar("A")


class Tasks:
    """containerd.services.tasks.v1.Tasks."""

    def __init__(self, store: ContainerStore, manager: TaskManager, checkpoints: Checkpoints) -> None:
        self._containers = store
        self._manager = manager
        self._checkpoints = checkpoints

    async def create(self, call: Call, request: tasks_pb2.CreateTaskRequest) -> tasks_pb2.CreateTaskResponse:
        namespace = namespaces.validate(call.namespace)
        container = self._containers.get(namespace, request.container_id)
        task_options = request.options if request.HasField("options") else None
        checkpoint = _unpack(task_options, Options).criu_image_path if task_options is not None else ""
        image = request.checkpoint if request.HasField("checkpoint") and not checkpoint else None
        if image is not None and image.media_type != media_types.CHECKPOINT:
            raise UnknownError(f"unsupported checkpoint type {quote(image.media_type)}")
        spec = AnyMessage.FromString(container.spec or b"")
        stored = container.runtime.options
        container_options = AnyMessage.FromString(stored) if stored else None
        options = CreateOptions(
            runtime=request.runtime_path or container.runtime.name,
            spec_type=spec.type_url,
            spec=spec.value,
            rootfs=[
                Mount(type=m.type, source=m.source, target=m.target, options=tuple(m.options)) for m in request.rootfs
            ],
            io=ProcessIO(stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal),
            options=task_options if task_options is not None and task_options.value else container_options,
            checkpoint=checkpoint,
            sandbox=container.sandbox,
            task_api=_task_api(request, task_options),
            lay_out=functools.partial(self._checkpoints.lay_out, namespace, _blob(image))
            if image is not None
            else None,
        )
        pid = await self._manager.create(namespace, request.container_id, options)
        return tasks_pb2.CreateTaskResponse(container_id=request.container_id, pid=pid)

    async def start(self, call: Call, request: tasks_pb2.StartRequest) -> tasks_pb2.StartResponse:
        task = self._task(call, request.container_id)
        return tasks_pb2.StartResponse(pid=await task.start(request.exec_id))

    async def delete(self, call: Call, request: tasks_pb2.DeleteTaskRequest) -> tasks_pb2.DeleteResponse:
        task = self._task(call, request.container_id)
        reply = await self._manager.delete(task.namespace, task.id)
        return tasks_pb2.DeleteResponse(pid=reply.pid, exit_status=reply.exit_status, exited_at=reply.exited_at)

    async def delete_process(self, call: Call, request: tasks_pb2.DeleteProcessRequest) -> tasks_pb2.DeleteResponse:
        task = self._task(call, request.container_id)
        await task.state(request.exec_id)
        reply = await task.delete_exec(request.exec_id)
        return tasks_pb2.DeleteResponse(
            id=request.exec_id, pid=reply.pid, exit_status=reply.exit_status, exited_at=reply.exited_at
        )

    async def get(self, call: Call, request: tasks_pb2.GetRequest) -> tasks_pb2.GetResponse:
        task = self._task(call, request.container_id)
        state = await task.state(request.exec_id)
        return tasks_pb2.GetResponse(process=_process(request.exec_id or task.id, state))

    async def list(self, call: Call, _request: tasks_pb2.ListTasksRequest) -> tasks_pb2.ListTasksResponse:
        answers = await self._of_each(self._all(call), lambda task: task.state(), "state")
        return tasks_pb2.ListTasksResponse(tasks=[_process(task.id, state) for task, state in answers])

    async def kill(self, call: Call, request: tasks_pb2.KillRequest) -> Empty:
        task = self._task(call, request.container_id)
        await task.kill(request.signal, exec_id=request.exec_id, everyone=request.all)
        return Empty()

    async def exec(self, call: Call, request: tasks_pb2.ExecProcessRequest) -> Empty:
        if not request.exec_id:
            raise from_status(InvalidArgumentError.code, "exec id cannot be empty")
        task = self._task(call, request.container_id)
        stdio = ProcessIO(stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal)
        await task.exec(request.exec_id, request.spec, stdio)
        return Empty()

    async def resize_pty(self, call: Call, request: tasks_pb2.ResizePtyRequest) -> Empty:
        task = self._task(call, request.container_id)
        await task.resize_pty(request.width, request.height, exec_id=request.exec_id)
        return Empty()

    async def close_io(self, call: Call, request: tasks_pb2.CloseIORequest) -> Empty:
        task = self._task(call, request.container_id)
        if request.exec_id:
            await task.state(request.exec_id)
        if request.stdin:
            await task.close_stdin(exec_id=request.exec_id)
        return Empty()

    async def pause(self, call: Call, request: tasks_pb2.PauseTaskRequest) -> Empty:
        await self._task(call, request.container_id).pause()
        return Empty()

    async def resume(self, call: Call, request: tasks_pb2.ResumeTaskRequest) -> Empty:
        await self._task(call, request.container_id).resume()
        return Empty()

    async def list_pids(self, call: Call, request: tasks_pb2.ListPidsRequest) -> tasks_pb2.ListPidsResponse:
        reply = await self._task(call, request.container_id).pids()
        return tasks_pb2.ListPidsResponse(processes=reply.processes)

    async def checkpoint(
        self, call: Call, request: tasks_pb2.CheckpointTaskRequest
    ) -> tasks_pb2.CheckpointTaskResponse:
        task = self._task(call, request.container_id)
        container = self._containers.get(task.namespace, task.id)
        options = request.options if request.HasField("options") else None
        if options is not None and not _is(options, CheckpointOptions):
            raise UnknownError(f"invalid task checkpoint option for {container.runtime.name}")
        path = _unpack(options, CheckpointOptions).image_path
        if path:
            await task.checkpoint(path, options)
            return tasks_pb2.CheckpointTaskResponse()
        async with scratch(task.bundle.work) as directory:
            await task.checkpoint(str(directory), options)
            blobs = await self._checkpoints.store(task.namespace, directory, container.spec or b"", lease=call.lease)
        return tasks_pb2.CheckpointTaskResponse(descriptors=map(_descriptor, blobs))

    async def update(self, call: Call, request: tasks_pb2.UpdateTaskRequest) -> Empty:
        task = self._task(call, request.container_id)
        await self._manager.update(task, request.resources, request.annotations)
        return Empty()

    async def metrics(self, call: Call, request: tasks_pb2.MetricsRequest) -> tasks_pb2.MetricsResponse:
        matches = filters.parse_all(request.filters)
        tasks = [
            task for task in self._all(call) if matches(filters.adapt({"id": task.id, "namespace": task.namespace}))
        ]
        return tasks_pb2.MetricsResponse(metrics=[found for _, found in await self._of_each(tasks, _metric, "metrics")])

    async def wait(self, call: Call, request: tasks_pb2.WaitRequest) -> tasks_pb2.WaitResponse:
        task = self._task(call, request.container_id)
        if request.exec_id:
            await task.state(request.exec_id)
        reply = await task.wait(request.exec_id)
        return tasks_pb2.WaitResponse(exit_status=reply.exit_status, exited_at=reply.exited_at)

    async def _of_each(
        self, tasks: Sequence[Task], ask: Callable[[Task], Awaitable[A]], what: str
    ) -> Sequence[tuple[Task, A]]:
        """What each task answers, some asked at the same time; those that are gone or do not answer are left out."""
        answers: list[tuple[Task, A]] = []
        for first in range(0, len(tasks), AT_ONCE):
            batch = tasks[first : first + AT_ONCE]
            for task, answer in zip(batch, await asyncio.gather(*map(ask, batch), return_exceptions=True), strict=True):
                if isinstance(answer, NotFoundError):
                    continue  # deleted meanwhile
                if isinstance(answer, (OrlopError, OSError)):
                    known = {"namespace": task.namespace, "id": task.id, "error": str(answer)}
                    log.error("%s of a task", what, extra=known)
                    continue
                if isinstance(answer, BaseException):
                    raise answer
                answers.append((task, answer))
        return answers

    def _all(self, call: Call) -> Sequence[Task]:
        return self._manager.of_namespace(namespaces.validate(call.namespace))

    def _task(self, call: Call, container_id: str) -> Task:
        namespace = namespaces.validate(call.namespace)
        self._containers.get(namespace, container_id)
        return self._manager.get(namespace, container_id)


def _task_api(request: tasks_pb2.CreateTaskRequest, options: AnyMessage | None) -> Bootstrap | None:
    """Where the client says that a sandbox's tasks are made; in the options before containerd 2.1."""
    if request.task_api_address:
        return Bootstrap.of_task_api(request.task_api_address, request.task_api_version)
    named = _unpack(options, Options)
    return Bootstrap.of_task_api(named.task_api_address, named.task_api_version) if named.task_api_address else None


async def _metric(task: Task) -> metrics_pb2.Metric:
    metric = metrics_pb2.Metric(id=task.id)
    metric.timestamp.FromNanoseconds(time.time_ns())
    metric.data.CopyFrom(await task.stats())
    return metric


def _process(process_id: str, state: shim_pb2.StateResponse) -> task_pb2.Process:
    return task_pb2.Process(
        id=process_id,
        pid=state.pid,
        status=state.status,
        stdin=state.stdin,
        stdout=state.stdout,
        stderr=state.stderr,
        terminal=state.terminal,
        exit_status=state.exit_status,
        exited_at=state.exited_at,
    )


def _unpack(options: AnyMessage | None, cls: Any) -> Any:
    """Options as `cls`, or an empty message when they are of another type (a foreign runtime's). Any: two classes."""
    return cls.FromString(options.value) if options is not None and _is(options, cls) else cls()


def _is(options: AnyMessage, cls: Any) -> bool:
    return bool(options.type_url.rpartition("/")[2] == cls.DESCRIPTOR.full_name)


def _blob(descriptor: descriptor_pb2.Descriptor) -> LayerBlob:
    return LayerBlob(media_type=descriptor.media_type, digest=descriptor.digest, size=descriptor.size)


def _descriptor(blob: LayerBlob) -> descriptor_pb2.Descriptor:
    return descriptor_pb2.Descriptor(media_type=blob.media_type, digest=blob.digest, size=blob.size)


def _init(context: Context) -> Service:
    checkpoints = Checkpoints(context.get(CONTENT), context.all(DIFFER).get("walking"))
    tasks = Tasks(ContainerStore(context.get(METADATA)), context.get(RUNTIME), checkpoints)
    return bind(tasks_pb2.DESCRIPTOR.services_by_name["Tasks"], tasks)


REGISTRATION: Final = Registration(kind=GRPC, id="tasks", requires=(METADATA, CONTENT, DIFFER, RUNTIME), init=_init)
