"""Sandboxes of a real daemon: their life, the tasks in them, events; daemons, supervisors and shims that are killed."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import orlop
import orlop.client.sync
from orlop.api.services.sandbox.v1 import sandbox_pb2 as pb
from orlop.api.services.tasks.v1 import tasks_pb2
from orlop.api.types.runc.options import oci_pb2
from orlop.base.errdefs import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    OrlopError,
    UnimplementedError,
    UnknownError,
)
from orlop.client import sandboxes, tasks
from orlop.client.snapshots import to_mounts
from orlop.core.mount import Mount
from tests.root.shims import make_rootfs, running, spec, until
from tools import daemons, host
from tools.daemons import Ctr, Orlopd

pytestmark = pytest.mark.root


@pytest.fixture
def daemon(new_orlopd: Callable[..., Orlopd]) -> Orlopd:
    return new_orlopd()


@pytest.fixture
def client(daemon: Orlopd) -> Iterator[orlop.Client]:
    with orlop.Client(str(daemon.address), timeout_s=60) as made:
        yield made
        for task in made.tasks():
            made.task(task.container_id).delete(force=True)
        for sandbox in made.sandboxes.list():
            sandbox.delete()


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    reason = host.lacks_peer("busybox")
    if reason:
        pytest.skip(reason)
    return make_rootfs(tmp_path / "rootfs")


def bundles(daemon: Orlopd, kind: str = "io.containerd.sandbox.controller.v1.shim") -> list[str]:
    return sorted(path.name for path in (daemon.state / kind).glob("*/*"))


def run(client: orlop.Client, rootfs: Path, name: str, *args: str, sandbox: str = "", **more: Any) -> orlop.Task:
    """A running task of a container that is in the sandbox."""
    document = json.dumps(spec(args, f"/orlop-test-{os.getpid()}-{name}", {})).encode()
    client.containers.create(name, document, sandbox=sandbox, **more)
    mounts = to_mounts([Mount(type="bind", source=str(rootfs), options=("rbind",))])
    client.call(tasks.CREATE, tasks_pb2.CreateTaskRequest(container_id=name, rootfs=mounts))
    task = client.task(name)
    task.start()
    return task


class Waiting(threading.Thread):
    """Waits for a sandbox on a connection of its own."""

    def __init__(self, daemon: Orlopd, sandbox_id: str) -> None:
        super().__init__(daemon=True)
        self.address, self.sandbox_id = str(daemon.address), sandbox_id
        self.exit: orlop.Exit | None = None
        self.error: OrlopError | None = None
        self.start()

    def run(self) -> None:
        try:
            with orlop.Client(self.address) as client:
                self.exit = client.sandboxes.get(self.sandbox_id).wait()
        except OrlopError as error:
            self.error = error


@pytest.mark.parametrize("transport", ["ttrpc", "grpc"])
def test_the_life_of_a_sandbox(daemon: Orlopd, transport: str) -> None:
    with orlop.Client(str(daemon.address), transport=transport, timeout_s=60) as client:  # type: ignore[arg-type]
        sandbox = client.sandboxes.create("pod", b'{"hostname":"pod"}', labels={"a": "1"}, netns="/proc/1/ns/net")
        assert json.loads(sandbox.record.spec) == {"hostname": "pod"}
        assert (daemon.state / "io.containerd.sandbox.controller.v1.shim/default/pod/config.json").read_bytes() == (
            b'{"hostname":"pod"}'
        )
        assert sandbox.status().state == "SANDBOX_NOTREADY"
        assert sandbox.start() == 0
        status = sandbox.status(verbose=True)
        assert status.state == "SANDBOX_READY"
        assert status.info == {"netns": "/proc/1/ns/net"}
        assert status.address.startswith(f"ttrpc+unix://{daemon.state}/s/")
        assert status.version == 3
        assert sandbox.platform().os == "linux"
        with pytest.raises(AlreadyExistsError, match='sandbox bucket "pod" already exists'):
            client.sandboxes.create("pod")
        assert [one.id for one in client.sandboxes.list(["labels.a==1"])] == ["pod"]
        assert sandbox.label({"b": "2"}).record.labels == {"a": "1", "b": "2"}
        waiting = Waiting(daemon, "pod")
        sandbox.stop()
        waiting.join(30)
        assert waiting.exit is not None
        assert waiting.exit.code == 0
        assert sandbox.status().state == "SANDBOX_NOTREADY"
        sandbox.delete()
        assert client.sandboxes.list() == []
        assert bundles(daemon) == []
        with client.sandboxes.create("pod") as again:
            again.start()


def test_what_is_refused_and_how(client: orlop.Client) -> None:
    def call(rpc: Any, **fields: Any) -> Any:
        return client.call(rpc, rpc.request(sandbox_id="pod", **fields))

    for name in ("CREATE", "STOP", "WAIT", "STATUS", "SHUTDOWN", "PLATFORM"):
        with pytest.raises(InvalidArgumentError) as empty:
            call(getattr(sandboxes, name))
        assert str(empty.value) == "invalid argument: sandbox controller name can not be empty"
        with pytest.raises(NotFoundError) as absent:
            call(getattr(sandboxes, name), sandboxer="podsandbox")
        assert str(absent.value) == "not found: failed to get sandbox controller by podsandbox"
    with pytest.raises(NotFoundError) as caught:
        call(sandboxes.START, sandboxer="podsandbox")
    expected = 'failed to get sandbox controller for "podsandbox": not found: failed to get sandbox controller by '
    assert str(caught.value) == f"{expected}podsandbox"
    # Of what does not run, containerd's controller `shim` says just this.
    for name in ("WAIT", "SHUTDOWN", "PLATFORM"):
        with pytest.raises(NotFoundError) as caught:
            call(getattr(sandboxes, name), sandboxer="shim")
        assert str(caught.value) == "not found"
    with pytest.raises(UnknownError) as unknown:
        call(sandboxes.START, sandboxer="shim")
    assert str(unknown.value) == 'failed to start sandbox "pod": unable to find sandbox "pod"'
    call(sandboxes.STOP, sandboxer="shim")
    status = call(sandboxes.STATUS, sandboxer="shim")
    assert (status.sandbox_id, status.state, status.created_at.seconds) == ("pod", "", -62135596800)
    assert status.exited_at.seconds > 0
    assert status.HasField("extra")
    with pytest.raises(UnknownError, match=r"^failed to start new shim for sandbox pod: .*no-such"):
        client.sandboxes.create("pod", runtime="io.containerd.no-such.v1")
    with pytest.raises(NotFoundError):
        client.sandboxes.get("pod")


def test_a_client_of_1_7_names_it_only(client: orlop.Client) -> None:
    stored = pb.StoreCreateRequest()
    stored.sandbox.sandbox_id, stored.sandbox.runtime.name = "pod", "io.containerd.runc.v2"
    client.call(sandboxes.STORE_CREATE, stored)
    client.call(sandboxes.CREATE, pb.ControllerCreateRequest(sandbox_id="pod", sandboxer="shim"))
    client.call(sandboxes.START, pb.ControllerStartRequest(sandbox_id="pod", sandboxer="shim"))
    with pytest.raises(AlreadyExistsError, match=r"^sandbox pod already running: already exists$"):
        client.call(sandboxes.CREATE, pb.ControllerCreateRequest(sandbox_id="pod", sandboxer="shim"))
    client.call(sandboxes.SHUTDOWN, pb.ControllerShutdownRequest(sandbox_id="pod", sandboxer="shim"))


def test_events_tell_of_it(daemon: Orlopd, client: orlop.Client) -> None:
    found: list[tuple[str, str]] = []
    began, done = threading.Event(), threading.Event()

    def listen() -> None:
        with orlop.Client(str(daemon.address)) as other:
            for event in other.subscribe(['topic~="/sandboxes/"', 'topic=="/test"']):
                if event.topic == "/test":
                    began.set()
                    continue
                found.append((event.topic, event.message.sandbox_id))  # type: ignore[union-attr]
                if event.topic == "/sandboxes/exit":
                    break
        done.set()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()

    def told() -> bool:
        client.publish("/test", oci_pb2.ProcessDetails())
        return began.is_set()

    until(told, "no subscription")
    sandbox = client.sandboxes.create("pod")
    sandbox.start()
    sandbox.stop()
    sandbox.wait()
    assert done.wait(30)
    thread.join()
    assert found == [("/sandboxes/create", "pod"), ("/sandboxes/start", "pod"), ("/sandboxes/exit", "pod")]


def test_tasks_are_in_it_and_end_with_it(daemon: Orlopd, client: orlop.Client, rootfs: Path) -> None:
    sandbox = client.sandboxes.create("pod")
    sandbox.start()
    inside = run(client, rootfs, "inside", "sleep", "100", sandbox="pod")
    beside = run(client, rootfs, "beside", "sleep", "100")
    assert client.containers.get("inside").record.sandbox == "pod"
    bundle = daemon.state / "io.containerd.runtime.v2.task/default/inside"
    assert (bundle / "sandbox").read_text() == "pod"
    assert (bundle / "address").read_text() == (
        daemon.state / "io.containerd.sandbox.controller.v1.shim/default/pod/address"
    ).read_text()
    sandbox.stop(timeout_s=20)
    assert inside.wait().code == 137
    assert running(beside.pid)
    inside.delete()
    sandbox.delete()
    beside.delete(force=True)


def test_a_task_wants_its_sandbox(client: orlop.Client, rootfs: Path) -> None:
    with pytest.raises(UnknownError) as caught:
        run(client, rootfs, "lonely", "true", sandbox="no-such")
    assert str(caught.value) == "failed to start shim: can't find sandbox no-such"
    # As in CRI, a task can be the sandbox of others.
    pause = run(client, rootfs, "pause", "sleep", "100")
    member = run(client, rootfs, "member", "true", sandbox="pause")
    assert member.wait().code == 0
    member.delete()
    pause.delete(force=True)


def test_a_task_whose_client_knows_the_address(daemon: Orlopd, client: orlop.Client, rootfs: Path) -> None:
    sandbox = client.sandboxes.create("pod")
    sandbox.start()
    status = sandbox.status()
    document = json.dumps(spec(["true"], f"/orlop-test-{os.getpid()}-c", {})).encode()
    client.containers.create("c", document, sandbox="somebody-elses")
    request = tasks_pb2.CreateTaskRequest(
        container_id="c",
        rootfs=to_mounts([Mount(type="bind", source=str(rootfs), options=("rbind",))]),
        task_api_address="unix:///nowhere",
        task_api_version=status.version,
    )
    with pytest.raises(UnknownError, match="the scheme of sandbox address should be in"):
        client.call(tasks.CREATE, request)
    request.task_api_address = status.address
    client.call(tasks.CREATE, request)
    task = client.task("c")
    task.start()
    assert task.wait().code == 0
    task.delete()
    sandbox.delete()


# -- what is killed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victims", [("daemon",), ("supervisor",), ("supervisor", "daemon"), ("daemon", "supervisor")])
def test_it_outlives_whoever_is_killed(
    daemon: Orlopd, client: orlop.Client, rootfs: Path, victims: tuple[str, ...]
) -> None:
    sandbox = client.sandboxes.create("pod")
    sandbox.start()
    task = run(client, rootfs, "c", "sleep", "100", sandbox="pod")
    before = sandbox.status()
    waiting = Waiting(daemon, "pod") if victims == ("supervisor",) else None
    supervisor = _supervisor(daemon)
    for victim in victims:
        if victim == "daemon":
            daemon.kill()
        else:
            os.kill(supervisor, signal.SIGKILL)
            until(lambda: not running(supervisor), "the supervisor lives")
    if "daemon" in victims:
        client.close()
        daemon.start()
    sandbox = client.sandboxes.get("pod")
    assert sandbox.status() == before
    assert client.task("c").pid == task.pid
    other = run(client, rootfs, "d", "true", sandbox="pod")
    assert other.wait().code == 0
    other.delete()
    sandbox.stop()
    if waiting is not None:
        waiting.join(30)
        assert waiting.exit is not None, waiting.error
    task = client.task("c")
    assert task.wait().code == 137
    task.delete()
    sandbox.delete()
    assert bundles(daemon) == []


def _supervisor(daemon: Orlopd) -> int:
    """The pid of the only supervisor of the daemon."""
    wanted = f"-address\0{daemon.address}\0".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if b"orlop.cmd.shim" in line and wanted in line:
            found.append(int(path.parent.name))
    [pid] = found
    return pid


def test_a_bundle_without_a_sandbox_is_swept(daemon: Orlopd, client: orlop.Client) -> None:
    sandbox = client.sandboxes.create("pod")
    sandbox.start()
    daemon.kill()
    directory = daemon.state / "io.containerd.sandbox.controller.v1.shim/default"
    (directory / "cut-short").mkdir()
    # A supervisor that does not know it: CreateSandbox was never answered.
    (directory / "unknown").mkdir()
    for name in ("bootstrap.json", "address", "shim-binary-path"):
        (directory / "unknown" / name).write_bytes((directory / "pod" / name).read_bytes())
    client.close()
    daemon.start()
    assert bundles(daemon) == ["pod"]
    assert client.sandboxes.get("pod").status().state == "SANDBOX_READY"


# -- foreign shims ----------------------------------------------------------------------------------------------------


# The shim wants to read its bundle's spec when it starts.
SHIM_SPEC = json.dumps(spec(["sleep", "1"], "/orlop-test-pod", {})).encode()


@pytest.fixture
def foreign() -> str:
    reason = host.lacks_peer("containerd-shim-runc-v2")
    if reason:
        pytest.skip(reason)
    return str(daemons.program("containerd-shim-runc-v2"))


@pytest.fixture
def made(daemon: Orlopd, client: orlop.Client, foreign: str) -> orlop.client.sync.Sandbox:
    """A sandbox in a shim that has the API, as Debian 13's."""
    try:
        return client.sandboxes.create("pod", SHIM_SPEC, runtime=foreign)
    except UnimplementedError:
        pytest.skip("this shim has no sandbox API")


