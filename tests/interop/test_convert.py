"""Converted images: the digests that containerd's converter gives, and images that other tools read."""

import gzip
import hashlib
import json
import os
import subprocess
import uuid
from pathlib import Path

import pytest

from orlop.base.errdefs import FailedPreconditionError, InvalidArgumentError, OrlopError, UnknownError
from orlop.client.convert import ConvertOptions, LayerForm, MediaFamily
from orlop.client.sync import Client
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor
from tools import debian13, peers
from tools.images import Image

pytestmark = [pytest.mark.root, pytest.mark.interop]


@pytest.fixture
def client(orlopd, namespace):
    with Client(str(orlopd.address), namespace) as one:
        yield one
        for image in one.images.list():
            image.delete(synchronous=True)


@pytest.fixture
def imported(client, busybox_image: Image) -> str:
    with open(busybox_image.archive, "rb") as file:
        client.import_(file)
    return busybox_image.reference


def _convert(client, source: str, target: str, **options):
    return client.images.convert(source, target, ConvertOptions(**options))


@pytest.mark.parametrize("flags", [["--uncompress"], ["--oci"], ["--uncompress", "--oci"], []])
def test_digests_are_containerds(containerd, orlopd, go_ctr, our_ctr, namespace, busybox_image: Image, flags) -> None:
    found = {}
    # From Docker's media types, as an old image has them.
    for who, ctr in (
        ("containerd", go_ctr(containerd, f"{namespace}-c")),
        ("orlopd", our_ctr(orlopd, f"{namespace}-o")),
        ("mixed", our_ctr(containerd, f"{namespace}-m")),
    ):
        docker = our_ctr(containerd if who != "orlopd" else orlopd, ctr.namespace)
        docker("images", "import", busybox_image.archive)
        docker("images", "convert", "--docker", busybox_image.reference, "x/docker:1")
        found[who] = [
            ctr("images", "convert", *flags, source, "x/converted:1")
            for source in (busybox_image.reference, "x/docker:1")
        ]
        for image in ctr("images", "ls", "-q").split():
            ctr("images", "rm", "--sync", image)
    assert found["orlopd"] == found["containerd"] == found["mixed"]


def test_layers_there_and_back_again(client, imported) -> None:
    plain = _convert(client, imported, "x/plain:1", layers=LayerForm.UNCOMPRESSED)
    assert {layer.media_type for layer in plain.manifest().layers} == {"application/vnd.oci.image.layer.v1.tar"}
    diff_ids = [str(one) for one in client.images.get(imported).config().rootfs.diff_ids]
    assert [str(layer.digest) for layer in plain.manifest().layers] == diff_ids
    for form in (LayerForm.ZSTD, LayerForm.GZIP):
        there = _convert(client, "x/plain:1", f"x/{form}:1", layers=form)
        for layer, diff_id in zip(there.manifest().layers, diff_ids, strict=True):
            assert layer.media_type == f"application/vnd.oci.image.layer.v1.tar+{form}"
            assert client.content.info(layer.digest).labels["containerd.io/uncompressed"] == diff_id
        back = _convert(client, f"x/{form}:1", "x/back:1", layers=LayerForm.UNCOMPRESSED)
        assert back.target.digest == plain.target.digest
        there.unpack()
        assert there.is_unpacked()


def test_docker_and_oci(client, imported) -> None:
    docker = _convert(client, imported, "x/docker:1", family=MediaFamily.DOCKER)
    value = json.loads(client.content.read(docker.target.digest))
    types = {one["mediaType"] for one in [value, value["config"], *value["layers"]]}
    assert all(one.startswith("application/vnd.docker.") for one in types), types
    assert not any("annotations" in one for one in [value, value["config"], *value["layers"]])
    oci = _convert(client, "x/docker:1", "x/oci:1", family=MediaFamily.OCI)
    assert oci.manifest().config.media_type == "application/vnd.oci.image.config.v1+json"
    assert [one.digest for one in oci.manifest().layers] == [one.digest for one in docker.manifest().layers]


