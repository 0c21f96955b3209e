"""Where a process's cgroups are, on hosts of other kinds than this one."""

import io
from collections.abc import Callable, Iterator

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
