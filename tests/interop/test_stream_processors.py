"""Stream processors as both daemons run them, from the same configuration."""

import base64
import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as PackedAny

import orlop
from orlop.base.errdefs import UnknownError
from orlop.core.mount import Mount
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor
from orlop.oci.media_types import OCI_LAYER, OCI_LAYER_GZIP
from tools.daemons import Containerd, Engine, Orlopd

KEPT = {"containerd.io/gc.root": "1"}  # else the collector may be quicker than the test
pytestmark = [pytest.mark.root, pytest.mark.interop]

CONFIG = """
[stream_processors."test.decode"]
  accepts = ["application/text", "application/text+gzip"]
  returns = "application/vnd.oci.image.layer.v1.tar+gzip"
  path = "{directory}/decode"
  args = ["an argument"]
  env = ["MINE=a value"]
[stream_processors."test.shell"]
  accepts = ["application/shell"]
  returns = "application/vnd.oci.image.layer.v1.tar"
  path = "sh"
  args = ["-c", "tee {directory}/seen >/dev/null; cat {directory}/layer.tar"]
[stream_processors."test.failing"]
  accepts = ["application/failing"]
  returns = "application/vnd.oci.image.layer.v1.tar"
  path = "sh"
  args = ["-c", "cat {directory}/layer.tar; echo no key >&2; exit 3"]
[stream_processors."test.missing"]
  accepts = ["application/missing"]
  returns = "application/vnd.oci.image.layer.v1.tar"
  path = "/no/such/program"
[stream_processors."test.nowhere"]
  accepts = ["application/nowhere"]
  returns = "application/elsewhere"
  path = "cat"
"""

DECODE = """#!/bin/sh
echo "$1 $MINE $STREAM_PROCESSOR_MEDIATYPE" > {directory}/told
cat <&3 > {directory}/payload
base64 -d
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("processors")
    (path / "decode").write_text(DECODE.format(directory=path))
    (path / "decode").chmod(0o755)
    (path / "layer.tar").write_bytes(layer())
    return path


@pytest.fixture(params=["containerd", "orlopd"])
def client(
    request: pytest.FixtureRequest,
    new_containerd: Callable[..., Containerd],
    new_orlopd: Callable[..., Orlopd],
    directory: Path,
) -> Iterator[orlop.Client]:
    start: Callable[..., Engine] = new_containerd if request.param == "containerd" else new_orlopd
    daemon = start(config=CONFIG.format(directory=directory))
    with orlop.Client(str(daemon.address), "default", timeout_s=60) as made:
        lease = made.leases.create("held")
        yield made.with_lease(lease.id)


def layer() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("file")
        info.size = 8
        archive.addfile(info, io.BytesIO(b"contents"))
    return buffer.getvalue()


def apply(client: orlop.Client, data: bytes, media_type: str, target: Path, **more: PackedAny) -> Descriptor:
    digest = client.content.write("blob", data, labels=KEPT)
    blob = Descriptor(media_type=media_type, digest=Digest.parse(digest), size=len(data))
    target.mkdir(exist_ok=True)
    mount = Mount(type="bind", source=str(target), options=("rw", "rbind"))
    return client.diff.apply(blob, [mount], payloads={f"test.{key}": value for key, value in more.items()})


def test_a_program_between_blob_and_tree(client: orlop.Client, directory: Path, tmp_path: Path) -> None:
    data = base64.encodebytes(gzip.compress(layer()))
    payload = PackedAny(type_url="types.example.org/Key", value=b"\0secret\xff")
    applied = apply(client, data, "application/text+gzip", tmp_path / "tree", decode=payload)
    assert (tmp_path / "tree/file").read_text() == "contents"
    plain = apply(client, layer(), OCI_LAYER, tmp_path / "plain")
    assert applied == plain
    assert (directory / "told").read_text() == "an argument a value application/text+gzip\n"
    assert PackedAny.FromString((directory / "payload").read_bytes()) == payload


def test_a_program_from_the_path_gets_the_blob_as_it_is(client: orlop.Client, directory: Path, tmp_path: Path) -> None:
    data = bytes(range(256)) * 1000
    apply(client, data, "application/shell", tmp_path / "tree")
    assert (directory / "seen").read_bytes() == data
    assert (tmp_path / "tree/file").read_text() == "contents"


@pytest.mark.parametrize("what", ["missing", "nowhere"])
def test_what_cannot_be_processed(client: orlop.Client, what: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownError, match="failed to get stream processor for application/"):
        apply(client, b"data", f"application/{what}", tmp_path / "tree")


def test_a_program_that_fails_fails_the_layer(
    new_orlopd: Callable[..., Orlopd], directory: Path, tmp_path: Path
) -> None:
    """containerd's does not wait for the program and misses this at times (stream_unix.go: Err without Wait)."""
    daemon = new_orlopd(config=CONFIG.format(directory=directory))
    with orlop.Client(str(daemon.address), "default", timeout_s=60) as client:
        held = client.with_lease(client.leases.create("held").id)
        with pytest.raises(UnknownError, match=r"stream processor test\.failing: exit status 3: no key$"):
            apply(held, b"data", "application/failing", tmp_path / "tree")
        applied = apply(held, gzip.compress(layer()), OCI_LAYER_GZIP, tmp_path / "other")
        assert applied.size == len(layer())
