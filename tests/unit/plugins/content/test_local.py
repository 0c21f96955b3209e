"""The local content store against the contract, directly and through the Content service."""

import contextlib

from orlop.api.services.content.v1 import content_pb2 as api
from orlop.core.content import SharingPolicy
from orlop.core.content.proxy import ProxyStore
from orlop.core.metadata import Database
from orlop.core.metadata.trash import Trash
from orlop.plugins.content.local import LocalStore
from orlop.plugins.services.content import Content
from orlop.testing.content import ContentContract, IsolatedContract, SharedContract
from orlop.testing.services import InProcess


@contextlib.asynccontextmanager
async def local_store(root, policy=SharingPolicy.SHARED):
    with Database(root / "meta.db") as db, Trash(root, db) as trash:
        store = LocalStore(root / "content", db, trash, policy=policy)
        try:
            yield store
        finally:
            store.close()


@contextlib.asynccontextmanager
async def served_store(root):
    async with local_store(root) as store:
        yield ProxyStore(InProcess.of(api.DESCRIPTOR.services_by_name["Content"], Content(store)))


class TestLocal(ContentContract, SharedContract):
    def store(self, root):
        return local_store(root)


class TestIsolated(IsolatedContract):
    def store(self, root):
        return local_store(root, SharingPolicy.ISOLATED)


class TestThroughTheService(ContentContract, SharedContract):
    def store(self, root):
        return served_store(root)
