"""Images, as `client.images`: names for targets in the content store, and what can be read from there."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from orlop.api.services.images.v1 import images_pb2 as pb
from orlop.api.types import descriptor_pb2
from orlop.base import platforms
from orlop.base.errdefs import NotFoundError
from orlop.base.platforms import Matcher, Platform
from orlop.client.channel import Rpc
from orlop.client.content import Content
from orlop.client.descriptors import from_pb, to_pb
from orlop.client.leases import Held
from orlop.client.session import Session
from orlop.client.snapshots import DEFAULT_SNAPSHOTTER, Snapshots
from orlop.client.stamps import to_datetime
from orlop.core.transfer.progress import Callback, ignore
from orlop.oci import media_types
from orlop.oci.chain import chain_ids
from orlop.oci.image import (
    Descriptor,
    Manifest,
    decode_image,
    decode_index,
    decode_manifest,
)
from orlop.oci.image import Image as ImageConfig

if TYPE_CHECKING:
    from orlop.client.composition import ImageNode, ImageUsage
    from orlop.client.convert import ConvertOptions
    from orlop.client.holding import Holder
    from orlop.client.mounting import Shown

_SERVICE = "containerd.services.images.v1.Images"
GET = Rpc(_SERVICE, "Get", pb.GetImageRequest, pb.GetImageResponse)
LIST = Rpc(_SERVICE, "List", pb.ListImagesRequest, pb.ListImagesResponse)
CREATE = Rpc(_SERVICE, "Create", pb.CreateImageRequest, pb.CreateImageResponse)
UPDATE = Rpc(_SERVICE, "Update", pb.UpdateImageRequest, pb.UpdateImageResponse)
DELETE = Rpc(_SERVICE, "Delete", pb.DeleteImageRequest, Empty)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """An image as the daemon holds it: a name with a target."""

    name: str
    target: Descriptor
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStatus:
    """What of an image is there, for one platform.

    Attributes:
        available: whether its manifest is there, so that the rest is known.
        required, present, missing: blobs of that platform; `present` and `missing` are parts of `required`.
        unpacked: whether its snapshot is there.
    """

    available: bool
    required: tuple[Descriptor, ...] = ()
    present: tuple[Descriptor, ...] = ()
    missing: tuple[Descriptor, ...] = ()
    unpacked: bool = False

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.available and not self.missing


class Image:
    """One image. What it reads from content is for `platform`, this machine's unless another was given."""

    def __init__(self, session: Session, record: ImageRecord, matcher: Matcher | None = None) -> None:
        self._session = session
        self._record = record
        self._matcher = matcher or platforms.default_matcher()

    @property
    def name(self) -> str:
        """The reference that it is known by."""
        return self._record.name

    @property
    def target(self) -> Descriptor:
        """Its manifest or index."""
        return self._record.target

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels when it was read."""
        return self._record.labels

    @property
    def record(self) -> ImageRecord:
        """All that the daemon holds of it."""
        return self._record

    async def manifest(self) -> Manifest:
        """The manifest for the platform. Raises NotFoundError if the image has none for it, or the blob is missing."""
        return (await self._chosen())[1]

    async def config(self) -> ImageConfig:
        """The configuration for the platform."""
        manifest = await self.manifest()
        return decode_image(await self._content.read(manifest.config.digest), what=manifest.config.digest)

    async def chain_id(self) -> str:
        """The name of its snapshot; an empty string for an image without layers."""
        diff_ids = (await self.config()).rootfs.diff_ids
        return str(chain_ids(diff_ids)[-1]) if diff_ids else ""

    async def size(self) -> int:
        """Bytes in the content store: manifest, configuration and layers of the platform, index included."""
        total = 0
        async for descriptor in self._walk():
            total += descriptor.size
        return total

    async def platforms(self) -> list[Platform]:
        """The platforms that it offers and that are known here, each once."""
        found: dict[str, Platform] = {}
        async for platform in _platforms(self._content, self.target):
            found.setdefault(str(platform), platform)
        return list(found.values())

    async def check(self, *, snapshotter: str = DEFAULT_SNAPSHOTTER) -> ImageStatus:
        """See what of it is there; fetches nothing."""
        try:
            _, manifest = await self._chosen()
        except NotFoundError:
            return ImageStatus(available=False)
        required = (manifest.config, *manifest.layers)
        present = [one for one in required if await self._content.exists(one.digest)]
        unpacked = False
        if any(one.digest == manifest.config.digest for one in present):
            unpacked = await self.is_unpacked(snapshotter)
        return ImageStatus(
            available=True,
            required=required,
            present=tuple(present),
            missing=tuple(one for one in required if one not in present),
            unpacked=unpacked,
        )

    async def is_unpacked(self, snapshotter: str = DEFAULT_SNAPSHOTTER) -> bool:
        """Whether its snapshot is there."""
        top = await self.chain_id()
        return not top or await Snapshots(self._session, snapshotter).exists(top)

    async def unpack(
        self, *, snapshotter: str = DEFAULT_SNAPSHOTTER, progress: Callback | None = None, sync: bool = False
    ) -> str:
        """Make its snapshot, where it is not there yet, and return the ChainID that is its name.

        Args:
            sync: what is unpacked now is on disk when this returns; else it is some seconds later.
        """
        from orlop.client.stores import SessionStores
        from orlop.core.transfer.unpack import pair, unpack

        async with Held(self._session) as held:
            manifest = await self.manifest()
            config = await self.config()
            layers = pair(manifest.layers, config.rootfs.diff_ids, self.name)
            told = progress or ignore
            stores = SessionStores(held, sync=sync)
            return await unpack(stores, layers, snapshotter=snapshotter, config=manifest.config.digest, progress=told)

    async def tree(self) -> "ImageNode":
        """Its parts, of all platforms: what refers to what, what is here, and the documents."""
        from orlop.client.composition import tree

        return await tree(self._session, self.target)

    async def usage(self, *, all_platforms: bool = False) -> "ImageUsage":
        """The bytes that it takes in the content store and in snapshotters.

        Args:
            all_platforms: all of an index that is here, not only what the platform needs.

        Raises:
            NotFoundError: without `all_platforms`, a document that the platform needs is not here.
        """
        from orlop.client.composition import usage

        return await usage(self._session, self.target, None if all_platforms else self._matcher)

    async def mount(
        self,
        target: str,
        *,
        snapshotter: str = DEFAULT_SNAPSHOTTER,
        writable: bool = False,
        labels: Mapping[str, str] | None = None,
        expires_in: timedelta | None = None,
        sync: bool = False,
    ) -> str:
        """Mount its root file system at a directory of this host, and return the ChainID; it is unpacked if need be.

        The snapshot is named after `target` and stays until `Images.unmount` removes it. One that is there already is
        mounted again.

        Args:
            writable: what is written goes into the snapshot.
            labels: for the snapshot.
            expires_in: when the collector may have the snapshot, by a lease that is called `target`.
            sync: as of `unpack`.

        Raises:
            NotFoundError: there is no such directory.
        """
        from orlop.client.mounting import Mounting, mount

        how = Mounting(
            snapshotter=snapshotter, writable=writable, labels=labels or {}, expires_in=expires_in, sync=sync
        )
        return await mount(self._session, self, target, how)

    async def show(
        self,
        *,
        expires_in: timedelta,
        snapshotter: str = DEFAULT_SNAPSHOTTER,
        writable: bool = False,
        labels: Mapping[str, str] | None = None,
        sync: bool = False,
    ) -> "Shown":
        """Have the daemon mount its root file system, at a path of its own; it is unpacked if need be.

        A lease keeps the mount and its snapshot, until it expires or is deleted.

        Args:
            expires_in: when the collector may have both.
            writable, labels, sync: as of `mount`.

        Raises:
            FailedPreconditionError: the daemon leaves more to mount than a directory.
        """
        from orlop.client.mounting import Mounting, show

        how = Mounting(
            snapshotter=snapshotter, writable=writable, labels=labels or {}, expires_in=expires_in, sync=sync
        )
        return await show(self._session, self, how)

    async def install(self, path: str = "", *, libraries: bool = False, replace: bool = False) -> list[str]:
        """Put the files of its `bin` directory onto this host, and return their paths.

        Args:
            path: of the directory that gets `bin`; by default that of the daemon's opt plug-in.
            libraries: those of `lib` as well.
            replace: overwrite what is there.

        Raises:
            NotFoundError: no path is given and the daemon has none.
            AlreadyExistsError: a file is there already; those before it are installed.
        """
        from orlop.client.install import install

        return await install(self._session, self, path, libraries=libraries, replace=replace)

    async def checkpoint_digest(self) -> str:
        """The digest of the task's state in an image that `Container.checkpoint` made, for `Container.new_task`.

        Raises:
            NotFoundError: it holds none.
            InvalidArgumentError: it is no checkpoint.
        """
        from orlop.client.checkpoint import task_digest

        return await task_digest(self._session, self)

    async def delete(self, *, synchronous: bool = False) -> None:
        """Remove the name; the collector frees what nothing else keeps, before this returns if `synchronous`."""
        await Images(self._session).delete(self.name, synchronous=synchronous)

    @property
    def _content(self) -> Content:
        return Content(self._session)

    async def _chosen(self) -> tuple[Descriptor, Manifest]:
        chain = [one async for one in chosen(self._content, self.target, self._matcher, self.name)]
        descriptor = chain[-1]
        blob = await self._content.read(descriptor.digest)
        return descriptor, decode_manifest(blob, what=f"manifest {descriptor.digest}")

    async def _walk(self) -> AsyncIterator[Descriptor]:
        last = None
        async for descriptor in chosen(self._content, self.target, self._matcher, self.name):
            last = descriptor
            yield descriptor
        if last is not None:
            manifest = decode_manifest(await self._content.read(last.digest), what=f"manifest {last.digest}")
            for one in (manifest.config, *manifest.layers):
                yield one


async def chosen(content: Content, target: Descriptor, matcher: Matcher, name: str) -> AsyncIterator[Descriptor]:
    """Yield the way from an image's target to its manifest for a platform: the indexes, then the manifest.

    Raises:
        NotFoundError: no entry suits; the text names those there are.
    """
    descriptor = target
    for _ in range(8):
        yield descriptor
        if not media_types.is_index(descriptor.media_type):
            return
        index = decode_index(await content.read(descriptor.digest), what=f"index {descriptor.digest}")
        ranked = [
            (place, one)
            for one in index.manifests
            if (media_types.is_manifest(one.media_type) or media_types.is_index(one.media_type))
            and (place := await _rank(content, one, matcher)) is not None
        ]
        if not ranked:
            offered = ", ".join(str(one.platform and _base(one)) for one in index.manifests) or "none"
            raise NotFoundError(f"image {name}: no manifest for platform {matcher} (it offers {offered})")
        descriptor = min(ranked, key=lambda pair: pair[0])[1]
    raise NotFoundError(f"image {name}: indexes nested more than 8 deep")


def _base(descriptor: Descriptor) -> Platform:
    assert descriptor.platform is not None
    return platforms.normalize(descriptor.platform)


async def _rank(content: Content, descriptor: Descriptor, matcher: Matcher) -> int | None:
    if descriptor.platform is not None and descriptor.platform.os:
        return matcher.rank(descriptor.platform)
    if not media_types.is_manifest(descriptor.media_type):
        return 0
    # An entry without a platform: the configuration knows.
    try:
        manifest = decode_manifest(await content.read(descriptor.digest), what=descriptor.digest)
        config = decode_image(await content.read(manifest.config.digest), what=manifest.config.digest)
    except NotFoundError:
        return None
    return matcher.rank(config.platform) if config.os else 0


async def _platforms(content: Content, descriptor: Descriptor, depth: int = 0) -> AsyncIterator[Platform]:
    if depth > 8:
        return
    try:
        if media_types.is_index(descriptor.media_type):
            index = decode_index(await content.read(descriptor.digest), what=descriptor.digest)
            for one in index.manifests:
                if one.platform is not None and one.platform.os:
                    yield _base(one)
                else:
                    async for platform in _platforms(content, one, depth + 1):
                        yield platform
        elif media_types.is_manifest(descriptor.media_type):
            manifest = decode_manifest(await content.read(descriptor.digest), what=descriptor.digest)
            config = decode_image(await content.read(manifest.config.digest), what=manifest.config.digest)
            if config.os:
                yield platforms.normalize(config.platform)
    except NotFoundError:
        return  # not fetched; what is not here cannot be told


class Images:
    """The images of the namespace."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def get(self, name: str, *, platform: str | None = None) -> Image:
        """One image, seen for `platform` (a specifier such as `linux/arm64`; this machine's by default).

        Raises:
            NotFoundError: there is none of that name in the namespace.
        """
        response = await self._session.call(GET, pb.GetImageRequest(name=name))
        return Image(self._session, _record(response.image), matcher(platform))

    async def create(
        self, name: str, target: Descriptor, *, labels: Mapping[str, str] | None = None, replace: bool = False
    ) -> Image:
        """Give a target a name; the target's blob must be in the namespace.

        Args:
            replace: move the name if it exists, instead of raising AlreadyExistsError.
        """
        from orlop.base.errdefs import AlreadyExistsError

        record = pb.Image(name=name, labels=dict(labels or {}), target=to_pb(target))
        try:
            created = (await self._session.call(CREATE, pb.CreateImageRequest(image=record))).image
        except AlreadyExistsError:
            if not replace:
                raise
            paths = ["target", *(["labels"] if labels else [])]
            request = pb.UpdateImageRequest(image=record, update_mask=FieldMask(paths=paths))
            created = (await self._session.call(UPDATE, request)).image
        return Image(self._session, _record(created))

    async def tag(self, source: str, name: str, *, replace: bool = False) -> Image:
        """Give an image's target another name."""
        image = await self.get(source)
        return await self.create(name, image.target, labels=image.labels, replace=replace)

    async def convert(self, source: str, name: str, options: "ConvertOptions | None" = None) -> Image:
        """Make an image of another form out of one that is here: other compression, other media types, fewer platforms.

        Args:
            name: of the result; a name that exists is moved.
            options: what shall be different; by default only the platforms are cut down to this machine's.

        Raises:
            NotFoundError: a part of a wanted platform is not here, or there is none for the platforms.
            InvalidArgumentError: there is no media type for what is wanted.
            DataLossError: a layer is damaged.
            FailedPreconditionError, UnknownError: for images of EROFS, mkfs.erofs is not here, or fails.
        """
        from orlop.client.convert import ConvertOptions, convert

        wanted = options or ConvertOptions()
        await convert(self._session, source, name, wanted)
        return await self.get(name, platform=wanted.platform)

    async def holding(self, digest: str) -> "list[Holder]":
        """The images that a blob is part of, whether it is here or not, as far as their documents are here."""
        from orlop.client.holding import holding

        return await holding(self._session, digest)

    async def prune(self) -> list[str]:
        """Remove the images that no container was made from, and return their names.

        The last is removed synchronously, so that what only they kept is gone when this returns.
        """
        from orlop.client.containers import Containers

        used = {one.image for one in await Containers(self._session).list()}
        unused = [one.name for one in await self.list() if one.name not in used]
        removed = []
        for name in unused:
            try:
                await self.delete(name, synchronous=name == unused[-1])
            except NotFoundError:  # removed by someone else meanwhile
                continue
            removed.append(name)
        return removed

    async def unmount(self, target: str, *, snapshotter: str = DEFAULT_SNAPSHOTTER, remove: bool = False) -> None:
        """Unmount what `Image.mount` has mounted.

        Args:
            remove: the snapshot as well, with what was written to it.
        """
        from orlop.client.mounting import unmount

        await unmount(self._session, target, snapshotter=snapshotter, remove=remove)

    async def label(self, name: str, labels: Mapping[str, str], *, replace: bool = False) -> Image:
        """Set labels and keep the others; an empty value removes a label.

        Args:
            replace: remove all others.
        """
        if replace:
            request = pb.UpdateImageRequest(
                image=pb.Image(name=name, labels=dict(labels)), update_mask=FieldMask(paths=["labels"])
            )
            return Image(self._session, _record((await self._session.call(UPDATE, request)).image))
        request = pb.UpdateImageRequest(
            # The target means nothing here, but containerd 1.7 dies of a request without one.
            image=pb.Image(name=name, labels=dict(labels), target=descriptor_pb2.Descriptor()),
            update_mask=FieldMask(paths=[f"labels.{key}" for key in labels]),
        )
        return Image(self._session, _record((await self._session.call(UPDATE, request)).image))

    async def delete(self, name: str, *, synchronous: bool = False) -> None:
        """Remove a name. Raises NotFoundError."""
        await self._session.call(DELETE, pb.DeleteImageRequest(name=name, sync=synchronous))

    async def list(self, filters: Sequence[str] = ()) -> list[Image]:
        """The images that match one of the filters, by name."""
        response = await self._session.call(LIST, pb.ListImagesRequest(filters=list(filters)))
        records = sorted((_record(one) for one in response.images), key=lambda record: record.name)
        return [Image(self._session, record) for record in records]


def matcher(platform: str | None) -> Matcher:
    """What suits a specifier, or this machine without one."""
    return platforms.default_matcher() if not platform else platforms.only(platforms.parse(platform))


def _record(image: pb.Image) -> ImageRecord:
    return ImageRecord(
        name=image.name,
        target=from_pb(image.target),
        labels=dict(image.labels),
        created_at=to_datetime(image.created_at),
        updated_at=to_datetime(image.updated_at),
    )
