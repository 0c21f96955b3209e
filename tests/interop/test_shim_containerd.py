"""Debian's containerd runs containers with our supervisor beside its own shim: the same containers and answers."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.root.shims import make_rootfs, running, supervisors, until
from tools import daemons, residue
from tools.daemons import Containerd, Ctr

pytestmark = [pytest.mark.root, pytest.mark.interop]

OURS = "io.containerd.orlop.v1"
THEIRS = "io.containerd.runc.v2"

# What a process can see of itself, in sections.
INSPECT = """
echo == status; grep -E '^(Umask|Sig(Pnd|Blk|Ign|Cgt)|Shd|Cap|NoNewPrivs|Seccomp|Uid|Gid|Groups)' /proc/self/status
echo == ignored; grep SigIgn /proc/1/status
echo == limits; cat /proc/self/limits
echo == oom; cat /proc/self/oom_score_adj
echo == descriptors; for fd in /proc/1/fd/*; do [ -e $fd ] && echo ${fd##*/}; done
echo == cgroup; cat /proc/self/cgroup
echo == mounts; cut -d' ' -f4- /proc/self/mountinfo
echo == env; env | sort
echo == ids; cat /proc/1/sessionid /proc/1/loginuid; echo
echo == cwd; pwd; hostname
"""


@pytest.fixture(scope="module")
def both(short_directory: Path) -> Iterator[tuple[Ctr, Path]]:
    """A containerd that finds our shim on its PATH, and a root file system."""
    directory = short_directory / "shims"
    environment = daemons.environment()
    environment["PATH"] = f"{daemons.BIN}:{environment['PATH']}"
    environment |= {"ORLOP_STATE": str(directory / "o"), "ORLOP_SHIM_LINGER": "1"}
    with Containerd(directory, env=environment) as daemon:
        rootfs = make_rootfs(directory / "rootfs")
        for name in ("grep", "sort", "hostname", "cut", "pwd"):
            (rootfs / "bin" / name).symlink_to("busybox")
        (rootfs / "inspect").write_text(INSPECT)
        yield Ctr(daemons.program("ctr"), daemon.address, "shims"), rootfs


def run(both: tuple[Ctr, Path], runtime: str, *command: str, flags: tuple[str, ...] = ()) -> tuple[int, str, str]:
    ctr, rootfs = both
    done = ctr.run("run", "--rm", "--runtime", runtime, *flags, "--rootfs", str(rootfs), "c", *command)
    return done.returncode, done.stdout, done.stderr


def sections(output: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in output.splitlines():
        if line.startswith("== "):
            found[line[3:]] = lines = []
        else:
            lines.append(re.sub(r"\b(shared|master):\d+", r"\1", line))
    return found


@pytest.mark.parametrize(
    "flags",
    [(), ("--net-host",), ("--read-only",), ("--memory-limit", "67108864", "--cpus", "0.5"), ("--privileged",)],
    ids=" ".join,
)
def test_fresh_processes_are_alike(both: tuple[Ctr, Path], flags: tuple[str, ...]):
    ours = run(both, OURS, "/bin/sh", "/inspect", flags=flags)
    theirs = run(both, THEIRS, "/bin/sh", "/inspect", flags=flags)
    assert (ours[0], ours[2]) == (theirs[0], theirs[2]) == (0, "")
    left, right = sections(ours[1]), sections(theirs[1])
    assert left.keys() == right.keys()
    for name, lines in right.items():
        assert left[name] == lines, name


@pytest.mark.parametrize(
    "command",
    [
        ("/bin/sh", "-c", "exit 7"),
        ("/bin/sh", "-c", "kill -9 $$; echo a process 1 is not killed from inside; exit 3"),
        ("/bin/sh", "-c", "echo out; echo err >&2"),
        ("/bin/none",),
    ],
    ids=" ".join,
)
def test_same_answers(both: tuple[Ctr, Path], command: tuple[str, ...]):
    ours, theirs = run(both, OURS, *command), run(both, THEIRS, *command)
    assert (ours[0], ours[1]) == (theirs[0], theirs[1])
    # runc writes its error to its own stderr, too, and here that is the client's FIFO.
    said = "".join(line for line in ours[2].splitlines(keepends=True) if not line.startswith("runc create failed"))
    assert said.replace('container "c": ', "") == theirs[2]


def test_life_under_containerd(both: tuple[Ctr, Path]):
    ctr, rootfs = both
    ctr("run", "-d", "--runtime", OURS, "--rootfs", str(rootfs), "one", "/bin/sleep", "1000")
    ctr("run", "-d", "--runtime", OURS, "--rootfs", str(rootfs), "two", "/bin/sleep", "1000")
    try:
        assert re.search(r"one +\d+ +RUNNING", ctr("tasks", "ls"))
        assert ctr.run("tasks", "exec", "--exec-id", "e", "one", "/bin/sh", "-c", "echo x; exit 4").returncode == 4
        assert ctr.run("tasks", "exec", "--exec-id", "e", "one", "/bin/echo", "hello").stdout == "hello\n"
        assert len(ctr("tasks", "ps", "one").splitlines()) == 2
        ctr("tasks", "pause", "one")
        assert "PAUSED" in ctr("tasks", "ls")
        ctr("tasks", "resume", "one")
        assert "memory" in ctr("tasks", "metrics", "one") or os.path.ismount("/sys/fs/cgroup/unified")
        pids = supervisors(both[0].address)
        assert len(pids) == 1
        ctr("tasks", "kill", "-s", "SIGKILL", "one")
        until(lambda: re.search(r"one +\d+ +STOPPED", ctr("tasks", "ls")), "it does not stop")
        assert "exit code 137" in ctr.run("tasks", "rm", "one").stderr
        assert re.search(r"two +\d+ +RUNNING", ctr("tasks", "ls"))
    finally:
        for name in ("one", "two"):
            ctr.run("tasks", "rm", "--force", name)
            ctr.run("containers", "rm", name)
    until(lambda: not any(map(running, pids)), "the supervisor does not end")


def test_supervisor_killed_under_containerd(both: tuple[Ctr, Path]):
    """containerd cleans up after a shim that has died: by our `delete`."""
    ctr, rootfs = both
    ctr("run", "-d", "--runtime", OURS, "--rootfs", str(rootfs), "one", "/bin/sleep", "1000")
    (supervisor,) = supervisors(both[0].address)
    found = re.search(r"one +(\d+)", ctr("tasks", "ls"))
    assert found
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not running(int(found[1])), "the container lives")
    until(lambda: "RUNNING" not in ctr("tasks", "ls"), "the task is still listed")
    until(lambda: not any(path.endswith("shims/one") for path in residue.cgroups()), "the cgroup was left")
    ctr.run("tasks", "rm", "--force", "one")
    ctr.run("containers", "rm", "one")
