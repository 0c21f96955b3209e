"""Watching for memory exhaustion of containers, so that it can be told while it happens.

v1 signals an eventfd that was registered with memory.oom_control; v2 changes memory.events, which inotify sees and
whose oom_kill counter says whether it was that.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable

from orlop.linux import inotify
from orlop.shim import cgroup


class OomWatcher:
    """Tells of containers whose memory cgroup ran out.

    Args:
        tell: called with the container's id, each time.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._eventfds: dict[str, int] = {}
        self._inotify = -1
        self._watches: dict[int, tuple[str, str]] = {}  # watch: container, path of memory.events
        self._kills: dict[int, int] = {}

    def watch(self, container: str, paths: cgroup.Paths) -> None:
        """Watch a container's cgroup from now on; nothing happens where it has none, or none any more."""
        with contextlib.suppress(OSError):
            if "memory" in paths.v1:
                self._watch_v1(container, paths.v1["memory"])
            elif paths.v2 and not paths.v1:
                self._watch_v2(container, f"{paths.v2}/memory.events")

    def unwatch(self, container: str) -> None:
        """Watch it no longer."""
        fd = self._eventfds.pop(container, -1)
        if fd >= 0:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
        for watch, (name, _path) in list(self._watches.items()):
            if name == container:
                self._forget(watch)
                with contextlib.suppress(OSError):  # the kernel drops it with the file
                    inotify.rm_watch(self._inotify, watch)

    def close(self) -> None:
        """Watch nothing any more."""
        for container in {*self._eventfds, *(name for name, _path in self._watches.values())}:
            self.unwatch(container)
        if self._inotify >= 0:
            asyncio.get_running_loop().remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = -1

    def check(self, container: str) -> None:
        """Look now: the cgroup may go before the loop comes round to what the kernel has said."""
        fd = self._eventfds.get(container, -1)
        if fd >= 0:
            self._read_v1(container, fd)
        for watch, (name, _path) in list(self._watches.items()):
            if name == container:
                self._compare(watch)

    # ---- v1

    def _watch_v1(self, container: str, path: str) -> None:
        if container in self._eventfds:
            return
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = os.open(f"{path}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                with open(f"{path}/cgroup.event_control", "w", encoding="ascii") as file:
                    file.write(f"{fd} {control}")
            finally:
                os.close(control)
        except OSError:
            os.close(fd)
            raise
        self._eventfds[container] = fd
        asyncio.get_running_loop().add_reader(fd, self._read_v1, container, fd, path)

    def _read_v1(self, container: str, fd: int, path: str = "") -> None:
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            return
        # The descriptor is signalled once more when the cgroup is removed.
        if path and not os.path.exists(f"{path}/memory.oom_control"):
            self.unwatch(container)
        else:
            self._tell(container)

    # ---- v2

    def _watch_v2(self, container: str, path: str) -> None:
        if self._inotify < 0:
            self._inotify = inotify.init()
            asyncio.get_running_loop().add_reader(self._inotify, self._read_v2)
        watch = inotify.add_watch(self._inotify, path, inotify.IN_MODIFY)
        self._watches[watch] = (container, path)
        self._kills[watch] = _kills(path)

    def _read_v2(self) -> None:
        for watch, mask in inotify.read(self._inotify):
            if watch not in self._watches:
                continue
            if mask & inotify.IN_IGNORED:
                self._forget(watch)
            else:
                self._compare(watch)

    def _compare(self, watch: int) -> None:
        container, path = self._watches[watch]
        kills = _kills(path)
        if kills > self._kills[watch]:
            self._kills[watch] = kills
            self._tell(container)

    def _forget(self, watch: int) -> None:
        self._watches.pop(watch, None)
        self._kills.pop(watch, None)


def _kills(path: str) -> int:
    """The counter oom_kill of memory.events; 0 if it cannot be read."""
    with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
        for line in file:
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0
