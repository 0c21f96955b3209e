"""Find, and take away, what daemons leave on a host: mounts, processes, cgroups, loop devices.

Everything is attributed to a directory: a process by its command line, its directories or its own mounts, a mount by
its target, a loop device by its file. So two runs on one host do not blame each other. A cgroup names no directory: one
counts that is new and has an attributed process. One without processes may be another run's, which is about to put
some there: it counts only in a run that has been alone (`Run`).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

_PROC: Final = Path("/proc")
_MNT_DETACH: Final = 2


@dataclass(slots=True)
class Residue:
    """What is left; false when nothing is."""

    processes: dict[int, str] = field(default_factory=dict)
    mounts: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)
    cgroups: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.processes or self.mounts or self.loops or self.cgroups)

    def __str__(self) -> str:
        lines = [f"process {pid}: {command}" for pid, command in self.processes.items()]
        lines += [f"mount {target}" for target in self.mounts]
        lines += [f"loop device {name}" for name in self.loops]
        lines += [f"cgroup {path}" for path in self.cgroups]
        return "\n".join(lines)


class Run:
    """A run of tests on this host, from entering to leaving, and whether there was another one at any time of it.

    Each run adds a byte to a file and holds a lock on it that all may share.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file or Path(tempfile.gettempdir(), f"orlop-test-runs-{os.getuid()}")
        self._fd = -1
        self._began_alone = False
        self._runs = 0

    def __enter__(self) -> Self:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._file, flags, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._began_alone = True
        except BlockingIOError:
            pass
        fcntl.flock(self._fd, fcntl.LOCK_SH)
        os.write(self._fd, b".")
        self._runs = os.fstat(self._fd).st_size
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self._fd)

    def alone(self) -> bool:
        """Whether no other run has been going on since this one began."""
        return self._began_alone and os.fstat(self._fd).st_size == self._runs


def find(directory: Path, *, cgroups_before: frozenset[str] | None = None, alone: bool = True) -> Residue:
    """Look for what belongs to `directory`, and for cgroups that were not there before.

    Args:
        alone: nobody else makes cgroups, so that those without processes count too.
    """
    where = os.fsencode(directory.resolve())
    found = Residue(
        processes=dict(_processes(where)),
        mounts=[target for target in mount_targets() if _is_below(os.fsencode(target), where)],
        loops=list(_loops(where)),
    )
    if cgroups_before is not None:
        new = cgroups() - cgroups_before
        found.cgroups = sorted(path for path in new if _is_attributed(path, found.processes, alone=alone))
    return found


def settle(
    directory: Path, *, cgroups_before: frozenset[str] | None = None, alone: bool = True, timeout_s: float = 5
) -> Residue:
    """Like `find`, but what is about to end may end: the kernel tears down lazily, a shim exits after its answer."""
    deadline = time.monotonic() + timeout_s
    while (found := find(directory, cgroups_before=cgroups_before, alone=alone)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def remove(found: Residue) -> None:
    """Kill, detach and remove what was found. Who has come into a cgroup since is another run's, and stays."""
    for pid in found.processes:
        _kill(pid)
    for path in sorted(found.cgroups, key=len, reverse=True):
        if found.processes.keys() >= set(_members(path)):
            patiently_rmdir(path)
    for target in sorted(found.mounts, key=len, reverse=True):
        unmount(target)
    for name in found.loops:
        _detach_loop(name)


def unmount(target: str) -> None:
    """Detach a mount; one that is not there is no error."""
    ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(target), _MNT_DETACH)


def mount_targets() -> Iterator[str]:
    """Targets in this mount namespace, in the order of mounting."""
    for line in (_PROC / "self" / "mountinfo").read_bytes().splitlines():
        yield os.fsdecode(_unescape(line.split(b" ")[4]))


def cgroups() -> frozenset[str]:
    """Directories of all cgroup hierarchies that are mounted."""
    roots = []
    for line in (_PROC / "self" / "mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split(" ", 1)[0] in {"cgroup", "cgroup2"}:
            roots.append(fields.split(" ")[4])
    return frozenset(path for root in roots for path, _, _ in os.walk(root))


def _processes(where: bytes) -> Iterator[tuple[int, str]]:
    ours = set(_ancestry(os.getpid()))
    namespace = _link(os.getpid(), "ns/mnt")
    for entry in _PROC.iterdir():
        if not entry.name.isdigit() or (pid := int(entry.name)) in ours:
            continue
        command = _read(pid, "cmdline")
        if not command:  # a kernel thread or a zombie
            continue
        places = [_link(pid, name) for name in ("cwd", "root", "exe")]
        own_mounts = _own_mounts(pid) if _link(pid, "ns/mnt") != namespace else b""
        if where in command or any(_is_below(place, where) for place in places) or where in own_mounts:
            yield pid, os.fsdecode(command.replace(b"\0", b" ").strip())


def _own_mounts(pid: int) -> bytes:
    """The mountinfo of a process that has another root than we have; before it has, its mounts are copies of all."""
    text = _read(pid, "mountinfo")
    return text if _root_of(text) != _root_of(_read(os.getpid(), "mountinfo")) else b""


def _root_of(mountinfo: bytes) -> list[list[bytes]]:
    """Device, and directory of it, of what is mounted at `/`."""
    return [fields[2:4] for line in mountinfo.splitlines() if (fields := line.split(b" "))[4:5] == [b"/"]]


def _ancestry(pid: int) -> Iterator[int]:
    while pid > 0:
        yield pid
        status = _read(pid, "stat")
        pid = int(status.rsplit(b")", 1)[1].split()[1]) if status else 0


def _read(pid: int, name: str) -> bytes:
    try:
        return (_PROC / str(pid) / name).read_bytes()
    except OSError:  # it has gone, or is not ours to see
        return b""


def _link(pid: int, name: str) -> bytes:
    try:
        return os.readlink(os.fsencode(_PROC / str(pid) / name))
    except OSError:
        return b""


def _loops(where: bytes) -> Iterator[str]:
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = file.read_bytes().strip()
        except OSError:  # detached meanwhile
            continue
        if _is_below(backing, where):
            yield file.parent.parent.name


def _is_below(path: bytes, where: bytes) -> bool:
    return path == where or path.startswith(where + b"/")


def _is_attributed(cgroup: str, processes: dict[int, str], *, alone: bool) -> bool:
    members = _members(cgroup)
    return os.path.isdir(cgroup) and (not processes.keys().isdisjoint(members) if members else alone)


def _members(cgroup: str) -> list[int]:
    try:
        return [int(line) for line in Path(cgroup, "cgroup.procs").read_text().split()]
    except OSError:  # removed meanwhile, or threaded
        return []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{pid}/exe") and _read(pid, "cmdline") and time.monotonic() < deadline:
        time.sleep(0.01)


def patiently_rmdir(path: str) -> None:
    """Remove a cgroup, which takes a moment where something is just leaving it; one that stays in use is left."""
    for _ in range(100):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return
        except OSError:  # EBUSY until the last process is gone
            time.sleep(0.02)
        else:
            return


def _detach_loop(name: str) -> None:
    import fcntl

    with open(f"/dev/{name}", "rb") as device:
        fcntl.ioctl(device, 0x4C01)  # LOOP_CLR_FD


def _unescape(field: bytes) -> bytes:
    r"""Undo the kernel's octal escapes in mountinfo: \040 \011 \012 \134."""
    for escape, byte in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(escape, byte)
    return field
