"""Watching for memory exhaustion; see the classes."""

from collections.abc import Callable

from orlop.shim import cgroup


class OomWatcher:
    """Tells of containers whose memory cgroup ran out.

    Args:
        tell: called with the container's id, each time.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def watch(self, container: str, paths: cgroup.Paths) -> None:
        """Watch a container's cgroup from now on; nothing happens where that is not possible."""

    def unwatch(self, container: str) -> None:
        """Watch it no longer."""
