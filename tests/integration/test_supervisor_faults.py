"""What can befall a supervisor, its OCI runtime, its containers: every call ends, and deleting by force converges."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as PackedAny

import orlop
from orlop.api.types.runc.options.oci_pb2 import Options
from orlop.base.errdefs import DeadlineExceededError, NotFoundError, OrlopError, UnavailableError, UnknownError
from orlop.client.io import Streams
from tests.root.shims import Reader, running, supervisors, until
from tools import daemons, residue
from tools.daemons import Orlopd
from tools.images import Image

pytestmark = pytest.mark.root

MANY = 50
LIMIT_S = "3"  # of a call of the OCI runtime
# Says what it is told, and numbers from time to time, so that it can be seen to go on.
ECHO = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.5; done & while read line; do echo got $line; done; wait"


class House:
    """A daemon of the test's own whose runtime calls have a short limit."""

    def __init__(self, daemon: Orlopd, image: Image, directory: Path) -> None:
        self.daemon = daemon
        self.directory = directory
        self.namespace = f"faults-{os.getpid()}"
        self.client = orlop.Client(str(daemon.address), self.namespace, timeout_s=120)
        with open(image.archive, "rb") as archive:
            [self.image] = self.client.import_(archive)
        self.image.unpack()

    def container(self, name: str, *args: str, runtime: str = "", **more: Any) -> orlop.Container:
        packed = None
        if runtime:
            options = Options(binary_name=runtime)
            packed = PackedAny(type_url=options.DESCRIPTOR.full_name, value=options.SerializeToString())
        wishes = orlop.SpecOptions(args=args, **more)
        return self.client.new_container(name, self.image, wishes, runtime_options=packed)

    def start(self, name: str, *args: str, **more: Any) -> orlop.Task:
        task = self.container(name, *args, **more).new_task()
        task.start()
        return task

    def bundle(self, name: str) -> Path:
        return self.daemon.state / "io.containerd.runtime.v2.task" / self.namespace / name

    def nothing_is_left(self, name: str) -> None:
        """Of a task: no bundle, mount, cgroup."""
        with pytest.raises(NotFoundError):
            self.client.task(name)
        assert not self.bundle(name).exists()
        assert not [target for target in residue.mount_targets() if target.startswith(f"{self.bundle(name)}/")]
        ending = f"/{self.namespace}/{name}"
        until(lambda: not [path for path in residue.cgroups() if path.endswith(ending)], "a cgroup is left")

    def close(self) -> None:
        for state in self.client.tasks():
            self.client.task(state.container_id).delete(force=True)
        for container in self.client.containers.list():
            container.delete()
        self.client.close()
        self.daemon.forget_cgroup(self.namespace)


@pytest.fixture
def house(new_orlopd: Callable[..., Orlopd], busybox_image: Image, tmp_path: Path) -> Iterator[House]:
    one = House(new_orlopd(env={"ORLOP_RUNTIME_LIMIT": LIMIT_S}), busybox_image, tmp_path)
    yield one
    one.close()


class Faulty:
    """A runtime that does `fault`, shell, instead of a command, or after it, once the file `armed` is there."""

    def __init__(self, directory: Path, command: str, fault: str, *, after: bool = False) -> None:
        directory.mkdir(exist_ok=True)
        self.armed = directory / "armed"
        self.path = directory / "runtime"
        runc = shutil.which("runc", path=daemons.environment()["PATH"])
        do = f'{runc} "$@"; {fault}' if after else fault
        self.path.write_text(f"""#!/bin/sh
if [ -e {self.armed} ]; then
    for word; do case $word in {command}) {do};; esac; done
fi
exec {runc} "$@"
""")
        self.path.chmod(0o755)

    def arm(self) -> None:
        self.armed.touch()

    def disarm(self) -> None:
        self.armed.unlink()


HANGS = "exec sleep 1000"
DIES = "kill -9 $$"


# ---- the supervisor


