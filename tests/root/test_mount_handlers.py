"""The contract of mount handlers, for ours."""

import subprocess
from pathlib import Path

import pytest

from orlop.core.mount import Mount
from orlop.core.mount.activation import Handler
from orlop.plugins.mounts.erofs import ErofsHandler
from orlop.plugins.mounts.loop import LoopHandler
from orlop.testing.mounts import MountHandlerContract
from tools import daemons, host

pytestmark = pytest.mark.root


class TestLoop(MountHandlerContract):
    def handler(self) -> Handler:
        return LoopHandler()

    def example(self, directory: Path) -> Mount:
        (directory / "disk.img").write_bytes(bytes(1 << 20))
        return Mount(type="loop", source=f"{directory}/disk.img")


class TestErofs(MountHandlerContract):
    over_loop = False

    def handler(self) -> Handler:
        return ErofsHandler(over_loop=self.over_loop)

    def example(self, directory: Path) -> Mount:
        reason = host.lacks_peer("mkfs.erofs")
        if reason:
            pytest.skip(reason)
        if "erofs" not in Path("/proc/filesystems").read_text():
            pytest.skip("this kernel has no erofs")
        (directory / "tree").mkdir()
        image = directory / "layer.erofs"
        argv = [str(daemons.program("mkfs.erofs")), "--quiet", str(image), str(directory / "tree")]
        subprocess.run(argv, check=True, capture_output=True)
        return Mount(type="erofs", source=str(image), options=("ro", "loop"))


class TestErofsOverLoop(TestErofs):
    over_loop = True
