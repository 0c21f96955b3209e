"""The supervisor's sandbox API, as a daemon speaks it over ttrpc."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orlop.api.runtime.sandbox.v1 import sandbox_pb2 as pb
from orlop.api.runtime.task.v3 import shim_pb2 as task_pb
from orlop.ttrpc.client import Client
from orlop.ttrpc.errors import TtrpcError
from tests.root.shims import LIMIT_S, Shim, opened, running

pytestmark = pytest.mark.root

SERVICE = "containerd.runtime.sandbox.v1.Sandbox"


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    with opened(tmp_path) as one:
        yield one


class Pod:
    """Calls about one sandbox."""

    def __init__(self, shim: Shim, name: str = "pod") -> None:
        self.shim = shim
        self.name = name

    def call(self, method: str, **fields: Any) -> Any:
        prefix = "Ping" if method == "PingSandbox" else method
        request = getattr(pb, f"{prefix}Request")(sandbox_id=self.name, **fields)
        return self.shim.call(method, request, getattr(pb, f"{prefix}Response"), service=SERVICE)

    def state(self) -> str:
        return str(self.call("SandboxStatus").state)

    def fails(self, method: str, **fields: Any) -> tuple[int, str]:
        with pytest.raises(TtrpcError) as caught:
            self.call(method, **fields)
        return caught.value.code, caught.value.message


def begin(shim: Shim) -> Pod:
    """Start the supervisor as for a sandbox, whose bundle lies beside those of tasks."""
    bundle = shim.directory / "io.containerd.sandbox.controller.v1.shim" / "ns" / "pod"
    bundle.mkdir(parents=True)
    done = shim.program("-id", "pod", "start", cwd=bundle)
    assert done.returncode == 0, done
    shim.address = done.stdout.decode()
    return Pod(shim)


def test_the_life_of_a_sandbox(shim: Shim) -> None:
    pod = begin(shim)
    for method in ("StartSandbox", "SandboxStatus", "PingSandbox", "StopSandbox", "WaitSandbox", "Platform"):
        assert pod.fails(method) == (5, "sandbox pod: not found")
    assert Pod(shim, "../x").fails("CreateSandbox")[0] == 3
    pod.call("CreateSandbox", netns_path="/proc/1/ns/net")
    assert pod.fails("CreateSandbox") == (6, "sandbox pod: already exists")
    assert pod.state() == "SANDBOX_NOTREADY"
    started = pod.call("StartSandbox")
    assert started.pid == 0
    assert pod.fails("StartSandbox") == (9, "sandbox pod: it was started before: failed precondition")
    status = pod.call("SandboxStatus", verbose=True)
    assert status.state == "SANDBOX_READY"
    assert status.created_at == started.created_at
    assert not status.HasField("exited_at")
    assert dict(status.info) == {"netns": "/proc/1/ns/net"}
    platform = pod.call("Platform").platform
    assert platform.os == "linux"
    assert platform.architecture
    pod.call("PingSandbox")
    assert not pod.call("SandboxMetrics").HasField("metrics")
    pod.call("StopSandbox")
    pod.call("StopSandbox")
    assert pod.state() == "SANDBOX_NOTREADY"
    ended = pod.call("WaitSandbox")
    assert ended.exit_status == 0
    assert ended.exited_at == pod.call("SandboxStatus").exited_at
    pod.call("ShutdownSandbox")
    pod.call("ShutdownSandbox")
    assert pod.fails("PingSandbox") == (5, "sandbox pod: not found")
    pod.call("CreateSandbox")
    pod.call("ShutdownSandbox")


@pytest.mark.parametrize("end", ["StopSandbox", "ShutdownSandbox"])
def test_waiting_ends_with_the_sandbox(shim: Shim, end: str) -> None:
    pod = begin(shim)
    pod.call("CreateSandbox")
    pod.call("StartSandbox")
    answers: list[Any] = []

    def wait() -> None:
        with Client.connect(shim.address) as client:
            request = pb.WaitSandboxRequest(sandbox_id="pod").SerializeToString()
            answers.append(pb.WaitSandboxResponse.FromString(client.call(SERVICE, "WaitSandbox", request)))

    thread = threading.Thread(target=wait)
    thread.start()
    pod.call("PingSandbox")
    assert not answers
    pod.call(end)
    thread.join(LIMIT_S)
    assert answers[0].exited_at.seconds > 0
    pod.call("ShutdownSandbox")


def test_stopping_kills_the_tasks_in_it_and_no_others(shim: Shim) -> None:
    pod = begin(shim)
    pod.call("CreateSandbox")
    pod.call("StartSandbox")
    other = Pod(shim, "other")
    other.call("CreateSandbox")
    pids = {}
    for name, sandbox in (("in", "pod"), ("beside", "other"), ("alone", "")):
        bundle = shim.bundle(name, ["sleep", "100"])
        if sandbox:
            (bundle / "sandbox").write_text(sandbox)
        pids[name] = shim.run(name, ["sleep", "100"])
    pod.call("StopSandbox", timeout_secs=20)
    assert {name: running(pid) for name, pid in pids.items()} == {"in": False, "beside": True, "alone": True}
    assert shim.wait("in") == 137
    shim.delete("in")
    other.call("ShutdownSandbox")
    assert shim.wait("beside") == 137
    pod.call("ShutdownSandbox")


def test_a_sandbox_keeps_the_supervisor_and_outlives_it(shim: Shim) -> None:
    pod = begin(shim)
    pod.call("CreateSandbox")
    pod.call("StartSandbox")
    before = pod.call("SandboxStatus")
    bundle = shim.bundle("c", ["sleep", "100"])
    (bundle / "sandbox").write_text("pod")
    # As the daemon lays them out: bundles of tasks beside those of sandboxes.
    tasks = shim.directory / "io.containerd.runtime.v2.task"
    tasks.symlink_to(shim.directory / "t")
    pid = shim.run("c", ["sleep", "100"])
    lost = Pod(shim, "lost")
    lost.call("CreateSandbox", bundle_path=str(shim.directory / "a-bundle-that-is-gone"))
    shim.kill()
    half = next(shim.state.glob("s/*.sandboxes"))
    (half / ".pod").write_text("{half")
    done = shim.program("-id", "pod", "start", cwd=shim.directory / "io.containerd.sandbox.controller.v1.shim/ns/pod")
    assert done.stdout.decode() == shim.address
    assert pod.call("SandboxStatus") == before
    assert lost.fails("PingSandbox") == (5, "sandbox lost: not found")
    # The successor was started for the sandbox, and has found the tasks all the same.
    assert shim.task_state("c").pid == pid
    pod.call("StopSandbox")
    assert not running(pid)
    shim.delete("c")
    supervisor = shim.pid
    # With a sandbox and no task it stays.
    shim.call("Shutdown", task_pb.ShutdownRequest(now=True), None)
    pod.call("PingSandbox")
    assert shim.pid == supervisor
    pod.call("ShutdownSandbox")
    assert list(half.iterdir()) == []
