"""Moving a process into a cgroup, whatever hierarchies the host has."""

import contextlib
import os
from collections.abc import Iterator

from orlop.linux.mount import mountinfo


def join(path: str, pid: int = 0) -> list[str]:
    """Put a process (0: this one) into the cgroup `path` of every hierarchy that takes it; made if need be.

    Returns:
        The directories that it is in now. A hierarchy that refuses (a v2 parent with processes of its own) is left out,
        and nothing stays that was made there.

    Raises:
        OSError: no hierarchy took it; the last reason.
    """
    joined, refused = [], None
    for mount_point in _hierarchies():
        made: list[str] = []
        try:
            directory = _make(mount_point, path, made)
            with open(os.path.join(directory, "cgroup.procs"), "w", encoding="ascii") as file:
                file.write(str(pid))
        except OSError as error:
            refused = error
            for one in reversed(made):
                with contextlib.suppress(OSError):  # somebody has come in meanwhile
                    os.rmdir(one)
            continue
        joined.append(directory)
    if not joined and refused is not None:
        raise refused
    return joined


def _make(mount_point: str, path: str, made: list[str]) -> str:
    """Make a cgroup with those above it; what is new is added to `made`."""
    directory = mount_point
    for part in path.strip("/").split("/"):
        parent, directory = directory, os.path.join(directory, part)
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory)
            made.append(directory)
        for name in ("cpuset.cpus", "cpuset.mems"):
            _inherit(parent, directory, name)
    return directory


def _inherit(parent: str, directory: str, name: str) -> None:
    """A new cpuset of version 1 is empty and takes no process: see cpusets in the kernel's documents of cgroup v1."""
    path = os.path.join(directory, name)
    with contextlib.suppress(FileNotFoundError), open(path, "r+", encoding="ascii") as file:
        if not file.read().strip():
            with open(os.path.join(parent, name), encoding="ascii") as above:
                file.write(above.read())


def _hierarchies() -> Iterator[str]:
    for entry in mountinfo():
        if entry.fs_type in ("cgroup", "cgroup2"):
            yield entry.mount_point
