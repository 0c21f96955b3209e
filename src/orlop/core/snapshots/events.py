"""The events of snapshots, with containerd's topics. A view that is made is not told, as in containerd."""

from orlop.api.events.snapshot_pb2 import SnapshotCommit, SnapshotPrepare, SnapshotRemove
from orlop.core.metadata import Transaction


def prepared(tx: Transaction, namespace: str, snapshotter: str, key: str, parent: str) -> None:
    """Tell of a new active snapshot once `tx` is durable."""
    tx.publish(namespace, "/snapshot/prepare", SnapshotPrepare(key=key, parent=parent, snapshotter=snapshotter))


def committed(tx: Transaction, namespace: str, snapshotter: str, key: str, name: str) -> None:
    """Tell that `key` has become `name` once `tx` is durable."""
    tx.publish(namespace, "/snapshot/commit", SnapshotCommit(key=key, name=name, snapshotter=snapshotter))


def removed(tx: Transaction, namespace: str, snapshotter: str, key: str) -> None:
    """Tell that `key` has gone once `tx` is durable."""
    tx.publish(namespace, "/snapshot/remove", SnapshotRemove(key=key, snapshotter=snapshotter))
