"""`orlop.services.timings.v1.Timings` as the supervisor answers it: what it has noted of the processes' times."""

import dataclasses

from orlop.api.services.timings.v1 import timings_pb2 as pb
from orlop.base.phases import SUPERVISOR, Recent
from orlop.base.rpc import Call


class TimingsService:
    """Reads `recent`, which has the phases by container and exec id."""

    def __init__(self, recent: Recent[tuple[str, str]]) -> None:
        self._recent = recent

    def get(self, _call: Call, request: pb.GetRequest) -> pb.GetResponse:
        found = self._recent.find((request.container_id, request.exec_id))
        phases = found.of(SUPERVISOR) if found is not None else []
        return pb.GetResponse(phases=[pb.Phase(**dataclasses.asdict(phase)) for phase in phases])
