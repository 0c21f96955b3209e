"""What an image consists of and what it takes: the tree of its parts, and bytes in the content store and snapshotters.

Source: containerd's core/images/usage and pkg/display.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from orlop.base.errdefs import InvalidArgumentError, NotFoundError, ResourceExhaustedError
from orlop.base.labels import GC_REF_SNAPSHOT
from orlop.client.content import BlobInfo, Content
from orlop.client.session import Session
from orlop.client.snapshots import Snapshots
from orlop.core.images.handlers import MAX_DEPTH, select
from orlop.oci import media_types
from orlop.oci.image import Descriptor, decode_index, decode_manifest

if TYPE_CHECKING:
    from orlop.base.platforms import Matcher

_MAX_NODES: Final = 20_000  # indexes may name the same again and again, and so on below


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageNode:
    """A part of an image, and what it refers to.

    Attributes:
        present: whether the blob is in this namespace; of one that is not the children are not known.
        labels: the blob's.
        document: the bytes of a manifest, index or configuration; None of anything else.
    """

    descriptor: Descriptor
    present: bool
    labels: Mapping[str, str] = field(default_factory=dict)
    document: bytes | None = None
    children: tuple["ImageNode", ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageUsage:
    """Bytes that an image takes, as far as it is here.

    Attributes:
        manifest_bytes: what its documents say that all of it has, whether it is here or not.
        content_bytes: in the content store.
        snapshot_bytes: in each snapshotter that has it, its layers' parents included.
    """

    manifest_bytes: int = 0
    content_bytes: int = 0
    snapshot_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """Content and snapshots together."""
        return self.content_bytes + sum(self.snapshot_bytes.values())


async def tree(session: Session, target: Descriptor) -> ImageNode:
    """Read an image's parts, of all platforms, as far as they are here."""
    return await _Tree(Content(session)).node(target, 0)


async def usage(session: Session, target: Descriptor, matcher: "Matcher | None") -> ImageUsage:
    """Count an image's bytes; each blob and each snapshot once.

    Args:
        matcher: of an index only what suits; None counts all of it that is here.

    Raises:
        NotFoundError: with a matcher, a document that it needs is not here.
    """
    content = Content(session)
    counted = _Counted()
    await _count(content, target, matcher, counted, 0)
    snapshots = {
        name: await _snapshot_bytes(Snapshots(session, name), keys) for name, keys in counted.snapshots.items()
    }
    return ImageUsage(
        manifest_bytes=sum(counted.said.values()),
        content_bytes=sum(counted.held.values()),
        snapshot_bytes={name: size for name, size in sorted(snapshots.items()) if size is not None},
    )


class _Tree:
    def __init__(self, content: Content) -> None:
        self._content = content
        self._left = _MAX_NODES
        self._documents: dict[str, bytes] = {}

    async def node(self, descriptor: Descriptor, depth: int) -> ImageNode:
        """A part and all below it."""
        self._left -= 1
        if self._left < 0:
            raise ResourceExhaustedError(f"the image has more than {_MAX_NODES} parts")
        info = await _info(self._content, descriptor)
        if info is None:
            return ImageNode(descriptor=descriptor, present=False)
        blob = None
        children: list[ImageNode] = []
        if _is_document(descriptor):
            if (blob := self._documents.get(descriptor.digest)) is None:
                blob = self._documents[descriptor.digest] = await self._content.read(descriptor.digest)
            for child in _children(descriptor, blob, depth):
                children.append(await self.node(child, depth + 1))
        return ImageNode(
            descriptor=descriptor, present=True, labels=info.labels, document=blob, children=tuple(children)
        )


@dataclass(slots=True)
class _Counted:
    said: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    snapshots: dict[str, set[str]] = field(default_factory=dict)


async def _count(
    content: Content, descriptor: Descriptor, matcher: "Matcher | None", counted: _Counted, depth: int
) -> None:
    if descriptor.digest in counted.said:
        return
    info = await _info(content, descriptor)
    has_children = media_types.is_manifest(descriptor.media_type) or media_types.is_index(descriptor.media_type)
    if info is None:
        if matcher is not None and has_children:
            raise NotFoundError(f"content digest {descriptor.digest}")
        counted.said[descriptor.digest] = max(0, descriptor.size)
        return
    size = max(info.size_bytes, descriptor.size)
    counted.said[descriptor.digest] = counted.held[descriptor.digest] = size
    for label, key in info.labels.items():
        if label.startswith(f"{GC_REF_SNAPSHOT}."):
            # The name of one snapshotter may follow by a slash; what is behind tells several snapshots apart.
            name = label.removeprefix(f"{GC_REF_SNAPSHOT}.").partition("/")[0]
            counted.snapshots.setdefault(name, set()).add(key)
    if has_children:
        children = _children(descriptor, await content.read(descriptor.digest), depth)
        for child in _wanted(children, matcher) if media_types.is_index(descriptor.media_type) else children:
            await _count(content, child, matcher, counted, depth + 1)


def _wanted(children: Sequence[Descriptor], matcher: "Matcher | None") -> Sequence[Descriptor]:
    if matcher is None:
        return children
    found = select(children, matcher, 1)
    if not found:
        raise NotFoundError(f"no match for platform {matcher}")
    return found


async def _snapshot_bytes(snapshots: Snapshots, keys: set[str]) -> int | None:
    """Bytes of snapshots and their parents, each once; None where there is no such snapshotter or snapshot."""
    sizes: dict[str, int] = {}
    pending = list(keys)
    while pending:
        key = pending.pop()
        if not key or key in sizes:
            continue
        with contextlib.suppress(NotFoundError, InvalidArgumentError):
            sizes[key] = (await snapshots.usage(key)).size_bytes
            pending.append((await snapshots.stat(key)).parent)
    return sum(sizes.values()) if sizes else None


def _is_document(descriptor: Descriptor) -> bool:
    media_type = descriptor.media_type
    return (
        media_types.is_manifest(media_type)
        or media_types.is_index(media_type)
        or media_types.is_config(media_type)
        or media_type.endswith("json")
    )


def _children(descriptor: Descriptor, blob: bytes, depth: int) -> list[Descriptor]:
    if depth > MAX_DEPTH:
        raise InvalidArgumentError(f"index {descriptor.digest} lies more than {MAX_DEPTH} indexes deep")
    if media_types.is_manifest(descriptor.media_type):
        manifest = decode_manifest(blob, what=f"manifest {descriptor.digest}")
        return [manifest.config, *manifest.layers]
    if media_types.is_index(descriptor.media_type):
        return list(decode_index(blob, what=f"index {descriptor.digest}").manifests)
    return []


async def _info(content: Content, descriptor: Descriptor) -> BlobInfo | None:
    with contextlib.suppress(NotFoundError):
        return await content.info(descriptor.digest)
    return None
