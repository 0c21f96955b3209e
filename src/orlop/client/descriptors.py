"""Descriptors between the wire and image-spec's struct, and the labels that tie blobs together."""

from orlop.api.types import descriptor_pb2
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor

GC_CONTENT_PREFIX = "containerd.io/gc.ref.content"
GC_SNAPSHOT_PREFIX = "containerd.io/gc.ref.snapshot"
UNCOMPRESSED_LABEL = "containerd.io/uncompressed"
SOURCE_PREFIX = "containerd.io/distribution.source"


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


def child_labels(children: "list[Descriptor] | tuple[Descriptor, ...]") -> dict[str, str]:
    """The labels by which a manifest or index keeps its children from the collector.

    Source: ChildGCLabels in containerd's core/images/handlers.go: `.config`, `.l.<n>`, `.m.<n>`, and a bare number
    for anything else.
    """
    labels: dict[str, str] = {}
    counts: dict[str, int] = {}
    for child in children:
        if media_types.is_config(child.media_type):
            labels[f"{GC_CONTENT_PREFIX}.config"] = child.digest
            continue
        if media_types.is_layer(child.media_type):
            prefix = f"{GC_CONTENT_PREFIX}.l."
        elif media_types.is_manifest(child.media_type) or media_types.is_index(child.media_type):
            prefix = f"{GC_CONTENT_PREFIX}.m."
        else:
            prefix = f"{GC_CONTENT_PREFIX}."
        labels[f"{prefix}{counts.get(prefix, 0)}"] = child.digest
        counts[prefix] = counts.get(prefix, 0) + 1
    return labels
