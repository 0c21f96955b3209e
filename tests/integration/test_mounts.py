"""The Mounts service of a real daemon, tasks whose root file system needs it, and daemons killed in the middle."""

import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import orlop
from orlop.api.services.tasks.v1 import tasks_pb2
from orlop.base.errdefs import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    OrlopError,
    UnavailableError,
    UnimplementedError,
)
from orlop.client import tasks
from orlop.client.snapshots import Snapshots, to_mounts
from orlop.core.mount import Mount
from orlop.core.mount.perform import mounts_below, temp_mount
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor
from tests.root.shims import make_rootfs, spec, until
from tools import daemons, host
from tools.daemons import Orlopd
from tools.images import Image

pytestmark = pytest.mark.root


@pytest.fixture
def daemon(new_orlopd: Callable[..., Orlopd]) -> Orlopd:
    return new_orlopd()


@pytest.fixture
def client(daemon: Orlopd) -> Iterator[orlop.Client]:
    with orlop.Client(str(daemon.address), timeout_s=60) as made:
        yield made


def leased(client: orlop.Client) -> orlop.Client:
    """The client with a lease: the collector, which may run at any time, takes what nobody holds."""
    return client.with_lease(client.leases.create("test").id)


def disk(daemon: Orlopd, name: str = "disk") -> Mount:
    return Mount(type="mkfs/loop", source=f"{daemon.root}/{name}", options=("X-containerd.mkfs.size=8MiB",))


def left(daemon: Orlopd) -> tuple[list[str], list[str], list[str]]:
    """Directories of activations, what is mounted below them, and the loop devices of the daemon's files."""
    targets = daemon.state / "io.containerd.mount-manager.v1.bolt" / "t"
    argv = ["losetup", "--list", "--noheadings", "-O", "BACK-FILE"]
    listed = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()
    devices = [line for line in listed if line.startswith(str(daemon.directory))]
    return sorted(os.listdir(targets)), mounts_below(str(targets)), devices


NOTHING: tuple[list[str], list[str], list[str]] = ([], [], [])


@pytest.mark.parametrize("transport", ["ttrpc", "grpc"])
def test_the_service_over_both_doors(daemon: Orlopd, transport: str) -> None:
    with orlop.Client(str(daemon.address), transport=transport, timeout_s=60) as plain:  # type: ignore[arg-type]
        client = leased(plain)
        with pytest.raises(UnimplementedError) as caught:
            client.mounts.activate("plain", [Mount(type="overlay", source="overlay")])
        assert str(caught.value) == "not implemented"
        made = client.mounts.activate("disk", [disk(daemon)], labels={"a": "1"}, temporary=True)
        [active] = made.active
        assert active.mount == Mount(type="loop", source=f"{daemon.root}/disk")
        assert os.readlink(active.mount_point).startswith("/dev/loop")
        assert made.system == [Mount(type="bind", source=active.mount_point, options=("rbind",))]
        assert client.mounts.get("disk") == made
        with pytest.raises(AlreadyExistsError, match='mount "disk": already exists'):
            client.mounts.activate("disk", [disk(daemon)])
        assert client.mounts.label("disk", {"b": "2", "a": ""}).labels == {"b": "2"}
        leased(client.in_namespace("other")).mounts.activate("disk", [disk(daemon)])
        assert [one.name for one in client.mounts.list(["labels.b==2"])] == ["disk"]
        assert client.in_namespace("other").mounts.list(["labels.b==2"]) == []
        assert client.in_namespace("third").mounts.list() == []
        for namespace in ("default", "other"):
            client.in_namespace(namespace).mounts.deactivate("disk")
        with pytest.raises(NotFoundError, match='mount "disk" not found'):
            client.mounts.get("disk")
    assert left(daemon) == NOTHING


def test_a_lease_holds_it(daemon: Orlopd, client: orlop.Client) -> None:
    lease = client.leases.create("mine").id
    client.with_lease(lease).mounts.activate("held", [disk(daemon, "held")])
    client.mounts.activate("free", [disk(daemon, "free")])
    other = client.leases.create("other").id
    client.leases.delete(other, synchronous=True)
    assert [one.name for one in client.mounts.list()] == ["held"]
    # As in containerd, it is the manager that knows: it is none of the lease's resources.
    assert client.leases.resources(lease) == []
    client.leases.delete(lease, synchronous=True)
    assert client.mounts.list() == []
    until(lambda: left(daemon) == NOTHING, f"left: {left(daemon)}")


