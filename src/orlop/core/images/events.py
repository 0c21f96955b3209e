"""The events of images, with containerd's topics."""

from orlop.api.events.image_pb2 import ImageCreate, ImageDelete, ImageUpdate
from orlop.core.images import Image
from orlop.core.metadata import Transaction


def created(tx: Transaction, namespace: str, image: Image) -> None:
    """Tell of a new image once `tx` is durable."""
    tx.publish(namespace, "/images/create", ImageCreate(name=image.name, labels=image.labels))


def updated(tx: Transaction, namespace: str, image: Image) -> None:
    """Tell that an image has changed once `tx` is durable."""
    tx.publish(namespace, "/images/update", ImageUpdate(name=image.name, labels=image.labels))


def deleted(tx: Transaction, namespace: str, name: str) -> None:
    """Tell that an image has gone once `tx` is durable."""
    tx.publish(namespace, "/images/delete", ImageDelete(name=name))
