"""The btrfs snapshotter beside containerd's: both daemons keep their root on a btrfs and run a container from it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tools import filesystems
from tools.daemons import COLLECT_ON_REQUEST, Containerd, Ctr, Orlopd
from tools.images import Image

pytestmark = [pytest.mark.root, pytest.mark.interop]


@pytest.fixture
def directory(short_directory: Path) -> Iterator[Path]:
    home = short_directory / "b"
    home.mkdir()
    with filesystems.mounted(home, "btrfs", 400 << 20) as path:
        yield path
    home.rmdir()


def shape(text: str) -> str:
    """Mounts without the number of the subvolume."""
    return re.sub(r"subvolid=\d+", "subvolid=N", text)


def test_mounts_and_containers_are_alike(
    directory: Path, go_ctr: Callable[..., Ctr], busybox_image: Image, namespace: str
) -> None:
    seen: dict[str, list[str]] = {}
    for cls in (Orlopd, Containerd):
        with cls(directory / cls.name, config=COLLECT_ON_REQUEST) as daemon:
            ctr = go_ctr(daemon, f"{namespace}-{cls.name}")
            ctr("images", "import", "--snapshotter", "btrfs", busybox_image.archive)
            rows = [line.split() for line in ctr("snapshots", "--snapshotter", "btrfs", "ls").splitlines()[1:]]
            [top] = {row[0] for row in rows} - {row[1] for row in rows}
            lines = [
                ctr("snapshots", "--snapshotter", "btrfs", "prepare", "active", top),
                ctr("snapshots", "--snapshotter", "btrfs", "mounts", "/mnt", "active"),
                ctr("snapshots", "--snapshotter", "btrfs", "view", "seen", top),
                ctr("snapshots", "--snapshotter", "btrfs", "mounts", "/mnt", "seen"),
                ctr(
                    "run",
                    "--rm",
                    "--snapshotter",
                    "btrfs",
                    busybox_image.reference,
                    "one",
                    "sh",
                    "-c",
                    "echo x >/f; cat /f",
                ),
            ]
            seen[cls.name] = [shape(line) for line in lines]
            for key in ("active", "seen"):
                ctr("snapshots", "--snapshotter", "btrfs", "rm", key)
            ctr("images", "rm", "--sync", busybox_image.reference)
            assert ctr("snapshots", "--snapshotter", "btrfs", "ls").splitlines()[1:] == []
            daemon.forget_cgroup(f"{namespace}-{cls.name}")
    assert seen["orlopd"] == seen["containerd"]
    assert "subvolid=N" in seen["orlopd"][1]
