"""What is between the service manager and the daemon stays there."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tools import host
from tools.daemons import Ctr, Orlopd
from tools.images import Image

pytestmark = [pytest.mark.root, pytest.mark.interop]


def test_the_oci_runtime_never_hears_of_the_service_manager(
    orlopd: Orlopd, go_ctr: Callable[..., Ctr], busybox_image: Image, namespace: str, tmp_path: Path
):
    """runc with NOTIFY_SOCKET waits 100 ms at each start, and speaks to the manager in the daemon's name."""
    assert "NOTIFY_SOCKET" in orlopd.env
    spy = tmp_path / "runc-spy"
    spy.write_text(f'#!/bin/sh\nenv >>"{tmp_path}/environment"\nexec {host.find("runc")} "$@"\n')
    spy.chmod(0o755)
    ctr = go_ctr(orlopd, namespace)
    ctr("images", "import", busybox_image.archive)
    ctr("run", "--rm", "--runc-binary", spy, busybox_image.reference, "spied", "true")
    seen = (tmp_path / "environment").read_text()
    assert "PATH=" in seen
    assert "NOTIFY_SOCKET" not in seen
