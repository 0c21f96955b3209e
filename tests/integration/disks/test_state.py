"""The directory of bundles, records and sockets on a disk that is full, or that the kernel has made read-only.

Every call ends with a result or an error that names the file system, nothing of what failed is left, what runs goes on,
and deletions converge: on the full disk those that must not wait, the others once there is room.
"""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import orlop
from orlop.base.errdefs import NotFoundError, OrlopError
from orlop.client.io import NullIO
from tests.integration.bad_input.pulling import NAMESPACE
from tests.integration.disks.filling import daemon_on, filled
from tests.root.shims import running, supervisors, until
from tools import filesystems, residue
from tools.daemons import Orlopd
from tools.images import Image as BuiltImage

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

SIZE = 24 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with filesystems.mounted(tmp_path, "ext4", SIZE) as target:
        yield target


@pytest.fixture
def daemon(disk: Path, short_directory: Path) -> Iterator[Orlopd]:
    """One with its state on the small disk."""
    with daemon_on(disk, short_directory / "state", "state") as running:
        yield running


@pytest.fixture
def client(daemon: Orlopd, busybox_image: BuiltImage) -> Iterator[orlop.Client]:
    with orlop.Client(str(daemon.address), NAMESPACE, timeout_s=60) as made:
        with open(busybox_image.archive, "rb") as opened:
            [image] = made.import_(opened)
        image.unpack()
        yield made
        with contextlib.suppress(OrlopError):
            made.remove_namespace()


def container(client: orlop.Client, name: str) -> orlop.client.sync.Container:
    [image] = client.images.list()
    return client.new_container(name, image, orlop.SpecOptions(args=("sleep", "1000")))


def bundles(daemon: Orlopd) -> list[str]:
    place = daemon.state / "io.containerd.runtime.v2.task" / NAMESPACE
    return sorted(os.listdir(place)) if place.exists() else []


def says_so(error: OrlopError, disk: Path) -> bool:
    return bool(re.search(rf"no space left on (device on )?the file system at {re.escape(str(disk))}\b", str(error)))


def attempt(call: Callable[[], object], disk: Path) -> bool:
    """Whether there was room; if not, the error says where not."""
    error = failure(call)
    assert error is None or says_so(error, disk), error
    return error is None


def failure(call: Callable[[], object]) -> OrlopError | None:
    try:
        call()
    except OrlopError as error:
        return error
    return None


def nothing_of(name: str, daemon: Orlopd) -> None:
    until(lambda: not [one for one in bundles(daemon) if name in one], "a bundle stays")
    below = f"/{NAMESPACE}/{name}/"
    assert not [target for target in residue.mount_targets() if below in target and str(daemon.directory) in target]
    until(lambda: not [one for one in residue.cgroups() if one.endswith(f"/{NAMESPACE}/{name}")], "a cgroup stays")


@pytest.mark.parametrize("first", [True, False], ids=["with its supervisor", "beside others"])
def test_room_for_some_of_a_task(daemon: Orlopd, client: orlop.Client, disk: Path, first: bool) -> None:
    """Wherever in making it the space ends, nothing stays; what runs is as it was."""
    if not first:
        container(client, "other").new_task(NullIO()).start()
        pid = client.task("other").pid
    outcomes = []
    for room in (0, 1_000, 5_000, 9_000, 14_000, 20_000, 30_000, 500_000):
        with container(client, "c") as made, filled(disk, room=room):
            outcomes.append(attempt(lambda: made.new_task(NullIO()).start(), disk))
            with contextlib.suppress(NotFoundError):
                client.task("c").delete(force=True)
            nothing_of("c", daemon)
    assert outcomes == sorted(outcomes)
    assert (outcomes[0], outcomes[-1]) == (False, True)
    if not first:
        assert client.task("other").state().pid == pid
        assert client.task("other").status() == "RUNNING"


def test_what_runs_on_a_full_disk_is_asked_everything_and_deleted(
    daemon: Orlopd, client: orlop.Client, disk: Path
) -> None:
    made = container(client, "c")
    task = made.new_task(NullIO())
    task.start()
    spec = made.exec_spec(("true",))
    with filled(disk):
        assert task.status() == "RUNNING"
        assert task.pids()
        task.metrics()
        task.pause()
        task.resume()
        for number in range(3):
            with contextlib.suppress(NotFoundError):
                if attempt(lambda: task.exec(f"e{number}", spec, io=NullIO()).start(), disk):  # noqa: B023
                    client.task("c").process(f"e{number}").wait()
        task.kill("SIGKILL")
        assert task.wait().code == 137
        task.delete()
        nothing_of("c", daemon)
        made.delete()


@pytest.mark.parametrize("victims", [("daemon",), ("supervisor",), ("daemon", "supervisor")], ids="+".join)
def test_who_is_killed_comes_back_on_a_full_disk(
    daemon: Orlopd, client: orlop.Client, disk: Path, victims: tuple[str, ...]
) -> None:
    """What it has to write may not fit; what runs goes on, and deleting converges, at the latest with room."""
    made = container(client, "c")
    task = made.new_task(NullIO())
    task.start()
    pid = task.pid
    with filled(disk):
        if "daemon" in victims:
            daemon.kill()
        if "supervisor" in victims:
            for one in supervisors(daemon.address):
                os.kill(one, signal.SIGKILL)
        if "daemon" in victims:
            daemon.start()
        assert running(pid)
        with orlop.Client(str(daemon.address), NAMESPACE, timeout_s=60) as now:
            attempt(lambda: now.task("c").status(), disk)
            with contextlib.suppress(OrlopError):
                now.task("c").delete(force=True)
    with orlop.Client(str(daemon.address), NAMESPACE, timeout_s=60) as now:
        with contextlib.suppress(NotFoundError):
            now.task("c").delete(force=True)
        until(lambda: not running(pid), "the container stays")
        nothing_of("c", daemon)
        now.containers.get("c").delete()
        with container(now, "d") as again, again.new_task(NullIO()) as other:
            other.start()
            other.kill("SIGKILL")
            other.wait()


def test_sandboxes_on_a_full_disk(daemon: Orlopd, client: orlop.Client, disk: Path) -> None:
    outcomes = []
    for room in (0, 5_000, 9_000, 14_000, 30_000, 500_000):
        with filled(disk, room=room):
            outcomes.append(attempt(lambda: client.sandboxes.create("pod", b"{}").start(), disk))
            for sandbox in client.sandboxes.list():
                with contextlib.suppress(OrlopError):
                    sandbox.stop()
                sandbox.delete()
    assert (outcomes[0], outcomes[-1]) == (False, True)
    assert client.sandboxes.list() == []


def test_a_state_directory_that_became_read_only(daemon: Orlopd, client: orlop.Client, disk: Path) -> None:
    """As ext4 does it to itself when its journal fails: what must be written is refused as such, the rest goes on."""
    made, idle = container(client, "c"), container(client, "idle")
    task = made.new_task(NullIO())
    task.start()
    subprocess.run(["mount", "-o", "remount,abort", disk], check=True)
    with pytest.raises(OrlopError, match=f"read-only file system on the file system at {re.escape(str(disk))}"):
        idle.new_task(NullIO())
    idle.delete()
    assert task.status() == "RUNNING"
    task.kill("SIGKILL")
    assert task.wait().code == 137
    failure(lambda: task.delete(force=True))
    assert not running(task.pid)
    for path in residue.cgroups():
        if path.endswith(f"/{NAMESPACE}/c"):  # of a task that can be deleted after a boot only
            residue.patiently_rmdir(path)
