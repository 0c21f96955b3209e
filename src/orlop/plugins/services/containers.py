"""The Containers service. Source: containerd's plugins/services/containers/local.go."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from google.protobuf.empty_pb2 import Empty

from orlop.api.events import container_pb2 as events
from orlop.api.services.containers.v1 import containers_pb2 as api
from orlop.base import namespaces
from orlop.base.errdefs import InvalidArgumentError, from_status
from orlop.base.rpc import Call, Service, bind
from orlop.core.containers import Container, Runtime
from orlop.core.kinds import GRPC, METADATA
from orlop.core.metadata import Database, Transaction
from orlop.core.metadata.containers import ContainerStore
from orlop.core.plugin import Context, Registration
from orlop.plugins.services.timestamps import set_timestamp


class Containers:
    """containerd.services.containers.v1.Containers."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._store = ContainerStore(db)

    def get(self, call: Call, request: api.GetContainerRequest) -> api.GetContainerResponse:
        namespace = namespaces.validate(call.namespace)
        return api.GetContainerResponse(container=_encode(self._store.get(namespace, request.id)))

    async def list(self, call: Call, request: api.ListContainersRequest) -> api.ListContainersResponse:
        namespace = namespaces.validate(call.namespace)
        response = api.ListContainersResponse()
        for page in self._store.pages(namespace, request.filters):
            for container in page:
                _fill(response.containers.add(), container)
            await asyncio.sleep(0)
        return response

    async def list_stream(
        self, call: Call, request: api.ListContainersRequest
    ) -> AsyncIterator[api.ListContainerMessage]:
        namespace = namespaces.validate(call.namespace)
        for page in self._store.pages(namespace, request.filters):
            for container in page:
                message = api.ListContainerMessage()
                _fill(message.container, container)
                yield message
            await asyncio.sleep(0)

    async def create(self, call: Call, request: api.CreateContainerRequest) -> api.CreateContainerResponse:
        namespace = namespaces.validate(call.namespace)
        given = _decode(request.container)

        def write(tx: Transaction) -> Container:
            created = self._store.create(tx, namespace, given, owner_uid=call.peer.uid)
            tx.publish(namespace, "/containers/create", _create_event(request.container))
            return created

        return api.CreateContainerResponse(container=_encode(await self._db.write(write)))

    async def update(self, call: Call, request: api.UpdateContainerRequest) -> api.UpdateContainerResponse:
        namespace = namespaces.validate(call.namespace)
        if not request.container.id:
            raise from_status(InvalidArgumentError.code, "Container.ID required")
        given = _decode(request.container)
        paths = tuple(request.update_mask.paths)

        def write(tx: Transaction) -> Container:
            updated = self._store.update(tx, namespace, given, paths)
            event = events.ContainerUpdate(
                id=updated.id, image=updated.image, labels=updated.labels, snapshot_key=updated.snapshot_key
            )
            tx.publish(namespace, "/containers/update", event)
            return updated

        return api.UpdateContainerResponse(container=_encode(await self._db.write(write)))

    async def delete(self, call: Call, request: api.DeleteContainerRequest) -> Empty:
        namespace = namespaces.validate(call.namespace)

        def write(tx: Transaction) -> None:
            self._store.delete(tx, namespace, request.id)
            tx.publish(namespace, "/containers/delete", events.ContainerDelete(id=request.id))

        await self._db.write(write)
        return Empty()


def _create_event(container: api.Container) -> events.ContainerCreate:
    event = events.ContainerCreate(id=container.id, image=container.image)
    event.runtime.name = container.runtime.name
    if container.runtime.HasField("options"):
        event.runtime.options.CopyFrom(container.runtime.options)
    return event


def _decode(message: api.Container) -> Container:
    runtime = message.runtime
    return Container(
        id=message.id,
        labels=dict(message.labels),
        image=message.image,
        runtime=Runtime(
            name=runtime.name, options=runtime.options.SerializeToString() if runtime.HasField("options") else None
        ),
        spec=message.spec.SerializeToString() if message.HasField("spec") else None,
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        extensions={name: value.SerializeToString() for name, value in message.extensions.items()},
        sandbox=message.sandbox,
    )


def _encode(container: Container) -> api.Container:
    message = api.Container()
    _fill(message, container)
    return message


def _fill(message: api.Container, container: Container) -> None:
    """Write a container into its message, field by field: by keywords it takes twice the time, which lists feel."""
    message.id = container.id
    if container.labels:
        message.labels.update(container.labels)
    message.image = container.image
    message.snapshotter = container.snapshotter
    message.snapshot_key = container.snapshot_key
    set_timestamp(message.created_at, container.created_at)
    set_timestamp(message.updated_at, container.updated_at)
    message.sandbox = container.sandbox
    message.runtime.name = container.runtime.name
    if container.runtime.options is not None:
        message.runtime.options.ParseFromString(container.runtime.options)
    if container.spec is not None:
        message.spec.ParseFromString(container.spec)
    for name, value in container.extensions.items():
        message.extensions[name].ParseFromString(value)


def _init(context: Context) -> Service:
    return bind(api.DESCRIPTOR.services_by_name["Containers"], Containers(context.get(METADATA)))


REGISTRATION: Final = Registration(kind=GRPC, id="containers", requires=(METADATA,), init=_init)
