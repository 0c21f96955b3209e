"""Asking a supervisor for the phases that it has noted."""

import contextlib
from typing import Final

from orlop.api.services.timings.v1 import timings_pb2 as pb
from orlop.base.errdefs import OrlopError
from orlop.base.phases import Phase
from orlop.core.runtime.shims import Shim

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Timings"].full_name
_TIMEOUT_S: Final = 2.0


async def read(shim: Shim, task_id: str, exec_id: str) -> list[Phase]:
    """What a supervisor knows of a process's times; nothing where it does not know, or does not answer."""
    request = pb.GetRequest(container_id=task_id, exec_id=exec_id)
    with contextlib.suppress(OrlopError):  # one of an older release serves no such thing; times are not worth a failure
        answer = await shim.call("Get", request, pb.GetResponse, timeout_s=_TIMEOUT_S, service=SERVICE)
        return [
            Phase(name=one.name, process=one.process, pid=one.pid, start_ns=one.start_ns, end_ns=one.end_ns)
            for one in answer.phases
        ]
    return []
