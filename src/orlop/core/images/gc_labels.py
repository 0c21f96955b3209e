"""The labels by which a manifest keeps its children from collection.

Source: ChildGCLabels and SetChildrenMappedLabels in containerd's core/images.
"""

from collections.abc import Callable, Iterable
from typing import Final

from orlop.base.labels import GC_REF_CONTENT
from orlop.oci import media_types
from orlop.oci.image import Descriptor

SUBJECT_ANNOTATION: Final = "io.containerd.manifest.subject"
"""On a descriptor that was found as a referrer: the digest it refers to."""

_REFERRER: Final = f"{GC_REF_CONTENT}.referrer.sha256."


def label_of(child: Descriptor) -> str:
    """The label's key for a child; one that ends with a dot wants a number after it."""
    if SUBJECT_ANNOTATION in child.annotations:
        return _REFERRER
    if media_types.is_known_config(child.media_type):
        return f"{GC_REF_CONTENT}.config"
    if media_types.is_manifest(child.media_type):
        return f"{GC_REF_CONTENT}.m."
    if media_types.is_layer(child.media_type):
        return f"{GC_REF_CONTENT}.l."
    return f"{GC_REF_CONTENT}."


def child_labels(
    children: Iterable[Descriptor], key_of: Callable[[Descriptor], str | None] = label_of
) -> dict[str, str]:
    """The labels that a manifest or index needs to keep `children`.

    Args:
        key_of: chooses a child's key, or None for a child that need not be kept.
    """
    labels: dict[str, str] = {}
    used: dict[str, int] = {}
    for child in children:
        key = key_of(child)
        if key is None:
            continue
        number = used.get(key, 0)
        used[key] = number + 1
        if key.endswith(".sha256."):
            key += child.digest.hex[:12]
        elif number > 0 or key.endswith("."):
            key += str(number)
        labels[key] = child.digest
    return labels


def without_layers(child: Descriptor) -> str | None:
    """As `label_of`, but layers need not be kept: their snapshots will do."""
    return None if media_types.is_layer(child.media_type) else label_of(child)
