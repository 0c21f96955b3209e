"""What containers may leave on the host: state of OCI runtimes, keepers, sockets; cgroups are in `cgroups`.

It is found here and judged in `check` and `check_host`. All of these come and go while containers do, so each is told
by something that a later one of the same name differs in: an inode, a start time.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orlop.linux.unix_sockets import refuses
from orlop.oci.cgroups_path import cgroups_path

# Those that our supervisor drives; their state lies in a directory of their name below ours.
RUNTIMES: Final = ("runc", "crun")
_KEEPER: Final = b"orlop-keeper"
_BUNDLE: Final = b"ORLOP_BUNDLE="
_HEX_LENGTH: Final = 32
_SHIM_SOCKETS: Final = Path("/run/containerd/s")


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


def cgroup_of(bundle: Path) -> str:
    """The cgroup that a bundle's spec asks for, or an empty string."""
    try:
        return cgroups_path((bundle / "config.json").read_bytes())
    except OSError:
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
        if len(name) == _HEX_LENGTH and refuses(path):
            with contextlib.suppress(FileNotFoundError):
                found[path] = path.stat().st_ino
    return found


def is_killed(address: str) -> bool:
    """Whether a supervisor that has gone had no time to remove its socket."""
    return os.path.lexists(address.removeprefix("unix://"))


def is_left(state: Path) -> bool:
    """Whether a supervisor that was killed may have left something to be done: see `binaries.resume`."""
    return bool(dead_sockets(state)) or any(not path.name.startswith(".") for path in state.glob("s/*.gone/*"))


def shim_socket(address: str, namespace: str, name: str) -> Path:
    """The socket of a foreign shim that the daemon at `address` starts for a container or a sandbox of that name.

    Source: SocketAddress in containerd's pkg/shim.
    """
    return _SHIM_SOCKETS / hashlib.sha256(os.path.normpath(f"{address}/{namespace}/{name}").encode()).hexdigest()


def dead_shims(paths: Iterable[Path]) -> dict[Path, int]:
    """Those of the sockets that are there and on which nobody listens, with their inodes."""
    there, found = set(_names(_SHIM_SOCKETS)), {}
    for path in paths:
        if path.name in there and refuses(path):
            with contextlib.suppress(FileNotFoundError):
                found[path] = path.stat().st_ino
    return found


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
