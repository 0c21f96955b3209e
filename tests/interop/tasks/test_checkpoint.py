"""Tasks.Checkpoint into the content store and into a directory, and Tasks.Create from what came of it."""

import io
import json
import shutil
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as PackedAny

import orlop
from orlop.api.services.tasks.v1 import tasks_pb2 as pb
from orlop.api.types import descriptor_pb2
from orlop.api.types.runc.options.oci_pb2 import CheckpointOptions, Options
from orlop.base.errdefs import NotFoundError, OrlopError, UnknownError
from orlop.client.channel import drive
from orlop.client.tasks import CHECKPOINT, CREATE
from orlop.oci import media_types
from tests.interop.tasks.conftest import Stand
from tests.root.shims import until
from tools import daemons, standin

KEPT = {"containerd.io/gc.root": "1"}  # else the collector may be quicker than the test
pytestmark = [pytest.mark.root, pytest.mark.interop]

# Before the dump it notes something; restored, it says what it had noted, and ends when it is told to: Debian's shim
# misses the exit of a restored process that ends at once.
SCRIPT = """
if [ -e /restored ]; then
    cat /restored
    while [ ! -e /end ]; do sleep 0.02; done
    exit 5
fi
echo 42 > /state
exec sleep 1000
"""


class Runtime:
    """The stand-in, and what it was called with."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "calls"
        self.path = directory / "runtime"
        runc = shutil.which("runc", path=daemons.environment()["PATH"])
        self.path.write_text(f'#!/bin/sh\nexec {sys.executable} {standin.__file__} {self.log} {runc} "$@"\n')
        self.path.chmod(0o755)

    def call(self, command: str) -> list[str]:
        """The last call of that command, without the container's id at its end."""
        calls = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [words for words in calls if words[0] == command][-1][1:-1]

    @property
    def options(self) -> PackedAny:
        return pack(Options(binary_name=str(self.path)))


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(tmp_path)


@pytest.fixture
def task(client: orlop.Client, stand: Stand, runtime: Runtime, request: pytest.FixtureRequest) -> orlop.Task:
    """One that has noted its state."""
    options = orlop.SpecOptions(args=["sh", "-c", SCRIPT])
    name = client.images.list()[0].name
    made = client.new_container("c", name, options, runtime=stand.runtime, runtime_options=runtime.options)
    task = made.new_task()
    task.start()
    root = Path(f"/proc/{task.pid}/root")
    until(lambda: (root / "state").exists() and (root / "state").read_text() == "42\n", "no state")
    return task


