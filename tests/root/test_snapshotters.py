"""The contract suite of `orlop.testing.snapshots` on our own snapshotters."""

from pathlib import Path

import pytest

from orlop.core.snapshots import Snapshotter
from orlop.plugins.snapshots.native import Native
from orlop.plugins.snapshots.overlayfs import Overlayfs, options_here
from orlop.testing.snapshots import SnapshotterContract

pytestmark = pytest.mark.root


class TestOverlayfs(SnapshotterContract):
    def snapshotter(self, root: Path) -> Snapshotter:
        return Overlayfs(root, options=options_here(root))


class TestNative(SnapshotterContract):
    layers = 25

    def snapshotter(self, root: Path) -> Snapshotter:
        return Native(root)