@pytest.mark.parametrize("victims", [("supervisor",), ("daemon", "supervisor")], ids="+".join)
def test_fifty_containers_outlive_their_supervisor(house: House, victims: tuple[str, ...]) -> None:
    """A third with terminals, a third with an open stdin whose client has gone, a third with output only."""
    outputs: dict[str, Reader] = {}
    pids: dict[str, int] = {}
    for number in range(MANY):
        name, kind = f"c{number}", number % 3
        directory = house.directory / name
        directory.mkdir()
        for stream in ("in", "out"):
            os.mkfifo(directory / stream)
        outputs[name] = Reader(directory / "out")
        stdin = "" if kind == 2 else str(directory / "in")
        io = Paths(stdin=stdin, stdout=str(directory / "out"), terminal=kind == 0)
        script = ECHO if kind != 2 else ECHO.replace("while read", "while :; do sleep 1; done; while read")
        task = house.container(name, "sh", "-c", script, tty=kind == 0).new_task(io)
        pids[name] = task.start()
        if kind == 1:
            with open(directory / "in", "wb") as file:
                file.write(b"before\n")
    until(lambda: all(b"tick" in reader.data for reader in outputs.values()), "not all have begun")
    [supervisor] = supervisors(house.daemon.address)
    if "daemon" in victims:
        house.daemon.kill()
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not running(supervisor), "the supervisor lives")
    if "daemon" in victims:
        house.client.close()
        house.daemon.start()
        house.client = orlop.Client(str(house.daemon.address), house.namespace, timeout_s=120)

    tasks = {state.container_id: state for state in house.client.tasks()}
    assert {name: (state.pid, str(state.status)) for name, state in tasks.items()} == {
        name: (pid, "RUNNING") for name, pid in pids.items()
    }
    assert all(map(running, pids.values()))
    seen = {name: len(reader.data) for name, reader in outputs.items()}
    until(lambda: all(len(outputs[name].data) > size for name, size in seen.items()), "output does not go on")
    for name in ("c0", "c1"):
        with open(house.directory / name / "in", "wb") as file:
            file.write(b"afterwards\n")
        until(lambda name=name: b"got afterwards" in outputs[name].data, f"{name} hears nothing")  # type: ignore[misc]
    for name in ("c0", "c1", "c2", f"c{MANY - 1}"):
        output = orlop.Capture(directory=str(house.directory))
        with house.client.task(name).exec(
            "e", house.client.containers.get(name).exec_spec(["echo", "hi"]), io=output
        ) as made:
            made.start()
            assert made.wait().code == 0
            made.delete()
        assert bytes(output.stdout) == b"hi\n"
    codes: dict[str, int] = {}
    waits = [
        threading.Thread(target=lambda name=name: codes.update({name: house.client.task(name).wait().code}))
        for name in pids
    ]
    for thread in waits:
        thread.start()
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    for thread in waits:
        thread.join(60)
    assert codes == dict.fromkeys(pids, 137)
    for name in pids:
        assert house.client.task(name).delete().code == 137
        outputs[name].result()
    house.nothing_is_left("c0")


class Paths(orlop.NullIO):
    """Streams as they are given, which somebody else copies."""

    def __init__(self, **streams: Any) -> None:
        super().__init__()
        self._streams = Streams(**streams)

    def open(self, name: str) -> Streams:
        return self._streams


# ---- the OCI runtime


def test_no_successor_can_be_started(house: House) -> None:
    """What runs goes on and is neither forgotten nor killed; as soon as one can be started, it is asked again."""
    pids = {name: house.start(name, "sleep", "1000").pid for name in ("one", "two", "three")}
    [supervisor] = supervisors(house.daemon.address)
    [lock] = (house.daemon.state / "s").glob("*.lock")
    house.daemon.kill()
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not running(supervisor), "the supervisor lives")
    lock.unlink()
    lock.mkdir()
    house.daemon.start()
    house.client.close()
    house.client = orlop.Client(str(house.daemon.address), house.namespace, timeout_s=120)
    with pytest.raises(UnavailableError, match=r"no successor could be started: .*Is a directory"):
        house.client.task("one").state()
    assert all(map(running, pids.values()))
    lock.rmdir()
    for name, pid in pids.items():
        assert house.client.task(name).state().pid == pid
        house.client.task(name).delete(force=True)
        house.nothing_is_left(name)


