"""The built-in snapshotters, and where they keep things: <root>/snapshots/<id>."""

from pathlib import Path
from typing import Final

from orlop.core.plugin import Context

DIRECTORY: Final = "snapshots"


def root_of(context: Context, snapshotter: str) -> Path:
    """The directory of a snapshotter: short and beside its siblings, because mount options end at a page."""
    return Path(context.daemon.root) / DIRECTORY / snapshotter
