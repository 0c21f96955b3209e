"""A content store for tests that are no coroutines, and for threads: each call has an event loop of its own."""

import asyncio
from typing import Any

from orlop.core.content.store import ContentStore
from orlop.core.content.writer import ContentWriter


class Blocking:
    """Everything of a store as it is, and what opens something as blocking calls."""

    def __init__(self, store: ContentStore) -> None:
        self.store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def open(self, namespace: str, digest: str) -> Any:
        return asyncio.run(self.store.reader(namespace, digest))

    def writer_sync(self, namespace: str, ref: str, **options: Any) -> "BlockingWriter":
        return BlockingWriter(asyncio.run(self.store.writer(namespace, ref, **options)))


class BlockingWriter:
    """The same for a writer."""

    def __init__(self, writer: ContentWriter) -> None:
        self.writer = writer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name)

    def write_sync(self, data: bytes) -> None:
        asyncio.run(self.writer.write(data))

    def truncate_sync(self) -> None:
        asyncio.run(self.writer.truncate())

    def commit_sync(self, **options: Any) -> Any:
        return asyncio.run(self.writer.commit(**options))

    def close_sync(self) -> None:
        asyncio.run(self.writer.close())
