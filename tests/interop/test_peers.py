"""The peers themselves work here: what other tests measure against."""

from collections.abc import Callable

import pytest

from tools import daemons
from tools.daemons import Containerd, Ctr, Registry
from tools.images import Image

pytestmark = [pytest.mark.root, pytest.mark.interop]


def test_containerd_runs_what_the_registry_holds(
    containerd: Containerd, registry: Registry, go_ctr: Callable[..., Ctr], busybox_image: Image, namespace: str
):
    ctr = go_ctr(containerd, namespace)
    reference = registry.push(busybox_image)
    ctr("images", "pull", "--plain-http", reference)
    assert ctr("run", "--rm", reference, "one", "cat", "/etc/motd") == "orlop\n"
    failed = ctr.run("run", "--rm", reference, "two", "sh", "-c", "exit 7")
    assert failed.returncode == 7


def test_registry_with_password_refuses_strangers(
    containerd: Containerd,
    secure_registry: Registry,
    go_ctr: Callable[..., Ctr],
    busybox_multi_image: Image,
    namespace: str,
):
    ctr = go_ctr(containerd, namespace)
    reference = secure_registry.push(busybox_multi_image)
    assert ctr.run("images", "pull", "--plain-http", reference).returncode != 0
    credentials = f"{daemons.USER}:{daemons.PASSWORD}"
    ctr("images", "pull", "--plain-http", "--user", credentials, reference)
    assert ctr("run", "--rm", reference, "three", "true") == ""


def test_containers_outlive_a_killed_containerd(
    new_containerd: Callable[[], Containerd], go_ctr: Callable[..., Ctr], busybox_zstd_image: Image
):
    daemon = new_containerd()
    ctr = go_ctr(daemon)
    ctr("images", "import", busybox_zstd_image.archive)
    ctr("run", "--detach", busybox_zstd_image.reference, "four", "sleep", "600")
    daemon.kill()
    daemon.start()
    assert "RUNNING" in ctr("tasks", "ls")