def test_it_outlives_the_daemon(daemon: Orlopd, client: orlop.Client) -> None:
    mounts = [disk(daemon), Mount(type="format/ext4", source="{{ mount 0 }}")]
    made = leased(client).mounts.activate("disk", mounts, temporary=True)
    Path(made.active[1].mount_point, "file").write_text("written")
    daemon.kill()
    client.close()
    daemon.start()
    assert client.mounts.get("disk") == made
    assert Path(made.active[1].mount_point, "file").read_text() == "written"
    client.mounts.deactivate("disk")
    assert left(daemon) == NOTHING


def test_a_kill_in_the_middle_leaves_nothing(new_orlopd: Callable[..., Orlopd], tmp_path: Path) -> None:
    """Two devices stand when the third mount's program hangs, and the daemon dies."""
    programs = tmp_path / "bin"
    programs.mkdir()
    real = shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin")
    os.mkfifo(tmp_path / "gate")
    slow = programs / "mkfs.ext4"
    waits = f"[ -e {tmp_path}/hang ] && {{ echo $$ > {tmp_path}/hang; cat {tmp_path}/gate; }}"
    slow.write_text(f'#!/bin/sh\n{waits}\nexec {real} "$@"\n')
    slow.chmod(0o755)
    daemon = new_orlopd(env={"PATH": f"{programs}:{os.environ['PATH']}"})
    with orlop.Client(str(daemon.address), timeout_s=60) as plain:
        client = leased(plain)
        first = client.mounts.activate("ready", [disk(daemon, "a"), disk(daemon, "b")])
        client.mounts.deactivate(first.name)
        (tmp_path / "hang").touch()
        errors: list[OrlopError] = []

        def activate() -> None:
            try:
                client.mounts.activate("cut", [disk(daemon, "a"), disk(daemon, "b"), disk(daemon, "c")])
            except OrlopError as error:
                errors.append(error)

        thread = threading.Thread(target=activate)
        thread.start()
        until((tmp_path / "hang").read_text, "the program was not run")
        assert len(left(daemon)[2]) == 2
        assert client.in_namespace("default").mounts.list() == []
        daemon.kill()
        thread.join()
        assert isinstance(errors[0], UnavailableError)
        (tmp_path / "hang").unlink()
        with open(tmp_path / "gate", "w"):
            pass  # the program goes on, and ends
        assert len(left(daemon)[2]) == 2
        client.close()
        daemon.start()
        assert left(daemon) == NOTHING
        assert not (daemon.root / "c").exists()
        client.mounts.activate("cut", [disk(daemon, "c")])
        client.mounts.deactivate("cut")
    assert left(daemon) == NOTHING


# -- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["ext4", "overlay"])
def test_a_layer_is_unpacked_onto_mounts_that_need_it(
    daemon: Orlopd, client: orlop.Client, tmp_path: Path, target: str
) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        entry = tarfile.TarInfo("etc/motd")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"hi\n"))
    blob = data.getvalue()
    held = leased(client)
    digest = held.content.write("layer", blob)
    layer = Descriptor(media_type=media_types.OCI_LAYER, digest=Digest(digest), size=len(blob))
    mounts = [disk(daemon), Mount(type="format/ext4", source="{{ mount 0 }}")]
    if target == "overlay":
        (tmp_path / "below").mkdir()
        options = (
            "X-containerd.mkdir.path={{ mount 1 }}/upper:0755",
            "X-containerd.mkdir.path={{ mount 1 }}/work:0755",
            f"lowerdir={tmp_path}/below",
            "upperdir={{ mount 1 }}/upper",
            "workdir={{ mount 1 }}/work",
        )
        mounts.append(Mount(type="format/mkdir/overlay", source="overlay", options=options))
    assert held.diff.apply(layer, mounts).digest == digest
    until(lambda: left(daemon) == NOTHING, "the mounts are left")  # the worker's own copies end with it
    with temp_mount([Mount(type="ext4", source=f"{daemon.root}/disk", options=("loop", "ro"))]) as path:
        upper = f"{path}/upper" if target == "overlay" else path
        assert Path(upper, "etc", "motd").read_text() == "hi\n"
    broken = Descriptor(
        media_type=media_types.OCI_LAYER, digest=Digest(held.content.write("broken", b"x" * 600)), size=600
    )
    with pytest.raises(InvalidArgumentError):
        held.diff.apply(broken, mounts)
    until(lambda: left(daemon) == NOTHING, "the mounts are left")


# -- images -----------------------------------------------------------------------------------------------------------


