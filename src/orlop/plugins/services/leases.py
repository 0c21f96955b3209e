"""The Leases service. Source: containerd's plugins/services/leases/service.go and plugins/leases/local.go."""

from typing import Final

from google.protobuf.empty_pb2 import Empty

from orlop.api.services.leases.v1 import leases_pb2 as api
from orlop.base import namespaces
from orlop.base.rpc import Call, Service, bind
from orlop.core.gc import Scheduler
from orlop.core.kinds import GC, GRPC, METADATA
from orlop.core.leases import Lease, Resource, unique_id
from orlop.core.metadata import Database
from orlop.core.metadata.leases import LeaseStore
from orlop.core.plugin import Context, Registration
from orlop.plugins.services.timestamps import to_timestamp


class Leases:
    """containerd.services.leases.v1.Leases."""

    def __init__(self, db: Database, collector: Scheduler) -> None:
        self._db = db
        self._collector = collector
        self._store = LeaseStore(db)

    async def create(self, call: Call, request: api.CreateRequest) -> api.CreateResponse:
        namespace = namespaces.validate(call.namespace)
        lease_id = request.id or unique_id()
        labels = dict(request.labels)
        lease = await self._db.write(
            lambda tx: self._store.create(tx, namespace, lease_id, labels, owner_uid=call.peer.uid)
        )
        return api.CreateResponse(lease=_encode(lease))

    async def delete(self, call: Call, request: api.DeleteRequest) -> Empty:
        namespace = namespaces.validate(call.namespace)
        await self._db.write(lambda tx: self._store.delete(tx, namespace, request.id))
        if request.sync:
            await self._collector.collect()
        return Empty()

    def list(self, call: Call, request: api.ListRequest) -> api.ListResponse:
        namespace = namespaces.validate(call.namespace)
        return api.ListResponse(leases=[_encode(lease) for lease in self._store.list(namespace, request.filters)])

    async def add_resource(self, call: Call, request: api.AddResourceRequest) -> Empty:
        namespace = namespaces.validate(call.namespace)
        resource = Resource(type=request.resource.type, id=request.resource.id)
        await self._db.write(lambda tx: self._store.add_resource(tx, namespace, request.id, resource))
        return Empty()

    async def delete_resource(self, call: Call, request: api.DeleteResourceRequest) -> Empty:
        namespace = namespaces.validate(call.namespace)
        resource = Resource(type=request.resource.type, id=request.resource.id)
        await self._db.write(lambda tx: self._store.delete_resource(tx, namespace, request.id, resource))
        return Empty()

    def list_resources(self, call: Call, request: api.ListResourcesRequest) -> api.ListResourcesResponse:
        namespace = namespaces.validate(call.namespace)
        return api.ListResourcesResponse(
            resources=[
                api.Resource(id=resource.id, type=resource.type)
                for resource in self._store.list_resources(namespace, request.id)
            ]
        )


def _encode(lease: Lease) -> api.Lease:
    return api.Lease(id=lease.id, labels=lease.labels, created_at=to_timestamp(lease.created_at))


def _init(context: Context) -> Service:
    return bind(api.DESCRIPTOR.services_by_name["Leases"], Leases(context.get(METADATA), context.get(GC)))


REGISTRATION: Final = Registration(kind=GRPC, id="leases", requires=(METADATA, GC), init=_init)
