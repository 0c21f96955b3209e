"""Containers, as `client.containers`: records from which tasks are made, and making them."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Self

from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from orlop.api.services.containers.v1 import containers_pb2 as pb
from orlop.api.services.tasks.v1 import tasks_pb2
from orlop.base.errdefs import FailedPreconditionError, NotFoundError
from orlop.client import tasks
from orlop.client.channel import Rpc
from orlop.client.io import NullIO, ProcessIO
from orlop.client.session import Session
from orlop.client.snapshots import Snapshots, to_mounts
from orlop.client.stamps import to_datetime
from orlop.client.tasks import Task

if TYPE_CHECKING:
    from orlop.client.checkpoint import CheckpointOptions
    from orlop.client.images import Image
    from orlop.core.mount import Mount
    from orlop.oci.spec import Spec

_SERVICE = "containerd.services.containers.v1.Containers"
GET = Rpc(_SERVICE, "Get", pb.GetContainerRequest, pb.GetContainerResponse)
LIST = Rpc(_SERVICE, "List", pb.ListContainersRequest, pb.ListContainersResponse)
LIST_STREAM = Rpc(_SERVICE, "ListStream", pb.ListContainersRequest, pb.ListContainerMessage)
CREATE = Rpc(_SERVICE, "Create", pb.CreateContainerRequest, pb.CreateContainerResponse)
UPDATE = Rpc(_SERVICE, "Update", pb.UpdateContainerRequest, pb.UpdateContainerResponse)
DELETE = Rpc(_SERVICE, "Delete", pb.DeleteContainerRequest, Empty)

DEFAULT_RUNTIME = "io.containerd.runc.v2"
SPEC_TYPE_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
STOP_SIGNAL_LABEL = "io.containerd.image.config.stop-signal"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRecord:
    """A container as the daemon holds it; `spec` is the JSON of its runtime-spec, `sandbox` what it is in, if it is."""

    id: str
    image: str = ""
    runtime: str = DEFAULT_RUNTIME
    runtime_options: PackedAny | None = None
    spec: bytes = b""
    snapshotter: str = ""
    snapshot_key: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    extensions: Mapping[str, PackedAny] = field(default_factory=dict)
    sandbox: str = ""
    created_at: datetime
    updated_at: datetime


class Container:
    """One container.

    Used as a context manager it is deleted on leaving, with its snapshot and, if there is one, its task.
    """

    def __init__(self, session: Session, record: ContainerRecord) -> None:
        self._session = session
        self._record = record

    @property
    def id(self) -> str:
        """Its name in the namespace."""
        return self._record.id

    @property
    def image(self) -> str:
        """The name of the image that it was made from; empty without one."""
        return self._record.image

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels when it was read."""
        return self._record.labels

    @property
    def record(self) -> ContainerRecord:
        """All that the daemon holds of it."""
        return self._record

    async def spec(self) -> "Spec":
        """Its runtime-spec as a struct; `record.spec` has the JSON with whatever else is in it."""
        from orlop.oci.spec import decode

        return decode(self._record.spec, what=f"spec of container {self.id}")

    async def mounts(self) -> "list[Mount]":
        """What makes its root file system; empty where its rootfs is not a snapshot."""
        if not self._record.snapshot_key:
            return []
        return await Snapshots(self._session, self._record.snapshotter).mounts(self._record.snapshot_key)

    async def new_task(
        self, io: ProcessIO | None = None, *, checkpoint: str = "", options: PackedAny | None = None
    ) -> Task:
        """Create its task, which waits to be started.

        Args:
            io: where its streams go; nowhere by default.
            checkpoint: digest of a checkpoint in the content store to restore from.
            options: for the runtime, instead of the container's own.
        """
        from orlop.api.types import descriptor_pb2
        from orlop.oci import media_types

        streams_of: ProcessIO = io or NullIO(terminal=await self._has_terminal())
        mounts = await self.mounts()
        streams = await self._session.blocking(streams_of.open, self.id)
        request = tasks_pb2.CreateTaskRequest(
            container_id=self.id,
            rootfs=to_mounts(mounts),
            stdin=streams.stdin,
            stdout=streams.stdout,
            stderr=streams.stderr,
            terminal=streams.terminal,
            options=options,
        )
        if checkpoint:
            request.checkpoint.CopyFrom(descriptor_pb2.Descriptor(media_type=media_types.CHECKPOINT, digest=checkpoint))
        try:
            response = await self._session.call(tasks.CREATE, request, endless=True)
        except BaseException:
            await self._session.blocking(streams_of.close)
            raise
        task = Task(self._session, self.id, io=streams_of, pid=response.pid)
        task.began()
        return task

    async def task(self, io: ProcessIO | None = None) -> Task:
        """Its task, made earlier or by someone else. Raises NotFoundError if it has none."""
        try:
            response = await self._session.call(tasks.GET, tasks_pb2.GetRequest(container_id=self.id))
        except NotFoundError as error:
            raise NotFoundError(f"no running task found: {error.text}") from error
        return Task(self._session, self.id, io=io, pid=response.process.pid)

    async def exec_spec(
        self, args: Sequence[str], *, cwd: str = "", user: str = "", tty: bool = False, env: Sequence[str] = ()
    ) -> bytes:
        """The process for `Task.exec`: as the container's own, with another command line."""
        from orlop.client.make import exec_process

        return await exec_process(self._session, self, args, cwd=cwd, user=user, tty=tty, env=env)

    async def checkpoint(self, ref: str, options: "CheckpointOptions | None" = None) -> "Image":
        """Keep what it takes to make it again, as an image named `ref`; `Client.restore` is the way back.

        A task that runs is paused meanwhile.

        Raises:
            AlreadyExistsError: there is an image of that name.
            FailedPreconditionError: a part is asked for that it has not.
            UnimplementedError: the daemon or the OCI runtime cannot take a task's state or make layers.
        """
        from orlop.client.checkpoint import CheckpointOptions, checkpoint

        return await checkpoint(self._session, self, ref, options or CheckpointOptions())

    async def label(self, labels: Mapping[str, str]) -> "Container":
        """Set labels and keep the others; an empty value removes a label."""
        request = pb.UpdateContainerRequest(
            container=pb.Container(id=self.id, labels=dict(labels)),
            update_mask=FieldMask(paths=[f"labels.{key}" for key in labels]),
        )
        return Container(self._session, _record((await self._session.call(UPDATE, request)).container))

    async def delete(self, *, keep_snapshot: bool = False) -> None:
        """Delete it, and its snapshot unless that is to be kept.

        Raises:
            FailedPreconditionError: it has a task.
        """
        try:
            await self._session.call(tasks.GET, tasks_pb2.GetRequest(container_id=self.id))
        except NotFoundError:
            pass
        else:
            raise FailedPreconditionError(
                f"cannot delete a non stopped container: container {self.id} has a task",
                hint=f"delete the task first: ctr tasks rm -f {self.id}",
            )
        if self._record.snapshot_key and not keep_snapshot:
            with contextlib.suppress(NotFoundError):  # removed by hand
                await Snapshots(self._session, self._record.snapshotter).remove(self._record.snapshot_key)
        await self._session.call(DELETE, pb.DeleteContainerRequest(id=self.id))

    async def _has_terminal(self) -> bool:
        import json

        process = json.loads(self._record.spec or b"{}").get("process") or {}
        return bool(process.get("terminal"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        with contextlib.suppress(NotFoundError):  # no task is left
            await (await self.task()).delete(force=True)
        with contextlib.suppress(NotFoundError):  # it has been deleted inside
            await self.delete()


class Containers:
    """The containers of the namespace."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def get(self, container_id: str) -> Container:
        """One container. Raises NotFoundError."""
        response = await self._session.call(GET, pb.GetContainerRequest(id=container_id))
        return Container(self._session, _record(response.container))

    async def create(
        self,
        container_id: str,
        spec: bytes,
        *,
        image: str = "",
        runtime: str = DEFAULT_RUNTIME,
        runtime_options: PackedAny | None = None,
        snapshotter: str = "",
        snapshot_key: str = "",
        labels: Mapping[str, str] | None = None,
        extensions: Mapping[str, PackedAny] | None = None,
        sandbox: str = "",
    ) -> Container:
        """Store a record; `Client.new_container` makes all that it needs. Raises AlreadyExistsError."""
        container = pb.Container(
            id=container_id,
            image=image,
            runtime=pb.Container.Runtime(name=runtime, options=runtime_options),
            spec=PackedAny(type_url=SPEC_TYPE_URL, value=spec),
            snapshotter=snapshotter,
            snapshot_key=snapshot_key,
            labels=dict(labels or {}),
            extensions=dict(extensions or {}),
            sandbox=sandbox,
        )
        response = await self._session.call(CREATE, pb.CreateContainerRequest(container=container))
        return Container(self._session, _record(response.container))

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[Container]:
        """Yield the containers that match one of the filters, one message each, for namespaces with very many."""
        async for message in self._session.receive(LIST_STREAM, pb.ListContainersRequest(filters=list(filters))):
            yield Container(self._session, _record(message.container))

    async def list(self, filters: Sequence[str] = ()) -> list[Container]:
        """The containers that match one of the filters, by id."""
        response = await self._session.call(LIST, pb.ListContainersRequest(filters=list(filters)))
        records = sorted((_record(one) for one in response.containers), key=lambda record: record.id)
        return [Container(self._session, record) for record in records]


def _record(container: pb.Container) -> ContainerRecord:
    return ContainerRecord(
        id=container.id,
        image=container.image,
        runtime=container.runtime.name,
        runtime_options=container.runtime.options if container.runtime.HasField("options") else None,
        spec=container.spec.value,
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        labels=dict(container.labels),
        extensions=dict(container.extensions),
        sandbox=container.sandbox,
        created_at=to_datetime(container.created_at),
        updated_at=to_datetime(container.updated_at),
    )
