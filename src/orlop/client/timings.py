"""Where the time of a process's start and end has gone, as `client.timings`. Not containerd's: our daemon's own."""

from orlop.api.services.timings.v1 import timings_pb2 as pb
from orlop.base.phases import CLIENT, Phase
from orlop.client.channel import Rpc
from orlop.client.session import Session

_SERVICE = "orlop.services.timings.v1.Timings"
GET = Rpc(_SERVICE, "Get", pb.GetRequest, pb.GetResponse)


class Timings:
    """What is known of the times of processes that were started lately, by whoever started them."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def of(self, container_id: str, exec_id: str = "") -> list[Phase]:
        """The phases that daemon and supervisor have noted of a container's process, or of an exec's, in no order.

        Both keep them for the last 64 processes, also after their end. `orlop.base.phases.arranged` lays them out.

        Raises:
            NotFoundError: none are known.
            UnimplementedError: the daemon is not ours.
        """
        request = pb.GetRequest(container_id=container_id, exec_id=exec_id)
        response = await self._session.call(GET, request)
        return [
            Phase(name=one.name, process=one.process, pid=one.pid, start_ns=one.start_ns, end_ns=one.end_ns)
            for one in response.phases
        ]

    def own(self) -> list[Phase]:
        """The calls of this client so far, if it is one of `Client.timed`."""
        return [] if self._session.phases is None else self._session.phases.of(CLIENT)
