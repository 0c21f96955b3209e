"""What containers may leave on the host: state of OCI runtimes, cgroups, keepers, sockets.

It is found here and judged in `check`. All of these come and go while containers do, so each is told by something that
a later one of the same name differs in: an inode, a start time.
"""

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orlop.linux.mount import mountinfo

# Those that our supervisor drives; their state lies in a directory of their name below ours.
RUNTIMES: Final = ("runc", "crun")
_KEEPER: Final = b"orlop-keeper"
_BUNDLE: Final = b"ORLOP_BUNDLE="
_HEX_LENGTH: Final = 32


@dataclass(frozen=True, slots=True)
class State:
    """What an OCI runtime knows of a container: `root` is its `--root`."""

    runtime: str
    root: Path
    namespace: str
    id: str

    @property
    def path(self) -> Path:
        return self.root / self.id


def states(state: Path) -> Iterator[State]:
    """Every container that a runtime has state of below the daemon's state directory."""
    for runtime in RUNTIMES:
        for root in _directories(state / runtime):
            for path in _directories(root):
                yield State(runtime, root, root.name, path.name)


def is_being_removed(state: Path, task_id: str) -> bool:
    """Whether a supervisor has answered the deletion of such a task, and the runtime's part is still to come."""
    return any(state.glob(f"s/*.gone/{task_id}"))


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup `/<namespace>/<id>` without a process, in every hierarchy that has it: directories and inodes."""

    namespace: str
    id: str
    directories: tuple[tuple[str, int], ...]

    @property
    def path(self) -> str:
        return f"/{self.namespace}/{self.id}"

    def remove(self) -> None:
        """Remove it. Raises OSError: EBUSY if a process is in it by now."""
        for directory, _inode in self.directories:
            for path, _below, _files in os.walk(directory, topdown=False):
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(path)


def empty_cgroups(namespaces: Iterable[str]) -> dict[str, Cgroup]:
    """Cgroups right below those of namespaces in which no process is in any hierarchy, by path."""
    found: dict[str, Cgroup] = {}
    hierarchies = [one.mount_point for one in mountinfo() if one.fs_type in ("cgroup", "cgroup2")]
    for namespace in namespaces:
        by_name: dict[str, list[str]] = {}
        for mount_point in hierarchies:
            for name in _names(f"{mount_point}/{namespace}"):
                directory = f"{mount_point}/{namespace}/{name}"
                if os.path.isdir(directory):
                    by_name.setdefault(name, []).append(directory)
        for name, directories in by_name.items():
            with contextlib.suppress(FileNotFoundError):
                if all(map(_is_empty, directories)):
                    inodes = tuple((one, os.stat(one).st_ino) for one in directories)
                    found[f"/{namespace}/{name}"] = Cgroup(namespace, name, inodes)
    return found


def cgroup_of(bundle: Path) -> str:
    """The cgroup that a bundle's spec asks for, or an empty string."""
    try:
        table = json.loads((bundle / "config.json").read_bytes())
        return str((table.get("linux") or {}).get("cgroupsPath") or "")
    except (OSError, ValueError, AttributeError):
        return ""


@dataclass(frozen=True, slots=True)
class Keeper:
    """A process that holds descriptors for a container's supervisor; `bundle` is whose."""

    pid: int
    start_time: str
    bundle: Path


def keepers(bundles: Path) -> Iterator[Keeper]:
    """The keepers of tasks whose bundles lie below a directory; those of other daemons are not."""
    for name in _names("/proc"):
        if not name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            if not Path(f"/proc/{name}/cmdline").read_bytes().startswith(_KEEPER):
                continue
            for variable in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                bundle = Path(os.fsdecode(variable.removeprefix(_BUNDLE)))
                if variable.startswith(_BUNDLE) and bundle.is_relative_to(bundles):
                    yield Keeper(int(name), start_time(int(name)), bundle)


def is_kept(keeper: Keeper) -> bool:
    """Whether a record of the task names the keeper."""
    for path in keeper.bundle.glob("orlop/*.json"):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found = json.loads(path.read_bytes()).get("keeper") or {}
            if found.get("pid") == keeper.pid and str(found.get("start_time")) == keeper.start_time:
                return True
    return False


def dead_sockets(state: Path) -> dict[Path, int]:
    """Sockets of supervisors on which nobody listens, with their inodes."""
    found = {}
    for name in _names(state / "s"):
        path = state / "s" / name
        if len(name) == _HEX_LENGTH and _refuses(path):
            with contextlib.suppress(FileNotFoundError):
                found[path] = path.stat().st_ino
    return found


def is_killed(address: str) -> bool:
    """Whether a supervisor that has gone had no time to remove its socket."""
    return os.path.lexists(address.removeprefix("unix://"))


def is_left(state: Path) -> bool:
    """Whether a supervisor that was killed may have left something to be done: see `binaries.resume`."""
    return bool(dead_sockets(state)) or any(not path.name.startswith(".") for path in state.glob("s/*.gone/*"))


def _refuses(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except OSError as error:
            return error.errno == errno.ECONNREFUSED
    return False


def _is_empty(directory: str) -> bool:
    for path, _below, _files in os.walk(directory):
        try:
            if Path(path, "cgroup.procs").read_bytes():
                return False
        except FileNotFoundError:
            continue
        except OSError:  # a threaded one, which has threads
            return False
    return True


def start_time(pid: int) -> str:
    """In clock ticks since boot: field 22 of proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def _directories(path: Path) -> list[Path]:
    return [path / name for name in _names(path) if (path / name).is_dir() and not (path / name).is_symlink()]


def _names(path: str | Path) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