@pytest.mark.parametrize("fault", [HANGS, DIES], ids=["hangs", "dies"])
@pytest.mark.parametrize("after", [False, True], ids=["at once", "after its work"])
def test_creating(house: House, fault: str, after: bool) -> None:
    runtime = Faulty(house.directory / "r", "create", fault, after=after)
    runtime.arm()
    container = house.container("c", "sleep", "1000", runtime=str(runtime.path))
    expected = DeadlineExceededError if fault == HANGS else UnknownError
    with pytest.raises(expected, match=r'create.*container "c"'):
        container.new_task()
    house.nothing_is_left("c")
    runtime.disarm()
    task = container.new_task()
    task.start()
    assert task.status() == "RUNNING"


@pytest.mark.parametrize("fault", [HANGS, DIES], ids=["hangs", "dies"])
@pytest.mark.parametrize("after", [False, True], ids=["at once", "after its work"])
@pytest.mark.parametrize("command", ["start", "exec", "kill", "pause", "delete", "state"])
def test_force_converges(house: House, command: str, fault: str, after: bool) -> None:
    """Whatever the runtime fails at, each call ends and deletion by force leaves nothing."""
    runtime = Faulty(house.directory / "r", command, fault, after=after)
    container = house.container("c", "sleep", "1000", runtime=str(runtime.path))
    task = container.new_task()
    if command != "start":
        task.start()
    runtime.arm()
    calls: dict[str, Callable[[], object]] = {
        "start": task.start,
        "exec": lambda: task.exec("e", container.exec_spec(["true"])).start(),
        "kill": lambda: task.kill("TERM", everyone=True),
        "pause": task.pause,
        "delete": lambda: None,
        "state": lambda: None,
    }
    if command in ("start", "exec", "kill", "pause"):
        with pytest.raises(OrlopError, match=command) as caught:
            calls[command]()
        assert isinstance(caught.value, DeadlineExceededError if fault == HANGS else UnknownError)
    assert task.delete(force=True).code in (0, 137)
    with pytest.raises(NotFoundError):
        container.task()
    assert not house.bundle("c").exists()
    runtime.disarm()
    again = container.new_task()
    again.start()
    assert again.delete(force=True).code == 137
    house.nothing_is_left("c")


# ---- containers


def test_one_that_ignores_sigterm(house: House) -> None:
    task = house.start("c", "sh", "-c", "trap '' TERM HUP INT; while :; do sleep 1; done")
    task.kill("TERM")
    assert task.status() == "RUNNING"
    assert task.delete(force=True).code == 137
    house.nothing_is_left("c")


def test_one_that_is_paused(house: House) -> None:
    task = house.start("c", "sleep", "1000")
    task.pause()
    assert task.delete(force=True).code == 137
    house.nothing_is_left("c")


def test_a_fork_bomb_within_its_limit(house: House) -> None:
    bomb = "while [ ! -e /go ]; do sleep 0.1; done; while :; do (while :; do sleep 1000 & done); done"
    container = house.container("c", "sh", "-c", f"({bomb}) & exec sleep 1000")
    task = container.new_task()
    task.start()
    task.update(json.dumps({"pids": {"limit": 40}}).encode())
    Path(f"/proc/{task.pid}/root/go").touch()
    until(lambda: len(task.pids()) >= 35, "it does not go off")
    assert task.status() == "RUNNING"
    with contextlib.suppress(UnknownError):  # there may be no room for one more
        task.exec("e", container.exec_spec(["true"])).start()
    assert task.delete(force=True).code == 137
    house.nothing_is_left("c")


def test_one_whose_root_vanishes(house: House) -> None:
    container = house.container("c", "sleep", "1000")
    task = container.new_task()
    task.start()
    rootfs = house.bundle("c") / "rootfs"
    upper = next(
        part.removeprefix("upperdir=")
        for mount in container.mounts()
        for part in mount.options
        if part.startswith("upperdir=")
    )
    subprocess.run(["umount", "--lazy", str(rootfs)], check=True)
    shutil.rmtree(upper)
    assert task.status() == "RUNNING"
    assert task.pids()
    made = task.exec("e", container.exec_spec(["true"]))
    with contextlib.suppress(UnknownError):  # it may not find its program any more
        made.start()
        made.wait()
    assert task.delete(force=True).code == 137
    house.nothing_is_left("c")
    Path(upper).mkdir()
