"""The Namespaces service. Source: containerd's plugins/services/namespaces/local.go."""

from typing import Any, Final

from google.protobuf.empty_pb2 import Empty

from orlop.api.events import namespace_pb2 as events
from orlop.api.services.namespaces.v1 import namespaces_pb2 as api
from orlop.base.errdefs import InvalidArgumentError, from_status
from orlop.base.rpc import Call, Service, bind
from orlop.core.gc import Scheduler
from orlop.core.kinds import CONTENT, GC, GRPC, METADATA
from orlop.core.metadata import Database, Transaction
from orlop.core.metadata.namespaces import Namespace, NamespaceStore
from orlop.core.plugin import Context, Registration

_LABELS: Final = "labels."


class Namespaces:
    """containerd.services.namespaces.v1.Namespaces. Requests name the namespace that they mean, not the header."""

    def __init__(self, db: Database, content: Any, collector: Scheduler) -> None:
        # Any: of the content store only `remove_ingest` is used, which the local one adds to the protocol.
        self._db = db
        self._content = content
        self._collector = collector
        self._store = NamespaceStore(db)

    def get(self, _call: Call, request: api.GetNamespaceRequest) -> api.GetNamespaceResponse:
        return api.GetNamespaceResponse(namespace=_encode(self._store.get(request.name)))

    def list(self, call: Call, _request: api.ListNamespacesRequest) -> api.ListNamespacesResponse:
        found = [one for one in self._store.list() if call.bound in ("", one.name)]
        return api.ListNamespacesResponse(namespaces=[_encode(one) for one in found])

    async def create(self, call: Call, request: api.CreateNamespaceRequest) -> api.CreateNamespaceResponse:
        name, labels = request.namespace.name, dict(request.namespace.labels)

        def write(tx: Transaction) -> Namespace:
            created = self._store.create(tx, name, labels, owner_uid=call.peer.uid)
            tx.publish(name, "/namespaces/create", events.NamespaceCreate(name=name, labels=labels))
            return created

        return api.CreateNamespaceResponse(namespace=_encode(await self._db.write(write)))

    async def update(self, _call: Call, request: api.UpdateNamespaceRequest) -> api.UpdateNamespaceResponse:
        name, labels = request.namespace.name, dict(request.namespace.labels)
        keys = None if not request.update_mask.paths else tuple(_key(path) for path in request.update_mask.paths)

        def write(tx: Transaction) -> Namespace:
            updated = self._store.update(tx, name, labels, keys)
            tx.publish(name, "/namespaces/update", events.NamespaceUpdate(name=name, labels=labels))
            return updated

        return api.UpdateNamespaceResponse(namespace=_encode(await self._db.write(write)))

    async def delete(self, _call: Call, request: api.DeleteNamespaceRequest) -> Empty:
        name = request.name
        if self._store.leftovers(self._db, name):
            # What nothing in it holds any more must not keep it; containerd refuses until its next collection.
            await self._collector.collect()

        def write(tx: Transaction) -> None:
            for ref in self._store.ingests(tx, name):
                self._content.remove_ingest(tx, name, ref)
            self._store.delete(tx, name)
            tx.publish(name, "/namespaces/delete", events.NamespaceDelete(name=name))

        await self._db.write(write)
        return Empty()


def _key(path: str) -> str:
    if not path.startswith(_LABELS):
        raise from_status(InvalidArgumentError.code, f'cannot update "{path}" field')
    return path.removeprefix(_LABELS)


def _encode(namespace: Namespace) -> api.Namespace:
    return api.Namespace(name=namespace.name, labels=namespace.labels)


def _init(context: Context) -> Service:
    service = Namespaces(context.get(METADATA), context.get(CONTENT), context.get(GC))
    return bind(api.DESCRIPTOR.services_by_name["Namespaces"], service)


REGISTRATION: Final = Registration(kind=GRPC, id="namespaces", requires=(METADATA, CONTENT, GC), init=_init)
