"""The daemon's stores as a transfer works on them (`core.transfer.Stores`): one namespace, one lease."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from orlop.base.errdefs import AlreadyExistsError, DataLossError, NotFoundError, UnimplementedError, UnknownError
from orlop.core import content as contents
from orlop.core import images as image_model
from orlop.core.diff import Differ, LayerBlob
from orlop.core.diff.choice import first_able
from orlop.core.images import events
from orlop.core.metadata import Database, Transaction
from orlop.core.metadata.images import ImageStore
from orlop.core.mount import Mount
from orlop.core.snapshots.store import Store as SnapshotStore
from orlop.core.snapshots.stores import Stores as SnapshotStores
from orlop.core.transfer import CHUNK_BYTES, Named, read_blob, write_blob
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor


@dataclass(frozen=True, slots=True, kw_only=True)
class Backing:
    """What the daemon has; shared by all transfers."""

    db: Database
    content: contents.Store
    snapshots: SnapshotStores
    differs: Sequence[Differ]


class LocalStores:
    """See `core.transfer.Stores`."""

    def __init__(self, backing: Backing, namespace: str, lease: str) -> None:
        self._backing = backing
        self._namespace = namespace
        self._lease = lease
        self.content = LocalContent(backing.content, namespace, lease)
        self.images = LocalImages(backing.db, namespace, lease)
        self.applier = LocalApplier(backing.differs, namespace)

    def snapshots(self, snapshotter: str) -> "LocalSnapshots":
        """See `core.transfer.Stores.snapshots`."""
        return LocalSnapshots(self._backing.snapshots.named(snapshotter), self._namespace, self._lease)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Blob:
    digest: str
    size_bytes: int
    labels: Mapping[str, str]


class LocalContent:
    """See `core.transfer.Content`."""

    def __init__(self, store: contents.Store, namespace: str, lease: str) -> None:
        self._store = store
        self._namespace = namespace
        self._lease = lease

    async def info(self, digest: str) -> _Blob:
        return _blob(await self._store.info(self._namespace, digest))

    async def exists(self, digest: str) -> bool:
        try:
            await self.info(digest)
        except NotFoundError:
            return False
        return True

    async def label(self, digest: str, labels: Mapping[str, str]) -> _Blob:
        paths = [f"labels.{key}" for key in labels]
        return _blob(await self._store.update(self._namespace, digest, _plain(labels), paths))

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[_Blob]:
        async for info in self._store.walk(self._namespace, filters):
            yield _blob(info)

    async def chunks(self, digest: str, *, offset: int = 0, size: int = 0) -> AsyncGenerator[bytes, None]:
        reader = await self._store.reader(self._namespace, digest)
        try:
            end = min(reader.size, offset + size) if size else reader.size
            while offset < end:
                data = await reader.read_at(offset, min(CHUNK_BYTES, end - offset))
                if not data:
                    raise DataLossError(f"content {digest}: ends at {offset} of {reader.size} bytes")
                yield data
                offset += len(data)
        finally:
            reader.close()

    async def read(self, digest: str) -> bytes:
        return await read_blob(self, digest)

    async def write(self, ref: str, data: bytes, *, expected: str = "", labels: Mapping[str, str] | None = None) -> str:
        return await write_blob(self, ref, data, expected=expected, labels=labels)

    async def offset(self, ref: str) -> int:
        return (await self._store.status(self._namespace, ref)).offset

    async def writer(self, ref: str, *, size: int = 0, expected: str = "") -> "LocalIngest":
        writer = await self._store.writer(self._namespace, ref, total=size, expected=expected, lease=self._lease)
        return LocalIngest(writer)

    async def abort(self, ref: str) -> None:
        await self._store.abort(self._namespace, ref, lease=self._lease)


class LocalIngest:
    """See `core.transfer.Ingest`."""

    def __init__(self, writer: contents.Writer) -> None:
        self._writer = writer

    @property
    def offset(self) -> int:
        return self._writer.status().offset

    async def write(self, data: bytes) -> None:
        await self._writer.write(data)

    async def truncate(self) -> None:
        await self._writer.truncate()

    async def commit(self, *, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> str:
        return (await self._writer.commit(size=size, expected=expected, labels=_plain(labels))).digest

    async def __aenter__(self) -> "LocalIngest":
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._writer.close()


class LocalImages:
    """See `core.transfer.Images`; what is put replaces target and labels of an image of that name."""

    def __init__(self, db: Database, namespace: str, lease: str) -> None:
        self._db = db
        self._namespace = namespace
        self._lease = lease
        self._store = ImageStore(db)

    async def named(self, name: str) -> Named:
        return _named(self._store.get(self._namespace, name))

    async def put(self, name: str, target: Descriptor, labels: Mapping[str, str]) -> Named:
        wanted = image_model.Image(
            name=name,
            labels=_plain(labels),
            target=image_model.Target(
                media_type=target.media_type,
                digest=str(target.digest),
                size=target.size,
                annotations=dict(target.annotations),
            ),
        )

        def write(tx: Transaction) -> image_model.Image:
            try:
                image = self._store.create(tx, self._namespace, wanted, lease=self._lease)
            except AlreadyExistsError:
                image = self._store.update(tx, self._namespace, wanted, lease=self._lease)
                events.updated(tx, self._namespace, image)
            else:
                events.created(tx, self._namespace, image)
            return image

        return _named(await self._db.write(write))


class LocalSnapshots:
    """See `core.transfer.Snapshots`."""

    def __init__(self, store: SnapshotStore, namespace: str, lease: str) -> None:
        self._store = store
        self._namespace = namespace
        self._lease = lease

    @property
    def name(self) -> str:
        return self._store.name

    async def exists(self, key: str) -> bool:
        try:
            self._store.stat(self._namespace, key)
        except NotFoundError:
            return False
        return True

    async def prepare(self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None) -> list[Mount]:
        return await self._store.prepare(self._namespace, key, parent, labels=_plain(labels), lease=self._lease)

    async def commit(self, name: str, key: str, *, labels: Mapping[str, str] | None = None) -> None:
        await self._store.commit(self._namespace, name, key, labels=_plain(labels), lease=self._lease)

    async def remove(self, key: str) -> None:
        await self._store.remove(self._namespace, key, lease=self._lease)


class LocalApplier:
    """See `core.transfer.Applier`."""

    def __init__(self, differs: Sequence[Differ], namespace: str) -> None:
        self._differs = differs
        self._namespace = namespace

    async def apply(self, layer: Descriptor, mounts: Sequence[Mount]) -> Descriptor:
        blob = LayerBlob(
            media_type=layer.media_type,
            digest=layer.digest,
            size=layer.size,
            annotations=dict(layer.annotations),
        )
        try:
            applied = await first_able(self._differs, lambda differ: differ.apply(self._namespace, blob, mounts))
        except UnimplementedError as error:
            # It is the layer that nobody knows, and not the transfer.
            raise UnknownError(f"failed to extract layer {layer.digest}: {error.text}") from error
        return Descriptor(media_type=media_types.OCI_LAYER, digest=Digest(applied.digest), size=applied.size)


def _plain(labels: Mapping[str, str] | None) -> dict[str, str]:
    """Labels as rows take them: digests among the values are texts of a class of their own."""
    return {key: str(value) for key, value in (labels or {}).items()}


def _blob(info: contents.Info) -> _Blob:
    return _Blob(digest=info.digest, size_bytes=info.size, labels=info.labels)


def _named(image: image_model.Image) -> Named:
    return Named(
        name=image.name,
        labels=image.labels,
        target=Descriptor(
            media_type=image.target.media_type,
            digest=Digest.parse(image.target.digest),
            size=image.target.size,
            annotations=dict(image.target.annotations),
        ),
    )
