"""Archives into stores in memory and out of them: Docker's and OCI's, compressed, foreign, lacking and lying."""

import asyncio
import gzip
import hashlib
import io
import json
import tarfile

import pytest
from backports import zstd

from orlop.base import platforms
from orlop.base.errdefs import InvalidArgumentError, NotFoundError
from orlop.base.labels import UNCOMPRESSED
from orlop.base.platforms import ALL
from orlop.core.images.gc_labels import without_layers
from orlop.core.transfer import Named
from orlop.core.transfer.exporting import ExportOptions, export_archive
from orlop.core.transfer.importing import import_archive, keep
from orlop.core.transfer.naming import NAME_ANNOTATION
from orlop.core.transfer.progress import ignore
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor, Index, decode_index, decode_manifest, encode
from tests.unit.core.transfer.memory import AMD64, ARM64, MemoryStores, Remote

LAYER = b"a layer of a tar" * 100


def tar(files, links=()):
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, linked in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, linked
            archive.addfile(member)
    return target.getvalue()


def docker(*layers, config=None, tags=("busybox:1",), **more):
    diff_ids = [Digest.of(one) for one in layers]
    document = config or {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    files = {"config.json": json.dumps(document).encode(), **dict(zip(names, layers, strict=True)), **more}
    manifest = [{"Config": "config.json", "RepoTags": list(tags), "Layers": names}]
    return {**files, "manifest.json": json.dumps(manifest).encode()}


def imported(data, *, stores=None, **options):
    stores = stores or MemoryStores()

    async def run():
        async with asyncio.timeout(20):
            top = await import_archive(stores.content, io.BytesIO(data), progress=ignore, **options)
            return top, decode_index(await stores.content.read(top.digest)).manifests

    top, entries = asyncio.run(run())
    return stores, top, entries


def manifest_of(stores, entry):
    return decode_manifest(stores.content.blobs[entry.digest])


@pytest.mark.parametrize("wrap", [bytes, gzip.compress, zstd.compress], ids=["plain", "gzip", "zstd"])
def test_a_docker_archive(wrap):
    stores, _, (entry,) = imported(wrap(tar(docker(LAYER, tags=["busybox:1"]))))
    assert entry.annotations[NAME_ANNOTATION] == "docker.io/library/busybox:1"
    assert entry.platform == AMD64
    (layer,) = manifest_of(stores, entry).layers
    assert (layer.digest, layer.media_type) == (Digest.of(LAYER), media_types.DOCKER_LAYER)


def test_several_names_and_images_in_one_docker_archive():
    one, two = docker(LAYER, tags=["a:1", "b:1"]), docker(b"other", tags=[])
    two = {f"two-{name}": data for name, data in two.items()}
    manifests = json.loads(one.pop("manifest.json")) + json.loads(two.pop("two-manifest.json"))
    manifests[1] |= {"Config": "two-config.json", "Layers": ["two-0/layer.tar"]}
    _, _, entries = imported(tar({**one, **two, "manifest.json": json.dumps(manifests).encode()}))
    names = [entry.annotations.get(NAME_ANNOTATION) for entry in entries]
    assert names == ["docker.io/library/a:1", "docker.io/library/b:1", None]


def test_layers_of_docker_archives_may_be_links_and_compressed():
    squeezed = gzip.compress(LAYER)
    files = docker(squeezed)
    files["blob"] = files.pop("0/layer.tar")
    stores, _, (entry,) = imported(tar(files, links=[("0/layer.tar", "../blob")]))
    (layer,) = manifest_of(stores, entry).layers
    assert (layer.digest, layer.media_type) == (Digest.of(squeezed), media_types.DOCKER_LAYER_GZIP)


def test_plain_layers_are_compressed_on_request_and_known_forms_are_used():
    stores, _, (entry,) = imported(tar(docker(LAYER)), compress=True)
    (layer,) = manifest_of(stores, entry).layers
    assert layer.media_type == media_types.DOCKER_LAYER_GZIP
    assert gzip.decompress(stores.content.blobs[layer.digest]) == LAYER
    assert stores.content.labels[layer.digest] == {UNCOMPRESSED: Digest.of(LAYER)}
    _, _, (again,) = imported(tar(docker(LAYER)), stores=stores)
    assert manifest_of(stores, again).layers == (layer,)


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"x": b""}, "unrecognized image format"),
        ({"oci-layout": b'{"imageLayoutVersion":"2.0.0"}'}, "unsupported OCI layout version"),
        ({"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}, "without index.json"),
        ({"oci-layout": b"{"}, "no JSON"),
        ({"manifest.json": b"{}"}, "no list"),
        ({"manifest.json": b'[{"Config":"none"}]'}, "file 'none'"),
        (docker(LAYER, config={"rootfs": {"type": "layers", "diff_ids": []}}), "names no platform"),
    ],
)
def test_what_is_no_archive_of_images(files, text):
    with pytest.raises((InvalidArgumentError, NotFoundError), match=text):
        imported(tar(files))


