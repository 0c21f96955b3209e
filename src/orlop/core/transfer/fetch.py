"""Content from a registry into the content store, each blob once.

Each blob goes through an ingest named by its digest, so that an interrupted pull goes on where it stopped, also after
a restart, and two who want the same blob meet. Size and digest are checked when the ingest is committed; what came
wrong is thrown away.

Source: Fetch in containerd's core/remotes/handlers.go; FilterPlatforms, LimitManifests and SetChildrenMappedLabels in
core/images/handlers.go; FilterManifestByPlatformHandler in core/remotes/handlers.go.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from orlop.base.errdefs import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OrlopError,
    OutOfRangeError,
    ResourceExhaustedError,
    UnavailableError,
)
from orlop.base.labels import DISTRIBUTION_SOURCE
from orlop.base.platforms import ALL, Matcher
from orlop.core.images.gc_labels import SUBJECT_ANNOTATION, child_labels
from orlop.core.images.handlers import select
from orlop.core.remotes import Fetcher, ref_key
from orlop.core.transfer import Content, Ingest
from orlop.core.transfer.progress import Callback, Progress, Status, found_in
from orlop.core.transfer.threads import aside
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import MAX_MANIFEST_SIZE, Descriptor, decode_index, decode_manifest

# Pieces from the network are joined to messages of about this size.
_JOIN_BYTES: Final = 512 << 10
# From so many bytes on an image's manifest is held against the disk before any of its layers is fetched.
_MANY_BYTES: Final = 16 << 20
# How often the state of a blob that someone else is fetching is looked at, in seconds.
_LOOK_S: Final = 0.2


Referrers = Callable[[Digest], Awaitable[Sequence[Descriptor]]]
"""Says what refers to a manifest or index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What of an image is wanted.

    Attributes:
        matcher: which manifests of an index.
        manifest_limit: at most so many of them, the best first; 0 is no limit.
        all_metadata: manifests and configurations of the others as well, without their layers.
        layers: False for no layers at all.
    """

    matcher: Matcher = ALL
    manifest_limit: int = 0
    all_metadata: bool = False
    layers: bool = True

    def manifests(self, children: Sequence[Descriptor]) -> list[Descriptor]:
        """Those of an index's entries to follow."""
        if not self.all_metadata:
            return select(children, None if self.matcher.match_all else self.matcher, self.manifest_limit)
        if not self.manifest_limit:
            return list(children)
        best = select(children, self.matcher)
        chosen = {one.digest for one in best}
        return [*best, *(one for one in children if one.digest not in chosen)][: self.manifest_limit]

    def takes_layers(self, manifest: Descriptor) -> bool:
        """Whether a manifest's layers are wanted, which an index has as `manifest`."""
        if not self.layers:
            return False
        if not self.all_metadata or manifest.platform is None:
            return True
        return self.matcher.rank(manifest.platform) is not None


