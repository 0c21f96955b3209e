"""The supervisor through a container's life: states, exits, events, errors."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orlop.api.runtime.task.v2 import shim_pb2 as v2
from orlop.api.runtime.task.v3 import shim_pb2 as pb
from orlop.api.types.runc.options import oci_pb2
from orlop.api.types.task import task_pb2
from tests.root.shims import Reader, Shim, failure, opened, running, until

pytestmark = pytest.mark.root


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    with opened(tmp_path) as one:
        yield one


def test_life(shim: Shim):
    out = shim.fifo("out")
    reader = Reader(out)
    pid = shim.create("c", ["/bin/sh", "-c", "echo hello; exit 7"], request={"stdout": str(out)})
    assert shim.task_state("c").status == task_pb2.CREATED
    assert shim.task_start("c") == pid
    assert shim.wait("c") == 7
    state = shim.task_state("c")
    assert (state.status, state.exit_status, state.pid, state.id) == (task_pb2.STOPPED, 7, pid, "c")
    assert state.bundle == str(shim.bundles / "c")
    assert abs(state.exited_at.seconds - os.stat(shim.bundles / "c/orlop/init.json").st_mtime) < 5
    assert reader.result() == b"hello\n"
    deleted = shim.delete("c")
    assert (deleted.pid, deleted.exit_status, deleted.exited_at) == (pid, 7, state.exited_at)
    assert shim.events.wait_for("c", "delete") == ["create", "start", "exit", "delete"]
    (_, created), (_, started), (envelope, exited), _ = shim.events.of("c")
    assert (created.bundle, created.pid, created.io.stdout) == (str(shim.bundles / "c"), pid, str(out))
    assert started.pid == pid
    assert (exited.id, exited.pid, exited.exit_status, exited.exited_at) == ("c", pid, 7, state.exited_at)
    assert envelope.namespace == "ns"
    assert failure(lambda: shim.task_state("c")) == (5, "container not created: not found")


def test_same_id_again_at_once(shim: Shim):
    """Delete is answered before the runtime has removed the container; the next Create waits for that."""
    for _ in range(3):
        shim.run("c", ["/bin/true"])
        assert shim.wait("c") == 0
        shim.delete("c")
    assert list((shim.state / "s").glob("*.gone/c")) == [] or until_gone(shim)


def test_no_id_is_the_name_of_a_file_of_another_deletion(shim: Shim):
    """A supervisor that is killed after answering finds, for each of them, what is still to be removed."""
    containers = ("a", "a.new", "a.json", "log.json")
    for container in containers:
        shim.run(container, ["/bin/true"])
        shim.wait(container)
    root = shim.state / "runc/ns"
    removing = [threading.Thread(target=shim.delete, args=(container,)) for container in containers]
    for one in removing:
        one.start()
    for one in removing:
        one.join()
    until(lambda: os.listdir(root) == [], "the runtime's state was not removed")
    [gone] = (shim.state / "s").glob("*.gone")
    until(lambda: os.listdir(gone) == [], "something of the deletions is still there")


def until_gone(shim: Shim) -> bool:
    until(lambda: not list((shim.state / "s").glob("*.gone/c")), "the runtime's state was not removed")
    return True


def test_exits_in_order_however_short(shim: Shim):
    for number in range(5):
        shim.run(f"c{number}", ["/bin/true"])
        shim.wait(f"c{number}")
        shim.delete(f"c{number}")
        assert shim.events.wait_for(f"c{number}", "delete") == ["create", "start", "exit", "delete"]


def test_killed_by_signal(shim: Shim):
    shim.run("c", ["/bin/sleep", "100"])
    shim.task_kill("c", signal.SIGKILL)
    assert shim.wait("c") == 137
    assert failure(lambda: shim.task_kill("c", 9)) == (5, "process already finished: not found")


def test_killed_before_start(shim: Shim):
    shim.create("c", ["/bin/sleep", "100"])
    shim.task_kill("c", signal.SIGKILL)
    assert shim.wait("c") == 137
    assert failure(lambda: shim.task_start("c"))[1].startswith("cannot start a stopped process")
    shim.delete("c")
    assert shim.events.wait_for("c", "delete") == ["create", "exit", "delete"]


def test_delete_of_a_created_task(shim: Shim):
    pid = shim.create("c", ["/bin/sleep", "100"])
    shim.delete("c")
    assert not running(pid)
    assert not os.path.ismount(shim.bundles / "c/rootfs")


def test_refused_in_running_state(shim: Shim):
    shim.run("c", ["/bin/sleep", "100"])
    assert failure(lambda: shim.delete("c"))[1].startswith("cannot delete a running process")
    assert failure(lambda: shim.task_start("c"))[1].startswith("cannot start a running process")
    assert failure(lambda: shim.call("Resume", pb.ResumeRequest(id="c"), None))[1].startswith("cannot resume a running")
    assert failure(lambda: shim.create("c", ["/bin/true"]))[0] == 6
    assert failure(lambda: shim.task_state("c", "none")) == (5, "process does not exist none: not found")
    assert failure(lambda: shim.task_kill("c", 99)) == (2, "unknown error after kill: invalid argument")


def test_pause_and_resume(shim: Shim):
    shim.run("c", ["/bin/sleep", "100"])
    shim.call("Pause", pb.PauseRequest(id="c"), None)
    assert shim.task_state("c").status == task_pb2.PAUSED
    assert failure(lambda: shim.exec("c", "e", ["/bin/true"]))[1].startswith("cannot exec in a paused state")
    assert failure(lambda: shim.delete("c"))[1].startswith("cannot delete a paused process")
    shim.call("Resume", pb.ResumeRequest(id="c"), None)
    assert shim.task_state("c").status == task_pb2.RUNNING
    shim.call("Pause", pb.PauseRequest(id="c"), None)
    shim.task_kill("c", 9)  # frozen processes of cgroup v1 die only when they are thawed
    assert shim.wait("c") == 137
    assert shim.events.wait_for("c", "exit") == ["create", "start", "paused", "resumed", "paused", "exit"]


def test_command_that_does_not_exist(shim: Shim):
    code, message = failure(lambda: shim.create("c", ["/bin/none"]))
    assert code == 2
    assert message.startswith('OCI runtime create failed: container "c": runc create failed: ')
    assert "/bin/none" in message
    assert "no such file" in message
    assert_nothing_left(shim, "c")


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        ({"stdout": "/none/fifo"}, 5, "stdout /none/fifo: No such file or directory"),
        ({"stdout": "ftp:///x"}, 3, "unknown STDIO scheme ftp"),
        ({"stdin": "relative"}, 3, "the path must be absolute"),
        ({"stdout": "binary:///bin/none-such"}, 5, "logging program /bin/none-such"),
    ],
)
def test_bad_stdio_leaves_nothing(shim: Shim, request_: dict[str, str], code: int, text: str):
    assert failure(lambda: shim.create("c", ["/bin/true"], request=request_))[0] == code
    assert text in failure(lambda: shim.create("c", ["/bin/true"], request=request_))[1]
    assert_nothing_left(shim, "c")


def test_link_as_stdio_is_refused(shim: Shim, tmp_path: Path):
    (tmp_path / "link").symlink_to("/etc/passwd")
    wanted = {"stdout": str(tmp_path / "link")}
    assert failure(lambda: shim.create("c", ["/bin/true"], request=wanted))[0] == 3


def test_bad_ids_and_bundles(shim: Shim, tmp_path: Path):
    shim.bundle("c", ["/bin/true"])
    shim.start("c")
    for container, bundle in (
        ("../c", "/"),
        ("", "/"),
        ("x" * 100, "/"),
        ("c", "relative"),
        ("c", str(tmp_path / "no")),
    ):
        wanted = pb.CreateTaskRequest(id=container, bundle=bundle)
        assert failure(partial(shim.call, "Create", wanted, None))[0] == 3
    (shim.bundles / "c/config.json").write_text("no json")
    wanted = pb.CreateTaskRequest(id="c", bundle=str(shim.bundles / "c"))
    code, message = failure(lambda: shim.call("Create", wanted, None))
    assert (code, "config.json" in message) == (3, True)


def test_bad_mount_is_named(shim: Shim):
    shim.bundle("c", ["/bin/true"])
    shim.start("c")
    wanted = pb.CreateTaskRequest(id="c", bundle=str(shim.bundles / "c"))
    wanted.rootfs.add(type="bind", source="/none/such", options=["rbind"])
    code, message = failure(lambda: shim.call("Create", wanted, None))
    assert (code, "/none/such" in message) == (5, True)
    assert_nothing_left(shim, "c")


def test_unknown_runtime(shim: Shim):
    wanted = {"options": any_of(oci_pb2.Options(binary_name="no-such-runtime"))}
    code, message = failure(lambda: shim.create("c", ["/bin/true"], request=wanted))
    assert (code, "no-such-runtime" in message) == (5, True)


def test_root_of_the_options(shim: Shim, tmp_path: Path):
    shim.create("c", ["/bin/true"], request={"options": any_of(oci_pb2.Options(root=str(tmp_path / "rr")))})
    assert (tmp_path / "rr/ns/c/state.json").exists()


def test_exec(shim: Shim):
    init = shim.run("c", ["/bin/sleep", "100"])
    out = shim.fifo("out")
    reader = Reader(out)
    shim.exec(
        "c", "e", ["/bin/sh", "-c", "id -u; exit 3"], stdout=str(out), process={"user": {"uid": 1000, "gid": 1000}}
    )
    assert shim.task_state("c", "e").status == task_pb2.CREATED
    assert failure(lambda: shim.exec("c", "e", ["/bin/true"])) == (6, "id e: already exists")
    pid = shim.task_start("c", "e")
    assert shim.wait("c", "e") == 3
    state = shim.task_state("c", "e")
    assert (state.id, state.pid, state.status, state.exit_status) == ("e", pid, task_pb2.STOPPED, 3)
    assert reader.result() == b"1000\n"
    deleted = shim.delete("c", "e")
    assert (deleted.pid, deleted.exit_status) == (pid, 3)
    assert shim.events.wait_for("c", "exit") == ["create", "start", "exec-added", "exec-started", "exit"]
    _, exited = shim.events.of("c")[-1]
    assert (exited.id, exited.pid, exited.exit_status) == ("e", pid, 3)
    assert shim.task_state("c").pid == init
    assert [name for name in os.listdir(shim.bundles / "c/orlop") if "exec" in name or "process" in name] == []


def test_exec_that_fails(shim: Shim):
    shim.run("c", ["/bin/sleep", "100"])
    shim.exec("c", "e", ["/bin/none"])
    code, message = failure(lambda: shim.task_start("c", "e"))
    assert (code, message.startswith('OCI runtime exec failed: container "c": ')) == (2, True)
    assert "/bin/none" in message
    assert shim.wait("c", "e") == 255
    shim.delete("c", "e")
    assert failure(lambda: shim.task_state("c", "e"))[0] == 5
    assert "exit" not in shim.events.topics("c")


def test_an_exec_that_cannot_be_recorded_does_not_go_on(shim: Shim):
    """Its start was refused, and it ran."""
    shim.run("c", ["/bin/sleep", "100"])
    shim.exec("c", "e", ["/bin/sleep", "4711"])
    in_the_way = shim.bundles / "c/orlop/.exec-e.json.new"
    in_the_way.mkdir()
    code, message = failure(lambda: shim.task_start("c", "e"))
    assert (code, "exec-e.json" in message) == (2, True)

    def runs() -> bool:
        pids = shim.call("Pids", pb.PidsRequest(id="c"), pb.PidsResponse).processes
        return any(b"4711" in command_line(one.pid) for one in pids)

    until(lambda: not runs(), "the exec goes on")
    in_the_way.rmdir()
    assert shim.wait("c", "e") == 255
    shim.delete("c", "e")


def command_line(pid: int) -> bytes:
    """Empty of a process that has gone meanwhile."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_execs_end_with_init(shim: Shim):
    shim.run("c", ["/bin/sleep", "100"])
    for exec_id in ("e1", "e2"):
        shim.exec("c", exec_id, ["/bin/sleep", "100"])
        shim.task_start("c", exec_id)
    shim.task_kill("c", 9)
    assert [shim.wait("c", exec_id) for exec_id in ("e1", "e2", "")] == [137] * 3
    assert shim.events.wait_for("c", "exit").count("exec-started") == 2
    shim.delete("c")


