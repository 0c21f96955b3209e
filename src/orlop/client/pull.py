"""Pulling: resolve a reference, bring all its content into the store at once, name it, unpack it.

Each blob goes through an ingest named by its digest, so that an interrupted pull goes on where it stopped, also after
a restart of client or daemon, and two clients that want the same blob meet. The daemon checks size and digest when the
ingest is committed; what came wrong is thrown away. A lease holds everything until the image has its name.

Source: containerd's client/pull.go and core/remotes/handlers.go.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from orlop.base import platforms
from orlop.base.errdefs import (
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    OrlopError,
    OutOfRangeError,
    UnavailableError,
)
from orlop.base.labels import DISTRIBUTION_SOURCE
from orlop.base.platforms import Matcher
from orlop.client.content import Content, Writer
from orlop.client.images import Images, matcher
from orlop.client.leases import Held
from orlop.client.progress import Callback, Progress, Status
from orlop.client.registry import RegistryOptions
from orlop.client.session import Session
from orlop.core.images.dispatch import dispatch
from orlop.core.images.gc_labels import child_labels
from orlop.core.images.handlers import select
from orlop.core.remotes import Fetcher, ref_key
from orlop.oci import media_types
from orlop.oci.image import Descriptor, decode_index, decode_manifest

if TYPE_CHECKING:
    from orlop.core.remotes.resolver import RegistryResolver

# Pieces from the network are joined to messages of about this size.
_JOIN_BYTES: Final = 512 << 10
# How often the state of a blob that someone else is fetching is looked at, in seconds.
_LOOK_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """What a pull brings.

    Attributes:
        platform: specifier of the one to pull for; this machine's when empty.
        all_platforms: everything that the index names.
        all_metadata: manifests and configurations of all platforms, layers of the one.
        metadata_only: no layers at all.
        labels: for the image.
        max_concurrent: blobs at once; 0 is no limit.
    """

    platform: str = ""
    all_platforms: bool = False
    all_metadata: bool = False
    metadata_only: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    max_concurrent: int = 0

    @property
    def wanted(self) -> Matcher:
        """Which manifests of an index to take."""
        return platforms.ALL if self.all_platforms else matcher(self.platform)


async def fetch(
    session: Session, ref: str, *, registry: RegistryOptions, options: PullOptions, progress: Callback
) -> str:
    """Bring an image's content into the store, name it, and return the name; see `Client.fetch`."""

    async def whole(looped: Session) -> str:
        async with Held(looped) as held, registry.resolver() as resolver:
            return await _fetch(held, resolver, ref, options, progress)

    return await session.looped(whole)


async def pull(
    session: Session,
    ref: str,
    *,
    registry: RegistryOptions,
    options: PullOptions,
    snapshotter: str,
    progress: Callback,
) -> str:
    """As `fetch`, and unpack what was fetched; see `Client.pull`."""

    async def whole(looped: Session) -> str:
        async with Held(looped) as held, registry.resolver() as resolver:
            name = await _fetch(held, resolver, ref, options, progress)
            for platform in await _unpackable(held, name, options):
                image = await Images(held).get(name, platform=platform)
                await image.unpack(snapshotter=snapshotter, progress=progress)
            return name

    return await session.looped(whole)


async def _fetch(
    held: Session, resolver: "RegistryResolver", ref: str, options: PullOptions, progress: Callback
) -> str:
    progress(Progress(ref=ref, status=Status.RESOLVING))
    name, target = await resolver.resolve(ref)
    progress(Progress(ref=ref, status=Status.RESOLVED))
    pulling = Pulling(held, resolver.fetcher(name), name, options, progress)
    await dispatch(pulling.handle, [target], limit=options.max_concurrent)
    if media_types.is_index(target.media_type) and not pulling.manifests:
        raise NotFoundError(f"pull {name}: no manifest for platform {options.wanted}")
    # Only now: an image whose name is there is whole.
    await Images(held).create(name, target, labels=options.labels, replace=True)
    return name


async def _unpackable(held: Session, name: str, options: PullOptions) -> Sequence[str | None]:
    """The platforms to unpack: the one that was wanted, or all that came."""
    if not options.all_platforms:
        return [options.platform or None]
    return [str(one) for one in await (await Images(held).get(name)).platforms()]


