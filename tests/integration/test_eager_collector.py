"""Clients beside a collector that collects after every change: what they are about to use must be held, not lucky."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tools.daemons import Ctr, Orlopd, Registry
from tools.images import Image

pytestmark = [pytest.mark.root, pytest.mark.interop]
EAGER = """
[plugins."io.containerd.gc.v1.scheduler"]
pause_threshold = 0.5
deletion_threshold = 1
mutation_threshold = 1
startup_delay = "0s"
"""


@pytest.mark.parametrize("client", ["go", "ours"])
def test_whole_lives(
    client: str,
    new_orlopd: Callable[..., Orlopd],
    go_ctr: Callable[..., Ctr],
    our_ctr: Callable[..., Ctr],
    registry: Registry,
    busybox_image: Image,
    busybox_zstd_image: Image,
    namespace: str,
    tmp_path: Path,
) -> None:
    daemon = new_orlopd(config=EAGER)
    ctr = (go_ctr if client == "go" else our_ctr)(daemon, namespace)
    pushed = registry.push(busybox_zstd_image, f"eager-{client}")
    for reference, bring in (
        (busybox_image.reference, ("images", "import", busybox_image.archive)),
        (pushed, ("images", "pull", "--plain-http", pushed)),
    ):
        ctr(*bring)
        assert ctr("run", "--rm", reference, "once", "echo", "hello") == "hello\n"
        ctr("run", "-d", reference, "long", "sleep", "1000")
        assert ctr("tasks", "exec", "--exec-id", "e", "long", "cat", "/proc/1/cmdline") == "sleep\x001000\x00"
        ctr("tasks", "rm", "--force", "long")
        ctr("containers", "rm", "long")
        ctr("images", "mount", reference, tmp_path)
        assert (tmp_path / "bin" / "busybox").exists()
        ctr("images", "unmount", "--rm", tmp_path)
        converted = "orlop.test/converted:1"
        ctr("images", "convert", "--uncompress", reference, converted)
        ctr("images", "push", "--plain-http", f"{registry.host}/eager-again-{client}:1", converted)
        ctr("images", "export", tmp_path / "export.tar", converted, reference)
        ctr("images", "rm", "--sync", reference, converted)
        ctr("images", "import", tmp_path / "export.tar")
        assert ctr("run", "--rm", converted, "again", "echo", "hello") == "hello\n"
        ctr("images", "rm", "--sync", converted, reference)
        assert ctr("content", "ls", "-q").split() == []
        assert ctr("snapshots", "ls").splitlines()[1:] == []
        assert ctr("leases", "ls", "-q").split() == []