def test_shared_pid_namespace_is_cleared(shim: Shim):
    """Where the kernel does not end what init leaves behind, the supervisor does."""
    kinds = [{"type": kind} for kind in ("ipc", "uts", "mount")]
    shim.run("c", ["/bin/sh", "-c", "sleep 1000 & sleep 1000 & wait"], linux={"namespaces": kinds})
    until(lambda: len(pids(shim, "c")) == 3, "no children")
    left = [pid for pid in pids(shim, "c") if pid != shim.task_state("c").pid]
    shim.task_kill("c", 9)
    assert shim.wait("c") == 137
    until(lambda: not any(running(pid) for pid in left), "children live")
    shim.delete("c")


def pids(shim: Shim, container: str) -> list[int]:
    answer = shim.call("Pids", pb.PidsRequest(id=container), pb.PidsResponse)
    return [one.pid for one in answer.processes]


def test_pids_tell_execs(shim: Shim):
    init = shim.run("c", ["/bin/sleep", "100"])
    shim.exec("c", "e", ["/bin/sleep", "100"])
    pid = shim.task_start("c", "e")
    answer = shim.call("Pids", pb.PidsRequest(id="c"), pb.PidsResponse)
    found = {one.pid: one.info for one in answer.processes}
    assert set(found) == {init, pid}
    assert found[init].type_url == ""
    assert found[pid].type_url == "containerd.runc.v1.ProcessDetails"
    assert oci_pb2.ProcessDetails.FromString(found[pid].value).exec_id == "e"