def test_other_tools_read_what_was_converted(client, imported, tmp_path: Path) -> None:
    _convert(client, imported, "x/docker:1", family=MediaFamily.DOCKER, layers=LayerForm.GZIP)
    archive = tmp_path / "image.tar"
    with open(archive, "wb") as file:
        client.export(file, ["x/docker:1"])
    skopeo = peers.locate("skopeo")
    assert skopeo is not None
    said = subprocess.run(
        [skopeo, "inspect", "--config", f"oci-archive:{archive}"], capture_output=True, text=True, check=True
    )
    assert (
        json.loads(said.stdout)["rootfs"]
        == json.loads(client.content.read(client.images.get(imported).manifest().config.digest))["rootfs"]
    )


def test_platforms_of_an_index(client, busybox_multi_image: Image) -> None:
    with open(busybox_multi_image.archive, "rb") as file:
        client.import_(file)
    name = busybox_multi_image.reference
    whole = json.loads(client.content.read(client.images.get(name).target.digest))["manifests"]
    assert len(whole) > 1
    here = _convert(client, name, "x/here:1")
    kept = json.loads(client.content.read(here.target.digest))["manifests"]
    assert kept == [one for one in whole if one["digest"] == kept[0]["digest"]]
    everything = _convert(client, name, "x/all:1", all_platforms=True, layers=LayerForm.UNCOMPRESSED)
    assert len(json.loads(client.content.read(everything.target.digest))["manifests"]) == len(whole)
    same = _convert(client, name, "x/same:1", all_platforms=True)
    assert same.target.digest == client.images.get(name).target.digest


def test_what_is_converted_is_kept_by_its_image_alone(client, imported) -> None:
    _convert(client, imported, "x/zstd:1", layers=LayerForm.ZSTD)
    client.images.delete(imported, synchronous=True)
    image = client.images.get("x/zstd:1")
    assert image.check().complete
    layers = [str(one.digest) for one in image.manifest().layers]
    client.images.delete("x/zstd:1", synchronous=True)
    left = {info.digest for info in client.content.walk()}
    assert not left & set(layers)
    assert client.content.ingests() == []


def test_errors_name_what_is_wrong(client, imported) -> None:
    from orlop.base.errdefs import InvalidArgumentError, NotFoundError

    with pytest.raises(NotFoundError):
        _convert(client, "x/none:1", "x/y:1")
    with pytest.raises(InvalidArgumentError, match="src and target image"):
        _convert(client, imported, "")
    first = client.images.get(imported).manifest().layers[0].digest
    client.content.delete(first)
    with pytest.raises(NotFoundError, match=str(first)):
        _convert(client, imported, "x/y:1", layers=LayerForm.ZSTD)
    with pytest.raises(NotFoundError):
        client.images.get("x/y:1")
    assert client.content.ingests() == []


@pytest.fixture
def mkfs(monkeypatch: pytest.MonkeyPatch) -> Path:
    """An mkfs.erofs that reads archives, first in PATH."""
    try:
        program = debian13.mkfs_erofs()
    except peers.PeerError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program


@pytest.mark.parametrize(("form", "suffix"), [(LayerForm.EROFS, ""), (LayerForm.EROFS_ZSTD, "+zstd")])
def test_layers_become_file_systems_that_run(
    client,
    orlopd,
    our_ctr,
    namespace,
    mkfs: Path,
    busybox_multi_image: Image,
    form: LayerForm,
    suffix: str,
    tmp_path: Path,
) -> None:
    """An image whose layers are of EROFS, as containerd 2.3 makes it, is pulled apart and run by its snapshotter."""
    with open(busybox_multi_image.archive, "rb") as file:
        client.import_(file)
    made = _convert(client, busybox_multi_image.reference, "x/erofs:1", layers=form)
    [entry] = json.loads(client.content.read(made.target.digest))["manifests"]
    assert entry["platform"] == {"architecture": "amd64", "os": "linux", "os.features": ["erofs"]}
    layers = made.manifest().layers
    assert {one.media_type for one in layers} == {f"application/vnd.erofs.layer.v1{suffix}"}
    config = json.loads(client.content.read(made.manifest().config.digest))
    assert config["os.features"] == ["erofs"]
    assert list(config) == sorted(config)
    labels = [client.content.info(one.digest).labels["containerd.io/uncompressed"] for one in layers]
    assert config["rootfs"] == {"type": "layers", "diff_ids": labels}
    if not suffix:
        assert [str(one.digest) for one in layers] == labels
    ctr = our_ctr(orlopd, namespace)
    states = [line.split() for line in ctr("plugins", "ls").splitlines()]
    if not any(row[1] == "erofs" and row[-1] == "ok" and "snapshotter" in row[0] for row in states):
        pytest.skip("this kernel cannot mount an image of EROFS from a file")
    platform = ("--platform", "linux(+erofs)/amd64")
    words = ("sh", "-c", "find /bin /etc -type f -exec sha256sum {} + | grep -v -e resolv -e hosts | sort")
    said = ctr("run", "--rm", "--snapshotter", "erofs", *platform, "x/erofs:1", "converted", *words)
    assert said
    assert ctr("run", "--rm", busybox_multi_image.reference, "plain", *words) == said
    refused = ctr.run("images", "mount", *platform, "x/erofs:1", tmp_path)
    assert "only the erofs snapshotter takes it" in refused.stderr


