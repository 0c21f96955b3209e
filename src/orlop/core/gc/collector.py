"""One collection: mark, remove the rows that were not marked, put their bytes into the trash; one write transaction."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from orlop.core.gc.graph import Graph
from orlop.core.gc.mark import Kind, Node, mark
from orlop.core.metadata import Transaction

log: Final = logging.getLogger(__name__)


class ContentRemover(Protocol):
    """What the collector needs of the content store; all within a transaction."""

    def remove_record(self, tx: Transaction, namespace: str, digest: str, /) -> int:
        """Remove a namespace's record of a blob; returns the bytes that become free."""
        ...

    def remove_ingest(self, tx: Transaction, namespace: str, ref: str, /) -> None:
        """Remove an ingest with its files."""
        ...

    def is_open(self, namespace: str, ref: str, /) -> bool:
        """Whether somebody is writing the ingest."""
        ...


class SnapshotRemover(Protocol):
    """What the collector needs of a snapshotter's store."""

    def delete(self, tx: Transaction, number: int, /) -> None:
        """Remove a snapshot without children: row, directory, event."""
        ...


class MountRemover(Protocol):
    """What the collector needs of the manager of mounts."""

    def remove(self, tx: Transaction, number: int, /) -> None:
        """Remove an activation's row; its mounts are undone after the transaction."""
        ...

    def collected(self) -> None:
        """A collection is durable; called on the writer's thread."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What a collection did.

    Attributes:
        removed: how many of each kind.
        freed_bytes: of blobs that nobody has a right to any more.
        mark_s, sweep_s: how long the writer was held for each.
        next_expiry: when the next lease, image or ingest expires, in nanoseconds since the epoch.
        waiting: blobs that can go as soon as the snapshots made of them are synced.
    """

    removed: Mapping[Kind, int] = field(default_factory=dict)
    freed_bytes: int = 0
    mark_s: float = 0.0
    sweep_s: float = 0.0
    next_expiry: int | None = None
    waiting: int = 0

    @property
    def elapsed_s(self) -> float:
        """How long nobody else could write."""
        return self.mark_s + self.sweep_s


class Collector:
    """Collects garbage.

    Args:
        content: removes records and ingests.
        snapshots: for each snapshotter, what removes its snapshots. Those of a snapshotter that is not loaded are kept.
        mounts: removes activations of mounts; they are kept without one.
        image_deleted: publishes the event of an image that goes because it has expired.
    """

    def __init__(
        self,
        content: ContentRemover,
        snapshots: Mapping[str, SnapshotRemover],
        *,
        mounts: MountRemover | None = None,
        image_deleted: Callable[[Transaction, str, str], None] = lambda _tx, _namespace, _name: None,
    ) -> None:
        self._content = content
        self._snapshots = snapshots
        self._mounts = mounts
        self._image_deleted = image_deleted

    def collect(self, tx: Transaction, limit: int | None = None) -> Stats:
        """Remove all that cannot be reached, or `limit` of it. A function for `Database.write`."""
        began = time.monotonic()
        tx.frees = True
        graph = Graph.load(tx, is_open=self._content.is_open)
        reachable = mark(graph.roots, graph.references)
        marked = time.monotonic()
        needed = {blob: sync for snapshot, blob, sync in graph.unsynced if snapshot in reachable}
        garbage = [
            node
            for node in graph.collectible
            if node not in reachable and node not in needed and self._can_remove(node)
        ]
        # From the top down: a snapshot with children cannot be deleted.
        garbage.sort(key=lambda node: -graph.height(node) if node.kind is Kind.SNAPSHOT else -math.inf)
        garbage = garbage[:limit]
        removed: Counter[Kind] = Counter()
        freed = self._sweep(tx, garbage, graph, removed)
        if self._mounts is not None:
            tx.after_commit(self._mounts.collected)
        # Its own removals are no reason to collect again.
        tx.mutations = tx.deletions = 0
        return Stats(
            removed=dict(removed),
            freed_bytes=freed,
            mark_s=marked - began,
            sweep_s=time.monotonic() - marked,
            next_expiry=graph.next_expiry,
            waiting=sum(sync for blob, sync in needed.items() if blob not in reachable),
        )

    def _can_remove(self, node: Node) -> bool:
        """Whether what has it is loaded; what is not keeps all it has."""
        if node.kind is Kind.SNAPSHOT:
            return node.key.partition("/")[0] in self._snapshots
        return node.kind is not Kind.MOUNT or self._mounts is not None

    def _sweep(self, tx: Transaction, garbage: Sequence[Node], graph: Graph, removed: Counter[Kind]) -> int:
        freed = 0
        for node in garbage:
            match node.kind:
                case Kind.SNAPSHOT:
                    self._snapshots[node.key.partition("/")[0]].delete(tx, graph.snapshots[node])
                case Kind.CONTENT:
                    freed += self._content.remove_record(tx, node.namespace, node.key)
                case Kind.INGEST:
                    self._content.remove_ingest(tx, node.namespace, node.key)
                case Kind.IMAGE:
                    tx.execute("DELETE FROM images WHERE namespace = ? AND name = ?", (node.namespace, node.key))
                    self._image_deleted(tx, node.namespace, node.key)
                case Kind.LEASE:
                    tx.execute("DELETE FROM leases WHERE namespace = ? AND id = ?", (node.namespace, node.key))
                case Kind.MOUNT:
                    assert self._mounts is not None
                    self._mounts.remove(tx, graph.mounts[node])
            log.debug("collected", extra={"kind": node.kind.name.lower(), "namespace": node.namespace, "key": node.key})
            removed[node.kind] += 1
        return freed