def test_an_image_on_mounts_that_need_it(
    daemon: Orlopd, client: orlop.Client, busybox_image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a snapshotter whose views are such: a directory over the real one, by a template."""
    with open(busybox_image.archive, "rb") as archive:
        [image] = client.import_(archive)

    async def view(self: Snapshots, key: str, parent: str = "", **more: Any) -> list[Mount]:
        [mount] = await real(self, key, parent, **more)
        last = Mount(type="format/ext4", source="{{ mount 1 }}", options=("ro",))
        return [mount, disk(daemon), last]

    real = Snapshots.view
    monkeypatch.setattr(Snapshots, "view", view)
    target = tmp_path / "target"
    target.mkdir()
    image.mount(str(target))
    assert target.is_mount()
    # The snapshot keeps it through a collection.
    client.leases.create("other")
    client.leases.delete("other", synchronous=True)
    assert [one.name for one in client.mounts.list()] == [str(target)]
    client.images.unmount(str(target), remove=True)
    assert client.mounts.list() == []
    assert left(daemon) == NOTHING
    monkeypatch.setattr("orlop.core.mount.perform.mount_all", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        image.mount(str(target))
    assert client.mounts.list() == []
    assert left(daemon) == NOTHING
    assert not client.snapshots().list([f'name=="{target}"'])


# -- tasks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rootfs(tmp_path: Path) -> str:
    """Busybox as an image of EROFS."""
    reason = host.lacks_peer("mkfs.erofs") or host.lacks_peer("busybox")
    if reason:
        pytest.skip(reason)
    if "erofs" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no erofs")
    image = tmp_path / "rootfs.erofs"
    tree = make_rootfs(tmp_path / "rootfs")
    subprocess.run([daemons.program("mkfs.erofs"), "--quiet", image, tree], check=True, capture_output=True)
    return str(image)


def container(client: orlop.Client, name: str, *args: str) -> None:
    client.containers.create(name, json.dumps(spec(args, f"/orlop-test-{os.getpid()}-{name}", {})).encode())


def create(client: orlop.Client, daemon: Orlopd, name: str, image: str) -> orlop.Task:
    """A task on an overlay: layers of EROFS below, directories on ext4 in a file above."""
    mounts = [
        disk(daemon, f"{name}.img"),
        Mount(type="format/ext4", source="{{ mount 0 }}"),
        Mount(type="erofs", source=image, options=("ro", "loop")),
        Mount(
            type="format/mkdir/overlay",
            source="overlay",
            options=(
                "X-containerd.mkdir.path={{ mount 1 }}/upper:0755",
                "X-containerd.mkdir.path={{ mount 1 }}/work:0755",
                "lowerdir={{ mount 2 }}",
                "upperdir={{ mount 1 }}/upper",
                "workdir={{ mount 1 }}/work",
            ),
        ),
    ]
    client.call(tasks.CREATE, tasks_pb2.CreateTaskRequest(container_id=name, rootfs=to_mounts(mounts)))
    return client.task(name)


def test_a_task_gets_what_is_left_of_its_mounts(daemon: Orlopd, client: orlop.Client, rootfs: str) -> None:
    container(client, "web", "sh", "-c", "echo new > /file && cat /file && exit 7")
    task = create(client, daemon, "web", rootfs)
    activation = client.mounts.get("web")
    assert activation.labels == {"containerd.io/gc.bref.container": "web"}
    assert [one.mount.type for one in activation.active] == ["loop", "ext4", "erofs"]
    task.start()
    assert task.wait().code == 7
    assert Path(activation.active[1].mount_point, "upper", "file").read_text() == "new\n"
    task.delete()
    assert client.mounts.list() == []
    client.containers.get("web").delete()
    assert left(daemon) == NOTHING


def test_a_task_that_cannot_be_made_leaves_no_mounts(daemon: Orlopd, client: orlop.Client, rootfs: str) -> None:
    container(client, "web", "/no/such/program")
    with pytest.raises(OrlopError, match="failed to create shim task"):
        create(client, daemon, "web", rootfs)
    assert client.mounts.list() == []
    assert left(daemon) == NOTHING
    client.containers.get("web").delete()


def test_a_task_and_its_mounts_outlive_the_daemon(daemon: Orlopd, client: orlop.Client, rootfs: str) -> None:
    container(client, "web", "sh", "-c", "while [ ! -e /stop ]; do sleep 0.05; done; exit 3")
    task = create(client, daemon, "web", rootfs)
    activation = client.mounts.get("web")
    task.start()
    daemon.kill()
    client.close()
    daemon.start()
    # What the container refers to stays through a collection.
    client.leases.create("other")
    client.leases.delete("other", synchronous=True)
    assert client.mounts.get("web") == activation
    Path(f"/proc/{task.pid}/root/stop").touch()
    task = client.task("web")
    assert task.wait().code == 3
    task.delete()
    assert client.mounts.list() == []
    assert left(daemon) == NOTHING
    client.containers.get("web").delete()