def test_a_file_system_is_what_containerd_calls_mkfs_for(client, imported, mkfs: Path, tmp_path: Path) -> None:
    """Arguments as in containerd's erofsutils.ConvertTarErofs and converter/erofs: the same bytes."""
    made = _convert(
        client,
        imported,
        "x/erofs:1",
        layers=LayerForm.EROFS,
        erofs_compressors="lz4",
        erofs_mkfs_options=["-T", "1700000000"],
    )
    old, new = client.images.get(imported).manifest().layers[0], made.manifest().layers[0]
    name = uuid.uuid5(uuid.NAMESPACE_URL, f"erofs:blobs/{old.digest}")
    words = ["--tar=f", "--aufs", "--quiet", "-Enoinline_data", "-zlz4", "-C", "65536", "-T", "1700000000", "-U", name]
    image = tmp_path / "layer.erofs"
    tar = gzip.decompress(client.content.read(old.digest))
    subprocess.run([mkfs, *map(str, words), image], input=tar, check=True)
    assert new.digest == f"sha256:{hashlib.sha256(image.read_bytes()).hexdigest()}"


def test_what_mkfs_says_is_said(client, imported, our_ctr, orlopd, namespace, monkeypatch, tmp_path: Path) -> None:
    ctr = our_ctr(orlopd, namespace)
    words = ("images", "convert", "--erofs", "raw", imported, "x/erofs:1")
    assert 'unsupported erofs format "other", supported: raw, zstd' in ctr.run(*words[:3], "other", *words[4:]).stderr
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FailedPreconditionError, match=r"mkfs\.erofs is not in PATH") as missing:
        _convert(client, imported, "x/erofs:1", layers=LayerForm.EROFS)
    assert "install erofs-utils" in (missing.value.hint or "")
    program = tmp_path / "mkfs.erofs"
    program.write_text("#!/bin/sh\necho mkfs.erofs: unrecognized option --tar=f >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(UnknownError, match=r"ended with 1: mkfs\.erofs: unrecognized option --tar=f") as old:
        _convert(client, imported, "x/erofs:1", layers=LayerForm.EROFS)
    assert "too old" in (old.value.hint or "")
    assert client.content.ingests() == []
    assert [image.name for image in client.images.list()] == [imported]


def test_file_systems_can_be_refused(new_orlopd) -> None:
    section = '[plugins."io.containerd.differ.v1.walking"]'
    with Client(str(new_orlopd(config=f"{section}\nerofs_layers = false\n").address), "default") as client:
        blob = b"whatever it is"
        client.content.write("blob", blob)
        mounts = client.snapshots().prepare("extract-1 layer")
        descriptor = Descriptor(media_type="application/vnd.erofs.layer.v1", digest=Digest.of(blob), size=len(blob))
        with pytest.raises(FailedPreconditionError, match="erofs_layers = false refuses"):
            client.diff.apply(descriptor, mounts)


def test_a_blob_that_is_no_file_system_is_refused(client, orlopd) -> None:
    """Who says that a layer is EROFS must have one; nothing is left of the attempt."""
    blob = b"not a file system" * 1000
    digest = client.content.write("blob", blob)
    snapshots = client.snapshots("erofs")
    try:
        snapshots.prepare("extract-1 layer")
    except OrlopError as error:
        pytest.skip(str(error))
    descriptor = Descriptor(media_type="application/vnd.erofs.layer.v1", digest=digest, size=len(blob))
    with pytest.raises(InvalidArgumentError, match="no image of EROFS: it has no superblock"):
        client.diff.apply(descriptor, snapshots.mounts("extract-1 layer"))
    snapshots.remove("extract-1 layer")
