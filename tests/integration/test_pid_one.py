"""orlopd as PID 1 of a Linux pid namespace, as in a container: it serves, runs containers, obeys and reaps."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import orlop
from orlop.base.errdefs import UnavailableError
from tools import daemons, host, residue
from tools.images import Image

pytestmark = pytest.mark.root


@pytest.fixture
def daemon(short_directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The `unshare` that waits for the daemon, and its directory."""
    unshare = host.find("unshare")
    if unshare is None:
        pytest.skip("unshare is not there")
    directory = short_directory / "one"
    directory.mkdir()
    words = [str(unshare), "--pid", "--fork", "--mount-proc", "--kill-child", str(daemons.our_program("orlopd"))]
    words += ["--root", f"{directory}/root", "--state", f"{directory}/state", "--address", f"{directory}/o.sock"]
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(words, env=daemons.environment(), stdin=subprocess.DEVNULL, stderr=log)
    try:
        yield process, directory
    finally:
        process.kill()
        process.wait()
        residue.remove(residue.find(directory))


def test_a_life_as_pid_one(daemon: tuple[subprocess.Popen[bytes], Path], busybox_image: Image, namespace: str) -> None:
    process, directory = daemon
    with orlop.Client(f"{directory}/o.sock", namespace, timeout_s=60) as client:
        deadline = time.monotonic() + 60
        while True:
            try:
                server = client.introspection.server()
                break
            except UnavailableError:
                assert time.monotonic() < deadline
                assert process.poll() is None, (directory / "log").read_text()
                time.sleep(0.02)
        assert server.pid == 1
        with open(busybox_image.archive, "rb") as archive:
            [image] = client.import_(archive)
        image.unpack()
        io = orlop.Capture()
        options = orlop.SpecOptions(args=("sh", "-c", "echo hello; exit 3"))
        with client.new_container("web", image, options) as container, container.new_task(io) as task:
            task.start()
            assert task.wait().code == 3
        assert bytes(io.stdout) == b"hello\n"
    [child] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)
    assert process.wait(30) == 0
    for cgroup in {path.resolve() for path in Path("/sys/fs/cgroup").glob(f"*/{namespace}")}:
        cgroup.rmdir()
    assert "msg=stopped" in (directory / "log").read_text()
