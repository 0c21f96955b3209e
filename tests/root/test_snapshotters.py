"""The contract suite of `orlop.testing.snapshots` on our own snapshotters."""

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.api.services.snapshots.v1 import snapshots_pb2
from orlop.core.snapshots import Kind, Snapshot, Snapshotter
from orlop.core.snapshots.proxy import ProxySnapshotter
from orlop.linux import btrfs
from orlop.plugins.proxy import Peer
from orlop.plugins.snapshots.btrfs import Btrfs
from orlop.plugins.snapshots.erofs import Erofs, verdict
from orlop.plugins.snapshots.native import Native
from orlop.plugins.snapshots.overlayfs import Overlayfs, options_here
from orlop.testing.snapshots import SnapshotterContract
from tools import filesystems
from tools.daemons import Orlopd

pytestmark = pytest.mark.root


class TestOverlayfs(SnapshotterContract):
    def snapshotter(self, root: Path) -> Snapshotter:
        return Overlayfs(root, options=options_here(root))


class TestErofs(SnapshotterContract):
    @pytest.fixture(autouse=True)
    def _unmounted(self) -> Iterator[None]:
        self.made: list[Erofs] = []
        yield
        for one in self.made:
            one.close()

    over_loop = False

    def snapshotter(self, root: Path) -> Snapshotter:
        root.mkdir(parents=True, exist_ok=True)
        works = verdict(root, over_loop=self.over_loop)
        if not works:
            pytest.skip(works.reason)
        self.made.append(Erofs(root, options=options_here(root), over_loop=self.over_loop))
        return self.made[-1]


class TestErofsOverLoop(TestErofs):
    over_loop = True


class TestNative(SnapshotterContract):
    layers = 25

    def snapshotter(self, root: Path) -> Snapshotter:
        return Native(root)


class TestProxy(SnapshotterContract):
    """Behind the Snapshots service of another daemon, over its socket."""

    locates = False

    @pytest.fixture(autouse=True)
    def _remote(self, orlopd: Orlopd) -> Iterator[None]:
        service = snapshots_pb2.DESCRIPTOR.services_by_name["Snapshots"]
        self.peer = Peer(service, str(orlopd.address))
        yield
        left = self.peer.unary("Cleanup", snapshots_pb2.CleanupRequest(snapshotter="overlayfs"))
        assert left is not None
        self.peer.close()

    def snapshotter(self, root: Path) -> Snapshotter:
        mine = hashlib.sha256(str(root).encode()).hexdigest()[:12]
        return ProxySnapshotter(self.peer, name="overlayfs", prefix=f"suite-{mine}")


@pytest.fixture(scope="module")
def btrfs_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh btrfs in a loop file."""
    directory = tmp_path_factory.mktemp("btrfs")
    with filesystems.mounted(directory, "btrfs", 300 << 20) as path:
        yield path


class TestBtrfs(SnapshotterContract):
    locates = False
    layers = 40

    @pytest.fixture(autouse=True)
    def _on_btrfs(self, btrfs_directory: Path) -> Iterator[None]:
        self.base = btrfs_directory / uuid.uuid4().hex
        yield
        for number in (snapshotter := Btrfs(self.base)).numbers():
            snapshotter.remove(number)
        self.base.rmdir()

    def snapshotter(self, root: Path) -> Snapshotter:
        return Btrfs(self.base)

    def test_subvolumes_of_a_container_go_with_its_snapshot(self) -> None:
        snapshotter = self.snapshotter(self.base)
        snapshotter.prepare(Snapshot(number=1, kind=Kind.ACTIVE))
        (self.base / "1" / "d").mkdir()
        btrfs.create(str(self.base / "1" / "d"), "inner")
        (self.base / "1" / "d" / "inner" / "file").write_text("x")
        btrfs.set_read_only(str(self.base / "1" / "d" / "inner"), True)
        snapshotter.commit(Snapshot(number=1, kind=Kind.ACTIVE))
        snapshotter.remove(1)
        snapshotter.remove(1)
        assert snapshotter.numbers() == []
