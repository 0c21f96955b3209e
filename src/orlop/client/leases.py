"""Leases, as `client.leases`: they keep what is being made from the garbage collector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from google.protobuf.empty_pb2 import Empty

from orlop.api.services.leases.v1 import leases_pb2 as pb
from orlop.client.channel import Rpc
from orlop.client.session import Session
from orlop.client.stamps import rfc3339, to_datetime
from orlop.core.leases import unique_id

_SERVICE = "containerd.services.leases.v1.Leases"
CREATE = Rpc(_SERVICE, "Create", pb.CreateRequest, pb.CreateResponse)
DELETE = Rpc(_SERVICE, "Delete", pb.DeleteRequest, Empty)
LIST = Rpc(_SERVICE, "List", pb.ListRequest, pb.ListResponse)
ADD = Rpc(_SERVICE, "AddResource", pb.AddResourceRequest, Empty)
REMOVE = Rpc(_SERVICE, "DeleteResource", pb.DeleteResourceRequest, Empty)
RESOURCES = Rpc(_SERVICE, "ListResources", pb.ListResourcesRequest, pb.ListResourcesResponse)

EXPIRE_LABEL = "containerd.io/gc.expire"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseInfo:
    """A lease as the daemon lists it."""

    id: str
    created_at: datetime
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What a lease holds: `type` is `content`, `ingests` or `snapshots/<snapshotter>`, `id` its name there."""

    id: str
    type: str


class Leases:
    """The leases of the namespace."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def create(
        self, lease_id: str = "", *, labels: Mapping[str, str] | None = None, expires_in: timedelta | None = None
    ) -> LeaseInfo:
        """Create a lease.

        Args:
            lease_id: chosen by the client when empty.
            expires_in: after which the collector may take it; None keeps it until it is deleted.
        """
        every = dict(labels or {})
        if expires_in is not None:
            every[EXPIRE_LABEL] = rfc3339(datetime.now(UTC) + expires_in)
        response = await self._session.call(CREATE, pb.CreateRequest(id=lease_id or unique_id(), labels=every))
        return _info(response.lease)

    async def delete(self, lease_id: str, *, synchronous: bool = False) -> None:
        """Delete a lease; `synchronous` returns after the collection that it allows. Raises NotFoundError."""
        await self._session.call(DELETE, pb.DeleteRequest(id=lease_id, sync=synchronous))

    async def add(self, lease_id: str, resource: Resource) -> None:
        """Let a lease hold a resource."""
        request = pb.AddResourceRequest(id=lease_id, resource=pb.Resource(id=resource.id, type=resource.type))
        await self._session.call(ADD, request)

    async def remove(self, lease_id: str, resource: Resource) -> None:
        """Let go of a resource."""
        request = pb.DeleteResourceRequest(id=lease_id, resource=pb.Resource(id=resource.id, type=resource.type))
        await self._session.call(REMOVE, request)

    async def resources(self, lease_id: str) -> list[Resource]:
        """What a lease holds."""
        response = await self._session.call(RESOURCES, pb.ListResourcesRequest(id=lease_id))
        return [Resource(id=one.id, type=one.type) for one in response.resources]

    async def list(self, filters: Sequence[str] = ()) -> list[LeaseInfo]:
        """All leases that match one of the filters."""
        response = await self._session.call(LIST, pb.ListRequest(filters=list(filters)))
        return [_info(lease) for lease in response.leases]


class Held:
    """A lease for the time of an operation: `async with Held(session) as session:` gives a session that names it.

    The lease is deleted on the way out, also after a failure; it expires after a day if this process dies.
    A session that names a lease already keeps that one.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._id = ""

    async def __aenter__(self) -> Session:
        if self._session.lease:
            return self._session
        self._id = (await Leases(self._session).create(expires_in=timedelta(hours=24))).id
        return self._session.with_lease(self._id)

    async def __aexit__(self, *_exc: object) -> None:
        if not self._id:
            return
        if not self._session.asynchronous:
            await Leases(self._session).delete(self._id)
            return
        import asyncio

        # A cancelled pull must not leave its lease behind for a day.
        await asyncio.shield(Leases(self._session).delete(self._id))


def _info(lease: pb.Lease) -> LeaseInfo:
    return LeaseInfo(id=lease.id, created_at=to_datetime(lease.created_at), labels=dict(lease.labels))
