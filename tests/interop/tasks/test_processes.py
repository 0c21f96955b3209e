"""What happens to a task's processes, what is told of it, and what they may use."""

import json
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

import orlop
from orlop.base.errdefs import OrlopError
from tests.interop.tasks.room import Listener, Room
from tests.root.shims import until

pytestmark = [pytest.mark.root, pytest.mark.interop]


def test_waits_before_the_start_and_after_the_exit(room: Room) -> None:
    task = room.container("sh", "-c", "exit 9").new_task()
    codes: list[int] = []
    early = threading.Thread(target=lambda: codes.append(task.wait().code))
    early.start()
    task.start()
    early.join(30)
    first, again = task.wait(), task.wait()
    assert codes == [9]
    assert (first.code, again.code, first.exited_at) == (9, 9, again.exited_at)
    assert task.delete() == first


def test_a_container_runs_again_under_its_id(room: Room) -> None:
    container = room.container("sh", "-c", "echo x >> /count; wc -l < /count; exit 3")
    pids = set()
    for number in (1, 2, 3):
        output = orlop.Capture(directory=str(room.directory))
        task = container.new_task(output)
        pids.add(task.pid)
        task.start()
        assert task.wait().code == 3
        task.delete()
        assert bytes(output.stdout) == b"%d\n" % number
    assert len(pids) == 3


def test_events_of_execs_come_in_order_however_short_they_are(room: Room, listener: Listener) -> None:
    task = room.start("sleep", "1000")
    for number in range(8):
        made = task.exec(f"e{number}", room.client.containers.get("c").exec_spec(["sh", "-c", f"exit {number}"]))
        pid = made.start()
        assert made.wait().code == number
        exit_ = made.delete()
        assert exit_.code == number
        assert pid > 0
    task.kill("KILL")
    task.wait()
    task.delete()
    seen = listener.until(lambda seen: seen[-1][0] == "delete" and seen[-1][1].container_id == "c")
    for number in range(8):
        mine = [
            (topic, event)
            for topic, event in seen
            if getattr(event, "exec_id", "") == f"e{number}" or getattr(event, "id", "") == f"e{number}"
        ]
        assert [topic for topic, _event in mine] == ["exec-added", "exec-started", "exit"]
        assert mine[-1][1].exit_status == number
        assert mine[-1][1].pid == mine[1][1].pid
    assert [topic for topic, event in seen if topic in ("create", "start", "delete")] == ["create", "start", "delete"]
    assert seen[-2][0] == "exit"
    assert (seen[-2][1].id, seen[-2][1].exit_status) == ("c", 137)


def test_the_exits_of_execs_come_before_that_of_init(room: Room, listener: Listener) -> None:
    task = room.start("sleep", "1000")
    spec = room.client.containers.get("c").exec_spec(["sleep", "1000"])
    execs = [task.exec(f"e{number}", spec) for number in range(4)]
    for one in execs:
        one.start()
    os.kill(task.pid, signal.SIGKILL)
    assert task.wait().code == 137
    assert [one.wait().code for one in execs] == [137] * 4
    exits = [
        event.id
        for _topic, event in listener.until(lambda seen: sum(t == "exit" for t, _e in seen) == 5)
        if _topic == "exit"
    ]
    assert exits[-1] == "c"
    assert sorted(exits[:-1]) == [f"e{number}" for number in range(4)]


def test_kill_all_reaches_every_process(room: Room) -> None:
    task = room.start("sh", "-c", "trap : TERM; sleep 1000 & sleep 1000 & wait; exec sleep 1000")
    spec = room.client.containers.get("c").exec_spec(["sleep", "1000"])
    made = task.exec("e", spec)
    made.start()
    until(lambda: len(task.pids()) >= 4, "no children")
    task.kill("TERM", everyone=True)
    assert made.wait().code == 143
    until(lambda: len(task.pids()) == 1, "children live on")
    task.kill("KILL", everyone=True)
    assert task.wait().code == 137


def test_pids_tell_which_are_execs(room: Room) -> None:
    task = room.start("sleep", "1000")
    made = task.exec("e", room.client.containers.get("c").exec_spec(["sleep", "1000"]))
    pid = made.start()
    assert sorted(task.processes()) == sorted([(task.pid, ""), (pid, "e")])


def test_a_shared_pid_namespace_is_cleared_with_init(room: Room) -> None:
    host = room.start("sleep", "1000", name="host")
    task = room.start(
        "sh", "-c", "sleep 1000 & sleep 1000 & while [ ! -e /end ]; do sleep 0.02; done; exit 4", name="guest",
        with_namespaces={"pid": f"/proc/{host.pid}/ns/pid"},
    )  # fmt: skip
    made = task.exec("e", room.client.containers.get("guest").exec_spec(["sleep", "1000"]))
    made.start()
    until(lambda: len(task.pids()) >= 4, "no children")
    Path(f"/proc/{task.pid}/root/end").touch()
    assert task.wait().code == 4
    assert made.wait().code == 137
    assert task.delete().code == 4
    assert host.status() == "RUNNING"
    assert len(host.pids()) == 1


def test_resources_are_updated(room: Room, namespace: str) -> None:
    task = room.start("sleep", "1000", memory_limit_bytes=64 << 20)
    wanted = {"memory": {"limit": 48 << 20}, "pids": {"limit": 77}, "cpu": {"shares": 512}}
    task.update(json.dumps(wanted).encode())
    found = {name: cgroup_file(task.pid, *where) for name, where in LIMITS.items()}
    assert found == {"memory": str(48 << 20), "pids": "77", "cpu": found["cpu"]}
    with pytest.raises(OrlopError):
        task.update(b"no JSON")


LIMITS: Mapping[str, tuple[str, str, str]] = {
    "memory": ("memory", "memory.limit_in_bytes", "memory.max"),
    "pids": ("pids", "pids.max", "pids.max"),
    "cpu": ("cpu", "cpu.shares", "cpu.weight"),
}


def cgroup_file(pid: int, controller: str, v1: str, v2: str) -> str:
    """The file of a process's cgroup that has a limit, on either kind of host."""
    paths = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _number, names, path = line.split(":", 2)
        for name in names.split(","):
            paths[name] = path
    if controller in paths:
        return Path(f"/sys/fs/cgroup/{controller}{paths[controller]}/{v1}").read_text().strip()
    return Path(f"/sys/fs/cgroup{paths['']}/{v2}").read_text().strip()


def test_running_out_of_memory_is_told(room: Room, listener: Listener) -> None:
    # It begins when its shim watches, and goes on afterwards: Debian's shim looks no more once init has ended.
    script = "while [ ! -e /go ]; do sleep 0.02; done; dd if=/dev/zero of=/dev/null bs=64M count=1; exec sleep 1000"
    task = room.start("sh", "-c", script, memory_limit_bytes=16 << 20)
    Path(f"/proc/{task.pid}/root/go").touch()
    seen = listener.until(lambda seen: any(topic == "oom" for topic, _event in seen))
    assert {event.container_id for topic, event in seen if topic == "oom"} == {"c"}
