"""What lies on disk about processes, for the successor of a supervisor that was killed and for `delete`.

    <bundle>/orlop/init.json          the task's init; also what the whole task needs (runtime, rootfs, supervisor)
    <bundle>/orlop/exec-<id>.json     one per exec
    <state>/s/<hex>.gone/<id>         a task whose Delete was answered before the OCI runtime had removed it

A record is written beside and renamed, before the client is told what it says; it is not synced, because it ends with
the boot, as processes do. A record of another boot is never trusted. Only the supervisor that holds the lock writes.
"""

import contextlib
import errno
import json
import os
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Self

from orlop.base import failpoints

VERSION: Final = 1
DIRECTORY: Final = "orlop"
_SIZE_LIMIT = 1 << 20

CREATING: Final = "creating"
CREATED: Final = "created"
RUNNING: Final = "running"
PAUSED: Final = "paused"
STOPPED: Final = "stopped"


@dataclass(slots=True, kw_only=True)
class Record:
    """One process.

    Attributes:
        boot: the kernel's boot id.
        pid, start_time: the process; 0 while it is being made. `start_time` in clock ticks since boot.
        status: creating, created, running, paused or stopped.
        exit_status: 0-255; 255 with `exit_known` False where nobody could tell.
        keeper: pid, start time and descriptors of the keeper, or empty.
        init_only: of init's record: socket and shim_cgroup (of the supervisor), command, root, systemd_cgroup, rootfs
            (mounted); and checkpoint, of a task that is to be restored from one when it is started.
    """

    boot: str
    container: str
    exec_id: str = ""
    pid: int = 0
    start_time: int = 0
    status: str = CREATING
    exit_status: int = 0
    exited_at_ns: int = 0
    exit_known: bool = True
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False
    stdin_closed: bool = False
    keeper: dict[str, Any] = field(default_factory=dict)
    socket: str = ""
    shim_cgroup: str = ""
    command: str = ""
    root: str = ""
    systemd_cgroup: bool = False
    rootfs: bool = False
    shares_pids: bool = False
    io_uid: int = 0
    io_gid: int = 0
    no_pivot: bool = False
    criu_work_path: str = ""
    checkpoint: str = ""
    parent_checkpoint: str = ""
    version: int = VERSION

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Read a record; fields of a later release are left out.

        Raises:
            ValueError: it is no record.
        """
        loaded = json.loads(text)
        known = {one.name for one in fields(cls)}
        try:
            return cls(**{name: value for name, value in loaded.items() if name in known})
        except (AttributeError, TypeError) as error:
            raise ValueError(f"no record of a process: {error}") from error


def path(bundle: str, exec_id: str = "") -> str:
    """Where the record of a process lies."""
    return f"{bundle}/{DIRECTORY}/{f'exec-{exec_id}' if exec_id else 'init'}.json"


def write(bundle: str, record: Record) -> None:
    """Put a record in place, wholly or not at all.

    Raises:
        OSError: the disk is full, or the bundle has gone.
    """
    write_file(path(bundle, record.exec_id), record)


def write_file(place: str, record: Record) -> None:
    """As `write()`, anywhere; the directory is made."""
    directory, name = os.path.split(place)
    beside = f"{directory}/.{name}.new"  # which is no container's name, as `name` may be
    data = json.dumps(asdict(record), separators=(",", ":")).encode()
    try:
        fd = os.open(beside, _FLAGS, 0o600)
    except FileNotFoundError:
        os.mkdir(directory, 0o700)
        fd = os.open(beside, _FLAGS, 0o600)
    try:
        while data:  # a disk that is nearly full takes a part of it, and says so at the next
            data = data[os.write(fd, data) :]
        failpoints.reach("shim.record.written")
        os.rename(beside, place)
    except OSError as error:
        os.unlink(beside)
        raise OSError(error.errno, error.strerror, place) from error
    finally:
        os.close(fd)
    failpoints.reach("shim.record.renamed")


def bury(bundle: str, record: Record, place: str) -> None:
    """Put init's record elsewhere, from where its deletion goes on after a crash.

    On a full disk the file itself goes there, so that a task can be deleted; what it says of the exit may be older.

    Raises:
        OSError: neither can be done.
    """
    try:
        write_file(place, record)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        os.rename(path(bundle), place)


def read(place: str) -> Record | None:
    """The record at a path; None if there is none or it cannot be one."""
    try:
        with open(place, "rb") as file:
            return Record.from_json(file.read(_SIZE_LIMIT))
    except (OSError, ValueError):
        return None


def remove(bundle: str, exec_id: str) -> None:
    """Forget a process; one that has no record is success."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path(bundle, exec_id))
        failpoints.reach("shim.record.removed")


def read_all(bundle: str, boot: str) -> list[Record]:
    """All records of a bundle that belong to this boot, init first; empty if init has none."""
    init = read(path(bundle))
    if init is None or init.boot != boot:
        return []
    found = [init]
    for name in sorted(os.listdir(f"{bundle}/{DIRECTORY}")):
        if name.startswith("exec-") and name.endswith(".json"):
            record = read(f"{bundle}/{DIRECTORY}/{name}")
            if record is not None and record.boot == boot:
                found.append(record)
    return found


_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
