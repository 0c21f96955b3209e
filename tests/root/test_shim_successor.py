"""A supervisor is killed: its containers go on, the next one takes them over, or `delete` is rid of them."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.api.runtime.task.v2 import shim_pb2 as v2
from orlop.api.runtime.task.v3 import shim_pb2 as pb
from orlop.api.types.runc.options import oci_pb2
from orlop.api.types.task import task_pb2
from orlop.linux import prctl
from orlop.server.orphans import children
from tests.root.shims import Reader, Shim, failure, opened, running, until
from tools import standin

pytestmark = pytest.mark.root


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    with opened(tmp_path) as one:
        yield one


@pytest.fixture
def subreaper() -> Iterator[None]:
    """Be what orlopd is: the parent of a dead supervisor's children, and one who leaves zombies to the successor."""
    mine = children()  # daemons that other tests share are this process's children too
    prctl.set_child_subreaper(True)
    yield
    prctl.set_child_subreaper(False)
    until(lambda: not adopted(mine), "children are left")


def adopted(mine: set[int]) -> set[int]:
    """Children that were not there before, once those that have ended are reaped."""
    for pid in children() - mine:
        with contextlib.suppress(ChildProcessError):  # a Popen of another thread was quicker
            os.waitpid(pid, os.WNOHANG)
    return children() - mine


def record(shim: Shim, container: str = "c", name: str = "init") -> dict[str, object]:
    loaded: dict[str, object] = json.loads((shim.bundles / container / "orlop" / f"{name}.json").read_text())
    return loaded


def test_container_goes_on(shim: Shim):
    out = shim.fifo("out")
    reader = Reader(out)
    pid = shim.run(
        "c",
        ["/bin/sh", "-c", "echo a; while [ ! -e /go ]; do sleep 0.01; done; echo b; exit 9"],
        request={"stdout": str(out)},
    )
    until(lambda: reader.data == b"a\n", "no output")
    shim.kill()
    assert running(pid)
    shim.start("c")
    state = shim.task_state("c")
    assert (state.pid, state.status, state.stdout) == (pid, task_pb2.RUNNING, str(out))
    waited: list[int] = []
    waiting = threading.Thread(target=lambda: waited.append(shim.wait("c")))
    waiting.start()
    (shim.rootfs / "go").touch()
    waiting.join()
    assert waited == [9]  # from the kernel's pidfd, since neither we nor the supervisor are its parent
    assert reader.result() == b"a\nb\n"
    assert shim.events.wait_for("c", "exit") == ["create", "start", "exit"]
    shim.delete("c")
    assert (
        not (shim.state / "runc/ns/c").exists()
        or until(lambda: not (shim.state / "runc/ns/c").exists(), "runc's state was left") is None
    )


@pytest.mark.usefixtures("subreaper")
def test_exit_meanwhile_is_known_while_its_zombie_stays(shim: Shim):
    pid = shim.run("c", ["/bin/sh", "-c", "while [ ! -e /go ]; do sleep 0.01; done; exit 9"])
    shim.kill()
    (shim.rootfs / "go").touch()
    until(lambda: not running(pid), "it lives")
    shim.start("c")
    assert shim.wait("c") == 9
    assert record(shim)["exit_known"] is True


def test_exit_that_nobody_saw_is_unknown(shim: Shim):
    pid = shim.run("c", ["/bin/sh", "-c", "while [ ! -e /go ]; do sleep 0.01; done; exit 9"])
    shim.kill()
    (shim.rootfs / "go").touch()
    until(lambda: not os.path.exists(f"/proc/{pid}"), "it lives")
    shim.start("c")
    assert shim.wait("c") == 255
    assert record(shim)["exit_known"] is False
    assert shim.events.wait_for("c", "exit")[-1] == "exit"


def test_exit_is_told_again(shim: Shim):
    """One that was recorded, but perhaps not told."""
    shim.run("c", ["/bin/sh", "-c", "exit 9"])
    shim.wait("c")
    shim.events.wait_for("c", "exit")
    shim.kill()
    shim.start("c")
    assert shim.wait("c") == 9
    until(lambda: shim.events.topics("c").count("exit") == 2, "the exit was not told again")
    shim.delete("c")


def test_record_of_another_boot_is_not_trusted(shim: Shim):
    pid = shim.run("c", ["/bin/sleep", "100"])
    shim.kill()
    path = shim.bundles / "c/orlop/init.json"
    original = path.read_text()
    path.write_text(json.dumps(json.loads(original) | {"boot": "another"}))
    shim.start("c")
    assert failure(lambda: shim.task_state("c"))[0] == 5
    shim.kill()
    path.write_text(original)
    shim.start("c")
    assert shim.task_state("c").pid == pid


