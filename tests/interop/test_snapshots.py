"""Snapshots through Debian's `ctr` on both daemons: what it mounts, writes, commits and measures is the same."""

import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from orlop.testing.trees import describe
from tests.interop.compare import run
from tools.daemons import Containerd, Ctr, Engine, Orlopd

pytestmark = [pytest.mark.root, pytest.mark.interop]

# Each keeps a copy's files where it likes.
NATIVE = (r"ROOT/(io\.containerd\.snapshotter\.v1\.native/snapshots/\d+|snapshots/native/\d+/fs)", "FILES")

STEPS = [
    "ls",
    "prepare --target {scratch} base",
    "mounts {scratch} base",
    "commit one base",
    "prepare --target {scratch} active one",
    "view look one",
    "mounts {scratch} look",
    "ls",
    "tree",
    "info look",
    "usage one look",
    "rm one",
    "commit two look",
    "commit one active",
    "commit two active",
    "label two a=b c=d",
    "label two a=",
    "ls",
    "rm look",  # first: nothing holds it, and our collector runs soon after a removal
    "rm two",
    "rm one one",
    "ls",
]


SCRIPTS = (
    "mkdir -p a/b c; echo 1 > a/b/file; ln a/b/file hard; ln -s a/b link; mknod null c 1 3; chown 5:6 c; chmod 2751 c",
    "rm -r a/b; mkdir a/b; echo two > a/b/other; mv hard moved; chown -h 7:8 link",
    "rm -r a; echo three > a; chmod 4755 moved; dd if=/dev/zero of=big bs=1k count=300 status=none; rm null",
)


@pytest.fixture
def daemons(
    containerd: Containerd, orlopd: Orlopd, go_ctr: Callable[..., Ctr], namespace: str
) -> Mapping[str, tuple[Ctr, Engine]]:
    return {who: (go_ctr(daemon, namespace), daemon) for who, daemon in (("them", containerd), ("us", orlopd))}


def test_native_snapshots_in_one_life(daemons: Mapping[str, tuple[Ctr, Engine]], tmp_path: Path) -> None:
    places = {"scratch": str(tmp_path)}
    for words in STEPS:
        answers = {}
        for who, (ctr, daemon) in daemons.items():
            answer = run(ctr, daemon, f"snapshots --snapshotter native {words}", places)
            answers[who] = (answer.status, re.sub(*NATIVE, answer.output), bool(answer.errors))
        assert answers["us"] == answers["them"], words


@pytest.fixture(params=["overlayfs", "native"])
def layered(
    request: pytest.FixtureRequest, daemons: Mapping[str, tuple[Ctr, Engine]], tmp_path: Path
) -> dict[str, list[object]]:
    """What each daemon's snapshots look like after the same three layers were written through ctr's mount commands."""
    seen: dict[str, list[object]] = {}
    for who, (ctr, _) in daemons.items():
        mount_point = tmp_path / who
        mount_point.mkdir()
        seen[who] = []
        parent: tuple[str, ...] = ()
        for index, script in enumerate(SCRIPTS):
            words = ("snapshots", "--snapshotter", request.param)
            ctr(*words, "prepare", f"key{index}", *parent)
            mount = ctr(*words, "mounts", str(mount_point), f"key{index}")
            subprocess.run(["sh", "-ec", mount], check=True, capture_output=True)
            try:
                subprocess.run(["sh", "-ec", script], check=True, cwd=mount_point)
                tree = describe(mount_point)
            finally:
                subprocess.run(["umount", mount_point], check=True)
            subprocess.run(["sync", "-f", mount_point], check=True)  # or blocks are not yet allocated and not counted
            ctr(*words, "commit", f"layer{index}", f"key{index}")
            parent = (f"layer{index}",)
            usage = ctr(*words, "usage", "-b", f"layer{index}").splitlines()[1].split()
            seen[who].append((tree, usage))
        for index in reversed(range(len(SCRIPTS))):
            ctr(*words, "rm", f"layer{index}")
    return seen


def test_layers_written_through_mount_commands(layered: dict[str, list[object]]) -> None:
    assert layered["us"] == layered["them"]
