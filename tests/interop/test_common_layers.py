"""Debian's ctr in two namespaces at once: each layer is unpacked once, and each namespace has an image of its own."""

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.root.shims import until
from tools.daemons import Ctr, Orlopd
from tools.images import Image

pytestmark = [pytest.mark.root, pytest.mark.interop]


def test_two_namespaces_share_the_layers_and_nothing_else(
    new_orlopd: Callable[..., Orlopd], go_ctr: Callable[..., Ctr], busybox_image: Image
) -> None:
    daemon = new_orlopd()
    namespaces = ("one", "other")
    ctrs = [go_ctr(daemon, namespace) for namespace in namespaces]

    def numbers() -> set[str]:
        place = Path(daemon.root) / "snapshots/overlayfs"
        return {path.name for path in place.iterdir() if path.name.isdecimal()}

    def run(ctr: Ctr) -> str:
        command = "echo x > /mine; ls / | grep -c mine"
        argv = ctr.argv("run", "--rm", "--net-host", busybox_image.reference, "c", "sh", "-c", command)
        done = subprocess.run(
            ["timeout", "-s", "KILL", "60", *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
        )
        return done.stdout

    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda ctr: ctr("images", "import", busybox_image.archive), ctrs))
        layers = [ctr("snapshots", "ls").splitlines()[1:] for ctr in ctrs]
        assert layers[0] == layers[1]
        until(lambda: len(numbers()) == len(layers[0]), "a directory for each layer")
        assert list(pool.map(run, ctrs)) == ["1\n", "1\n"]
    ctrs[0]("images", "rm", "--sync", busybox_image.reference)
    assert ctrs[0]("snapshots", "ls").splitlines()[1:] == []
    assert run(ctrs[1]) == "1\n"
    ctrs[1]("images", "rm", "--sync", busybox_image.reference)
    until(lambda: not numbers(), "nothing is left")
    for namespace in namespaces:
        daemon.forget_cgroup(namespace)
