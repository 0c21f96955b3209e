"""Pushing by the client itself, and single objects between registries and the content store.

Source: Push in containerd's client/client.go; fetch-object and push-object of its ctr.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from orlop.base.platforms import Matcher
from orlop.client.content import Content
from orlop.client.images import Images, chosen, matcher
from orlop.client.registry import RegistryOptions
from orlop.client.session import Session
from orlop.core.transfer.progress import Callback
from orlop.core.transfer.push import Foreign, Pushing
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor

if TYPE_CHECKING:
    from orlop.client.images import Image


async def push(
    session: Session,
    ref: str,
    source: "str | Image | None",
    *,
    registry: RegistryOptions,
    manifest: str,
    manifest_type: str,
    platform: str,
    max_concurrent: int,
    nondistributable: bool,
    progress: Callback,
) -> Descriptor:
    """Push an image or a bare manifest; see `Client.push`."""

    async def whole(looped: Session) -> Descriptor:
        target = await _target(looped, ref, source, manifest, manifest_type, platform)
        async with registry.resolver() as resolver:
            pushing = Pushing(
                Content(looped),
                resolver.pusher(ref),
                name=ref,
                foreign=Foreign.PUSH if nondistributable else Foreign.SKIP,
                gate=asyncio.Semaphore(max_concurrent) if max_concurrent > 0 else None,
                progress=progress,
            )
            await pushing.tree(target)
        return target

    return await session.looped(whole)


async def _target(
    session: Session, ref: str, source: "str | Image | None", manifest: str, manifest_type: str, platform: str
) -> Descriptor:
    if manifest:
        digest = Digest.parse(manifest)
        info = await Content(session).info(digest)
        return Descriptor(media_type=manifest_type or media_types.OCI_MANIFEST, digest=digest, size=info.size_bytes)
    name = source if isinstance(source, str) else (source.name if source is not None else ref)
    target = (await Images(session).get(name)).target
    if not platform:
        return target
    wanted: Matcher = matcher(platform)
    way = [one async for one in chosen(Content(session), target, wanted, name)]
    return way[-1]


async def push_object(
    session: Session, ref: str, digest: str, media_type: str, *, registry: RegistryOptions, progress: Callback
) -> Descriptor:
    """Push one blob or manifest; see `Client.push_object`."""

    async def whole(looped: Session) -> Descriptor:
        info = await Content(looped).info(Digest.parse(digest))
        descriptor = Descriptor(media_type=media_type, digest=Digest.parse(digest), size=info.size_bytes)
        async with registry.resolver() as resolver:
            await Pushing(Content(looped), resolver.pusher(ref), name=ref, progress=progress).one(descriptor)
        return descriptor

    return await session.looped(whole)


async def fetch_object(
    session: Session, ref: str, write: Callable[[bytes], object], *, registry: RegistryOptions, media_type: str = ""
) -> Descriptor:
    """Hand the bytes of what a reference names to `write`, verified; see `Client.fetch_object`."""

    async def whole(looped: Session) -> Descriptor:
        async with registry.resolver() as resolver:
            name, descriptor = await resolver.resolve(ref)
            wanted = msgspec.structs.replace(descriptor, media_type=media_type) if media_type else descriptor
            async with resolver.fetcher(name).fetch(wanted) as pieces:
                async for piece in pieces:
                    write(piece)
        return descriptor

    return await session.looped(whole)