class Fetching:
    """One image on its way into the content store.

    Args:
        name: the image's reference, which says where the content is from.
        gate: bounds the blobs that are fetched at once, those of other pulls too if they share it.
        referrers: brings what refers to each manifest and index too, and has these keep it.
    """

    def __init__(
        self,
        content: Content,
        fetcher: Fetcher,
        name: str,
        *,
        selection: Selection,
        progress: Callback,
        gate: asyncio.Semaphore | None = None,
        referrers: Referrers | None = None,
    ) -> None:
        self._content = content
        self._referrers = referrers
        self._fetcher = fetcher
        self._name = name
        self._selection = selection
        self._progress = progress
        self._gate = gate
        self._source = _source_of(name)
        self._parents: dict[str, tuple[str, ...]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._here: set[str] = set()
        self.manifests = 0

    async def handle(self, descriptor: Descriptor) -> list[Descriptor]:
        """Fetch a blob and return its children that are wanted; a handler for `core.images.dispatch`."""
        if descriptor.media_type == media_types.DOCKER_SCHEMA1_MANIFEST:
            raise InvalidArgumentError(f"fetch {descriptor.digest}: {descriptor.media_type} not supported")
        await self.bring(descriptor)
        if not (media_types.is_index(descriptor.media_type) or media_types.is_manifest(descriptor.media_type)):
            return []
        blob = await self._content.read(descriptor.digest)
        wanted, labels = await aside(len(blob), self._look_into, descriptor, blob)
        if self._referrers is not None:
            referring = [_referring(one, descriptor) for one in await self._referrers(descriptor.digest)]
            wanted, labels = [*wanted, *referring], labels | child_labels(referring)
        if labels:
            await self._content.label(descriptor.digest, labels)
        if media_types.is_manifest(descriptor.media_type):
            await self._ask_for_room(descriptor, wanted)
        parent = ref_key(descriptor)
        for child in wanted:
            found_in(self._parents, child.digest, parent)
        return wanted

    async def _ask_for_room(self, manifest: Descriptor, wanted: Sequence[Descriptor]) -> None:
        """Ask the store whether the blobs of a manifest fit: by an ingest as large as what is missing of them.

        Raises:
            ResourceExhaustedError: even the compressed layers do not fit. A store that does not look at sizes says yes.
        """
        if sum(one.size for one in wanted) < _MANY_BYTES:
            return
        missing = sum([await self._missing(one) for one in wanted])
        if missing < _MANY_BYTES:
            return
        ref = f"room-for-{manifest.digest}"
        try:
            async with await self._content.writer(ref, size=missing):
                pass
            await self._content.abort(ref)
        except ResourceExhaustedError as error:
            error.add_note(f"while fetching {ref_key(manifest)} of {self._name}")
            raise
        except (AlreadyExistsError, NotFoundError, UnavailableError):
            return  # another pull of it asks just now

    async def _missing(self, blob: Descriptor) -> int:
        if await self._content.exists(blob.digest):
            return 0
        try:
            return max(blob.size - await self._content.offset(ref_key(blob)), 0)
        except NotFoundError:
            return blob.size

    def _look_into(self, descriptor: Descriptor, blob: bytes) -> tuple[list[Descriptor], dict[str, str]]:
        """The children of a document that are wanted, and the labels that keep all of them.

        Labels are for those too that are not fetched: whoever fetches them later finds them kept.
        """
        if media_types.is_index(descriptor.media_type):
            children = decode_index(blob, what=f"index {descriptor.digest}").manifests
            return self._selection.manifests(children), child_labels(children)
        self.manifests += 1
        manifest = decode_manifest(blob, what=f"manifest {descriptor.digest}")
        children = (manifest.config, *manifest.layers)
        wanted = children if self._selection.takes_layers(descriptor) else (manifest.config,)
        return list(wanted), child_labels(children)

    async def bring(self, descriptor: Descriptor) -> None:
        """Have a descriptor's blob in the store; of several calls for one blob, one fetches it."""
        async with self._locks.setdefault(descriptor.digest, asyncio.Lock()):
            if descriptor.digest not in self._here:
                await self._bring(descriptor)
                self._here.add(descriptor.digest)

    async def _bring(self, descriptor: Descriptor) -> None:
        _refuse_absurd(descriptor)
        self._tell(descriptor, Status.WAITING)
        try:
            fetched = await self._ingest(ref_key(descriptor), descriptor)
        except OrlopError as error:
            error.add_note(f"while fetching {ref_key(descriptor)} of {self._name}")
            raise
        if not fetched:
            await self._check(descriptor)
        await self._note_source(descriptor)
        self._tell(descriptor, Status.DONE, descriptor.size)

    async def _check(self, descriptor: Descriptor) -> None:
        """See that what is there already is what the descriptor says."""
        info = await self._content.info(descriptor.digest)
        if info.size_bytes != descriptor.size:
            raise FailedPreconditionError(
                f"pull {self._name}: {descriptor.digest} has {info.size_bytes} bytes, its descriptor says "
                f"{descriptor.size}"
            )
        self._tell(descriptor, Status.EXISTS, descriptor.size)

    async def _ingest(self, ref: str, descriptor: Descriptor) -> bool:
        """Write the blob; False if it was there already, or has come by someone else's doing.

        Asking for a writer, rather than for the blob, puts it into the lease: it might be on its way out.
        """
        for attempt in range(2):
            writer = await self._writer(ref, descriptor)
            if writer is None:
                return False
            async with writer:
                try:
                    async with self._gate or contextlib.nullcontext():
                        await self._copy(writer, descriptor)
                    self._tell(descriptor, Status.COMMITTING, descriptor.size)
                    await writer.commit(size=descriptor.size, expected=descriptor.digest)
                    return True
                except AlreadyExistsError:
                    return False
                except (FailedPreconditionError, OutOfRangeError):
                    # What an earlier attempt had left may be what is wrong: once more, from nothing.
                    if attempt:
                        raise
            await self._content.abort(ref)
        raise AssertionError("the second attempt returns or raises")

    async def _writer(self, ref: str, descriptor: Descriptor) -> Ingest | None:
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
            with contextlib.suppress(NotFoundError):  # just finished, or given up
                self._tell(descriptor, Status.WAITING, await self._content.offset(ref))
            await asyncio.sleep(_LOOK_S)

    async def _copy(self, writer: Ingest, descriptor: Descriptor) -> None:
        if writer.offset > descriptor.size:
            await writer.truncate()
        start = writer.offset
        self._tell(descriptor, Status.DOWNLOADING, start)
        if start == descriptor.size:
            return
        joined = bytearray()
        # With an offset the whole is checked at the commit; without one the stream checks as well.
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

    async def _note_source(self, descriptor: Descriptor) -> None:
        """Note which repository has the blob, so that a push to the same registry can mount it from there."""
        from orlop.core.remotes.pusher import append_source

        if self._source is None:
            return
        key, repository = self._source
        known = (await self._content.info(descriptor.digest)).labels.get(key, "")
        value = append_source(known, repository)
        if value != known:
            await self._content.label(descriptor.digest, {key: value})

    def _tell(self, descriptor: Descriptor, status: Status, offset: int = 0) -> None:
        self._progress(
            Progress(
                ref=ref_key(descriptor),
                status=status,
                offset=offset,
                total=descriptor.size,
                parents=self._parents.get(descriptor.digest) or (self._name,),
                descriptor=descriptor,
            )
        )


def _referring(referrer: Descriptor, subject: Descriptor) -> Descriptor:
    """The referrer as a child. Source: SetReferrers in containerd's core/images/handlers.go."""
    return msgspec.structs.replace(referrer, annotations={**referrer.annotations, SUBJECT_ANNOTATION: subject.digest})


def _source_of(name: str) -> tuple[str, str] | None:
    from orlop.core.remotes.pusher import source_label

    key, repository = source_label(name)
    # A label may have 4096 bytes in all; an absurd repository name is not worth failing a pull.
    return (key, repository) if len(key) + len(repository) < 4096 and key.startswith(DISTRIBUTION_SOURCE) else None


def _refuse_absurd(descriptor: Descriptor) -> None:
    """Refuse a document that is too large to be read whole, before any of it is fetched."""
    kind = descriptor.media_type
    read_whole = media_types.is_manifest(kind) or media_types.is_index(kind) or media_types.is_known_config(kind)
    if read_whole and descriptor.size > MAX_MANIFEST_SIZE:
        raise InvalidArgumentError(
            f"fetch {descriptor.digest}: {kind} of {descriptor.size} bytes, more than the allowed {MAX_MANIFEST_SIZE}"
        )
