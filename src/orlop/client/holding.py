"""Which images a blob is part of, as `Images.holding`: also one that is not here, for what names it may be."""

from dataclasses import dataclass

from orlop.base import platforms
from orlop.base.errdefs import OrlopError
from orlop.client.content import Content
from orlop.client.images import Images
from orlop.client.session import Session
from orlop.oci import media_types
from orlop.oci.image import Descriptor, decode_index, decode_manifest

_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """An image that a blob is part of.

    Attributes:
        platform: of the manifest that needs it; empty if that has none, or it is needed for all.
    """

    image: str
    platform: str = ""


async def holding(session: Session, digest: str) -> list[Holder]:
    """See `Images.holding`."""
    content = Content(session)
    found = []
    for image in await Images(session).list():
        platform = await _Search(content, digest).platform(image.target, "", 0)
        if platform is not None:
            found.append(Holder(image=image.name, platform=platform))
    return found


class _Search:
    """Looks for a blob below a target."""

    def __init__(self, content: Content, digest: str) -> None:
        self._content = content
        self._digest = digest
        self._seen: set[str] = set()

    async def platform(self, descriptor: Descriptor, above: str, depth: int) -> str | None:
        """The platform for which the blob is there, None if it is not below."""
        if descriptor.digest == self._digest:
            return above
        if descriptor.digest in self._seen or depth > _MAX_DEPTH:
            return None
        self._seen.add(descriptor.digest)
        for child in await self._children(descriptor):
            own = child.platform if child.platform is not None and child.platform.os else None
            found = await self.platform(child, platforms.format_platform(own) if own else above, depth + 1)
            if found is not None:
                return found
        return None

    async def _children(self, descriptor: Descriptor) -> list[Descriptor]:
        """Those that can be told: a document may be lost itself."""
        is_index = media_types.is_index(descriptor.media_type)
        if not is_index and not media_types.is_manifest(descriptor.media_type):
            return []
        try:
            blob = await self._content.read(descriptor.digest)
            if is_index:
                return list(decode_index(blob, what=f"index {descriptor.digest}").manifests)
            manifest = decode_manifest(blob, what=f"manifest {descriptor.digest}")
        except OrlopError:
            return []
        return [manifest.config, *manifest.layers]
