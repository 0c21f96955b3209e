"""The Mounts service. Source: containerd's plugins/services/mounts/service.go."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from google.protobuf.empty_pb2 import Empty

from orlop.api.services.mounts.v1 import mounts_pb2 as api
from orlop.api.types import mount_pb2 as types
from orlop.base import namespaces
from orlop.base.rpc import Call, Service, bind
from orlop.core.kinds import GRPC, MOUNT_MANAGER
from orlop.core.mount import Mount
from orlop.core.mount.activation import Activation
from orlop.core.mount.manager import MountManager
from orlop.core.plugin import Context, Registration
from orlop.plugins.services.timestamps import to_timestamp


class Mounts:
    """containerd.services.mounts.v1.Mounts."""

    def __init__(self, manager: MountManager) -> None:
        self._manager = manager

    async def activate(self, call: Call, request: api.ActivateRequest) -> api.ActivateResponse:
        activation = await self._manager.activate(
            namespaces.validate(call.namespace),
            request.name,
            [Mount(type=m.type, source=m.source, target=m.target, options=tuple(m.options)) for m in request.mounts],
            labels=dict(request.labels),
            temporary=request.temporary,
            lease=call.lease,
            owner_uid=call.peer.uid,
        )
        return api.ActivateResponse(info=_encode(activation))

    async def deactivate(self, call: Call, request: api.DeactivateRequest) -> Empty:
        await self._manager.deactivate(namespaces.validate(call.namespace), request.name)
        return Empty()

    def info(self, call: Call, request: api.InfoRequest) -> api.InfoResponse:
        namespace = namespaces.validate(call.namespace)
        return api.InfoResponse(info=_encode(self._manager.info(namespace, request.name)))

    async def update(self, call: Call, request: api.UpdateRequest) -> api.UpdateResponse:
        updated = await self._manager.update(
            namespaces.validate(call.namespace),
            request.info.name,
            dict(request.info.labels),
            tuple(request.update_mask.paths),
        )
        return api.UpdateResponse(info=_encode(updated))

    async def list(self, call: Call, request: api.ListRequest) -> AsyncIterator[api.ListMessage]:
        namespace = namespaces.validate(call.namespace)
        for page in self._manager.pages(namespace, request.filters):
            for activation in page:
                yield api.ListMessage(info=_encode(activation))
            await asyncio.sleep(0)


def _encode(activation: Activation) -> types.ActivationInfo:
    return types.ActivationInfo(
        name=activation.name,
        active=[
            types.ActiveMount(
                mount=_mount(one.mount),
                mounted_at=to_timestamp(one.mounted_at),
                mount_point=one.mount_point,
                data=one.data,
            )
            for one in activation.active
        ],
        system=[_mount(mount) for mount in activation.system],
        labels=activation.labels,
    )


def _mount(mount: Mount) -> types.Mount:
    return types.Mount(type=mount.type, source=mount.source, target=mount.target, options=mount.options)


def _init(context: Context) -> Service:
    return bind(api.DESCRIPTOR.services_by_name["Mounts"], Mounts(context.get(MOUNT_MANAGER)))


REGISTRATION: Final = Registration(kind=GRPC, id="mounts", requires=(MOUNT_MANAGER,), init=_init)
