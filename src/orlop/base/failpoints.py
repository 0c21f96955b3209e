"""Named places at which a test can end a process, fail a call or hold it: the crash matrix goes through all of them.

Code says `reach("content.commit.renamed")` right after (or, where the name says so, before) a write, sync, rename,
mount, spawn or commit. Without `ORLOP_FAILPOINTS` that is one test of a variable. With it, the variable names a
directory that only its owner may write to, and each passage is appended to `passed` there and looked up in `armed`:

    NAME ACTION [TIMES [PID...]]

ACTION is done when NAME is passed for the TIMES-th time (1 by default), by whatever process; who arms removes
`turns`, the count. ACTION is one of:

- `kill`: SIGKILL to each PID, and when all are dead, go on. `self`, the default, is the process that is here, `below`
  all that it and they have started.
- `error`: OSError(EIO), as from a failing disk: the call that the place stands behind says that it has failed, having
  done its work or not, or the next one does. `SOUND` has the places where neither can be.
- `hold`: wait until `armed` is gone or names another point.

What was done is appended to `done`. Names are in `POINTS`; a name that is not there is refused while tests look.
"""

import contextlib
import errno
import fcntl
import os
import time
from typing import Final

VARIABLE: Final = "ORLOP_FAILPOINTS"

POINTS: Final[dict[str, str]] = {
    "content.ingest.made": "the directory and the data file of an ingest, empty or cut to what counts",
    "content.ingest.noted": "how much of it is synced",
    "content.ingest.written": "a part of its data",
    "content.ingest.truncated": "its data, to nothing",
    "content.ingest.synced": "its data",
    "content.ingest.removed": "the ingest's directory, after the commit",
    "content.commit.renamed": "the data file, to the blob's place",
    "content.commit.synced": "the directory in which the blob is",
    "content.commit.taken-back": "the blob, back to its ingest, after a transaction that was refused",
    "content.commit.recorded": "the commit's transaction is durable; the ingest's directory is there",
    "content.remote.opened": "an ingest in another content store",
    "content.remote.written": "a part of its data",
    "content.remote.truncated": "its data, to nothing",
    "content.remote.committed": "the blob, there; no row",
    "content.remote.read": "a blob there is open",
    "content.remote.removed": "a blob, there; its row has gone before",
    "content.remote.aborted": "an ingest, there; its row has gone before",
    "metadata.migration.applied": "a migration's statements; not committed",
    "metadata.migration.committed": "one migration",
    "metadata.batch.applied": "a batch of writes; not committed",
    "metadata.batch.committed": "a batch of writes; no caller knows",
    "metadata.reserve.filled": "the space for deletions on a full disk is taken",
    "metadata.reserve.spent": "the space for deletions on a full disk is given up",
    "snapshots.prepare.made": "a snapshot's directory",
    "snapshots.prepare.filled": "what is in it; no row",
    "snapshots.commit.synced": "the files of a snapshot that is committed; its row is that of an active one",
    "snapshots.flush.synced": "the files of those that were committed before; their rows do not say so",
    "snapshots.layer.filled": "a layer that snapshots will have in common; no row",
    "snapshots.layer.recorded": "its row, and those of the active snapshots that refer to it",
    "snapshots.remove.freed": "what a snapshotter had beside the directory of a snapshot that has gone",
    "native.prepare.copied": "the files of the parent",
    "btrfs.prepare.copied": "a subvolume, of its parent; no row",
    "btrfs.prepare.made": "a subvolume; no row",
    "btrfs.commit.frozen": "a subvolume is read-only; its row is that of an active one",
    "btrfs.remove.destroyed": "a subvolume; its row has gone before",
    "erofs.layer.mounted": "a layer's image",
    "erofs.layer.unmounted": "a layer's image; the directory that it was mounted on is there",
    "unpack.arriving.made": "the directory of a layer that is unpacked while it arrives",
    "unpack.ahead.made": "the directory of a layer that is unpacked ahead of its turn",
    "unpack.ahead.moved": "a file of it, to its snapshot",
    "unpack.ahead.removed": "the directory of it",
    "unpack.worker.spawning": "before the process that jobs are forked from is spawned",
    "unpack.worker.spawned": "the process that jobs are forked from",
    "unpack.job.sent": "a job, to it",
    "unpack.job.told": "a job has said how far it is",
    "unpack.job.done": "a job has said that all is done; its process may live",
    "mounts.perform.made": "the directory of an activation",
    "mounts.perform.noted": "of what type a mount of it is to be; not mounted",
    "mounts.perform.mounted": "a mount of it",
    "mounts.remove.unmounted": "a mount of it",
    "mounts.remove.removed": "the directory of an activation; its row may have gone before",
    "task.bundle.made": "a bundle's directory",
    "task.bundle.filled": "all that is in it before a shim is asked for",
    "task.bundle.noted": "how the shim is reached, or something else that the next daemon reads",
    "task.bundle.hidden": "a bundle or work directory, out of sight, to be removed",
    "task.bundle.removed": "one that was hidden",
    "task.shim.spawning": "before a shim's program is spawned",
    "task.shim.spawned": "a shim's program, told to start a shim or to clean up after one",
    "task.shim.answered": "a shim's program has ended well",
    "task.shim.called": "a shim has answered a call; its caller has not been",
    "shim.launch.bound": "the socket of a supervisor that is to be started",
    "shim.launch.spawning": "before a supervisor is spawned",
    "shim.launch.spawned": "a supervisor",
    "shim.launch.noted": "its address, in the bundle",
    "shim.choice.tried": "an OCI runtime, with a container that may be there now",
    "shim.choice.written": "which OCI runtime is taken",
    "shim.record.written": "the record of a process, beside the one before",
    "shim.record.renamed": "the record of a process, in place",
    "shim.record.removed": "the record of a process",
    "shim.process.spawning": "before an OCI runtime or a keeper is spawned",
    "shim.process.spawned": "an OCI runtime or a keeper",
    "shim.rootfs.mounted": "a container's root file system",
    "shim.rootfs.unmounted": "a container's root file system",
    "shim.create.made": "a container; its record says that it is being made",
    "shim.start.started": "a container's process; its record says that it is to be started",
    "shim.exec.written": "what an exec is to run",
    "shim.exec.started": "an exec's process; its record says that it is to be started",
    "shim.checkpoint.dumped": "a container, by the OCI runtime",
    "shim.restore.restored": "a container, by the OCI runtime; its record says that it is to be restored",
    "shim.spec.written": "a spec that has been changed, beside that of the bundle",
    "shim.spec.renamed": "a spec that has been changed, in place",
    "shim.kill.signalled": "a signal, to a process",
    "shim.delete.removed": "a container, by the OCI runtime; its tombstone is there",
    "shim.delete.forgotten": "the tombstone of a container",
    "shim.sandbox.written": "the record of a sandbox, beside the one before",
    "shim.sandbox.renamed": "the record of a sandbox, in place",
    "shim.sandbox.removed": "the record of a sandbox",
    "overlayfs.probe.mounted": "an overlay by which the kernel is tried at the start",
    "erofs.probe.mounted": "an EROFS image and an overlay over it, by which the kernel is tried at the start",
    "trash.take.renamed": "what is deleted, into the trash; its transaction is not committed",
    "trash.recover.renamed": "what a lost transaction had taken, back to its place",
    "trash.empty.unlinked": "an entry of the trash; its row is there",
}
"""Name -> what has just happened when it is passed. A test holds it against the places in the code."""

