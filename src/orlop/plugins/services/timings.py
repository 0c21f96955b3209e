"""The Timings service, which is our own: where the time of a process's start and end has gone."""

import dataclasses
from typing import Final

from orlop.api.services.timings.v1 import timings_pb2 as pb
from orlop.base import namespaces
from orlop.base.rpc import Call, Service, bind
from orlop.core.kinds import GRPC, RUNTIME
from orlop.core.plugin import Context, Registration
from orlop.core.runtime import TaskManager


class Timings:
    """orlop.services.timings.v1.Timings."""

    def __init__(self, manager: TaskManager) -> None:
        self._manager = manager

    async def get(self, call: Call, request: pb.GetRequest) -> pb.GetResponse:
        namespace = namespaces.validate(call.namespace)
        phases = await self._manager.phases(namespace, request.container_id, request.exec_id)
        return pb.GetResponse(phases=[pb.Phase(**dataclasses.asdict(phase)) for phase in phases])


def _init(context: Context) -> Service:
    return bind(pb.DESCRIPTOR.services_by_name["Timings"], Timings(context.get(RUNTIME)))


REGISTRATION: Final = Registration(kind=GRPC, id="timings", requires=(RUNTIME,), init=_init)
