"""The erofs snapshotter through Debian's ctr: import, run, look, commit, compare, a killed daemon, and removal."""

import contextlib
import os
import subprocess
import tarfile
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


def devices(root: Path) -> list[str]:
    """Images that have loop devices."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it has gone
            found.append(path.read_text().strip())
    return [file for file in found if file.startswith(f"{root}/")]


def top_of(ctr: Ctr) -> str:
    """The image's topmost snapshot."""
    rows = [line.split() for line in ctr("snapshots", *FLAGS, "ls").splitlines()[1:]]
    [top] = {row[0] for row in rows if row[-1] == "Committed"} - {row[1] for row in rows if len(row) == 3}
    return top


@pytest.mark.parametrize("over_loop", ["false", "true"], ids=["file", "loop"])
def test_a_container_runs_and_its_changes_become_a_layer(
    new_orlopd: Callable[..., Orlopd],
    go_ctr: Callable[..., Ctr],
    busybox_multi_image: Image,
    namespace: str,
    over_loop: str,
) -> None:
    daemon = new_orlopd(config=f'[plugins."io.containerd.snapshotter.v1.erofs"]\n  over_loop = {over_loop}\n')
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
    assert len(devices(homes)) == (len(layers) if over_loop == "true" else 0)

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
    until(lambda: not devices(homes), "loop devices are left")


def test_what_a_container_wrote_becomes_a_layer(
    new_orlopd: Callable[..., Orlopd], go_ctr: Callable[..., Ctr], busybox_image: Image, namespace: str, tmp_path: Path
) -> None:
    """Images below, directories above: compared, committed and stacked again."""
    daemon = new_orlopd()
    ctr = go_ctr(daemon, namespace)
    ctr("images", "import", *FLAGS, busybox_image.archive)
    script = "echo words >/etc/made; rm /bin/vi; sleep 1"
    ctr("run", *FLAGS, busybox_image.reference, "one", "sh", "-c", script)
    layer = tmp_path / "layer"
    with open(layer, "wb") as file:
        command = ctr.argv("snapshots", *FLAGS, "diff", "--media-type", "application/vnd.oci.image.layer.v1.tar", "one")
        subprocess.run(command, check=True, stdout=file, timeout=60)
    with tarfile.open(layer) as archive:
        names = archive.getnames()
    assert "etc/made" in names
    assert "bin/.wh.vi" in names
    assert "bin/busybox" not in names

    ctr("snapshots", *FLAGS, "commit", "changed", "one")
    ctr("snapshots", *FLAGS, "label", "changed", "containerd.io/gc.root=now")
    assert "changed" in ctr("snapshots", *FLAGS, "usage", "changed")
    ctr("snapshots", *FLAGS, "prepare", "two", "changed")
    ctr("snapshots", *FLAGS, "view", "three", "changed")
    for key in ("two", "three"):
        target = tmp_path / key
        target.mkdir()
        subprocess.run(["sh", "-ec", ctr("snapshots", *FLAGS, "mounts", target, key)], check=True, timeout=60)
        try:
            assert (target / "etc/made").read_text() == "words\n"
            assert not os.path.lexists(target / "bin/vi")
            assert (target / "bin/busybox").stat().st_mode & 0o111
        finally:
            subprocess.run(["umount", target], check=True, timeout=60)


def test_a_container_in_a_user_namespace(
    new_orlopd: Callable[..., Orlopd], our_ctr: Callable[..., Ctr], busybox_image: Image, namespace: str
) -> None:
    """The daemon maps the ids of its images, so that whoever mounts needs to know nothing of it."""
    daemon = new_orlopd()
    daemon.directory.chmod(0o711)  # the container's root must get through
    ctr = our_ctr(daemon, namespace)
    ctr("images", "import", *FLAGS, busybox_image.archive)
    maps = ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", "--remap-labels")
    command = "stat -c '%u %g' /etc/passwd; cat /proc/self/uid_map; touch /mine && echo written"
    shown = ctr("run", "--rm", *FLAGS, *maps, busybox_image.reference, "one", "sh", "-c", command)
    assert shown.split() == ["0", "0", "0", "100000", "65536", "written"]
    assert list((daemon.root / "snapshots" / "erofs" / "mapped").iterdir())
    ctr("images", "rm", "--sync", busybox_image.reference)
    until(lambda: not list((daemon.root / "snapshots" / "erofs" / "mapped").iterdir()), "mapped layers are left")
