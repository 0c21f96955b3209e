"""The contract suite of `orlop.testing.snapshots` on our own snapshotters."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.api.services.snapshots.v1 import snapshots_pb2
from orlop.core.snapshots import Snapshotter
from orlop.core.snapshots.proxy import ProxySnapshotter
from orlop.plugins.proxy import Peer
from orlop.plugins.snapshots.native import Native
from orlop.plugins.snapshots.overlayfs import Overlayfs, options_here
from orlop.testing.snapshots import SnapshotterContract
from tools.daemons import Orlopd

pytestmark = pytest.mark.root


class TestOverlayfs(SnapshotterContract):
    def snapshotter(self, root: Path) -> Snapshotter:
        return Overlayfs(root, options=options_here(root))


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
