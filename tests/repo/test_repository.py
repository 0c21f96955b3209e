"""The repository holds together: generated code, rooms, exports, the one list of programs, the changelog."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

import orlop
from tools import changelog, peers

ROOT = peers.ROOT
SOURCE = ROOT / "src" / "orlop"


def test_generated_code_is_fresh():
    check = subprocess.run([sys.executable, ROOT / "tools" / "protos.py", "--check"], capture_output=True, check=False)
    assert check.returncode == 0, check.stderr.decode()


def test_every_room_has_a_contract():
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    held = {
        word.removeprefix("orlop.")
        for section in contracts.sections()
        for word in contracts[section].get("source_modules", "").split()
    }
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert rooms - {name.split(".")[0] for name in held} == set()
    programs = {f"cmd.{path.stem}" for path in (SOURCE / "cmd").iterdir() if path.stem.isidentifier()}
    assert programs - held - {"cmd.__init__", "cmd.__pycache__"} == set()


def test_exports_can_be_had():
    for name in orlop.__all__:
        assert getattr(orlop, name) is not None


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("orlop", {"asyncio", "grpc", "google.protobuf", "aiohttp", "msgspec", "click", "rich"}),
        ("orlop.base.rpc", {"asyncio", "grpc", "aiohttp", "click", "rich"}),
        ("orlop.linux.mount", {"asyncio", "grpc", "google.protobuf", "aiohttp", "msgspec"}),
        ("orlop.cmd.ctr", {"asyncio", "grpc", "aiohttp", "rich", "msgspec"}),
        ("orlop.shim.supervisor", {"grpc", "aiohttp", "click", "rich", "sqlite3"}),
    ],
)
def test_imports_stay_light(module: str, unwanted: set[str]):
    """Their time and memory are paid by every `ctr version`, or in every namespace's supervisor."""
    program = f"import sys, {module}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert unwanted & set(result.stdout.split()) == set()


def test_one_list_names_each_program_once():
    rows = peers.programs()
    assert {row.kind for row in rows} == {"system", "peer"}
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.purpose for row in rows)


def test_system_packages_are_asked_for_by_their_command(tmp_path: Path):
    """Without apt and without runc the program says what is missing, and does nothing."""
    for name in ("sh", "dirname", "sort", "tr", "id", "cat"):
        (tmp_path / name).symlink_to(Path("/bin", name) if Path("/bin", name).exists() else Path("/usr/bin", name))
    script = ROOT / "tools" / "system-packages.sh"
    # a PATH that the script only adds sbin to: what is in /usr/sbin here may well be found, python3 never is
    result = subprocess.run(
        ["/bin/sh", script], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "python3" in result.stderr
    assert "names of Debian packages" in result.stderr


def test_changelog_fragments_are_well_formed():
    assert changelog.problems() == []


def test_ci_runs_the_one_command():
    assert (ROOT / ".ci" / "run").read_text().strip().splitlines()[-1] == "exec make test"


def test_nothing_names_this_checkout():
    """No committed file has an absolute path of somebody's machine in it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    pattern = re.compile(rf"{re.escape(str(ROOT))}/|/home/\w+/".encode())
    found = []
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file() and name != "requirements.lock" and pattern.search(path.read_bytes()):
            found.append(name)
    assert found == []
