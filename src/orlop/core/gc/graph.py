"""The graph of all that the collector looks at, read out of the database within its transaction."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Final

from orlop.base.labels import GC_FLAT
from orlop.core.gc.labels import Condition, conditions, expiry, is_root, references, uses
from orlop.core.gc.mark import Kind, Node
from orlop.core.metadata import Transaction, leases
from orlop.core.metadata.rows import decode_map

_KIND_OF_RESOURCE: Final = {leases.CONTENT: Kind.CONTENT, leases.IMAGES: Kind.IMAGE, leases.INGESTS: Kind.INGEST}
_NO_LABELS: Final[Mapping[str, str]] = {}


class Graph:
    """Roots, edges and what can be collected.

    Attributes:
        roots: what is held without being referred to.
        edges: what a node refers to.
        collectible: every node that may be removed.
        snapshots, mounts: the number of each snapshot's and each activation's node.
        below: the snapshot below each one that has one; the target of each image.
        unsynced: snapshots whose files may not be on disk, the blob from which they can be made again, and whether a
            sync helps.
        next_expiry: when the next thing that is held by its date alone expires (nanoseconds), or None.
    """

    def __init__(self) -> None:
        self.roots: list[Node] = []
        self.edges: defaultdict[Node, list[Node]] = defaultdict(list)
        self.collectible: list[Node] = []
        self.snapshots: dict[Node, int] = {}
        self.mounts: dict[Node, int] = {}
        self.below: dict[Node, Node] = {}
        self.unsynced: list[tuple[Node, Node, bool]] = []
        self.next_expiry: int | None = None
        self._now = 0
        self._conditions: list[tuple[Node, Condition]] = []
        self._uses: dict[Node, list[int]] = {}

    def height(self, snapshot: Node) -> int:
        """How many snapshots lie below; a parent may be younger than its child, by its number (rebase at commit)."""
        height = 0
        while (below := self.below.get(snapshot)) is not None:
            height, snapshot = height + 1, below
        return height

    def references(self, node: Node) -> list[Node]:
        """What a node refers to; where it is flat, only what it cannot be without."""
        if not node.flat:
            return self.edges.get(node, [])
        below = self.below.get(node._replace(flat=False))
        return [] if below is None else [below._replace(flat=True)]

    @classmethod
    def load(cls, tx: Transaction, *, is_open: Callable[[str, str], bool] = lambda _namespace, _ref: False) -> "Graph":
        """Read everything.

        Args:
            is_open: whether somebody is writing an ingest, by namespace and ref.
        """
        graph = cls()
        graph._now = tx.now
        graph._leases(tx)
        graph._images(tx)
        graph._content(tx)
        graph._ingests(tx, is_open)
        graph._snapshots(tx)
        graph._containers(tx)
        graph._sandboxes(tx)
        graph._mounts(tx)
        graph._judge()
        return graph

    def _leases(self, tx: Transaction) -> None:
        held = defaultdict(list)
        for namespace, lease, kind, resource in tx.execute("SELECT namespace, lease, type, id FROM lease_resources"):
            held[namespace, lease].append((kind, resource))
        for namespace, lease, text in tx.execute("SELECT namespace, id, labels FROM leases"):
            node = Node(Kind.LEASE, namespace, lease)
            self.collectible.append(node)
            labels = decode_map(text)
            if self._expired(labels):
                continue
            self.roots.append(node)
            flat = GC_FLAT in labels
            self.roots += [_resource(namespace, kind, key, flat) for kind, key in held[namespace, lease]]

    def _images(self, tx: Transaction) -> None:
        for namespace, name, digest, text in tx.execute("SELECT namespace, name, digest, labels FROM images"):
            node = Node(Kind.IMAGE, namespace, name)
            self.collectible.append(node)
            labels = decode_map(text)
            expired = self._expired(labels)
            if not expired:
                self.roots.append(node)
            target = Node(Kind.CONTENT, namespace, digest)
            self.below[node] = target
            self.edges[node].append(target)
            self._labelled(node, labels)
            self._conditioned(node, labels)

    def _content(self, tx: Transaction) -> None:
        for namespace, digest, text in tx.execute("SELECT namespace, digest, labels FROM content"):
            node = Node(Kind.CONTENT, namespace, digest)
            self.collectible.append(node)
            labels = _gc_labels(text)
            self._rooted(node, labels)
            self._conditioned(node, labels)

    def _ingests(self, tx: Transaction, is_open: Callable[[str, str], bool]) -> None:
        for namespace, ref, expected, text in tx.execute("SELECT namespace, ref, expected, labels FROM ingests"):
            node = Node(Kind.INGEST, namespace, ref)
            self.collectible.append(node)
            labels = decode_map(text)
            held_by_date = expiry(labels) is not None and not self._expired(labels)
            if held_by_date or is_open(namespace, ref):
                self.roots.append(node)
            if expected:
                self.edges[node].append(Node(Kind.CONTENT, namespace, expected))

    def _snapshots(self, tx: Transaction) -> None:
        for number, namespace, snapshotter, name, parent, text, digest, synced_at in tx.execute(
            "SELECT s.number, s.namespace, s.snapshotter, s.name, p.name, s.labels,"
            " coalesce(l.digest, json_extract(s.origin, '$.digest')), coalesce(l.synced_at, s.synced_at)"
            " FROM snapshots s LEFT JOIN snapshots p ON p.number = s.parent LEFT JOIN layers l ON l.number = s.layer"
        ):
            node = Node(Kind.SNAPSHOT, namespace, f"{snapshotter}/{name}")
            self.collectible.append(node)
            self.snapshots[node] = number
            if parent is not None:
                below = Node(Kind.SNAPSHOT, namespace, f"{snapshotter}/{parent}")
                self.below[node] = below
                self.edges[node].append(below)
            if digest is not None and (synced_at is None or synced_at < 0):
                self.unsynced.append((node, Node(Kind.CONTENT, namespace, digest), synced_at is None))
            labels = _gc_labels(text)
            self._rooted(node, labels)
            if labels and (used := list(uses(labels))):
                self._uses[node] = used

    def _containers(self, tx: Transaction) -> None:
        for namespace, key, snapshotter, snapshot, text in tx.execute(
            "SELECT namespace, id, snapshotter, snapshot_key, labels FROM containers"
        ):
            node = Node(Kind.CONTAINER, namespace, key)
            self.roots.append(node)
            if snapshotter:
                self.edges[node].append(Node(Kind.SNAPSHOT, namespace, f"{snapshotter}/{snapshot}"))
            self._labelled(node, _gc_labels(text))

    def _sandboxes(self, tx: Transaction) -> None:
        """A sandbox is no node: what its labels refer to is held while it is there."""
        for namespace, text in tx.execute("SELECT namespace, labels FROM sandboxes"):
            self.roots += [found.node for found in references(namespace, _gc_labels(text)) if not found.back]

    def _mounts(self, tx: Transaction) -> None:
        """Activations, but for those that are being performed. Of their labels only those that name back count."""
        for number, namespace, name, lease, text in tx.execute(
            "SELECT number, namespace, name, lease, labels FROM mounts WHERE completed_at IS NOT NULL"
        ):
            node = Node(Kind.MOUNT, namespace, name)
            self.collectible.append(node)
            self.mounts[node] = number
            if lease:
                self.edges[Node(Kind.LEASE, namespace, lease)].append(node)
            for found in references(namespace, _gc_labels(text)):
                if found.back:
                    self.edges[found.node].append(node)

    def _rooted(self, node: Node, labels: Mapping[str, str]) -> None:
        if labels:
            if is_root(labels):
                self.roots.append(node)
            self._labelled(node, labels)

    def _labelled(self, node: Node, labels: Mapping[str, str]) -> None:
        if not labels:
            return
        for found in references(node.namespace, labels):
            if found.back:
                self.edges[found.node].append(node)
            else:
                self.edges[node].append(found.node)

    def _conditioned(self, node: Node, labels: Mapping[str, str]) -> None:
        if labels:
            self._conditions += [(node, condition) for condition in conditions(node.namespace, labels)]

    def _judge(self) -> None:
        """Turn conditions into edges: their snapshots say when they were used, so all must have been read."""
        for node, condition in self._conditions:
            for used_at in self._uses.get(condition.node, ()):
                if condition.holds(used_at, self._now):
                    self.edges[node].append(condition.node)
                    if not condition.over:
                        self._expires(used_at + condition.age)

    def _expired(self, labels: Mapping[str, str]) -> bool:
        at = expiry(labels)
        if at is None:
            return False
        self._expires(at)
        return self._now > at

    def _expires(self, at: int) -> None:
        if at >= self._now and (self.next_expiry is None or at < self.next_expiry):
            self.next_expiry = at


def _gc_labels(text: str) -> Mapping[str, str]:
    """Labels, without the cost of reading those of objects that the collector has nothing to learn from."""
    return decode_map(text) if "containerd.io/gc." in text else _NO_LABELS


def _resource(namespace: str, kind: str, key: str, flat: bool) -> Node:
    if kind == leases.INGESTS:
        return Node(Kind.INGEST, namespace, key)
    if kind.startswith(leases.SNAPSHOTS + "/"):
        return Node(Kind.SNAPSHOT, namespace, f"{kind.partition('/')[2]}/{key}", flat)
    return Node(_KIND_OF_RESOURCE[kind], namespace, key, flat)