def test_a_shim_without_the_api_leaves_nothing(daemon: Orlopd, client: orlop.Client, foreign: str) -> None:
    try:
        client.sandboxes.create("pod", SHIM_SPEC, runtime=foreign)
    except UnimplementedError as error:
        text = str(error)
    else:
        pytest.skip("this shim has the sandbox API")
    assert text.startswith("failed to create sandbox pod: ")
    assert bundles(daemon) == []
    assert client.sandboxes.list() == []
    until(lambda: not list(_shims(daemon)), "the shim lives")


def test_a_foreign_shim_s_sandbox(
    daemon: Orlopd, client: orlop.Client, rootfs: Path, foreign: str, made: orlop.client.sync.Sandbox
) -> None:
    made.start()
    [shim] = _shims(daemon)
    for name in ("c", "d"):
        task = run(client, rootfs, name, "true", sandbox="pod", runtime=foreign)
        assert task.wait().code == 0
        task.delete()
    assert list(_shims(daemon)) == [shim]
    daemon.kill()
    client.close()
    daemon.start()
    task = run(client, rootfs, "e", "true", sandbox="pod", runtime=foreign)
    assert task.wait().code == 0
    task.delete()
    assert list(_shims(daemon)) == [shim]
    sandbox = client.sandboxes.get("pod")
    sandbox.stop()  # this shim ends with it
    until(lambda: not running(shim), "the shim lives")
    until(lambda: not bundles(daemon), "the bundle is left")
    sandbox.delete()


