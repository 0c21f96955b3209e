"""Pushing: blobs side by side, then the manifests that name them, then the indexes, so that a registry never has a
manifest whose blobs it lacks.

Source: PushContent in containerd's core/remotes/handlers.go.
"""

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from orlop.base.errdefs import InvalidArgumentError, NotFoundError
from orlop.base.platforms import Matcher
from orlop.client.content import Content
from orlop.client.images import Images, chosen, matcher
from orlop.client.progress import Callback, Progress, Status
from orlop.client.registry import RegistryOptions
from orlop.client.session import Session
from orlop.core.remotes import Pusher, PushStatus, ref_key
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor, decode_index, decode_manifest

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
            pushing = _Pushing(looped, resolver.pusher(ref), max_concurrent, nondistributable, progress)
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
            await _Pushing(looped, resolver.pusher(ref), 0, True, progress).one(descriptor)
        return descriptor

    return await session.looped(whole)


class _Pushing:
    def __init__(
        self, session: Session, pusher: Pusher, max_concurrent: int, nondistributable: bool, progress: Callback
    ) -> None:
        self._session = session
        self._content = Content(session)
        self._pusher = pusher
        self._limit = max_concurrent or 16
        self._nondistributable = nondistributable
        self._progress = progress
        self._done: set[str] = set()

    async def tree(self, descriptor: Descriptor, depth: int = 0) -> None:
        """Push what is below a descriptor, then itself."""
        if depth > 8:
            raise InvalidArgumentError(f"push: index {descriptor.digest} lies more than 8 indexes deep")
        if descriptor.digest in self._done:
            return
        self._done.add(descriptor.digest)
        if media_types.is_index(descriptor.media_type):
            index = decode_index(await self._content.read(descriptor.digest), what=f"index {descriptor.digest}")
            for child in index.manifests:
                await self.tree(child, depth + 1)
        elif media_types.is_manifest(descriptor.media_type):
            blob = await self._content.read(descriptor.digest)
            manifest = decode_manifest(blob, what=f"manifest {descriptor.digest}")
            blobs = {one.digest: one for one in (*manifest.layers, manifest.config)}
            fresh = [
                one
                for one in blobs.values()
                if one.digest not in self._done
                and (self._nondistributable or not media_types.is_nondistributable(one.media_type))
            ]
            self._done.update(one.digest for one in fresh)
            for one in fresh:
                self._tell(one, Status.WAITING)
            await self._session.gather([self._step(one) for one in fresh], limit=self._limit)
        await self.one(descriptor)

    async def one(self, descriptor: Descriptor) -> None:
        """Push a descriptor's own content."""
        try:
            info = await self._content.info(descriptor.digest)
        except NotFoundError as error:
            raise NotFoundError(
                f"push {ref_key(descriptor)}: its content is not here",
                hint="fetch it first, or push one platform with --platform",
            ) from error
        sent = 0

        async def pieces() -> AsyncIterator[bytes]:
            nonlocal sent
            sent = 0
            async for chunk in self._content.chunks(descriptor.digest):
                yield chunk
                sent += len(chunk)
                self._tell(descriptor, Status.UPLOADING, sent)

        self._tell(descriptor, Status.UPLOADING)
        result = await self._pusher.push(descriptor, pieces, labels=info.labels)
        if result.status is not PushStatus.UPLOADED:
            self._tell(descriptor, Status.EXISTS, descriptor.size)
        self._tell(descriptor, Status.DONE, descriptor.size)

    def _step(self, descriptor: Descriptor) -> Callable[[], Coroutine[Any, Any, None]]:
        async def step() -> None:
            await self.one(descriptor)

        return step

    def _tell(self, descriptor: Descriptor, status: Status, offset: int = 0) -> None:
        self._progress(Progress(ref=ref_key(descriptor), status=status, offset=offset, total=descriptor.size))


async def fetch_object(
    session: Session, ref: str, write: Callable[[bytes], object], *, registry: RegistryOptions
) -> Descriptor:
    """Hand the bytes of what a reference names to `write`, verified; see `Client.fetch_object`."""

    async def whole(looped: Session) -> Descriptor:
        async with registry.resolver() as resolver:
            name, descriptor = await resolver.resolve(ref)
            async with resolver.fetcher(name).fetch(descriptor) as pieces:
                async for piece in pieces:
                    write(piece)
        return descriptor

    return await session.looped(whole)