FAILING: Final = frozenset(
    {"unpack.worker.spawning", "task.shim.spawning", "shim.launch.spawning", "shim.process.spawning"}
)
"""Where only an error tells something: who is killed there is killed at the point before."""

_OTHER_STORE: Final = "a socket: that the other store refuses, hangs or dies is in tests/interop/test_proxy_content.py"

SOUND: Final[dict[str, str]] = {
    "content.ingest.removed": "whatever stays of the directory is left for the next sweep",
    "content.commit.recorded": "the blob is there and recorded, and no file is written before the directory goes",
    "content.remote.opened": _OTHER_STORE,
    "content.remote.written": _OTHER_STORE,
    "content.remote.truncated": _OTHER_STORE,
    "content.remote.committed": _OTHER_STORE,
    "content.remote.read": _OTHER_STORE,
    "content.remote.removed": _OTHER_STORE,
    "content.remote.aborted": _OTHER_STORE,
    "metadata.batch.committed": "SQLite has said that it is durable",
    "snapshots.layer.recorded": "its transaction is durable, and nothing follows on the disk",
    "unpack.job.sent": "a socket: that the job dies is played by killing it",
    "unpack.job.told": "a socket: that the job dies is played by killing it",
    "unpack.job.done": "a socket: that the job dies is played by killing it",
    "unpack.worker.spawned": "a process; that there is none is played by unpack.worker.spawning",
    "task.shim.spawned": "a process; that there is none is played by task.shim.spawning",
    "task.shim.answered": "the answer is in memory",
    "task.shim.called": "a socket: that the supervisor dies is played by killing it",
    "shim.process.spawned": "a process; that there is none is played by shim.process.spawning",
    "shim.start.started": "only its record is written then, which is played by shim.record.written",
    "shim.kill.signalled": "a signal, and no file",
    "shim.record.renamed": "nothing follows; that the renaming fails is played by shim.record.written",
    "shim.sandbox.renamed": "nothing follows; that the renaming fails is played by shim.sandbox.written",
    "shim.delete.removed": "only its tombstone is unlinked then; that it fails is played by shim.process.spawning",
    "shim.delete.forgotten": "what cannot be unlinked is left for the namespace's next supervisor",
}
"""Name -> why an I/O error is no possible outcome there."""

