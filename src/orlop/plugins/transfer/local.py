"""The transferrer of the daemon: pull, push, import, export and tag on its own stores.

Source: containerd's core/transfer/local and plugins/transfer/plugin.go.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from orlop.base import platforms
from orlop.base.errdefs import InvalidArgumentError, NotFoundError, OrlopError, UnimplementedError, UnknownError
from orlop.base.labels import GC_EXPIRE
from orlop.base.platforms import ALL, Matcher, Platform
from orlop.core.images.verifier import ImageVerifier
from orlop.core.kinds import CONTENT, DIFFER, IMAGE_VERIFIER, METADATA, SNAPSHOTS, TRANSFER
from orlop.core.leases import unique_id
from orlop.core.metadata.leases import LeaseStore
from orlop.core.plugin import Context, Registration
from orlop.core.remotes.parts import Parts
from orlop.core.transfer import Named
from orlop.core.transfer.ends import ImageExportStream, ImageImportStream, ImageStore, OCIRegistry
from orlop.core.transfer.exporting import ExportOptions, export_archive
from orlop.core.transfer.fetch import Selection
from orlop.core.transfer.importing import import_archive, keep
from orlop.core.transfer.legacy import with_config_type
from orlop.core.transfer.naming import names_in_store
from orlop.core.transfer.progress import Callback, Event, Listener, Tracker, ignore
from orlop.core.transfer.pull import Unpack, pull, unpack_tree
from orlop.core.transfer.push import Foreign, Pushing
from orlop.core.transfer.threads import Thread
from orlop.oci import media_types
from orlop.oci.image import Descriptor, decode_index
from orlop.plugins.transfer.registry import resolving
from orlop.plugins.transfer.stores import Backing, LocalStores

log: Final = logging.getLogger(__name__)

DEFAULT_SNAPSHOTTER: Final = "overlayfs"
LEASE_LIFETIME: Final = timedelta(hours=24)
_LEAST_PART: Final = 512  # containerd's
_ECHO_BYTES: Final = 1 << 18


@dataclass(slots=True)
class Config:
    """The plug-in's section of the configuration, with containerd's names.

    Attributes:
        max_concurrent_downloads, max_concurrent_uploaded_layers: blobs at once, of all transfers; 0 is no limit.
        concurrent_layer_fetch_buffer: bytes of the parts that a large blob is fetched in, `max_concurrent_downloads` of
            them at once; 512 or less fetches each blob by one request.
        check_platform_supported: unpack only for the platforms that `unpack_config` names (this machine's without one).
        unpack_config: tables with `platform` and `snapshotter`: what may be asked for. Without any, every snapshotter
            that is loaded; containerd has its default one alone.
        config_path: directories with hosts.toml files, separated by colons, where a request names none.
    """

    max_concurrent_downloads: int = 3
    max_concurrent_uploaded_layers: int = 3
    concurrent_layer_fetch_buffer: int = 0
    check_platform_supported: bool = False
    unpack_config: list[dict[str, Any]] = field(default_factory=list)  # Any: a table as it stands in the file
    config_path: str = "/etc/containerd/certs.d:/etc/docker/certs.d"

    @property
    def parts(self) -> Parts | None:
        """How large blobs are fetched."""
        if self.concurrent_layer_fetch_buffer <= _LEAST_PART or self.max_concurrent_downloads < 2:
            return None
        return Parts(size=self.concurrent_layer_fetch_buffer, requests=self.max_concurrent_downloads)

    def supported(self, snapshotters: Sequence[str]) -> list[Unpack]:
        """What may be asked for. Raises InvalidArgumentError, NotFoundError for a table that is wrong."""
        tables = self.unpack_config or [{"snapshotter": name} for name in snapshotters]
        found = []
        for table in tables:
            snapshotter = str(table.get("snapshotter", "")) or DEFAULT_SNAPSHOTTER
            if snapshotter not in snapshotters:
                raise NotFoundError(f"snapshotter {snapshotter}, which unpack_config names")
            platform = platforms.parse(table["platform"]) if table.get("platform") else platforms.default()
            matcher = platforms.only(platform) if self.check_platform_supported else ALL
            found.append(Unpack(snapshotter=snapshotter, matcher=matcher))
        return found


class Local:
    """See `core.transfer.ends.Transferrer`."""

    def __init__(
        self,
        backing: Backing,
        *,
        supported: Sequence[Unpack] = (),
        verifiers: Mapping[str, ImageVerifier] | None = None,
        hosts_dirs: tuple[str, ...] = (),
        downloads: int = 0,
        uploads: int = 0,
        parts: Parts | None = None,
    ) -> None:
        self._backing = backing
        self._leases = LeaseStore(backing.db)
        self._supported = supported
        self._verifiers = verifiers or {}
        self._hosts_dirs = hosts_dirs
        self._parts = parts
        self._downloads = asyncio.Semaphore(downloads) if downloads > 0 else None
        self._uploads = asyncio.Semaphore(uploads) if uploads > 0 else None

    async def transfer(
        self, namespace: str, source: object, destination: object, *, lease: str, listener: Listener | None
    ) -> None:
        """See `core.transfer.ends.Transferrer.transfer`."""
        telling = _Telling(listener)
        match source, destination:
            case OCIRegistry(), ImageStore():
                async with self._leased(namespace, lease) as stores:
                    await self._pull(stores, source, destination, telling)
            case ImageStore(), OCIRegistry():
                await self._push(LocalStores(self._backing, namespace, lease), source, destination, telling)
            case ImageStore(), ImageExportStream():
                async with self._leased(namespace, lease) as stores:
                    await _export(stores, source, destination, telling)
            case ImageStore(), ImageStore():
                async with self._leased(namespace, lease) as stores:
                    image = await stores.images.named(source.name)
                    await _put(stores, destination, image.target, from_archive=False)
            case ImageImportStream(), ImageStore():
                async with self._leased(namespace, lease) as stores:
                    await self._import(stores, source, destination, telling)
            case ImageImportStream(), ImageExportStream():
                await _echo(source, destination)
            case _:
                raise UnimplementedError(f"unable to transfer from {source} to {destination}")

    async def _pull(self, stores: LocalStores, registry: OCIRegistry, store: ImageStore, telling: "_Telling") -> None:
        telling.say(f"Resolving from {registry}")
        unpacks = self._unpacks(store)
        async with resolving(registry, hosts_dirs=self._hosts_dirs) as resolver:
            name, target = await resolver.resolve(registry.reference)
            if target.media_type == media_types.DOCKER_SCHEMA1_MANIFEST:
                raise InvalidArgumentError("schema 1 image manifests are no longer supported")
            await self._verify(name, target)
            telling.say(f"Pulling from {registry}")
            telling.say("fetching image content", name, target)
            await pull(
                stores,
                resolver.fetcher(name, parts=self._parts),
                name,
                target,
                selection=_selection(store),
                unpacks=unpacks,
                gate=self._downloads,
                progress=telling.steps,
            )
        target = await with_config_type(stores.content, target)
        telling.saved(await _put(stores, store, target, from_archive=False))
        telling.say(f"Completed pull from {registry}")

    async def _verify(self, name: str, target: Descriptor) -> None:
        for verifier_id, verifier in self._verifiers.items():
            told = {"image": name, "digest": target.digest, "verifier": verifier_id}
            try:
                judgement = await verifier.verify(name, target)
            except OrlopError as error:
                log.error("no judgement from image verifier: %s", error, extra=told)
                raise UnknownError(
                    f"blocking pull of {name} with digest {target.digest}: image verifier {verifier_id} returned "
                    f"error: {error}"
                ) from error
            if not judgement.ok:
                log.warning("image verifier blocked pull: %s", judgement.reason, extra=told)
                raise UnknownError(
                    f"image verifier {verifier_id} blocked pull of {name} with digest {target.digest} for reason: "
                    f"{judgement.reason}"
                )
            log.debug("image verifier allowed pull: %s", judgement.reason, extra=told)

    async def _push(self, stores: LocalStores, store: ImageStore, registry: OCIRegistry, telling: "_Telling") -> None:
        image = await stores.images.named(store.name)
        telling.say(f"Pushing to {registry}")
        telling.say("pushing content", image.name, image.target)
        # With the digest beside it, the tag goes to this manifest alone and not to those below it.
        reference = registry.reference
        if "@" not in reference:
            reference = f"{reference}@{image.target.digest}"
        async with resolving(registry, hosts_dirs=self._hosts_dirs) as resolver:
            pushing = Pushing(
                stores.content,
                resolver.pusher(reference),
                name=image.name,
                foreign=Foreign.PUSH_IF_HERE,
                matcher=_matcher(store.platforms),
                gate=self._uploads,
                progress=telling.steps,
            )
            await pushing.tree(image.target)
        telling.say("pushed content", image.name, image.target)
        telling.say(f"Completed push to {registry}", "", image.target)

    async def _import(
        self, stores: LocalStores, archive: ImageImportStream, store: ImageStore, telling: "_Telling"
    ) -> None:
        telling.say("Importing")
        unpacks = self._unpacks(store)
        matcher = _matcher(store.platforms)
        top = await import_archive(stores.content, archive.source, compress=archive.force_compress, progress=ignore)
        entries = decode_index(await stores.content.read(top.digest), what="index of the archive").manifests
        if not Selection(matcher=matcher, manifest_limit=store.manifest_limit).manifests(entries):
            raise NotFoundError(f"image for platform {matcher} in the archive: image might be filtered out")
        await keep(stores.content, top, matcher)
        if unpacks:
            await unpack_tree(stores, store.name or "of the archive", top, unpacks=unpacks, matcher=matcher)
        for target, from_archive in ((top, False), *((entry, True) for entry in entries)):
            try:
                telling.saved(await _put(stores, store, target, from_archive=from_archive))
            except NotFoundError:
                log.info("no name for what was imported", extra={"digest": target.digest})
        telling.say("Completed import")

    def _unpacks(self, store: ImageStore) -> list[Unpack]:
        """Where to unpack what: as was asked for, where it is supported; images of other platforms as the first."""
        found: list[Unpack] = []
        others: list[Unpack] = []
        for asked in store.unpacks:
            snapshotter = asked.snapshotter or DEFAULT_SNAPSHOTTER
            for supported in self._supported:
                if supported.snapshotter == snapshotter and supported.matcher(asked.platform):
                    anything = not asked.platform.os and not asked.platform.architecture
                    matcher = supported.matcher if anything else platforms.only(asked.platform)
                    found.append(Unpack(snapshotter=snapshotter, matcher=matcher))
                    others.append(supported)
                    break
        if store.unpacks and not found:
            raise InvalidArgumentError("unable to initialize unpacker: no unpack platforms defined")
        return found + others

    @contextlib.asynccontextmanager
    async def _leased(self, namespace: str, lease: str) -> AsyncIterator[LocalStores]:
        """The stores under the caller's lease, or one for the time of the operation."""
        if lease:
            yield LocalStores(self._backing, namespace, lease)
            return
        own = unique_id()
        expires = (datetime.now(UTC) + LEASE_LIFETIME).strftime("%Y-%m-%dT%H:%M:%SZ")
        db = self._backing.db
        creating = asyncio.ensure_future(
            db.write(lambda tx: self._leases.create(tx, namespace, own, {GC_EXPIRE: expires}))
        )

        async def drop() -> None:
            # A write is not taken back when its caller is cancelled, so wait for it first.
            await asyncio.wait({creating})
            with contextlib.suppress(NotFoundError):  # it was never made, or somebody has deleted it
                await db.write(lambda tx: self._leases.delete(tx, namespace, own))

        try:
            await asyncio.shield(creating)
            yield LocalStores(self._backing, namespace, own)
        finally:
            await asyncio.shield(drop())


class _Telling:
    """What a listener, if there is one, is told."""

    def __init__(self, listener: Listener | None) -> None:
        self._listener = listener
        self.steps: Callback = ignore if listener is None else Tracker(listener)

    def say(self, event: str, name: str = "", descriptor: Descriptor | None = None) -> None:
        if self._listener is not None:
            self._listener(Event(event=event, name=name, descriptor=descriptor))

    def saved(self, images: Sequence[Named]) -> None:
        for image in images:
            self.say("saved", image.name, image.target)


async def _put(stores: LocalStores, store: ImageStore, target: Descriptor, *, from_archive: bool) -> list[Named]:
    names = names_in_store(store, target, from_archive=from_archive)
    return [await stores.images.put(name, target, store.labels) for name in names]


async def _export(stores: LocalStores, store: ImageStore, archive: ImageExportStream, telling: _Telling) -> None:
    telling.say("Exporting")
    names = [store.name] if store.name else []
    for reference in store.extra_references:
        if reference.is_prefix:
            raise UnimplementedError("prefix lookup on export not implemented")
        names.append(reference.name)
    images = [await stores.images.named(name) for name in names]
    options = ExportOptions(
        matcher=platforms.ordered(archive.platforms) if archive.platforms else platforms.only_strict(_host()),
        all_platforms=archive.all_platforms,
        docker_manifest=not archive.skip_compatibility_manifest,
        skip_nondistributable=archive.skip_non_distributable,
    )
    await export_archive(stores.content, images, archive.target.write, options)
    await archive.target.close()
    telling.say("Completed export")


async def _echo(archive: ImageImportStream, target: ImageExportStream) -> None:
    async with Thread("orlop-echo") as thread:
        while data := await thread.run(archive.source.read, _ECHO_BYTES):
            await target.target.write(data)
    await target.target.close()


def _selection(store: ImageStore) -> Selection:
    return Selection(
        matcher=_matcher(store.platforms), manifest_limit=store.manifest_limit, all_metadata=store.all_metadata
    )


def _matcher(wanted: Sequence[Platform]) -> Matcher:
    return platforms.ordered(wanted) if wanted else ALL


def _host() -> Platform:
    host = platforms.default()
    return Platform(
        os=host.os, architecture=host.architecture, variant="" if host.architecture == "amd64" else host.variant
    )


def _init(context: Context) -> Local:
    config: Config = context.config
    snapshots = context.get(SNAPSHOTS)
    backing = Backing(
        db=context.get(METADATA),
        content=context.get(CONTENT),
        snapshots=snapshots,
        differs=list(context.all(DIFFER).values()),
    )
    return Local(
        backing,
        supported=config.supported(list(snapshots)),
        verifiers=context.all(IMAGE_VERIFIER),
        hosts_dirs=tuple(filter(None, config.config_path.split(":"))),
        downloads=config.max_concurrent_downloads,
        uploads=config.max_concurrent_uploaded_layers,
        parts=config.parts,
    )


REGISTRATION: Final = Registration(
    kind=TRANSFER,
    id="local",
    requires=(METADATA, CONTENT, SNAPSHOTS, DIFFER, IMAGE_VERIFIER),
    config=Config,
    init=_init,
)
