"""Pushing: blobs side by side, then the manifests that name them, then the indexes, so that a registry never has a
manifest whose blobs it lacks.

Source: PushContent in containerd's core/remotes/handlers.go.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from enum import Enum, auto
from typing import Final

from orlop.base.errdefs import InvalidArgumentError, NotFoundError
from orlop.base.platforms import ALL, Matcher
from orlop.core.images.handlers import MAX_DEPTH, select
from orlop.core.remotes import Pusher, PushStatus, ref_key
from orlop.core.transfer import Content
from orlop.core.transfer.groups import first_error
from orlop.core.transfer.progress import Callback, Progress, Status, found_in
from orlop.oci import media_types
from orlop.oci.image import Descriptor, decode_index, decode_manifest

UPLOADS: Final = 16
"""Blobs of one image on their way at once, where nothing is said."""


class Foreign(Enum):
    """What becomes of layers that are not meant to be passed on."""

    SKIP = auto()
    PUSH = auto()
    PUSH_IF_HERE = auto()


class Pushing:
    """One push to one repository.

    Args:
        name: what the pushed image is called, the parent of what has no other.
        matcher: which manifests of an index are pushed.
        gate: bounds the blobs on their way.
    """

    def __init__(
        self,
        content: Content,
        pusher: Pusher,
        *,
        name: str,
        foreign: Foreign = Foreign.SKIP,
        matcher: Matcher = ALL,
        gate: asyncio.Semaphore | None = None,
        progress: Callback,
    ) -> None:
        self._content = content
        self._pusher = pusher
        self._name = name
        self._foreign = foreign
        self._matcher = matcher
        self._gate = gate or asyncio.Semaphore(UPLOADS)
        self._progress = progress
        self._parents: dict[str, tuple[str, ...]] = {}
        self._done: set[str] = set()

    async def tree(self, descriptor: Descriptor, depth: int = 0) -> None:
        """Push what is below a descriptor, then itself."""
        if depth > MAX_DEPTH:
            raise InvalidArgumentError(f"push: index {descriptor.digest} lies more than {MAX_DEPTH} indexes deep")
        if descriptor.digest in self._done:
            return
        self._done.add(descriptor.digest)
        self._tell(descriptor, Status.WAITING)
        if media_types.is_index(descriptor.media_type):
            index = decode_index(await self._read(descriptor), what=f"index {descriptor.digest}")
            children = select(index.manifests, None if self._matcher.match_all else self._matcher)
            self._found(descriptor, children)
            for child in children:
                await self.tree(child, depth + 1)
        elif media_types.is_manifest(descriptor.media_type):
            manifest = decode_manifest(await self._read(descriptor), what=f"manifest {descriptor.digest}")
            blobs = list({one.digest: one for one in (*manifest.layers, manifest.config)}.values())
            self._found(descriptor, blobs)
            fresh = [one for one in blobs if one.digest not in self._done and await self._goes(one)]
            self._done.update(one.digest for one in fresh)
            await self._blobs(fresh)
        await self.one(descriptor)

    async def one(self, descriptor: Descriptor) -> None:
        """Push a descriptor's own content."""
        try:
            info = await self._content.info(descriptor.digest)
        except NotFoundError as error:
            raise self._absent(descriptor) from error
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

    async def _blobs(self, blobs: Sequence[Descriptor]) -> None:
        for one in blobs:
            self._tell(one, Status.WAITING)
        try:
            async with asyncio.TaskGroup() as group:
                for one in blobs:
                    group.create_task(self._gated(one))
        except BaseExceptionGroup as failures:
            raise first_error(failures) from None

    async def _gated(self, descriptor: Descriptor) -> None:
        async with self._gate:
            await self.one(descriptor)

    async def _goes(self, blob: Descriptor) -> bool:
        if not media_types.is_nondistributable(blob.media_type) or self._foreign is Foreign.PUSH:
            return True
        return self._foreign is Foreign.PUSH_IF_HERE and await self._content.exists(blob.digest)

    async def _read(self, descriptor: Descriptor) -> bytes:
        try:
            return await self._content.read(descriptor.digest)
        except NotFoundError as error:
            raise self._absent(descriptor) from error

    def _absent(self, descriptor: Descriptor) -> NotFoundError:
        return NotFoundError(
            f"push {ref_key(descriptor)}: its content is not here",
            hint="fetch it first, or push one platform with --platform",
        )

    def _found(self, parent: Descriptor, children: Sequence[Descriptor]) -> None:
        for child in children:
            found_in(self._parents, child.digest, ref_key(parent))

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
