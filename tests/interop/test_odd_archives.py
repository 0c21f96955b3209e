"""Archives as few programs write them: our ctr on orlopd makes the same of each as Debian's on containerd."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import orlop
from orlop.base import platforms
from orlop.oci.digest import Digest
from orlop.oci.media_types import (
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    OCTET_STREAM,
)
from tools.daemons import Containerd, Ctr, Engine, Orlopd

pytestmark = [pytest.mark.root, pytest.mark.interop]

Files = list[tuple[str, bytes | str]]  # a text is where a symbolic link leads
HERE = platforms.parse(platforms.default_string())


def packed(files: Files) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return target.getvalue()


def layer(text: str) -> bytes:
    return packed([(text, text.encode())])


def config(*layers: bytes, architecture: str = HERE.architecture) -> bytes:
    diff_ids = [Digest.of(one) for one in layers]
    return json.dumps(
        {"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    ).encode()


def docker(entries: object, files: Files, manifest_name: str = "manifest.json") -> bytes:
    return packed([*files, (manifest_name, json.dumps(entries).encode())])


def blob(data: bytes) -> tuple[str, bytes]:
    return f"blobs/sha256/{Digest.of(data).hex}", data


def described(data: bytes, media_type: str, **more: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": Digest.of(data), "size": len(data), **more}


def manifest(
    configuration: bytes, *layers: dict[str, object], kind: str = OCI_MANIFEST, config_kind: str = OCI_CONFIG
) -> bytes:
    document = {"schemaVersion": 2, "mediaType": kind, "config": described(configuration, config_kind)}
    return json.dumps(document | {"layers": list(layers)}).encode()


def index(*entries: dict[str, object]) -> bytes:
    return json.dumps({"schemaVersion": 2, "manifests": list(entries)}).encode()


def layout(top: bytes, *blobs: bytes, more: Files = []) -> bytes:  # noqa: B006
    start: Files = [("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'), ("index.json", top)]
    return packed([*start, *(blob(one) for one in blobs), *more])


A, B = layer("a"), layer("b")
AB, ONLY_A = config(A, B), config(A)
FOREIGN = config(A, architecture="s390x")
OCI = manifest(ONLY_A, described(A, OCI_LAYER))
OLD = manifest(ONLY_A, described(A, DOCKER_LAYER), kind=DOCKER_MANIFEST, config_kind=OCTET_STREAM)
ELSEWHERE = manifest(FOREIGN, described(A, OCI_LAYER))
NAMED = {"annotations": {"io.containerd.image.name": "example.org/odd:1", "org.opencontainers.image.ref.name": "other"}}
TAG = {"annotations": {"org.opencontainers.image.ref.name": "tag"}}
NESTED = index(described(OCI, OCI_MANIFEST, platform={"os": "linux", "architecture": HERE.architecture}))
PAIR = index(
    described(OCI, OCI_MANIFEST, platform={"os": "linux", "architecture": HERE.architecture}),
    described(ELSEWHERE, OCI_MANIFEST, platform={"os": "linux", "architecture": "s390x"}),
)
ZIPPED = gzip.compress(A, mtime=0)
WITH_ZIPPED = manifest(ONLY_A, described(ZIPPED, OCI_LAYER_GZIP))
ENTRY = {"Config": "c.json", "RepoTags": ["example.org/odd:1"], "Layers": ["a/layer.tar", "b/layer.tar"]}
PLAIN: Files = [("c.json", AB), ("a/layer.tar", A), ("b/layer.tar", B)]

ARCHIVES: dict[str, bytes] = {
    "docker-links": docker([ENTRY], [("c.json", AB), ("a/layer.tar", A), ("real/b", B), ("b/layer.tar", "../real/b")]),
    "docker-dots": docker([ENTRY], [(f"./{name}", data) for name, data in PLAIN], "./manifest.json"),
    "docker-two-names": docker([ENTRY | {"RepoTags": ["example.org/odd:1", "example.org/odd:2"]}], PLAIN),
    "docker-short-name": docker([ENTRY | {"RepoTags": ["odd:1"]}], PLAIN),
    "docker-no-names": docker([ENTRY | {"RepoTags": None}], PLAIN),
    "docker-two-images": docker(
        [ENTRY, {"Config": "d.json", "RepoTags": ["example.org/a:1"], "Layers": ["a/layer.tar"]}],
        [*PLAIN, ("d.json", ONLY_A)],
    ),
    "docker-same-layer-twice": docker(
        [{"Config": "c.json", "RepoTags": ["example.org/odd:1"], "Layers": ["a/layer.tar", "a/layer.tar"]}],
        [("c.json", config(A, A)), ("a/layer.tar", A)],
    ),
    "docker-gzip-layer": docker(
        [{"Config": "c.json", "RepoTags": ["example.org/odd:1"], "Layers": ["a"]}], [("c.json", ONLY_A), ("a", ZIPPED)]
    ),
    "docker-no-layers": docker(
        [{"Config": "c.json", "RepoTags": ["example.org/odd:1"], "Layers": []}], [("c.json", config())]
    ),
    "docker-other-platform": docker([ENTRY | {"Layers": ["a/layer.tar"]}], [("c.json", FOREIGN), ("a/layer.tar", A)]),
    "docker-missing-layer": docker([ENTRY], [("c.json", AB), ("a/layer.tar", A)]),
    "docker-empty-list": docker([], PLAIN),
    "oci-tag": layout(index(described(OCI, OCI_MANIFEST, **TAG)), OCI, ONLY_A, A),
    "oci-no-name": layout(index(described(OCI, OCI_MANIFEST)), OCI, ONLY_A, A),
    "oci-nested": layout(index(described(NESTED, OCI_INDEX, **NAMED)), NESTED, OCI, ONLY_A, A),
    "oci-skipped-platform": layout(index(described(PAIR, OCI_INDEX, **NAMED)), PAIR, OCI, ONLY_A, A),
    "oci-other-platform-there": layout(
        index(described(PAIR, OCI_INDEX, **NAMED)), PAIR, OCI, ELSEWHERE, FOREIGN, ONLY_A, A
    ),
    "oci-only-other-platform": layout(index(described(ELSEWHERE, OCI_MANIFEST, **NAMED)), ELSEWHERE, FOREIGN, A),
    "oci-octets": layout(index(described(OLD, DOCKER_MANIFEST, **NAMED)), OLD, ONLY_A, A),
    "oci-and-docker": layout(
        index(described(OCI, OCI_MANIFEST, **NAMED)),
        OCI,
        ONLY_A,
        A,
        more=[("manifest.json", json.dumps([{"Config": blob(ONLY_A)[0], "Layers": [blob(A)[0]]}]).encode())],
    ),
    "oci-missing-layer": layout(index(described(OCI, OCI_MANIFEST, **NAMED)), OCI, ONLY_A),
    "oci-two-of-one-name": layout(
        index(described(OCI, OCI_MANIFEST, **NAMED), described(WITH_ZIPPED, OCI_MANIFEST, **NAMED)),
        OCI,
        WITH_ZIPPED,
        ONLY_A,
        A,
        ZIPPED,
    ),
    "nothing": packed([("readme", b"no image")]),
}


# Where more than what suits this machine is asked for, or names are made of digests.
FLAGS = {
    "docker-no-names": "--digests",
    "docker-other-platform": "--all-platforms",
    "oci-no-name": "--digests",
    "oci-nested": "--digests",
    "oci-skipped-platform": "--all-platforms",
    "oci-other-platform-there": "--all-platforms",
    "oci-two-of-one-name": "--digests",
}
# What ours refuses and containerd takes.
REFUSED = {
    "docker-no-names": "an image with a name in the archive",  # containerd says nothing, and leaves nothing
    "oci-no-name": "an image with a name in the archive",
    "oci-missing-layer": "archive: blob sha256:",  # containerd names an image that cannot be unpacked
}
# Where ours keeps what containerd's client lets go, as containerd's transfer service does: entries of other platforms.
MORE = {"oci-skipped-platform", "oci-other-platform-there"}
CASES = [(name, "") for name in ARCHIVES] + list(FLAGS.items())


def left(daemon: Engine, namespace: str) -> dict[str, tuple[Any, Any]]:
    """Images with their targets, and content with its labels, that are there after a collection; all is removed."""
    with orlop.Client(str(daemon.address), namespace, transport="grpc", timeout_s=60) as client:
        client.leases.delete(client.leases.create("sweep").id, synchronous=True)
        images = client.images.list()
        found: dict[str, tuple[Any, Any]] = {one.name: (one.target.media_type, one.target.digest) for one in images}
        for info in client.content.walk():
            found[info.digest] = (info.size_bytes, dict(info.labels))
        for one in images:
            one.delete(synchronous=True)
    return found


@pytest.mark.parametrize(("name", "flag"), CASES, ids=[f"{name}{flag}" for name, flag in CASES])
def test_an_import_leaves_the_same(
    name: str,
    flag: str,
    containerd: Containerd,
    orlopd: Orlopd,
    go_ctr: Callable[..., Ctr],
    our_ctr: Callable[..., Ctr],
    namespace: str,
    tmp_path: Path,
) -> None:
    archive = tmp_path / "archive.tar"
    archive.write_bytes(ARCHIVES[name])
    command: list[str | Path] = [
        "images",
        "import",
        "--no-unpack",
        "--base-name",
        "example.org/base",
        *filter(None, [flag]),
        archive,
    ]
    theirs = go_ctr(containerd, f"{namespace}-c").run(*command)
    ours = our_ctr(orlopd, f"{namespace}-o").run(*command, "--local")
    if name in REFUSED and not flag:
        assert ours.returncode == 1
        assert REFUSED[name] in ours.stderr
        left(containerd, f"{namespace}-c")
        assert left(orlopd, f"{namespace}-o") == {}
        return
    assert (ours.returncode == 0) == (theirs.returncode == 0), f"{ours.stderr} {theirs.stderr}"
    mine, other = left(orlopd, f"{namespace}-o"), left(containerd, f"{namespace}-c")
    if name in MORE and not flag:
        label = {"containerd.io/gc.ref.content.m.1": Digest.of(ELSEWHERE)}
        size, labels = other[Digest.of(PAIR)]
        other[Digest.of(PAIR)] = (size, labels | label)
        if name == "oci-other-platform-there":
            other[Digest.of(ELSEWHERE)] = (len(ELSEWHERE), {})
    assert mine == other
