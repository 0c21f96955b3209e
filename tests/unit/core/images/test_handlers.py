"""Walking images: children, selection by platform, presence, labels, dispatch."""

import asyncio

import pytest

from orlop.base import platforms
from orlop.base.errdefs import InvalidArgumentError, NotFoundError
from orlop.core.images import handlers
from orlop.core.images.dispatch import dispatch
from orlop.core.images.gc_labels import SUBJECT_ANNOTATION, child_labels, without_layers
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor, Image, Index, Manifest, Platform, RootFS, encode


class Store:
    """Blobs by digest."""

    def __init__(self):
        self.blobs: dict[str, bytes] = {}

    def put(self, data, media_type, platform=None):
        digest = Digest.of(data)
        self.blobs[digest] = data
        return Descriptor(media_type=media_type, digest=digest, size=len(data), platform=platform)

    async def read(self, descriptor):
        if descriptor.digest not in self.blobs:
            raise NotFoundError(f"content {descriptor.digest}")
        return self.blobs[descriptor.digest]

    async def has(self, descriptor):
        return descriptor.digest in self.blobs

    def image(self, architecture, *, said=True, layers=(b"layer",)):
        config = Image(os="linux", architecture=architecture, rootfs=RootFS(diff_ids=tuple(map(Digest.of, layers))))
        manifest = Manifest(
            config=self.put(encode(config), media_types.OCI_CONFIG),
            layers=tuple(self.put(layer, media_types.OCI_LAYER) for layer in layers),
        )
        platform = Platform(os="linux", architecture=architecture) if said else None
        return self.put(encode(manifest), media_types.OCI_MANIFEST, platform)

    def index(self, *manifests):
        return self.put(encode(Index(manifests=manifests)), media_types.OCI_INDEX)


def only(specifier):
    return platforms.only(platforms.parse(specifier))


@pytest.fixture
def store():
    return Store()


def test_the_best_manifest_for_a_platform_is_found(store):
    silent = store.image("s390x", said=False)
    first, second = store.image("386"), store.image("amd64")
    target = store.index(first, silent, second)

    def find(specifier):
        return asyncio.run(handlers.manifest(store, target, only(specifier))).descriptor

    assert find("linux/amd64") == second
    assert find("linux/386") == first
    assert find("linux/s390x") == silent  # its config says so
    with pytest.raises(NotFoundError, match=f"no match for platform linux/ppc64le in manifest {target.digest}"):
        find("linux/ppc64le")
    assert asyncio.run(handlers.manifest(store, first, only("linux/arm64"))).descriptor == first
    assert asyncio.run(handlers.image_config(store, target, only("linux/amd64"))).architecture == "amd64"
    assert asyncio.run(handlers.manifest(store, store.index(target), only("linux/386"))).descriptor == first


def test_platforms_are_listed_without_attestations(store):
    unknown = Platform(os="unknown", architecture="unknown")
    attestation = store.put(b"{}", media_types.OCI_MANIFEST, unknown)
    target = store.index(store.image("amd64"), attestation, store.image("arm64", said=False))
    assert [str(found) for found in asyncio.run(handlers.platforms(store, target))] == ["linux/amd64", "linux/arm64"]


def test_presence(store):
    image = store.image("amd64", layers=(b"1", b"2"))
    target = store.index(image)
    matcher = only("linux/amd64")
    whole = asyncio.run(handlers.check(store, store.has, target, matcher))
    assert (whole.available, len(whole.required), len(whole.missing)) == (True, 3, 0)
    del store.blobs[Digest.of(b"2")]
    part = asyncio.run(handlers.check(store, store.has, target, matcher))
    assert [missing.digest for missing in part.missing] == [Digest.of(b"2")]
    del store.blobs[image.digest]
    nothing = asyncio.run(handlers.check(store, store.has, target, matcher))
    assert (nothing.available, nothing.missing) == (False, (target,))


def test_documents_in_disguise_are_refused(store):
    index = store.index(store.image("amd64"))
    disguised = Descriptor(media_type=media_types.OCI_MANIFEST, digest=index.digest, size=index.size)
    with pytest.raises(InvalidArgumentError, match=f"manifest {index.digest}: media-type: expected manifest"):
        asyncio.run(handlers.children(store, disguised))


def nested(store, depth):
    target = store.image("amd64")
    for _ in range(depth):
        target = store.index(target)
    return target


def test_depth_is_bounded(store):
    async def visit(descriptor):
        return await handlers.children(store, descriptor)

    deep = nested(store, 20)
    for walk in (
        lambda: handlers.walk(visit, [deep]),
        lambda: dispatch(visit, [deep]),
        lambda: handlers.manifest(store, deep, only("linux/amd64")),
    ):
        with pytest.raises(InvalidArgumentError, match="indexes deep"):
            asyncio.run(walk())


def test_dispatch_visits_each_once_and_keeps_to_its_bound(store):
    layers = [bytes([number]) for number in range(10)]
    target = store.index(store.image("amd64", layers=layers), store.image("arm64", layers=layers))
    running, most, seen = 0, 0, []

    async def visit(descriptor):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        seen.append(descriptor.digest)
        return await handlers.children(store, descriptor)

    asyncio.run(dispatch(visit, [target], limit=3))
    assert len(seen) == len(set(seen)) == 1 + 2 + 2 + 10
    assert most == 3


def test_dispatch_ends_all_and_raises_the_first_error(store):
    target = store.image("amd64", layers=(b"1", b"2"))
    ended = []

    async def visit(descriptor):
        if descriptor.digest == Digest.of(b"1"):
            raise NotFoundError("layer one")
        try:
            if descriptor.digest == Digest.of(b"2"):
                await asyncio.Event().wait()
        finally:
            ended.append(descriptor.digest)
        return await handlers.children(store, descriptor)

    with pytest.raises(NotFoundError, match="layer one"):
        asyncio.run(dispatch(visit, [target]))
    assert Digest.of(b"2") in ended


def test_labels_keep_children():
    def child(media_type, name, annotations=None):
        return Descriptor(media_type=media_type, digest=Digest.of(name), size=1, annotations=annotations or {})

    children = [
        child(media_types.OCI_CONFIG, b"c"),
        child(media_types.OCI_LAYER_GZIP, b"l0"),
        child(media_types.DOCKER_LAYER_GZIP, b"l1"),
        child(media_types.OCI_MANIFEST, b"m"),
        child(media_types.OCI_INDEX, b"i"),
        child(media_types.CHECKPOINT, b"k"),
        child(media_types.OCI_MANIFEST, b"r", {SUBJECT_ANNOTATION: "x"}),
    ]
    prefix = "containerd.io/gc.ref.content"
    assert child_labels(children) == {
        f"{prefix}.config": Digest.of(b"c"),
        f"{prefix}.l.0": Digest.of(b"l0"),
        f"{prefix}.l.1": Digest.of(b"l1"),
        f"{prefix}.m.0": Digest.of(b"m"),
        f"{prefix}.0": Digest.of(b"i"),
        f"{prefix}.config1": Digest.of(b"k"),
        f"{prefix}.referrer.sha256.{Digest.of(b'r').hex[:12]}": Digest.of(b"r"),
    }
    assert f"{prefix}.l.0" not in child_labels(children, without_layers)
