"""Labels: their size rule, and the names that have a meaning.

Sources: containerd's pkg/labels, docs/garbage-collection.md, core/metadata/gc.go and core/snapshots.
"""

from collections.abc import Mapping
from typing import Final

from orlop.base.errdefs import InvalidArgumentError

MAX_SIZE: Final = 4096
"""Bytes that a key and its value may have together."""

_SHOWN_KEY_LENGTH: Final = 64

GC_ROOT: Final = "containerd.io/gc.root"
GC_EXPIRE: Final = "containerd.io/gc.expire"
GC_FLAT: Final = "containerd.io/gc.flat"
GC_REF_CONTENT: Final = "containerd.io/gc.ref.content"
GC_REF_SNAPSHOT: Final = "containerd.io/gc.ref.snapshot"
GC_BREF_CONTAINER: Final = "containerd.io/gc.bref.container"
GC_BREF_CONTENT: Final = "containerd.io/gc.bref.content"
GC_BREF_IMAGE: Final = "containerd.io/gc.bref.image"
GC_BREF_SNAPSHOT: Final = "containerd.io/gc.bref.snapshot"

UNCOMPRESSED: Final = "containerd.io/uncompressed"
"""On a compressed layer's blob: its DiffID."""

DISTRIBUTION_SOURCE: Final = "containerd.io/distribution.source"
"""With `.<host>` appended: comma-separated repositories on that host that have the blob."""

NAMESPACE_SHAREABLE: Final = "containerd.io/namespace.shareable"
"""On a namespace, `true`: its content may be taken into others under the `isolated` policy."""

SNAPSHOT_REF: Final = "containerd.io/snapshot.ref"
"""Given to Prepare: the name that a remote snapshotter may have committed already."""


def validate(key: str, value: str) -> None:
    """Check one label.

    Raises:
        InvalidArgumentError: the key is empty, or key and value have more than 4096 bytes together.
    """
    if not key:
        raise InvalidArgumentError(f"label without a key, value: {value[:_SHOWN_KEY_LENGTH]}")
    size = len(key.encode("utf-8", "surrogateescape")) + len(value.encode("utf-8", "surrogateescape"))
    if size > MAX_SIZE:
        raise InvalidArgumentError(
            f"label key and value length ({size} bytes) greater than maximum size ({MAX_SIZE} bytes), "
            f"key: {key[:_SHOWN_KEY_LENGTH]}"
        )


def validate_all(labels: Mapping[str, str]) -> None:
    """Check each label of an object.

    Raises:
        InvalidArgumentError: as `validate`, for the first in the labels' order that fails.
    """
    for key, value in labels.items():
        validate(key, value)
