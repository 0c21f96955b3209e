"""Our differ against the contract."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from orlop.core.content import Store
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


class TestWalking(DifferContract):
    def differ(self, root: Path) -> AbstractAsyncContextManager[tuple[Differ, Store]]:
        return walking(root)
