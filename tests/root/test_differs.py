"""Our differ against the contract."""

import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from orlop.core.content import Store
from orlop.core.content.remote import RemoteBlobs
from orlop.core.content.store import ContentStore
from orlop.core.diff import Differ
from orlop.core.diff.workers import Pool
from orlop.core.metadata import Database
from orlop.core.metadata.trash import Trash
from orlop.core.snapshots.stores import Stores
from orlop.plugins.content.local import LocalStore
from orlop.plugins.diff.walking import Walking
from orlop.testing.differs import DifferContract

pytestmark = pytest.mark.root


@contextlib.asynccontextmanager
async def walking(root: Path) -> AsyncIterator[tuple[Walking, Store]]:
    with Database(root / "meta.db") as db, Trash(root, db) as trash, Stores(db, trash, {}) as snapshots:
        store = LocalStore(root / "content", db, trash)
        try:
            async with Pool(1) as pool:
                yield Walking(store, snapshots, pool, {}, db=db), store
        finally:
            store.close()


@contextlib.asynccontextmanager
async def walking_elsewhere(root: Path) -> AsyncIterator[tuple[Walking, Store]]:
    """The same with its content in another store, of which there are no files."""
    there = root / "there"
    os.mkdir(there)
    with Database(there / "meta.db") as far, Trash(there, far) as its_trash:
        other = LocalStore(there / "content", far, its_trash)
        with Database(root / "meta.db") as db, Trash(root, db) as trash, Stores(db, trash, {}) as snapshots:
            try:
                async with RemoteBlobs(other, db, namespace="here") as blobs, Pool(1) as pool:
                    store = ContentStore(db, blobs)
                    yield Walking(store, snapshots, pool, {}, db=db), store
            finally:
                other.close()


class TestWalking(DifferContract):
    def differ(self, root: Path) -> AbstractAsyncContextManager[tuple[Differ, Store]]:
        return walking(root)


class TestWalkingElsewhere(DifferContract):
    def differ(self, root: Path) -> AbstractAsyncContextManager[tuple[Differ, Store]]:
        return walking_elsewhere(root)
