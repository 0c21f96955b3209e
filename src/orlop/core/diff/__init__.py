"""Layers and trees: unpacking a layer onto mounts (`apply`). Making a layer of what differs is not there yet.

The work is done by processes of its own (`workers`), confined before they see a byte of an archive (`sandbox`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orlop.core.mount import Mount

__all__ = ["Applied", "Differ", "LayerBlob"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBlob:
    """A layer as a descriptor names it: `size` in bytes as stored."""

    media_type: str
    digest: str
    size: int = 0
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What a layer was, uncompressed.

    Attributes:
        digest: of the uncompressed archive, the DiffID.
        size: of the uncompressed archive in bytes.
        usage_bytes, usage_inodes: what the tree takes on disk, or None where it held something before.
        ignored: extended attributes that were left out.
    """

    digest: str
    size: int
    usage_bytes: int | None = None
    usage_inodes: int | None = None
    ignored: tuple[str, ...] = ()


class Differ(Protocol):
    """Applies layers and makes them. Source: Applier and Comparer in containerd's core/diff."""

    async def apply(self, namespace: str, layer: LayerBlob, mounts: Sequence[Mount], *, sync: bool = False) -> Applied:
        """Unpack a layer of the content store onto `mounts`.

        When this raises, what was written so far is left in the tree, which its owner removes.

        Raises:
            NotFoundError: the namespace has no such blob.
            UnimplementedError: this differ does not know the media type.
            InvalidArgumentError, ResourceExhaustedError, FailedPreconditionError, InternalError: by the reason;
                the text names layer, phase and entry.
        """
        ...

    async def compare(
        self,
        namespace: str,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        *,
        media_type: str,
        ref: str,
        labels: Mapping[str, str],
        source_date_epoch: int | None,
        lease: str,
    ) -> LayerBlob:
        """Put what turns `lower` into `upper` into the content store, as a layer of `media_type`."""
        ...
