"""What its author runs: the contract that every snapshotter must keep. As root: `pytest`."""

from pathlib import Path

from orlop_copies import Copies

from orlop.core.snapshots import Snapshotter
from orlop.testing.snapshots import SnapshotterContract


class TestCopies(SnapshotterContract):
    layers = 10
    locates = False

    def snapshotter(self, root: Path) -> Snapshotter:
        return Copies(root)