def test_pid_of_somebody_else_is_not_taken(shim: Shim):
    shim.run("c", ["/bin/sleep", "100"])
    shim.kill()
    path = shim.bundles / "c/orlop/init.json"
    loaded = json.loads(path.read_text())
    path.write_text(json.dumps(loaded | {"start_time": loaded["start_time"] + 1}))
    shim.start("c")
    assert shim.wait("c") == 255
    assert running(loaded["pid"])
    os.kill(loaded["pid"], signal.SIGKILL)


def test_input_goes_on(shim: Shim):
    into, out = shim.fifo("in"), shim.fifo("out")
    reader = Reader(out)
    shim.run("c", ["/bin/cat"], request={"stdin": str(into), "stdout": str(out)})
    with open(into, "wb", buffering=0) as file:
        file.write(b"one ")
        until(lambda: reader.data == b"one ", "no output")
        shim.kill()
        file.write(b"two ")
        shim.start("c")
        file.write(b"three")
        shim.close_stdin("c")
    assert shim.wait("c") == 0
    assert reader.result() == b"one two three"


def test_input_without_its_client(shim: Shim):
    """Nobody has the FIFO open when the supervisor dies: the process meets no end of file."""
    into, out = shim.fifo("in"), shim.fifo("out")
    reader = Reader(out)
    pid = shim.run("c", ["/bin/cat"], request={"stdin": str(into), "stdout": str(out)})
    shim.kill()
    shim.start("c")
    assert running(pid)
    with open(into, "wb") as file:
        file.write(b"x")
    shim.kill()
    shim.start("c")
    shim.close_stdin("c")
    assert shim.wait("c") == 0
    assert reader.result() == b"x"


def test_terminal_goes_on(shim: Shim):
    into, out = shim.fifo("in"), shim.fifo("out")
    reader = Reader(out)
    wanted = {"stdin": str(into), "stdout": str(out), "terminal": True}
    shim.run("c", ["/bin/sh"], request=wanted, terminal=True)
    until(lambda: b"#" in reader.data or b"$" in reader.data, "no prompt")
    shim.kill()
    shim.start("c")
    shim.call("ResizePty", pb.ResizePtyRequest(id="c", width=77, height=22), None)
    reader = reader if reader.is_alive() else Reader(out)
    with open(into, "wb") as file:
        file.write(b"stty size; exit 5\n")
    until(lambda: b"22 77\r\n" in reader.data, f"no answer: {reader.data!r}")
    assert shim.wait("c") == 5
    reader.result()


def test_output_into_a_file_goes_on(shim: Shim, tmp_path: Path):
    script = "echo a; while [ ! -e /go ]; do sleep 0.01; done; echo b"
    shim.run("c", ["/bin/sh", "-c", script], request={"stdout": f"file://{tmp_path}/log"})
    until(lambda: (tmp_path / "log").read_text() == "a\n", "no output")
    shim.kill()
    (shim.rootfs / "go").touch()
    shim.start("c")
    shim.wait("c")
    shim.delete("c")
    assert (tmp_path / "log").read_text() == "a\nb\n"


def test_states_are_kept(shim: Shim):
    shim.run("paused", ["/bin/sleep", "100"])
    shim.call("Pause", pb.PauseRequest(id="paused"), None)
    shim.create("created", ["/bin/sh", "-c", "exit 3"])
    shim.run("execs", ["/bin/sleep", "100"])
    shim.exec("execs", "running", ["/bin/sleep", "100"])
    shim.task_start("execs", "running")
    shim.exec("execs", "ended", ["/bin/sh", "-c", "exit 4"])
    shim.task_start("execs", "ended")
    shim.wait("execs", "ended")
    shim.exec("execs", "added", ["/bin/sh", "-c", "exit 5"])
    shim.kill()
    shim.start("paused")
    assert shim.task_state("paused").status == task_pb2.PAUSED
    shim.call("Resume", pb.ResumeRequest(id="paused"), None)
    assert shim.task_state("created").status == task_pb2.CREATED
    shim.task_start("created")
    assert shim.wait("created") == 3
    assert shim.task_state("execs", "running").status == task_pb2.RUNNING
    shim.task_kill("execs", 9, exec_id="running")
    assert shim.wait("execs", "running") == 137
    assert shim.wait("execs", "ended") == 4
    shim.task_start("execs", "added")
    assert shim.wait("execs", "added") == 5


def test_task_that_is_still_to_be_restored(shim: Shim, tmp_path: Path):
    """From a checkpoint, by a stand-in for a runtime with CRIU; its stdio has not been handed out yet."""
    runtime, calls, out = tmp_path / "runtime", tmp_path / "calls", shim.fifo("out")
    runc = shutil.which("runc", path=shim.env["PATH"])
    runtime.write_text(f'#!/bin/sh\nexec {sys.executable} {standin.__file__} {calls} {runc} "$@"\n')
    runtime.chmod(0o755)
    image = tmp_path / "image"
    standin.write_image(str(image), b"42\n")
    options = oci_pb2.Options(binary_name=str(runtime))
    packed = {"type_url": options.DESCRIPTOR.full_name, "value": options.SerializeToString()}
    wanted = {"stdout": str(out), "checkpoint": str(image), "options": packed}
    assert shim.create("c", ["/bin/cat", "/restored"], request=wanted) == 0
    shim.kill()
    shim.start("c")
    assert (shim.task_state("c").status, shim.task_state("c").pid) == (task_pb2.CREATED, 0)
    reader = Reader(out)
    shim.task_start("c")
    assert shim.wait("c") == 0
    shim.delete("c")
    assert reader.result() == b"42\n"


