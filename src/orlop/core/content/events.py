"""The events of content, with containerd's topics."""

from orlop.api.events.content_pb2 import ContentCreate, ContentDelete
from orlop.core.content import Info
from orlop.core.metadata import Transaction


def created(tx: Transaction, namespace: str, info: Info) -> None:
    """Tell of a namespace's new record once `tx` is durable."""
    tx.publish(namespace, "/content/create", ContentCreate(digest=info.digest, size=info.size))


def deleted(tx: Transaction, namespace: str, digest: str) -> None:
    """Tell that a namespace's record has gone once `tx` is durable."""
    tx.publish(namespace, "/content/delete", ContentDelete(digest=digest))