def test_a_foreign_shim_that_dies_takes_its_sandbox_along(
    daemon: Orlopd, client: orlop.Client, made: orlop.client.sync.Sandbox
) -> None:
    made.start()
    [shim] = _shims(daemon)
    os.kill(shim, signal.SIGKILL)
    until(lambda: not bundles(daemon), "the bundle is left")
    assert made.status().state == ""
    made.delete()
    assert client.sandboxes.list() == []


def _shims(daemon: Orlopd) -> Iterator[int]:
    """Foreign shims of the daemon."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if b"containerd-shim-runc-v2" in line.split(b"\0")[0] and str(daemon.address).encode() in line:
            yield int(path.parent.name)


# -- ctr --------------------------------------------------------------------------------------------------------------


def test_ctr(daemon: Orlopd, client: orlop.Client, our_ctr: Callable[..., Ctr], tmp_path: Path) -> None:
    ctr = our_ctr(daemon)
    (tmp_path / "pod.json").write_text('{"hostname": "pod"}')
    assert ctr("sandboxes", "run", tmp_path / "pod.json", "pod") == "pod\n"
    head, row = ctr("sb", "ls").splitlines()
    assert head.split() == ["ID", "CREATED", "RUNTIME"]
    assert row.split()[0] == "pod"
    assert row.split()[-1] == "io.containerd.runc.v2"
    assert len(ctr("s", "list", "--filters", "id==other").splitlines()) == 1
    record = json.loads(ctr("sandboxes", "info", "pod"))
    assert (record["ID"], record["Sandboxer"], record["Spec"]) == ("pod", "shim", {"hostname": "pod"})
    assert client.sandboxes.get("pod").status().state == "SANDBOX_READY"
    ctr("sandbox", "rm", "pod")
    assert client.sandboxes.list() == []
    assert "failed to load sandbox pod" in ctr.run("sandboxes", "remove", "pod", check=False).stderr
