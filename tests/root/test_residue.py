"""What the fixtures take for left behind, and take away, is this run's and never another's."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tools import residue

pytestmark = pytest.mark.root


def test_runs_know_of_each_other(tmp_path):
    file = tmp_path / "runs"
    with residue.Run(file) as first:
        assert first.alone()
        with residue.Run(file) as second:
            assert not first.alone()
            assert not second.alone()
        assert not first.alone()  # what the other one made may still be there
    with residue.Run(file) as third:
        assert third.alone()


def test_a_cgroup_without_processes_counts_only_for_who_is_alone(tmp_path):
    before = residue.cgroups()
    path = Path(sorted(path for path in before if path.endswith(("/memory", "/unified", "/cgroup")))[0], "residue-test")
    path.mkdir()
    try:
        assert str(path) in residue.find(tmp_path, cgroups_before=before).cgroups
        assert str(path) not in residue.find(tmp_path, cgroups_before=before, alone=False).cgroups
        found = residue.Residue(cgroups=[str(path)])
        with subprocess.Popen(["sleep", "1000"]) as other:
            (path / "cgroup.procs").write_text(str(other.pid))
            residue.remove(found)  # another run has put it there meanwhile
            assert path.is_dir()
            assert other.poll() is None
            other.kill()
    finally:
        residue.patiently_rmdir(str(path))


@pytest.mark.parametrize("pivoted", [False, True])
def test_copies_of_mounts_make_no_process_ours(tmp_path, pivoted):
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["mount", "--bind", root, root], check=True)
    chroot = f"cd {root}; mkdir old; pivot_root . old; " if pivoted else ""
    script = f"{chroot}echo; read line"
    # Through standard input, so that no command line names the directory.
    enter = ["unshare", "--mount", "sh", "-c", 'read script; eval "$script"']
    if pivoted:
        for name in ("bin", "lib", "lib64", "usr", "proc"):
            if os.path.isdir(f"/{name}"):
                (root / name).mkdir()
                subprocess.run(["mount", "--rbind", f"/{name}", root / name], check=True)
    try:
        with subprocess.Popen(enter, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{script}\n")
            process.stdin.flush()
            process.stdout.readline()
            assert (process.pid in residue.find(tmp_path).processes) == pivoted
            os.kill(process.pid, signal.SIGKILL)
    finally:
        for target in sorted(residue.find(tmp_path).mounts, key=len, reverse=True):
            residue.unmount(target)
