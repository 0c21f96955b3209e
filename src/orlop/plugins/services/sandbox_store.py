"""The service of sandboxes' records. Source: containerd's plugins/services/sandbox/store_service.go."""

import asyncio
from typing import Final

from orlop.api.services.sandbox.v1 import sandbox_pb2 as api
from orlop.base import namespaces
from orlop.base.rpc import Call, Service, bind
from orlop.core.kinds import GRPC, METADATA, SANDBOX_STORE
from orlop.core.metadata import Database
from orlop.core.metadata.sandboxes import SandboxStore
from orlop.core.plugin import Context, Registration
from orlop.core.sandboxes.proxy import decode, encode


class Store:
    """containerd.services.sandbox.v1.Store."""

    def __init__(self, db: Database, store: SandboxStore) -> None:
        self._db = db
        self._store = store

    async def create(self, call: Call, request: api.StoreCreateRequest) -> api.StoreCreateResponse:
        namespace = namespaces.validate(call.namespace)
        given = decode(request.sandbox)
        created = await self._db.write(
            lambda tx: self._store.create(tx, namespace, given, owner_uid=call.peer.uid),
        )
        return api.StoreCreateResponse(sandbox=encode(created))

    async def update(self, call: Call, request: api.StoreUpdateRequest) -> api.StoreUpdateResponse:
        namespace = namespaces.validate(call.namespace)
        given, paths = decode(request.sandbox), tuple(request.fields)
        updated = await self._db.write(lambda tx: self._store.update(tx, namespace, given, paths))
        return api.StoreUpdateResponse(sandbox=encode(updated))

    async def delete(self, call: Call, request: api.StoreDeleteRequest) -> api.StoreDeleteResponse:
        namespace = namespaces.validate(call.namespace)
        await self._db.write(lambda tx: self._store.delete(tx, namespace, request.sandbox_id))
        return api.StoreDeleteResponse()

    async def list(self, call: Call, request: api.StoreListRequest) -> api.StoreListResponse:
        namespace = namespaces.validate(call.namespace)
        response = api.StoreListResponse()
        for page in self._store.pages(namespace, request.filters):
            response.list.extend(encode(sandbox) for sandbox in page)
            await asyncio.sleep(0)
        return response

    def get(self, call: Call, request: api.StoreGetRequest) -> api.StoreGetResponse:
        namespace = namespaces.validate(call.namespace)
        return api.StoreGetResponse(sandbox=encode(self._store.get(namespace, request.sandbox_id)))


def _store(context: Context) -> SandboxStore:
    return SandboxStore(context.get(METADATA))


def _init(context: Context) -> Service:
    service = Store(context.get(METADATA), context.get(SANDBOX_STORE))
    return bind(api.DESCRIPTOR.services_by_name["Store"], service)


REGISTRATIONS: Final = (
    Registration(kind=SANDBOX_STORE, id="local", requires=(METADATA,), init=_store),
    Registration(kind=GRPC, id="sandboxes", requires=(METADATA, SANDBOX_STORE), init=_init),
)
