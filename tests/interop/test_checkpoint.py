"""Containers kept as images and made again, on both daemons; tools/standin.py stands in for CRIU."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orlop.base.errdefs import UnimplementedError
from orlop.client.checkpoint import CheckpointOptions
from orlop.client.sync import Client
from orlop.oci import media_types
from orlop.oci.image import decode_index
from tests.root.shims import until
from tools import daemons, standin
from tools.daemons import Containerd, Ctr, Engine, Orlopd
from tools.images import Image

pytestmark = [pytest.mark.root, pytest.mark.interop]
# It takes a second, since the end of a restored process that has ended at once gets lost in containerd 1.6's shim.
SCRIPT = "if [ -e /restored ]; then sleep 1; cat /restored; exit 5; fi; echo 42 > /state; exec sleep 1000"


@pytest.fixture(params=["containerd", "orlopd"])
def daemon(request: pytest.FixtureRequest, containerd: Containerd, orlopd: Orlopd) -> Engine:
    return containerd if request.param == "containerd" else orlopd


@pytest.fixture
def ctr(daemon: Engine, our_ctr: Callable[..., Ctr], namespace: str, busybox_image: Image) -> Iterator[Ctr]:
    one = our_ctr(daemon, namespace)
    one("images", "import", busybox_image.archive)
    yield one
    for container in one("containers", "ls", "-q").split():
        one("tasks", "rm", "-f", container, check=False)
        one("containers", "rm", container, check=False)
    for image in one("images", "ls", "-q").split():
        one("images", "rm", "--sync", image)
    daemon.forget_cgroup(namespace)


@pytest.fixture
def client(daemon: Engine, namespace: str) -> Iterator[Client]:
    with Client(str(daemon.address), namespace) as one:
        yield one


@pytest.fixture
def runtime(tmp_path: Path) -> str:
    path = tmp_path / "runtime"
    runc = shutil.which("runc", path=daemons.environment()["PATH"])
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {standin.__file__} {tmp_path}/calls {runc} "$@"\n')
    path.chmod(0o755)
    return str(path)


def _types(client: Client, name: str) -> list[str]:
    index = decode_index(client.content.read(client.images.get(name).target.digest))
    return [one.media_type for one in index.manifests]


def test_a_container_is_made_again_from_its_record(ctr: Ctr, client: Client, busybox_image: Image) -> None:
    ctr("containers", "create", "--env", "A=b", busybox_image.reference, "one", "sh", "-c", "echo $A")
    before = json.loads(ctr("containers", "info", "one"))
    ctr("containers", "checkpoint", "--image", "one", "x/kept:1")
    assert media_types.CHECKPOINT_CONFIG in _types(client, "x/kept:1")
    assert str(client.images.get(busybox_image.reference).target.media_type) in _types(client, "x/kept:1")
    ctr("containers", "rm", "one")
    ctr("images", "rm", "--sync", "x/none:1", check=False)
    restored = client.restore("two", "x/kept:1")
    after = json.loads(ctr("containers", "info", "two"))
    for key in ("Image", "Runtime", "Snapshotter", "Spec"):
        assert after[key] == before[key], key
    assert restored.id == "two"
    ctr("containers", "rm", "two")
    shown = ctr("containers", "restore", "three", "x/kept:1")
    assert shown in ("", "b\n")  # ctr leaves once the task runs
    client.task("three").wait()


def test_what_was_written_comes_back(ctr: Ctr, client: Client, busybox_image: Image) -> None:
    ctr(
        "run",
        "-d",
        "--null-io",
        busybox_image.reference,
        "one",
        "sh",
        "-c",
        "echo mine > /mine; rm /etc/passwd; sleep 1000",
    )
    root = Path(f"/proc/{client.task('one').pid}/root")
    until(lambda: not (root / "etc/passwd").exists(), "the container does nothing")
    try:
        client.containers.get("one").checkpoint("x/kept:1", CheckpointOptions(rw=True))
    except UnimplementedError:
        pytest.skip("the daemon makes no layers")
    assert client.task("one").status() == "RUNNING"
    assert media_types.OCI_LAYER_GZIP in _types(client, "x/kept:1")
    ctr("tasks", "rm", "-f", "one")
    ctr("containers", "rm", "one")
    client.restore("two", "x/kept:1", rw=True)
    assert [info.name for info in client.snapshots().list() if "view" in info.name] == []
    ctr("tasks", "start", "-d", "--null-io", "two")
    root = Path(f"/proc/{client.task('two').pid}/root")
    assert (root / "mine").read_text() == "mine\n"
    assert not (root / "etc/passwd").exists()


def test_a_task_goes_on_elsewhere(daemon: Engine, ctr: Ctr, client: Client, runtime: str, busybox_image: Image) -> None:
    ctr("run", "-d", "--null-io", "--runc-binary", runtime, busybox_image.reference, "one", "sh", "-c", SCRIPT)
    root = Path(f"/proc/{client.task('one').pid}/root")
    until(lambda: (root / "state").exists() and (root / "state").read_text() == "42\n", "no state")
    client.containers.get("one").checkpoint("x/kept:1", CheckpointOptions(task=True, image=True))
    assert client.task("one").status() == "RUNNING"
    assert {media_types.CHECKPOINT, media_types.CHECKPOINT_CONFIG, media_types.CHECKPOINT_OPTIONS} <= set(
        _types(client, "x/kept:1")
    )
    container = client.restore("two", "x/kept:1")
    with container.new_task(checkpoint=client.images.get("x/kept:1").checkpoint_digest()) as task:
        task.start()
        assert task.wait().code == 5
    container.delete()
    if daemon.name == "orlopd":  # containerd's shim does not come to an end with what a restored process has written
        done = ctr.run("containers", "restore", "--live", "two", "x/kept:1")
        assert (done.returncode, done.stderr) == (0, "")
        assert client.task("two").wait().code == 5


def test_a_tasks_checkpoint_is_an_image(
    daemon: Engine, ctr: Ctr, client: Client, runtime: str, busybox_image: Image
) -> None:
    ctr("run", "-d", "--null-io", "--runc-binary", runtime, busybox_image.reference, "one", "sh", "-c", SCRIPT)
    root = Path(f"/proc/{client.task('one').pid}/root")
    until(lambda: (root / "state").exists() and (root / "state").read_text() == "42\n", "no state")
    done = ctr.run("tasks", "checkpoint", "one")
    if "unimplemented" in done.stderr or "not implemented" in done.stderr:
        pytest.skip("the daemon makes no layers")
    assert done.returncode == 0, done.stderr
    name = done.stdout.strip()
    assert name.startswith("containerd.io/checkpoint/one:")
    assert client.images.get(name).labels["containerd.io/checkpoint"] == "true"
    assert {media_types.CHECKPOINT, media_types.OCI_LAYER_GZIP} <= set(_types(client, name))
    if daemon.name == "orlopd":
        restored = ("run", "--rm", "--checkpoint", name, "--runc-binary", runtime, busybox_image.reference, "two")
        ended = ctr.run(*restored, "cat", "/restored")
        assert (ended.returncode, ended.stdout) == (0, "42\n")


def test_what_fails_leaves_nothing(ctr: Ctr, client: Client, busybox_image: Image) -> None:
    ctr("containers", "create", busybox_image.reference, "one", "true")
    ctr("containers", "checkpoint", "one", "x/kept:1")
    for words, said in (
        (("checkpoint", "one"), "ref must be provided"),
        (("checkpoint",), "container id must be provided"),
        (("checkpoint", "one", "x/kept:1"), "already exists"),
        (("checkpoint", "none", "x/other:1"), "not found"),
        (("restore", "two", busybox_image.reference), "expected index but found manifest"),
        (("restore", "--rw", "two", "x/kept:1"), "the rw layer of checkpoint x/kept:1"),
        (("restore", "--live", "two", "x/kept:1"), "a task's state in checkpoint x/kept:1"),
        (("restore", "one", "x/kept:1"), "already exists"),
    ):
        done = ctr.run("containers", *words)
        assert done.returncode == 1
        assert said in done.stderr, (words, done.stderr)
    assert ctr("containers", "ls", "-q") == "one\n"
    assert {info.name for info in client.snapshots().list() if info.kind == "Active"} == {"one"}