def test_kill_all(shim: Shim):
    shim.run("c", ["/bin/sh", "-c", "sleep 100 & wait"])
    shim.task_kill("c", 9, everyone=True)
    assert shim.wait("c") == 137


def test_update(shim: Shim):
    shim.run("c", ["/bin/sleep", "100"])
    wanted = pb.UpdateTaskRequest(id="c")
    wanted.resources.value = json.dumps({"pids": {"limit": 77}}).encode()
    shim.call("Update", wanted, None)
    wanted.resources.value = b"no json"
    assert failure(lambda: shim.call("Update", wanted, None))[0] == 3
    with open(f"/proc/{shim.task_state('c').pid}/cgroup", encoding="ascii") as file:
        lines = dict(line.strip().split(":", 2)[1:] for line in file)
    root = "/sys/fs/cgroup/pids" if "pids" in lines else "/sys/fs/cgroup"
    assert Path(f"{root}{lines.get('pids', lines.get(''))}/pids.max").read_text() == "77\n"


def test_version_two_speaks_the_same(shim: Shim):
    shim.run("c", ["/bin/sleep", "100"])
    service = "containerd.task.v2.Task"
    state = shim.call("State", v2.StateRequest(id="c"), v2.StateResponse, service=service)
    assert state.status == task_pb2.RUNNING
    connected = shim.call("Connect", v2.ConnectRequest(id="c"), v2.ConnectResponse, service=service)
    assert connected.task_pid == state.pid
    assert connected.version.startswith("orlop/")