def test_a_blob_that_lies_about_its_digest_is_refused():
    lie = f"blobs/sha256/{hashlib.sha256(b'other').hexdigest()}"
    with pytest.raises(AssertionError):  # what the store in memory says; a real one FailedPrecondition
        imported(tar({"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', lie: LAYER}))


def stored(*manifests, remote):
    """Stores that have all of a remote, and the index of these manifests."""
    stores = MemoryStores()
    index = remote.index(*manifests)
    stores.content.blobs.update(remote.blobs)
    return stores, index


def exported(stores, target, **options):
    chosen = ExportOptions(**{"matcher": platforms.only_strict(AMD64), **options})
    data = bytearray()

    async def write(piece):
        data.extend(piece)

    image = Named(name="docker.io/library/x:1", target=target, labels={})
    asyncio.run(export_archive(stores.content, [image], write, chosen))
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as archive:
        files = {member.name: _bytes(archive.extractfile(member)) for member in archive if member.isreg()}
    return bytes(data), files


def _bytes(file):
    return file.read()


def test_out_and_in_again():
    remote = Remote()
    one, other = remote.image(LAYER), remote.image(b"arm", platform=ARM64)
    stores, index = stored(one, other, remote=remote)
    data, files = exported(stores, index)
    assert f"blobs/sha256/{Digest.of(LAYER).hex}" in files
    assert f"blobs/sha256/{other.digest.hex}" not in files
    (entry,) = json.loads(files["manifest.json"])
    assert entry["RepoTags"] == ["x:1"]
    assert entry["Layers"] == [f"blobs/sha256/{Digest.of(LAYER).hex}"]
    found, top, entries = imported(data)
    assert [one.digest for one in entries] == [index.digest]
    with pytest.raises(NotFoundError, match=f"manifest {other.digest}"):
        asyncio.run(keep(found.content, top, ALL))
    asyncio.run(keep(found.content, top, platforms.only_strict(AMD64)))
    assert len(found.content.labels[one.digest]) == 2
    _, files = exported(stores, index, all_platforms=True, docker_manifest=False)
    assert f"blobs/sha256/{other.digest.hex}" in files
    assert "manifest.json" not in files
    foreign = remote.index(other)
    stores.content.blobs.update(remote.blobs)
    with pytest.raises(NotFoundError, match="no manifest for platform"):
        exported(stores, foreign)


def test_layers_that_may_not_be_passed_on():
    remote = Remote()
    foreign = remote.image(LAYER, layer_type=media_types.DOCKER_LAYER_FOREIGN)
    stores, index = stored(foreign, remote=remote)
    _, files = exported(stores, index)
    assert f"blobs/sha256/{Digest.of(LAYER).hex}" in files
    data, files = exported(stores, index, skip_nondistributable=True)
    assert f"blobs/sha256/{Digest.of(LAYER).hex}" not in files
    # Nor need they be there when such an archive comes back.
    found, top, _ = imported(data)
    asyncio.run(keep(found.content, top, ALL))


def test_layers_can_be_left_to_their_snapshots():
    stores, top, (entry,) = imported(tar(docker(LAYER)))
    asyncio.run(keep(stores.content, top, ALL, key_of=without_layers))
    assert list(stores.content.labels[entry.digest]) == ["containerd.io/gc.ref.content.config"]


def test_indexes_that_never_end_are_refused():
    stores = MemoryStores()
    inner = Descriptor(media_type=media_types.OCI_INDEX, digest=Digest.of(b""), size=0)
    for _ in range(12):
        data = encode(Index(media_type=media_types.OCI_INDEX, manifests=(inner,)))
        stores.content.blobs[Digest.of(data)] = data
        inner = Descriptor(media_type=media_types.OCI_INDEX, digest=Digest.of(data), size=len(data))
    with pytest.raises(InvalidArgumentError, match="deep"):
        asyncio.run(keep(stores.content, inner, ALL))
    with pytest.raises(InvalidArgumentError, match="deep"):
        exported(stores, inner)


def test_indexes_that_name_each_other_many_times_are_read_once():
    remote = Remote()
    inner = remote.image(LAYER)
    for _ in range(6):
        inner = remote.index(*[inner] * 100)
    stores, _ = stored(inner, remote=remote)
    asyncio.run(keep(stores.content, inner, ALL))
    _, files = exported(stores, inner)
    assert len([name for name in files if name.startswith("blobs/")]) == 9
