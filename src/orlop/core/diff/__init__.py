"""Layers and trees: unpacking a layer onto mounts (`apply`), and making one of what differs (`compare`).

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
        marked: whether the tree would be another one if it were no layer of an overlay; true where nobody knows.
    """

    digest: str
    size: int
    usage_bytes: int | None = None
    usage_inodes: int | None = None
    ignored: tuple[str, ...] = ()
    marked: bool = True


class Differ(Protocol):
    """Applies layers and makes them. Source: Applier and Comparer in containerd's core/diff."""

    async def apply(
        self,
        namespace: str,
        layer: LayerBlob,
        mounts: Sequence[Mount],
        *,
        sync: bool = False,
        payloads: Mapping[str, bytes] | None = None,
    ) -> Applied:
        """Unpack a layer of the content store onto `mounts`.

        When this raises, what was written so far is left in the tree, which its owner removes.

        Args:
            sync: the files are on disk when this returns.
            payloads: what stream processors are given, by their ids: an Any, serialised.

        Raises:
            NotFoundError: the namespace has no such blob.
            UnimplementedError: this differ does not know the media type.
            UnknownError: a stream processor failed.
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
        """Put what turns `lower` into `upper` into the content store, as a layer of `media_type`.

        The mounts are only read, `upper` may be in use. The blob gets `labels`, and if it is compressed the label
        `containerd.io/uncompressed` with its DiffID. A blob that is there already keeps its labels.

        Args:
            ref: of the ingest, which is begun again if it exists and stays after a failure; empty for one of our own,
                which does not.
            source_date_epoch: nanoseconds since 1970 beyond which no modification time goes.
            lease: holds ingest and blob, or is empty.

        Raises:
            UnimplementedError: this differ does not make layers of that media type.
            UnavailableError: someone else writes to `ref`.
            InvalidArgumentError: a name in `upper` cannot be in a layer, or a label is too long.
            AbortedError: a file changed while it was read; trying again may succeed.
            ResourceExhaustedError, InternalError and what mounting raises: the text names phase and path.
        """
        ...
