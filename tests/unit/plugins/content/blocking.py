"""A content store for tests that are no coroutines, and for threads: each call has an event loop of its own, or the
one that is given.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from orlop.core.content.store import ContentStore
from orlop.core.content.writer import ContentWriter


class Blocking:
    """Everything of a store as it is, and what opens something as blocking calls."""

    def __init__(self, store: ContentStore, run: Callable[[Coroutine[Any, Any, Any]], Any] = asyncio.run) -> None:
        self.store = store
        self.run = run

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def open(self, namespace: str, digest: str) -> Any:
        return self.run(self.store.reader(namespace, digest))

    def writer_sync(self, namespace: str, ref: str, **options: Any) -> "BlockingWriter":
        return BlockingWriter(self.run(self.store.writer(namespace, ref, **options)), self.run)


class BlockingWriter:
    """The same for a writer."""

    def __init__(self, writer: ContentWriter, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self.writer = writer
        self.run = run

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name)

    def write_sync(self, data: bytes) -> None:
        self.run(self.writer.write(data))

    def truncate_sync(self) -> None:
        self.run(self.writer.truncate())

    def commit_sync(self, **options: Any) -> Any:
        return self.run(self.writer.commit(**options))

    def close_sync(self) -> None:
        self.run(self.writer.close())
