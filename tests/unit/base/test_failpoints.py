"""Fail points: what passes, what is done on whose turn, and that the table is what the code says."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from orlop.base import failpoints

SOURCE = Path(failpoints.__file__).parent.parent
PASSES = """
import sys
from orlop.base import failpoints
failpoints.POINTS.update({name: "" for name in ("one", "other")})
for name in sys.argv[1:]:
    failpoints.reach(name)
print("end")
"""


def passing(directory: Path, *names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PASSES, *names],
        env={**os.environ, failpoints.VARIABLE: str(directory)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def lines(file: Path) -> Sequence[str]:
    return file.read_text().splitlines() if file.exists() else []


def test_the_table_is_what_the_code_says():
    said = [
        name
        for path in SOURCE.rglob("*.py")
        if path != Path(failpoints.__file__)
        for name in re.findall(r"failpoints\.reach\(\s*\"([^\"]+)\"", path.read_text())
    ]
    assert sorted(said) == sorted(failpoints.POINTS)
    assert failpoints.SOUND.keys() <= failpoints.POINTS.keys()
    assert failpoints.FAILING.issubset(failpoints.POINTS.keys() - failpoints.SOUND.keys())
    assert all(re.fullmatch(r"[a-z0-9]+(\.[a-z0-9-]+)+", name) for name in said)


def test_nothing_happens_unless_asked():
    failpoints.reach("no such point")
    assert failpoints.descriptor() == -1


def test_passages_are_recorded_in_order(tmp_path):
    result = passing(tmp_path, "one", "other", "one")
    assert (result.returncode, result.stdout) == (0, "end\n")
    assert lines(tmp_path / "passed") == ["one", "other", "one"]
    assert lines(tmp_path / "done") == []


def test_a_name_that_is_not_in_the_table_is_refused(tmp_path):
    assert "fail point third is not in the table" in passing(tmp_path, "third").stderr


@pytest.mark.parametrize("times", [1, 2])
def test_kill_is_done_on_its_turn(tmp_path, times):
    (tmp_path / "armed").write_text(f"one kill {times}")
    result = passing(tmp_path, "other", "one", "one", "other")
    assert result.returncode == -signal.SIGKILL
    assert lines(tmp_path / "passed") == ["other", *["one"] * times]
    assert lines(tmp_path / "done") == ["one kill"]


def test_turns_count_over_processes(tmp_path):
    (tmp_path / "armed").write_text("one kill 2")
    assert passing(tmp_path, "one").returncode == 0
    assert passing(tmp_path, "one").returncode == -signal.SIGKILL


def test_another_process_is_killed_and_dead_before_this_one_goes_on(tmp_path):
    with subprocess.Popen(["sleep", "100"]) as victim:
        (tmp_path / "armed").write_text(f"one kill 1 {victim.pid}")
        result = passing(tmp_path, "one")
        assert (result.returncode, result.stdout) == (0, "end\n")
        assert victim.wait(timeout=0) == -signal.SIGKILL


def test_what_was_started_is_killed_too(tmp_path):
    (tmp_path / "armed").write_text("one kill 1 below")
    code = """
import os, subprocess, sys
from orlop.base import failpoints
failpoints.POINTS["one"] = ""
script = "sleep 100 & echo $!; wait"
child = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True)
grandchild = int(child.stdout.readline())
failpoints.reach("one")
print(child.wait(timeout=0), os.path.exists(f"/proc/{grandchild}/exe"))
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, failpoints.VARIABLE: str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert result.stdout == "-9 False\n"


def test_error_fails_the_call(tmp_path):
    (tmp_path / "armed").write_text("one error")
    assert "OSError: [Errno 5] fail point one" in passing(tmp_path, "one").stderr


def test_hold_waits_until_disarmed(tmp_path):
    (tmp_path / "armed").write_text("one hold")
    with subprocess.Popen(
        [sys.executable, "-c", PASSES, "one"],
        env={**os.environ, failpoints.VARIABLE: str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        while not lines(tmp_path / "done"):
            assert process.poll() is None
        (tmp_path / "armed").unlink()
        assert process.communicate(timeout=30)[0] == "end\n"
