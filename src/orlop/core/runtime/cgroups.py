"""Cgroups of containers as fsck sees them: which there are, who is in them, and whether those are our containers'.

A cgroup has a name and no owner: on a host that several daemons share, `/default/web` may be anybody's. So a process
counts as ours only if its root directory is mounted from a snapshot or a bundle of this daemon, and as left only if who
started it has died: somebody may run containers of his own from our snapshots.
"""

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from orlop.core.metadata import Database
from orlop.linux import pidfd
from orlop.linux.mount import mountinfo
from orlop.oci.cgroups_path import cgroups_path

PAGE: Final = 256
_INIT: Final = 1
_CONTAINERS: Final = """
    SELECT namespace, id, spec FROM containers WHERE (namespace, id) > (?, ?) ORDER BY namespace, id LIMIT ?
"""

Name = tuple[str, str]
"""Namespace and id of a container."""


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup of that path, in every hierarchy that has it: directories and inodes.

    Attributes:
        asked: the container's spec asks for it; else it is `/<namespace>/<id>`, whatever is below it included.
        pids: processes in it, or below.
    """

    path: str
    namespace: str
    id: str
    asked: bool
    directories: tuple[tuple[str, int], ...]
    pids: frozenset[int]

    def remove(self) -> None:
        """Remove it. Raises OSError: EBUSY if a process is in it by now, or others have made something below it."""
        for directory, _inode in self.directories:
            for path, _below, _files in os.walk(directory, topdown=False) if not self.asked else ((directory, (), ()),):
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(path)


def find(namespaces: Iterable[str], asked: Mapping[str, Name]) -> dict[str, Cgroup]:
    """Cgroups right below those of namespaces, and those that specs ask for, by path."""
    points = [one.mount_point for one in mountinfo() if one.fs_type in ("cgroup", "cgroup2")]
    wanted = {path: (*name, True) for path, name in asked.items()}
    for namespace in namespaces:
        for point in points:
            for name in _subdirectories(f"{point}/{namespace}"):
                wanted[f"/{namespace}/{name}"] = (namespace, name, False)
    found = {}
    for path, (namespace, name, is_asked) in wanted.items():
        with contextlib.suppress(FileNotFoundError, _Threads):
            directories = [f"{point}{path}" for point in points if os.path.isdir(f"{point}{path}")]
            pids = frozenset(pid for directory in directories for pid in _pids(directory))
            inodes = tuple((one, os.stat(one).st_ino) for one in directories)
            if directories:
                found[path] = Cgroup(path, namespace, name, is_asked, inodes, pids)
    return found


def asked_for(db: Database) -> dict[str, Name]:
    """The cgroups elsewhere than at `/<namespace>/<id>` that specs of containers ask for; none that systemd makes."""
    found: dict[str, Name] = {}
    after = ("", "")
    while page := db.all(_CONTAINERS, (*after, PAGE)):
        for namespace, container, spec in page:
            after = (namespace, container)
            path = _path_in(spec)
            if path and path != f"/{namespace}/{container}":
                found[path] = after
    return found


def _path_in(spec: bytes | None) -> str:
    try:
        return cgroups_path(AnyMessage.FromString(spec or b"").value)
    except DecodeError:
        return ""


class _Threads(Exception):
    """The processes of a cgroup cannot be told: it is a threaded one."""


def _pids(directory: str) -> Iterator[int]:
    for path, _below, _files in os.walk(directory):
        try:
            yield from map(int, Path(path, "cgroup.procs").read_text().split())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _Threads from error


def _subdirectories(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


# Processes.


@dataclass(frozen=True, slots=True)
class Homes:
    """The directories below which the root directories of our containers come from."""

    paths: Sequence[Path]

    def has(self, pid: int) -> bool:
        """Whether a process has its root directory from there."""
        root = None
        with contextlib.suppress(OSError):
            for one in mountinfo(f"/proc/{pid}/mountinfo"):
                if one.mount_point == "/":
                    root = one  # the last one is on top
        if root is None:
            return False
        if root.fs_type == "overlay":
            options = (option.partition("=") for option in root.super_options.split(","))
            above = [value for key, _, value in options if key == "upperdir"]
            return any(value.startswith(f"{path}/") for value in above for path in self.paths)
        with contextlib.suppress(OSError):
            device = os.stat(f"/proc/{pid}/root").st_dev
            return any(
                os.stat(path).st_dev == device and root.root.startswith(f"{_within(path)}/") for path in self.paths
            )
        return False


def _within(path: Path) -> str:
    """What a directory is called in its own file system."""
    best = ("/", "/")
    for one in mountinfo():
        point = one.mount_point.rstrip("/")
        if f"{path}/".startswith(f"{point}/") and len(point) >= len(best[0].rstrip("/")):
            best = (one.mount_point, one.root)
    rest = os.fspath(path)[len(best[0].rstrip("/")) :]
    return f"{best[1].rstrip('/')}{rest}"


def strangers(cgroup: Cgroup, homes: Homes) -> list[int]:
    """Processes of a cgroup that are not ours, or are not left: somebody who lives has started them."""
    return [pid for pid in sorted(cgroup.pids) if not homes.has(pid) or _parent(pid) not in {0, _INIT, *cgroup.pids}]


def _parent(pid: int) -> int:
    """0 if it has gone. Field 4 of proc_pid_stat(5)."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def kill(cgroup: Cgroup, homes: Homes) -> None:
    """Kill those processes of a cgroup that are ours: each is looked at once more when it cannot be another one."""
    for pid in cgroup.pids:
        with contextlib.suppress(OSError), contextlib.ExitStack() as undo:
            handle = pidfd.pidfd_open(pid)
            undo.callback(os.close, handle)
            if homes.has(pid) and _is_in(pid, cgroup.path):
                pidfd.pidfd_send_signal(handle, signal.SIGKILL)


def _is_in(pid: int, path: str) -> bool:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return any(f"{line.split(':', 2)[2]}/".startswith(f"{path}/") for line in lines)
