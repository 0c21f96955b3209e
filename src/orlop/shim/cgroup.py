"""A container's cgroups: where they are in v1, v2 and hybrid hierarchies, and who is in them.

Every path is found by asking the kernel (/proc/PID/cgroup and mountinfo), never by composing what the spec asked for.
"""

import contextlib
import errno
import functools
import os
import signal
import time
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self

from orlop.linux.mount import mountinfo
from orlop.oci.cgroups_path import cgroups_path

_DYING_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Directories of one container's cgroups.

    Attributes:
        v1: by controller, such as `memory`; empty on a pure v2 host.
        v2: in the unified hierarchy, or empty; the root of the hierarchy does not count.
    """

    v1: dict[str, str] = field(default_factory=dict)
    v2: str = ""

    @classmethod
    def of(cls, pid: int) -> Self:
        """The cgroups that a process is in now; empty if it has gone."""
        unified, controllers = hierarchies()
        v1: dict[str, str] = {}
        v2 = ""
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            for line in file:
                _number, names, path = line.rstrip("\n").split(":", 2)
                if path == "/" or "/.." in path:
                    continue  # the root is everybody's; a path outside of our own root cannot be reached
                if not names:
                    v2 = unified.directory(path) if unified else ""
                    continue
                for name in names.split(","):
                    if name in controllers:
                        v1[name] = controllers[name].directory(path)
        return cls(v1=v1, v2=v2)

    def pids(self) -> list[int]:
        """All processes in the cgroup and below it, in ascending order."""
        top = self.v2 if self.v2 and not self.v1 else self.v1.get("devices") or next(iter(self.v1.values()), self.v2)
        found: set[int] = set()
        if top:
            for directory, _directories, _files in os.walk(top):
                with contextlib.suppress(OSError), open(f"{directory}/cgroup.procs", encoding="ascii") as file:
                    found.update(int(line) for line in file)
        return sorted(found)

    def kill(self) -> None:
        """Kill every process in the cgroup and below, without a runtime; what is frozen is thawed, so that it dies."""
        _write(self.v2, "cgroup.kill", "1")
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _write(self.v1.get("freezer", ""), "freezer.state", "THAWED")
        _write(self.v2, "cgroup.freeze", "0")

    def frozen(self) -> bool | None:
        """Whether the processes are frozen; None where that cannot be seen."""
        for path, word in ((self.v1.get("freezer"), "freezer.state"), (self.v2, "cgroup.freeze")):
            if path:
                with contextlib.suppress(OSError), open(f"{path}/{word}", encoding="ascii") as file:
                    return file.read().strip() in ("FROZEN", "FREEZING", "1")
        return None


def _write(directory: str, name: str, word: str) -> None:
    """Tell a cgroup something; where there is no such cgroup, or no such file of it, nothing happens."""
    if not directory:
        return
    with contextlib.suppress(OSError):
        fd = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, word.encode())
        finally:
            os.close(fd)


def _asked_for(bundle: str) -> list[str]:
    """Where the cgroup would be that a bundle's spec asks for, in each hierarchy; none where systemd makes it."""
    try:
        with open(f"{bundle}/config.json", "rb") as file:
            path = cgroups_path(file.read())
    except OSError:
        return []
    unified, controllers = hierarchies()
    return sorted({one.directory(path) for one in (unified, *controllers.values()) if one is not None and path})


def remove_asked_for(bundle: str) -> None:
    """Remove the cgroups that a bundle's spec asks for, if nothing in them lives for more than a moment. Blocks.

    A runtime that was killed while it made a container leaves them, and a process that ends by itself; it knows nothing
    of the container then. What somebody else has put there stays.
    """
    deadline = time.monotonic() + _DYING_S
    for directory in _asked_for(bundle):
        while True:
            try:
                os.rmdir(directory)
            except OSError as error:
                if error.errno == errno.EBUSY and time.monotonic() < deadline:
                    time.sleep(_DYING_S / 100)
                    continue
            break


class Hierarchy(NamedTuple):
    """A mounted hierarchy: where, and which of its directories is mounted there."""

    mount_point: str
    root: str

    def directory(self, path: str) -> str:
        """The directory of the cgroup that /proc/PID/cgroup calls `path`."""
        if self.root != "/" and (path == self.root or path.startswith(f"{self.root}/")):
            path = path[len(self.root) :]
        return f"{self.mount_point}{path}"


@functools.cache
def hierarchies() -> tuple[Hierarchy | None, dict[str, Hierarchy]]:
    """The v2 hierarchy, if it is mounted, and each v1 controller's."""
    unified: Hierarchy | None = None
    controllers: dict[str, Hierarchy] = {}
    for mount in mountinfo():
        one = Hierarchy(mount.mount_point, mount.root)
        if mount.fs_type == "cgroup2" and unified is None:
            unified = one
        elif mount.fs_type == "cgroup":
            for option in mount.super_options.split(","):
                controllers.setdefault(option, one)
    return unified, controllers