def test_one_supervisor_for_a_namespace(shim: Shim):
    shim.run("a", ["/bin/sleep", "100"])
    address, pid = shim.address, shim.pid
    shim.bundle("b", ["/bin/sleep", "100"])
    assert shim.start("b") == address
    assert (shim.bundles / "b/address").read_text() == address
    shim.run("b", ["/bin/sleep", "100"])
    assert shim.pid == pid
    shim.call("Shutdown", pb.ShutdownRequest(id="a", now=True), None)  # tasks: it stays
    assert shim.task_state("b").status == task_pb2.RUNNING


def test_socket_is_private(shim: Shim):
    shim.bundle("c", ["/bin/true"])
    path = shim.start("c").removeprefix("unix://")
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700


def test_many_at_once(shim: Shim):
    """Creates and exits of many containers, interleaved; each gets its own exit."""
    shim.bundle("w", ["/bin/true"])
    shim.start("w")
    assert shim.client  # one for all threads
    results: dict[int, int] = {}

    def live(number: int) -> None:
        shim.run(f"c{number}", ["/bin/sh", "-c", f"exit {number}"])
        results[number] = shim.wait(f"c{number}")
        shim.delete(f"c{number}")

    threads = [threading.Thread(target=live, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: number for number in range(1, 9)}


def any_of(message: oci_pb2.Options) -> dict[str, object]:
    return {"type_url": "containerd.runc.v1.Options", "value": message.SerializeToString()}


def assert_nothing_left(shim: Shim, container: str) -> None:
    assert failure(lambda: shim.task_state(container))[0] == 5
    assert not os.path.ismount(shim.bundles / container / "rootfs")
    assert not (shim.state / "runc/ns" / container).exists()
    assert not (shim.bundles / container / "orlop/init.json").exists()
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        assert str(shim.bundles) not in mounts.read()


def wrapped(tmp_path: Path, script: str) -> dict[str, Any]:
    """Options that name a runtime which does something before it is runc."""
    program = tmp_path / "wrapper"
    program.write_text(f'#!/bin/sh\n{script}\nexec runc "$@"\n')
    program.chmod(0o755)
    return {"options": any_of(oci_pb2.Options(binary_name=str(program)))}


def test_client_that_goes_away_while_creating(shim: Shim, tmp_path: Path):
    """The daemon is killed: what it has not been told of is undone."""
    script = f'case "$*" in *" create "*) touch {tmp_path}/began; sleep 60;; esac'
    shim.bundle("c", ["/bin/true"])
    shim.start("c")
    wanted = pb.CreateTaskRequest(id="c", bundle=str(shim.bundles / "c"), **wrapped(tmp_path, script))
    wanted.rootfs.add(type="bind", source=str(shim.rootfs), options=["rbind"])
    creating = threading.Thread(target=lambda: failure(lambda: shim.call("Create", wanted, None)))
    creating.start()
    until((tmp_path / "began").exists, "the runtime was not called")
    shim.client.close()
    creating.join()
    shim.disconnect()
    until(lambda: not (shim.bundles / "c/orlop/init.json").exists(), "creation was not undone")
    until(lambda: not os.path.ismount(shim.bundles / "c/rootfs"), "the mount was left")
    shim.run("c", ["/bin/true"])
    assert shim.wait("c") == 0


def test_runtime_that_fails_without_words(shim: Shim, tmp_path: Path):
    wanted = wrapped(tmp_path, 'case "$*" in *" create "*) exit 3;; esac')
    code, message = failure(lambda: shim.create("c", ["/bin/true"], request=wanted))
    assert (code, "ended with status 3 and said nothing" in message) == (2, True)
    assert_nothing_left(shim, "c")


def test_runtime_that_writes_no_pid(shim: Shim, tmp_path: Path):
    wanted = wrapped(tmp_path, 'case "$*" in *" create "*) exit 0;; esac')
    code, message = failure(lambda: shim.create("c", ["/bin/true"], request=wanted))
    assert (code, "init.pid" in message) == (2, True)
    assert_nothing_left(shim, "c")


def test_removal_that_fails_is_tried_again(shim: Shim, tmp_path: Path):
    """The runtime cannot remove a container at once: its answer is logged, and the next Create of that id goes well."""
    wanted = wrapped(tmp_path, f'case "$*" in *" delete "*) [ -e {tmp_path}/ok ] || exit 1;; esac')
    shim.run("c", ["/bin/true"], request=wanted)
    shim.wait("c")
    shim.delete("c")
    until(lambda: "removal of c" in shim.log(), "the failure was not logged")
    (tmp_path / "ok").touch()
    shim.run("c", ["/bin/true"], request=wanted)
    assert shim.wait("c") == 0