_HOLD_S: Final = 0.005


def reach(name: str) -> None:
    """Say that the place `name` is passed; does nothing unless a test asked for it.

    Raises:
        OSError: EIO, if the test wants the call to fail here.
    """
    if _directory_fd is not None:
        _passed(_directory_fd, name)


def descriptor() -> int:
    """The directory's descriptor, for a process that closes all others but those that it needs; -1 if there is none."""
    return -1 if _directory_fd is None else _directory_fd


def _passed(directory_fd: int, name: str) -> None:
    if name not in POINTS:
        raise LookupError(f"fail point {name} is not in the table")
    action = _turn(directory_fd, name)
    if action is None:
        return
    verb, victims = action
    if verb == "error":
        raise OSError(errno.EIO, f"fail point {name}")
    if verb == "hold":
        while _armed(directory_fd)[:1] == [name]:
            time.sleep(_HOLD_S)
        return
    for victim in victims:
        if victim == "below":
            _kill_below(os.getpid())
        elif victim != "self":
            _kill(int(victim))
    if not victims or "self" in victims:
        os.kill(os.getpid(), 9)


def _turn(directory_fd: int, name: str) -> tuple[str, list[str]] | None:
    """Record the passage; what is to be done if it is this one's turn."""
    lock_fd = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        _append(directory_fd, "passed", name)
        armed = _armed(directory_fd)
        if armed[:1] != [name]:
            return None
        times = int(armed[2]) if len(armed) > 2 else 1
        if _append(directory_fd, "turns", name) != times * (len(name) + 1):
            return None
        _append(directory_fd, "done", f"{name} {armed[1]}")
        return armed[1], armed[3:]
    finally:
        os.close(lock_fd)


def _append(directory_fd: int, file: str, line: str) -> int:
    """Returns the size of the file, bytes."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
    try:
        os.write(fd, f"{line}\n".encode())
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def _armed(directory_fd: int) -> list[str]:
    try:
        fd = os.open("armed", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    except FileNotFoundError:
        return []
    try:
        return os.read(fd, 4096).decode().split()
    finally:
        os.close(fd)


def _kill(pid: int) -> None:
    import select
    import signal  # late: its enums take milliseconds, and a shim's program is started for each container

    with contextlib.suppress(ProcessLookupError):
        pid_fd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pid_fd, signal.SIGKILL)
            select.select([pid_fd], [], [])
        finally:
            os.close(pid_fd)


def _kill_below(ancestor: int) -> None:
    """Its descendants, parents first, or they might start others."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit():
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    pending = children.get(ancestor, [])
    while pending:
        pid = pending.pop()
        _kill(pid)
        pending += children.get(pid, [])


def _open() -> int | None:
    path = os.environ.get(VARIABLE)
    return os.open(path, os.O_DIRECTORY | os.O_RDONLY | os.O_CLOEXEC) if path else None


_directory_fd: Final = _open()
