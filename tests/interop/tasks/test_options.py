"""The options of containerd's runc shim: each reaches what it is for."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from orlop.api.types.runc.options.oci_pb2 import Options
from orlop.base.errdefs import NotFoundError, OrlopError
from tests.interop.tasks.room import Room
from tests.root.shims import supervisors, until
from tools import daemons

pytestmark = [pytest.mark.root, pytest.mark.interop]


class Recorder:
    """A runtime that notes its command lines and leaves the work to runc."""

    def __init__(self, directory: Path, without: str = "") -> None:
        self.log = directory / "calls"
        self.path = directory / "runtime"
        runc = shutil.which("runc", path=daemons.environment()["PATH"])
        self.path.write_text(f"""#!/bin/sh
echo "$@" >> {self.log}
for word; do shift; [ "$word" = "{without}" ] || set -- "$@" "$word"; done
exec {runc} "$@"
""")
        self.path.chmod(0o755)

    def calls(self, command: str) -> list[list[str]]:
        return [words for words in map(str.split, self.log.read_text().splitlines()) if command in words]


def test_each_reaches_the_runtime(room: Room, tmp_path: Path, namespace: str) -> None:
    recorder = Recorder(tmp_path, without="--systemd-cgroup")
    options = Options(
        binary_name=str(recorder.path),
        root=str(tmp_path / "root"),
        systemd_cgroup=True,
        no_pivot_root=True,
        no_new_keyring=True,
    )
    task = room.start("sleep", "1000", options=options)
    assert (tmp_path / "root" / namespace / "c" / "state.json").exists()
    [create] = recorder.calls("create")
    assert {"--systemd-cgroup", "--no-pivot", "--no-new-keyring"} <= set(create)
    assert create[create.index("--root") + 1] == str(tmp_path / "root" / namespace)
    assert room.exec(task, "echo", "hi") == (0, "hi\n")
    task.kill("KILL")
    task.wait()
    task.delete()
    until(lambda: not (tmp_path / "root" / namespace / "c").exists(), "state is left")
    assert "--systemd-cgroup" in recorder.calls("delete")[0]


def test_streams_belong_to_whom_the_options_say(room: Room) -> None:
    options = Options(io_uid=1234, io_gid=5678)
    # as root, runc gives its streams to the process's user, who is root here
    code, out, _err = room.run("sh", "-c", "stat -L -c %u:%g /proc/self/fd/1", options=options)
    assert (code, out) in ((0, "1234:5678\n"), (0, "0:5678\n"), (0, "0:0\n"))


@pytest.mark.parametrize("name", ["no-such-runtime", "/no/such/runtime"])
def test_a_runtime_that_is_not_there(room: Room, name: str) -> None:
    container = room.container("true", options=Options(binary_name=name))
    with pytest.raises(OrlopError, match=name):
        container.new_task()
    with pytest.raises(NotFoundError):
        container.task()


def test_a_shim_lives_in_the_cgroup_that_the_options_name(room: Room, namespace: str) -> None:
    """Each by its own word: a supervisor of ours that serves one cgroup's containers is not moved for another's."""
    names = [f"orlop-shim-{os.getpid()}-{letter}" for letter in "ab"]
    tops = [path for path in Path("/sys/fs/cgroup").iterdir() if (path / "cgroup.procs").exists()]
    try:
        for name in names:
            for top in tops:
                (top / name).mkdir()
                if top.name == "cpuset":
                    for word in ("cpuset.cpus", "cpuset.mems"):
                        (top / name / word).write_text((top / word).read_text())
        before = set(supervisors(namespace))
        tasks = [
            room.start("sleep", "1000", name="none"),
            *(
                room.start("sleep", "1000", name=f"c{index}", options=Options(shim_cgroup=f"/{name}"))
                for index, name in enumerate(names)
            ),
            room.start("sleep", "1000", name="again", options=Options(shim_cgroup=f"/{names[0]}")),
        ]
        assert {task.status() for task in tasks} == {"RUNNING"}
        inside = {
            name: set((Path("/sys/fs/cgroup/memory") / name / "cgroup.procs").read_text().split()) for name in names
        }
        if room.stand.supervised:
            ours = set(supervisors(namespace)) - before
            assert len(ours) == 3
            assert [len(pids) for pids in inside.values()] == [1, 1]
            assert {int(pid) for pids in inside.values() for pid in pids} < ours
        else:
            assert [len(pids) > 0 for pids in inside.values()] == [True, True]
        for task in tasks:
            task.kill("KILL")
            assert task.wait().code == 137
            task.delete()
        until(lambda: room.stand.supervised or not any(map(members, names)), "a shim stays")
        # A delete is answered before the runtime has done its part; whoever is killed below must have got there.
        until(lambda: not list(Path("/sys/fs/cgroup").glob(f"*/{namespace}/*/cgroup.procs")), "a cgroup stays")
    finally:
        for name in names:
            for pid in members(name):
                os.kill(int(pid), signal.SIGKILL)
            for top in tops:
                until(lambda top=top, name=name: removed(top / name), f"{top / name} stays")  # type: ignore[misc]


def members(name: str) -> list[str]:
    return (Path("/sys/fs/cgroup/memory") / name / "cgroup.procs").read_text().split()


def removed(path: Path) -> bool:
    try:
        path.rmdir()
    except OSError:
        return not path.exists()
    return True