def test_start_that_was_not_recorded(shim: Shim):
    """Killed between the runtime's start and the record of it."""
    shim.run("c", ["/bin/sleep", "100"])
    shim.kill()
    path = shim.bundles / "c/orlop/init.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "created"}))
    shim.start("c")
    assert shim.task_state("c").status == task_pb2.RUNNING


def test_creation_that_was_not_finished(shim: Shim):
    pid = shim.create("c", ["/bin/sleep", "100"])
    shim.kill()
    path = shim.bundles / "c/orlop/init.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "creating", "pid": 0}))
    shim.start("c")
    assert failure(lambda: shim.task_state("c"))[0] == 5
    shim.run("c", ["/bin/true"])  # waits until the rest has gone
    assert not running(pid)
    assert shim.wait("c") == 0


def test_deletion_that_was_not_finished(shim: Shim):
    shim.run("c", ["/bin/true"])
    shim.wait("c")
    shim.kill()
    gone = Path(f"{record(shim)['socket']}.gone")
    gone.mkdir(exist_ok=True)
    (gone / "c").write_text((shim.bundles / "c/orlop/init.json").read_text())
    subprocess.run(["umount", shim.bundles / "c/rootfs"], check=True)
    shim.start("c")
    until(lambda: not (gone / "c").exists(), "the deletion was not finished")
    assert not (shim.state / "runc/ns/c").exists()
    assert failure(lambda: shim.task_state("c"))[0] == 5


def test_delete_command(shim: Shim):
    """What containerd does when a supervisor has died."""
    into = shim.fifo("in")
    pid = shim.run("c", ["/bin/sleep", "100"], request={"stdin": str(into)})
    keeper = record(shim)["keeper"]
    shim.kill()
    done = shim.program("-id", "c", "-bundle", str(shim.bundles / "c"), "delete", cwd=shim.bundles / "c")
    answer = v2.DeleteResponse.FromString(done.stdout)
    assert (done.returncode, done.stderr, answer.pid, answer.exit_status) == (0, b"", pid, 137)
    assert answer.exited_at.seconds > 0
    assert not running(pid)
    assert isinstance(keeper, dict)
    until(lambda: not running(keeper["pid"]), "the keeper lives")
    assert not os.path.ismount(shim.bundles / "c/rootfs")
    assert not (shim.state / "runc/ns/c").exists()


def test_delete_command_asks_a_supervisor_that_lives(shim: Shim):
    pid = shim.run("c", ["/bin/sleep", "100"])
    done = shim.program("-id", "c", "delete", cwd=shim.bundles / "c")
    answer = v2.DeleteResponse.FromString(done.stdout)
    assert (answer.pid, answer.exit_status) == (pid, 137)
    assert failure(lambda: shim.task_state("c"))[0] == 5


def test_events_wait_for_the_daemon(shim: Shim, tmp_path: Path):
    from tests.root.shims import Events

    shim.run("c", ["/bin/sleep", "100"])
    shim.events.wait_for("c", "start")
    shim.events.close()
    shim.task_kill("c")
    shim.wait("c")
    shim.delete("c")
    shim.events = Events(tmp_path / "e.sock")
    assert shim.events.wait_for("c", "delete") == ["exit", "delete"]


def test_supervisor_starts_once(shim: Shim):
    """Many `start` at once elect one."""
    names = [f"c{number}" for number in range(6)]
    for name in names:
        shim.bundle(name, ["/bin/true"])
    answers: list[bytes] = []
    threads = [
        threading.Thread(
            target=lambda name=name: answers.append(shim.program("-id", name, "start", cwd=shim.bundles / name).stdout)
        )
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(answers)) == 1
    shim.address = answers[0].decode()
    assert len(list((shim.state / "s").glob("*.lock"))) == 1


def test_ends_when_it_is_alone(tmp_path: Path):
    with opened(tmp_path, env={"ORLOP_SHIM_LINGER": "0.5"}) as shim:
        shim.run("c", ["/bin/true"])
        shim.wait("c")
        pid = shim.pid
        shim.delete("c")
        shim.disconnect()
        until(lambda: not running(pid), "it does not end")
        assert not os.path.exists(shim.address.removeprefix("unix://"))
        shim.bundle("c", ["/bin/true"])
        shim.start("c")
        assert shim.pid != pid
