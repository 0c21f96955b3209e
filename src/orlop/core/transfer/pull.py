"""A pull: all content of a target into the store, and its layers into snapshots as soon as they have come.

Source: containerd's client/pull.go, core/transfer/local/pull.go and core/unpack/unpacker.go.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from orlop.base.platforms import ALL, Matcher
from orlop.core.images.dispatch import dispatch
from orlop.core.images.gc_labels import SUBJECT_ANNOTATION
from orlop.core.remotes import Fetcher
from orlop.core.transfer import Stores
from orlop.core.transfer.fetch import Fetching, Referrers, Selection
from orlop.core.transfer.groups import first_error
from orlop.core.transfer.progress import Callback, ignore
from orlop.core.transfer.unpack import pair, unpack
from orlop.oci import media_types
from orlop.oci.image import Descriptor, decode_image, decode_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpack:
    """Where to unpack images of which platforms; of several that suit one, the first counts."""

    snapshotter: str
    matcher: Matcher = ALL


async def pull(
    stores: Stores,
    fetcher: Fetcher,
    name: str,
    target: Descriptor,
    *,
    selection: Selection,
    unpacks: Sequence[Unpack] = (),
    gate: asyncio.Semaphore | None = None,
    referrers: Referrers | None = None,
    progress: Callback = ignore,
) -> int:
    """Bring what is wanted of `target`, unpack it, and return how many manifests have come; no image is named.

    Layers whose snapshots are there already are not fetched when they are to be unpacked. When this returns or raises,
    nothing goes on; after a failure no half-made snapshot is left, and what was fetched belongs to the lease.

    Args:
        name: the reference it is pulled by.
        gate: bounds the blobs on their way.
        referrers: brings what it says beside the image.
    """
    fetching = Fetching(
        stores.content, fetcher, name, selection=selection, progress=progress, gate=gate, referrers=referrers
    )
    pulling = _Pull(stores, fetching, name, unpacks, progress)
    await pulling.run(target)
    return fetching.manifests


async def unpack_tree(
    stores: Stores, name: str, target: Descriptor, *, unpacks: Sequence[Unpack], matcher: Matcher = ALL
) -> None:
    """Unpack every image below a target whose content is here; manifests that are not here are passed over."""

    async def visit(descriptor: Descriptor) -> Sequence[Descriptor]:
        if media_types.is_index(descriptor.media_type):
            return await _children(stores, descriptor, matcher)
        if media_types.is_manifest(descriptor.media_type) and await stores.content.exists(descriptor.digest):
            blob = await stores.content.read(descriptor.digest)
            manifest = decode_manifest(blob, what=f"manifest {descriptor.digest}")
            if media_types.may_be_config(manifest.config.media_type) and all(
                media_types.is_layer(one.media_type) for one in manifest.layers
            ):
                await _unpack_here(stores, name, manifest.config, manifest.layers, unpacks)
        return ()

    await dispatch(visit, [target], limit=1)


async def _children(stores: Stores, index: Descriptor, matcher: Matcher) -> list[Descriptor]:
    from orlop.oci.image import decode_index

    blob = await stores.content.read(index.digest)
    return Selection(matcher=matcher).manifests(decode_index(blob, what=f"index {index.digest}").manifests)


async def _unpack_here(
    stores: Stores, name: str, config: Descriptor, layers: Sequence[Descriptor], unpacks: Sequence[Unpack]
) -> None:
    image = decode_image(await stores.content.read(config.digest), what=f"image config {config.digest}")
    chosen = next((one for one in unpacks if one.matcher(image.platform)), None)
    if chosen is not None and layers:
        paired = pair(layers, image.rootfs.diff_ids, name)
        await unpack(stores, paired, snapshotter=chosen.snapshotter, config=config.digest)


class _Pull:
    """The tasks of one pull: a walk over the documents, and beside it one unpacking for each image."""

    def __init__(
        self, stores: Stores, fetching: Fetching, name: str, unpacks: Sequence[Unpack], progress: Callback
    ) -> None:
        self._stores = stores
        self._fetching = fetching
        self._name = name
        self._unpacks = unpacks
        self._progress = progress
        self._group = asyncio.TaskGroup()
        self._configs: set[str] = set()

    async def run(self, target: Descriptor) -> None:
        try:
            async with self._group:
                await dispatch(self._handle, [target])
        except BaseExceptionGroup as failures:
            raise first_error(failures) from None

    async def _handle(self, descriptor: Descriptor) -> Sequence[Descriptor]:
        children = await self._fetching.handle(descriptor)
        if not self._unpacks or not media_types.is_manifest(descriptor.media_type) or not children:
            return children
        if SUBJECT_ANNOTATION in descriptor.annotations:  # it belongs to an image, and is none
            return children
        config = children[0]
        layers = [one for one in children if media_types.is_layer(one.media_type)]
        if not layers or not media_types.may_be_config(config.media_type):
            return children
        if config.digest not in self._configs:
            self._configs.add(config.digest)
            self._group.create_task(self._image(config, layers))
        return [one for one in children if not media_types.is_layer(one.media_type)]

    async def _image(self, config: Descriptor, layers: Sequence[Descriptor]) -> None:
        await self._fetching.bring(config)
        blob = await self._stores.content.read(config.digest)
        image = decode_image(blob, what=f"image config {config.digest}")
        chosen = next((one for one in self._unpacks if one.matcher(image.platform)), None)
        arriving = _Arriving(self._group, self._fetching, layers)
        if chosen is None:
            arriving.begin(0)
            return
        await self._bring_known(layers)
        await unpack(
            self._stores,
            pair(layers, image.rootfs.diff_ids, self._name),
            snapshotter=chosen.snapshotter,
            config=config.digest,
            arrivals=arriving,
            progress=self._progress,
        )

    async def _bring_known(self, layers: Sequence[Descriptor]) -> None:
        """Have those layers here that there is a record of, needed or not: of one that was lost only the record stays.

        It takes no more than a question for each that is here.
        """
        for layer in layers:
            if await self._stores.content.exists(layer.digest):
                self._group.create_task(self._fetching.bring(layer))


class _Arriving:
    """See `unpack.Arrivals`; the layers come side by side, and a failure of one ends the whole pull."""

    def __init__(self, group: asyncio.TaskGroup, fetching: Fetching, layers: Sequence[Descriptor]) -> None:
        self._group = group
        self._fetching = fetching
        self._layers = layers
        self._coming: dict[int, asyncio.Task[None]] = {}

    def begin(self, position: int) -> None:
        for at in range(position, len(self._layers)):
            self._coming[at] = self._group.create_task(self._fetching.bring(self._layers[at]))

    async def layer(self, position: int) -> None:
        await self._coming[position]