def pack(message: CheckpointOptions | Options) -> PackedAny:
    return PackedAny(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def checkpoint(client: orlop.Client, options: PackedAny | None = None) -> Sequence[descriptor_pb2.Descriptor]:
    request = pb.CheckpointTaskRequest(container_id="c", options=options)
    return drive(client.session.call(CHECKPOINT, request)).descriptors


def files(archive: bytes) -> Mapping[str, str]:
    """What an archive holds: kind and size, or the link, by name."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            kind = {tarfile.DIRTYPE: "directory", tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "link"}
            text = kind.get(member.type, str(member.size))
            found[member.name.rstrip("/")] = f"{text} {member.linkname}".strip()
    return found


def test_into_the_content_store_and_back(
    client: orlop.Client, task: orlop.Task, stand: Stand, runtime: Runtime
) -> None:
    lease = client.leases.create("held")  # nothing else refers to what is made
    dumped, config = checkpoint(client.with_lease(lease.id))
    assert task.status() == "RUNNING"
    assert (dumped.media_type, config.media_type) == (media_types.CHECKPOINT, media_types.CHECKPOINT_CONFIG)
    archive, spec = client.content.read(dumped.digest), client.content.read(config.digest)
    assert (dumped.size, config.size) == (len(archive), len(spec))
    size = len(standin.PAGES) + 3
    assert files(archive) == {
        "net": "directory",
        "net/state.img": "3",
        "pages-1.img": f"{size}",
        "pages-2.img": "link pages-1.img",
        "parent": "symlink pages-1.img",
    }
    container = client.containers.get("c")
    packed = PackedAny.FromString(spec)
    assert (packed.value, packed.type_url) == (
        container.record.spec,
        "types.containerd.io/opencontainers/runtime-spec/1/Spec",
    )
    called = runtime.call("checkpoint")
    assert sorted(called) == sorted(
        [
            "--leave-running",
            "--image-path",
            called[called.index("--image-path") + 1],
            "--work-path",
            called[called.index("--work-path") + 1],
        ]
    )
    assert [one.ref for one in client.content.ingests()] == []
    assert not Path(called[called.index("--image-path") + 1]).exists()
    assert not Path(called[called.index("--work-path") + 1]).exists()

    task.kill("KILL")
    task.wait()
    task.delete()
    output = orlop.Capture()
    restored = container.new_task(output, checkpoint=dumped.digest)
    assert (restored.pid, restored.status()) == (0, "CREATED")
    with pytest.raises(UnknownError, match="cannot exec in a created state"):
        restored.exec("e", container.exec_spec(["true"]))
    with pytest.raises(UnknownError, match="cannot pause task in created state"):
        restored.pause()
    with pytest.raises(NotFoundError):
        restored.kill("TERM")
    Path(f"/proc/{restored.start()}/root/end").touch()
    assert restored.wait().code == 5
    assert restored.delete().code == 5
    assert bytes(output.stdout) == b"42\n"
    words = runtime.call("restore")
    assert {"--detach", "--pid-file", "--bundle"} <= set(words)
    client.leases.delete(lease.id, synchronous=True)


def test_options_reach_the_runtime(client: orlop.Client, task: orlop.Task, runtime: Runtime, tmp_path: Path) -> None:
    options = CheckpointOptions(
        open_tcp=True,
        external_unix_sockets=True,
        terminal=True,
        file_locks=True,
        empty_namespaces=["network"],
        image_path=str(tmp_path / "image"),
        work_path=str(tmp_path / "work"),
    )
    assert list(checkpoint(client, pack(options))) == []
    assert sorted(path.name for path in (tmp_path / "image").iterdir()) == [
        "net",
        "pages-1.img",
        "pages-2.img",
        "parent",
    ]
    assert (tmp_path / "work" / "dump.log").exists()
    wanted = ["--image-path", str(tmp_path / "image"), "--work-path", str(tmp_path / "work"), "--leave-running"]
    wanted += ["--tcp-established", "--ext-unix-sk", "--shell-job", "--file-locks", "--empty-ns", "network"]
    assert sorted(runtime.call("checkpoint")) == sorted(wanted)
    assert task.status() == "RUNNING"

    task.kill("KILL")
    task.wait()
    task.delete()
    output = orlop.Capture()
    chosen = Options(
        binary_name=str(runtime.path), criu_image_path=str(tmp_path / "image"), criu_work_path=str(tmp_path / "restore")
    )
    restored = client.containers.get("c").new_task(output, options=pack(chosen))
    Path(f"/proc/{restored.start()}/root/end").touch()
    assert restored.wait().code == 5
    restored.delete()
    assert bytes(output.stdout) == b"42\n"
    words = runtime.call("restore")
    assert words[words.index("--image-path") + 1] == str(tmp_path / "image")
    assert words[words.index("--work-path") + 1] == str(tmp_path / "restore")


def test_the_task_ends_with_its_checkpoint_if_wanted(client: orlop.Client, task: orlop.Task, runtime: Runtime) -> None:
    checkpoint(client, pack(CheckpointOptions(exit=True)))
    assert "--leave-running" not in runtime.call("checkpoint")
    assert task.wait().code == 137
    assert task.status() == "STOPPED"
    with pytest.raises(UnknownError, match="cannot checkpoint a stopped container"):
        checkpoint(client)
    assert task.delete().code == 137


def test_a_dump_that_fails_leaves_its_log_and_no_content(
    client: orlop.Client, task: orlop.Task, stand: Stand, namespace: str
) -> None:
    before = {one.digest for one in client.content.walk()}
    Path(f"/proc/{task.pid}/root/fail").touch()
    with pytest.raises(UnknownError, match=r"criu failed: type NOTIFY errno 0.* path= .*/criu-dump\.log(: unknown)?$"):
        checkpoint(client)
    bundle = stand.daemon.state / "io.containerd.runtime.v2.task" / namespace / "c"
    assert (bundle / "criu-dump.log").read_text() == "(00.001) how it went\n"
    # Fewer is no fault: the collector takes the index of the archive that the image was imported from.
    assert {one.digest for one in client.content.walk()} <= before
    assert [one.ref for one in client.content.ingests()] == []
    assert task.status() == "RUNNING"


def test_what_cannot_be_restored_is_refused(client: orlop.Client, task: orlop.Task, stand: Stand) -> None:
    task.kill("KILL")
    task.wait()
    task.delete()

    def create(media_type: str, digest: str, options: PackedAny | None = None) -> OrlopError:
        request = pb.CreateTaskRequest(container_id="c", options=options)
        request.checkpoint.CopyFrom(descriptor_pb2.Descriptor(media_type=media_type, digest=digest, size=5))
        with pytest.raises(OrlopError) as caught:
            drive(client.session.call(CREATE, request))
        return caught.value

    unknown = create("application/tar", "sha256:" + 64 * "0")
    assert (unknown.code, str(unknown)) == (2, 'unsupported checkpoint type "application/tar"')
    missing = create(media_types.CHECKPOINT, "sha256:" + 64 * "0")
    assert str(missing).endswith("not found")
    digest = client.content.write("w", b"12345", labels=KEPT)
    broken = create(media_types.CHECKPOINT, digest)
    assert broken.code in ((3,) if stand.ours else (2,))
    assert client.tasks() == []
    client.content.delete(digest)


def test_options_of_another_kind(client: orlop.Client, task: orlop.Task, stand: Stand) -> None:
    with pytest.raises(UnknownError, match=r"^invalid task checkpoint option for "):
        checkpoint(client, pack(Options()))
