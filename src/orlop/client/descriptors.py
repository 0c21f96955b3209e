"""Descriptors between the wire and image-spec's struct."""

from orlop.api.types import descriptor_pb2
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor


def from_pb(message: descriptor_pb2.Descriptor) -> Descriptor:
    """A descriptor from the wire. Raises InvalidArgumentError for an invalid digest."""
    return Descriptor(
        media_type=message.media_type,
        digest=Digest.parse(message.digest),
        size=message.size,
        annotations=dict(message.annotations),
    )


def to_pb(descriptor: Descriptor) -> descriptor_pb2.Descriptor:
    """A descriptor for the wire, which carries no platform."""
    return descriptor_pb2.Descriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=dict(descriptor.annotations),
    )
