"""Where a process's cgroups are, on hosts of other kinds than this one."""

import io
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orlop.linux.mount import MountInfo
from orlop.shim import cgroup

Host = Callable[[str, list[tuple[str, str, str, str]]], None]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Plays a host: the text of /proc/PID/cgroup, and mounts as (mount point, root, type, options)."""

    def play(proc: str, mounts: list[tuple[str, str, str, str]]) -> None:
        lines = [
            MountInfo(number, 1, root, point, (), kind, "cgroup", options)
            for number, (point, root, kind, options) in enumerate(mounts)
        ]
        monkeypatch.setattr(cgroup, "mountinfo", lambda: lines)
        monkeypatch.setattr(cgroup, "open", lambda *_args, **_kwargs: io.StringIO(proc), raising=False)
        cgroup.hierarchies.cache_clear()

    yield play
    cgroup.hierarchies.cache_clear()


def test_unified(host: Host) -> None:
    host("0::/ns/c\n", [("/sys/fs/cgroup", "/", "cgroup2", "rw,nsdelegate")])
    assert cgroup.Paths.of(1) == cgroup.Paths(v2="/sys/fs/cgroup/ns/c")


def test_a_controller_that_is_active_but_not_mounted_is_left_out(host: Host) -> None:
    """Its line is there, as /proc/cgroups would have it, and no hierarchy to look it up in."""
    proc = "5:hugetlb:/ns/c\n4:cpu,cpuacct:/ns/c\n3:memory:/ns/c\n1:name=systemd:/ns/c\n0::/\n"
    mounts = [
        ("/sys/fs/cgroup/cpu,cpuacct", "/", "cgroup", "rw,cpu,cpuacct"),
        ("/sys/fs/cgroup/memory", "/", "cgroup", "rw,memory"),
        ("/sys/fs/cgroup/unified", "/", "cgroup2", "rw"),
    ]
    host(proc, mounts)
    assert cgroup.Paths.of(1) == cgroup.Paths(
        v1={
            "cpu": "/sys/fs/cgroup/cpu,cpuacct/ns/c",
            "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/ns/c",
            "memory": "/sys/fs/cgroup/memory/ns/c",
        }
    )


def test_a_hierarchy_of_which_a_part_is_mounted(host: Host) -> None:
    """As in a container that has no cgroup namespace of its own."""
    host("0::/outer/box/ns/c\n", [("/sys/fs/cgroup", "/outer/box", "cgroup2", "rw")])
    assert cgroup.Paths.of(1).v2 == "/sys/fs/cgroup/ns/c"


def test_roots_and_what_lies_outside_do_not_count(host: Host) -> None:
    mounts = [("/sys/fs/cgroup/memory", "/", "cgroup", "rw,memory"), ("/sys/fs/cgroup/unified", "/", "cgroup2", "rw")]
    host("3:memory:/\n0::/../elsewhere\n", mounts)
    assert cgroup.Paths.of(1) == cgroup.Paths()


def test_killing_without_a_runtime(tmp_path: Path) -> None:
    """On files that look like a cgroup: who is in it is killed, it is thawed, and files that it lacks are not made."""
    for name, text in (("v1", "FROZEN"), ("v2", "1")):
        (tmp_path / name / "below").mkdir(parents=True)
        (tmp_path / name / ("freezer.state" if name == "v1" else "cgroup.freeze")).write_text(text)
    with subprocess.Popen(["sleep", "1000"]) as child:
        (tmp_path / "v1" / "below" / "cgroup.procs").write_text(f"{child.pid}\n")
        cgroup.Paths(v1={"freezer": str(tmp_path / "v1")}, v2=str(tmp_path / "v2")).kill()
        assert child.wait(30) == -9
    assert (tmp_path / "v1" / "freezer.state").read_text() == "THAWED"
    assert (tmp_path / "v2" / "cgroup.freeze").read_text() == "0"
    assert not (tmp_path / "v2" / "cgroup.kill").exists()


def test_killing_what_has_no_cgroup_touches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.open", lambda *_args: pytest.fail("a file was opened"))
    cgroup.Paths().kill()