class Pulling:
    """One pull: the handler that `dispatch` calls for each descriptor."""

    def __init__(self, session: Session, fetcher: Fetcher, name: str, options: PullOptions, progress: Callback) -> None:
        self._content = Content(session)
        self._fetcher = fetcher
        self._options = options
        self._progress = progress
        self._name = name
        self._source = _source_of(name)
        self.manifests = 0

    async def handle(self, descriptor: Descriptor) -> Sequence[Descriptor]:
        """Fetch a blob and return its children."""
        await self._bring(descriptor)
        if media_types.is_index(descriptor.media_type):
            blob = await self._content.read(descriptor.digest)
            children = list(decode_index(blob, what=f"index {descriptor.digest}").manifests)
            if not (self._options.all_platforms or self._options.all_metadata):
                children = select(children, self._options.wanted, 1)
        elif media_types.is_manifest(descriptor.media_type):
            self.manifests += 1
            blob = await self._content.read(descriptor.digest)
            manifest = decode_manifest(blob, what=f"manifest {descriptor.digest}")
            children = [manifest.config, *(manifest.layers if self._takes_layers(descriptor) else ())]
        else:
            return ()
        if labels := child_labels(children):
            await self._content.label(descriptor.digest, labels)
        return children

    def _takes_layers(self, descriptor: Descriptor) -> bool:
        if self._options.metadata_only:
            return False
        if not self._options.all_metadata or descriptor.platform is None:
            return True
        return self._options.wanted.rank(descriptor.platform) is not None

    async def _bring(self, descriptor: Descriptor) -> None:
        ref = ref_key(descriptor)
        self._tell(descriptor, Status.WAITING)
        try:
            info = await self._content.info(descriptor.digest)
        except NotFoundError:
            try:
                await self._ingest(ref, descriptor)
            except OrlopError as error:
                error.add_note(f"while fetching {ref} of {self._name}")
                raise
            known = ""
        else:
            if info.size_bytes != descriptor.size:
                raise FailedPreconditionError(
                    f"pull {self._name}: {descriptor.digest} has {info.size_bytes} bytes, its descriptor says "
                    f"{descriptor.size}"
                )
            known = info.labels.get(self._source[0], "") if self._source else ""
        await self._note_source(descriptor, known)
        self._tell(descriptor, Status.DONE, descriptor.size)

    async def _ingest(self, ref: str, descriptor: Descriptor) -> None:
        for attempt in range(2):
            writer = await self._writer(ref, descriptor)
            if writer is None:
                return
            async with writer:
                try:
                    await self._copy(writer, descriptor)
                    self._tell(descriptor, Status.COMMITTING, descriptor.size)
                    await writer.commit(size=descriptor.size, expected=descriptor.digest)
                    return
                except AlreadyExistsError:
                    return
                except (FailedPreconditionError, OutOfRangeError):
                    # What an earlier attempt had left may be what is wrong: once more, from nothing.
                    if attempt:
                        raise
            await self._content.abort(ref)

    async def _writer(self, ref: str, descriptor: Descriptor) -> Writer | None:
        """The ingest's writer, or None if the blob has come by someone else's doing."""
        while True:
            try:
                return await self._content.writer(ref, size=descriptor.size, expected=descriptor.digest)
            except AlreadyExistsError:
                return None
            except UnavailableError as error:
                if "locked" not in str(error):
                    raise
            # Someone else is fetching it. Their bytes are as good as ours, and if they stop we go on.
            try:
                status = await self._content.status(ref)
                self._tell(descriptor, Status.WAITING, status.offset)
            except NotFoundError:
                pass  # just finished, or given up
            await asyncio.sleep(_LOOK_S)

    async def _copy(self, writer: Writer, descriptor: Descriptor) -> None:
        if writer.offset > descriptor.size:
            await writer.truncate()
        start = writer.offset
        self._tell(descriptor, Status.DOWNLOADING, start)
        if start == descriptor.size:
            return
        joined = bytearray()
        # With an offset the whole is checked by the daemon at the commit; without one the stream checks as well.
        async with self._fetcher.fetch(descriptor, offset=start) as pieces:
            async for piece in pieces:
                joined += piece
                if len(joined) >= _JOIN_BYTES:
                    await writer.write(bytes(joined))
                    joined.clear()
                    self._tell(descriptor, Status.DOWNLOADING, writer.offset)
        if joined:
            await writer.write(bytes(joined))
            self._tell(descriptor, Status.DOWNLOADING, writer.offset)

    async def _note_source(self, descriptor: Descriptor, known: str) -> None:
        """Note which repository has the blob, so that a push to the same registry can mount it from there."""
        from orlop.core.remotes.pusher import append_source

        if self._source is None:
            return
        key, repository = self._source
        value = append_source(known, repository)
        if value != known:
            await self._content.label(descriptor.digest, {key: value})

    def _tell(self, descriptor: Descriptor, status: Status, offset: int = 0) -> None:
        self._progress(Progress(ref=ref_key(descriptor), status=status, offset=offset, total=descriptor.size))


def _source_of(name: str) -> tuple[str, str] | None:
    from orlop.core.remotes.pusher import source_label

    key, repository = source_label(name)
    # A label may have 4096 bytes in all; an absurd repository name is not worth failing a pull.
    return (key, repository) if len(key) + len(repository) < 4096 and key.startswith(DISTRIBUTION_SOURCE) else None
