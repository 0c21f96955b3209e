"""Stores in memory for transfers, whose snapshots may be remote and whose registry is a dictionary with gates."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from types import SimpleNamespace

from orlop.base.errdefs import AlreadyExistsError, NotFoundError
from orlop.base.labels import SNAPSHOT_REF
from orlop.core.transfer import Named, read_blob, write_blob
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor, Image, Index, Manifest, Platform, RootFS, encode

AMD64 = Platform(os="linux", architecture="amd64")
ARM64 = Platform(os="linux", architecture="arm64")


class MemoryContent:
    def __init__(self):
        self.blobs, self.labels, self.log = {}, {}, []

    async def info(self, digest):
        if digest not in self.blobs:
            raise NotFoundError(f"content digest {digest}")
        return SimpleNamespace(
            digest=digest, size_bytes=len(self.blobs[digest]), labels=dict(self.labels.get(digest, {}))
        )

    async def exists(self, digest):
        return digest in self.blobs

    async def label(self, digest, labels):
        await self.info(digest)
        self.labels.setdefault(digest, {}).update(labels)
        return await self.info(digest)

    async def walk(self, filters=()):
        for digest, labels in self.labels.items():
            if any(f'labels."{key}"=={value}' in filters for key, value in labels.items()):
                yield await self.info(digest)

    async def chunks(self, digest, *, offset=0, size=0):
        await self.info(digest)
        yield self.blobs[digest][offset : offset + size if size else None]

    async def read(self, digest):
        return await read_blob(self, digest)

    async def write(self, ref, data, *, expected="", labels=None):
        return await write_blob(self, ref, data, expected=expected, labels=labels)

    async def offset(self, ref):
        raise NotFoundError(ref)

    async def writer(self, ref, *, size=0, expected=""):
        if expected in self.blobs:
            raise AlreadyExistsError(expected)
        return MemoryIngest(self, ref)

    async def abort(self, ref):
        self.log.append(f"abort {ref}")


class MemoryIngest:
    def __init__(self, content, ref):
        self.content, self.ref, self.data = content, ref, b""

    @property
    def offset(self):
        return len(self.data)

    async def write(self, data):
        self.data += data

    async def truncate(self):
        self.data = b""

    async def commit(self, *, size=0, expected="", labels=None):
        digest = Digest.of(self.data)
        assert expected in ("", digest)
        self.content.blobs[digest] = self.data
        self.content.labels.setdefault(digest, {}).update(labels or {})
        return digest

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        pass


class MemorySnapshots:
    """Committed snapshots by name with their labels; `remote` are claimed by Prepare."""

    name = "memory"

    def __init__(self):
        self.committed, self.active, self.remote = {}, {}, set()

    async def exists(self, key):
        return key in self.committed

    async def prepare(self, key, parent="", *, labels=None):
        target = (labels or {}).get(SNAPSHOT_REF)
        if target in self.remote:
            self.committed[target] = labels
        if target in self.committed:
            raise AlreadyExistsError(f"target snapshot {target}")
        assert not parent or parent in self.committed
        self.active[key] = parent
        return []

    async def commit(self, name, key, *, labels=None):
        del self.active[key]
        self.committed[name] = labels

    async def remove(self, key):
        del self.active[key]


class MemoryStores:
    """Whose applier takes a layer's bytes for its tar."""

    def __init__(self):
        self.content, self._snapshots, self.named = MemoryContent(), MemorySnapshots(), {}
        self.applier, self.applied = self, []
        self.images = SimpleNamespace(named=self._named, put=self._put)

    def snapshots(self, _snapshotter):
        return self._snapshots

    async def apply(self, layer, _mounts):
        self.applied.append(layer.digest)
        return Descriptor(digest=Digest.of(await self.content.read(layer.digest)), size=layer.size)

    async def _named(self, name):
        if name not in self.named:
            raise NotFoundError(f'image "{name}"')
        return self.named[name]

    async def _put(self, name, target, labels):
        self.named[name] = Named(name=name, target=target, labels=labels)
        return self.named[name]


@dataclass
class Remote:
    """A fetcher: what is in `gates` is not given before its event is set."""

    blobs: dict = field(default_factory=dict)
    gates: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)

    def add(self, data, media_type):
        digest = Digest.of(data)
        self.blobs[digest] = data
        return Descriptor(media_type=media_type, digest=digest, size=len(data))

    def image(self, *layers, platform=AMD64, layer_type=media_types.OCI_LAYER):
        config = Image(
            os=platform.os,
            architecture=platform.architecture,
            rootfs=RootFS(diff_ids=tuple(Digest.of(one) for one in layers)),
        )
        manifest = Manifest(
            media_type=media_types.OCI_MANIFEST,
            config=self.add(encode(config), media_types.OCI_CONFIG),
            layers=tuple(self.add(one, layer_type) for one in layers),
        )
        found = self.add(encode(manifest), media_types.OCI_MANIFEST)
        return Descriptor(media_type=found.media_type, digest=found.digest, size=found.size, platform=platform)

    def index(self, *manifests):
        return self.add(encode(Index(media_type=media_types.OCI_INDEX, manifests=manifests)), media_types.OCI_INDEX)

    def hold(self, data):
        gate = self.gates[Digest.of(data)] = asyncio.Event()
        return gate

    @contextlib.asynccontextmanager
    async def fetch(self, descriptor, *, offset=0, verify=True):
        self.asked.append(descriptor.digest)
        if descriptor.digest in self.gates:
            await self.gates[descriptor.digest].wait()
        if descriptor.digest not in self.blobs:
            raise NotFoundError(f"fetch {descriptor.digest}")

        async def pieces():
            yield self.blobs[descriptor.digest][offset:]

        yield pieces()
