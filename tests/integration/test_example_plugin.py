"""The example of a plug-in, as its author and its users meet it: its own tests, its installation, a container on it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import orlop
from tools import peers
from tools.daemons import Orlopd
from tools.images import Image

EXAMPLE = peers.ROOT / "examples" / "snapshotter"

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory into which pip has installed the example."""
    directory = tmp_path_factory.mktemp("plugin")
    source = directory / "source"
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps"]
    subprocess.run([*pip, "--target", directory / "site", source], check=True, timeout=120)
    return directory / "site"


def test_its_own_tests_pass(installed: Path, tmp_path: Path) -> None:
    shutil.copy(EXAMPLE / "test_orlop_copies.py", tmp_path)
    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", f"--basetemp={tmp_path}/t"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_orlop_copies.py"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_a_daemon_loads_it_and_runs_a_container_on_it(
    installed: Path, new_orlopd: Callable[..., Orlopd], busybox_image: Image
) -> None:
    daemon = new_orlopd(env={"PYTHONPATH": str(installed)})
    with orlop.Client(str(daemon.address), "example", timeout_s=60) as client:
        [plugin] = client.introspection.plugins(["id==copies"])
        assert (plugin.status, plugin.exports["origin"]) == ("ok", "orlop-copies 1.0")
        with open(busybox_image.archive, "rb") as archive:
            [image] = client.import_(archive)
        image.unpack(snapshotter="copies")
        io = orlop.Capture()
        options = orlop.SpecOptions(args=("echo", "hello"))
        with client.new_container("one", image, options, snapshotter="copies") as container:
            with container.new_task(io) as task:
                task.start()
                assert task.wait().code == 0
        assert bytes(io.stdout) == b"hello\n"
    assert list((daemon.root / "snapshots" / "copies").iterdir())


def test_a_setting_keeps_it_out(installed: Path, new_orlopd: Callable[..., Orlopd]) -> None:
    daemon = new_orlopd(config="entry_points = false\n", env={"PYTHONPATH": str(installed)})
    with orlop.Client(str(daemon.address), "example", timeout_s=60) as client:
        assert not client.introspection.plugins(["id==copies"])
