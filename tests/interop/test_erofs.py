"""The erofs snapshotter through Debian's ctr: import, run, look, commit, compare, a killed daemon, and removal."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.root.shims import until
from tools.daemons import Ctr, Orlopd
from tools.images import Image

pytestmark = [pytest.mark.root, pytest.mark.interop]

FLAGS = ("--snapshotter", "erofs")


def mounted(root: Path) -> list[str]:
    """Where images are mounted."""
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [line[4] for line in lines if line[4].startswith(f"{root}/") and line[line.index("-") + 1] == "erofs"]


def top_of(ctr: Ctr) -> str:
    """The image's topmost snapshot."""
    rows = [line.split() for line in ctr("snapshots", *FLAGS, "ls").splitlines()[1:]]
    [top] = {row[0] for row in rows if row[-1] == "Committed"} - {row[1] for row in rows if len(row) == 3}
    return top


def test_a_container_runs_and_its_changes_become_a_layer(
    new_orlopd: Callable[..., Orlopd],
    go_ctr: Callable[..., Ctr],
    busybox_multi_image: Image,
    namespace: str,
    tmp_path: Path,
) -> None:
    daemon = new_orlopd()
    ctr = go_ctr(daemon, namespace)
    image = busybox_multi_image
    assert "erofs" in ctr("plugins", "ls")
    ctr("images", "import", *FLAGS, image.archive)
    homes = daemon.root / "snapshots" / "erofs"
    layers = sorted(homes.glob("*/layer.erofs"))
    assert layers, "the layers were unpacked"
    assert [list((path.parent / "fs").iterdir()) for path in layers] == [[]] * len(layers)

    said = ctr(
        "run", "--rm", *FLAGS, image.reference, "one", "sh", "-c", "echo words >/etc/made; cat /etc/made; sleep 1"
    )
    assert said == "words\n"
    assert len(mounted(homes)) == len(layers)

    top = top_of(ctr)
    ctr("snapshots", *FLAGS, "prepare", "active", top)
    mounts = ctr("snapshots", *FLAGS, "mounts", "/mnt", "active")
    assert "overlay" in mounts
    daemon.kill()
    daemon.start()
    assert ctr("snapshots", *FLAGS, "mounts", "/mnt", "active") == mounts
    assert len(mounted(homes)) == len(layers)
    ctr("snapshots", *FLAGS, "rm", "active")

    ctr("images", "rm", "--sync", image.reference)
    assert ctr("snapshots", *FLAGS, "ls").splitlines()[1:] == []
    until(lambda: not mounted(homes) and not list(homes.glob("*/layer.erofs")), "images are left")
