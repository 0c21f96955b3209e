"""What rows and files of a daemon say: a picture to compare with another, and what must hold in any."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from orlop.base.labels import UNCOMPRESSED
from orlop.core.diff.ahead import PREFIX
from orlop.core.snapshots.rebuilding import REPLACED
from orlop.core.snapshots.rows import bytes_of
from orlop.plugins.snapshots.erofs import IMAGE
from tools import residue
from tools.crash.stage import EXPIRE, NAMESPACE, Stage

SETTLE_S: Final = 20.0
"""How long after a start a sweep may take: the machine may be busy."""

# Those of times, and what counts up.
_LEFT_OUT: Final = frozenset(
    {"created_at", "updated_at", "used_at", "completed_at", "synced_at", "owner_uid", "key"}
) | {"number", "active", "system"}
# What overlayfs notes of inodes, whose numbers differ from run to run.
_INODES: Final = frozenset({"trusted.overlay.origin", "trusted.overlay.impure", "trusted.overlay.uuid"})
_TABLES: Final = ("namespaces", "images", "containers", "sandboxes", "content", "ingests", "leases", "mounts")

RUNTIME_LOG: Final = "log.json"
BUNDLES: Final = "io.containerd.runtime.v2.task"
MOUNTS: Final = "io.containerd.mount-manager.v1.bolt/t"

Picture = Mapping[str, str]
"""Name of a thing -> what is to be said of it."""


def picture(stage: Stage) -> Picture:
    """All that users own, without times, numbers, leases that expire, and what unpackers note on blobs for others."""
    found: dict[str, str] = {}
    with stage.database() as db:
        for table in _TABLES:
            for row in db.execute(f"SELECT * FROM {table}"):
                values = {name: _plain(row[name]) for name in row.keys() if name not in _LEFT_OUT}  # noqa: SIM118
                if EXPIRE in row["labels"]:
                    continue
                values["labels"].pop(UNCOMPRESSED, None)
                name = next(str(values[key]) for key in ("ref", "digest", "id", "name") if key in values)
                found[f"{table} {values.get('namespace', '')} {name}"] = json.dumps(values, sort_keys=True)
        rows = {row["number"]: row for row in db.execute("SELECT * FROM snapshots")}
        for row in rows.values():
            parent = rows[row["parent"]]["name"] if row["parent"] else ""
            home = stage.snapshots(row["snapshotter"]) / str(bytes_of(row))
            said = {"parent": parent, "kind": row["kind"], "labels": _plain(row["labels"]), "files": tree(home)}
            found[f"snapshot {row['namespace']} {row['snapshotter']} {row['name']}"] = json.dumps(said, sort_keys=True)
    return found


def differences(one: Picture, other: Picture) -> list[str]:
    """What is not the same in two pictures."""
    return [
        f"{name}: {one.get(name, 'nothing')} / {other.get(name, 'nothing')}"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]


def settled(stage: Stage, *, empty: bool = False, ahead: bool = False, timeout_s: float = SETTLE_S) -> list[str]:
    """What is wrong with rows and files, waiting for what a sweep is about to take away.

    Args:
        empty: all was deleted, so that nothing may be there at all.
        ahead: what was unpacked ahead may be there, as it is kept a while for a client that comes again.
    """
    deadline = time.monotonic() + timeout_s
    while found := [one for one in _problems(stage, empty=empty) if not (ahead and PREFIX in one)]:
        if time.monotonic() > deadline:
            return found
        time.sleep(0.05)
    return []


def _problems(stage: Stage, *, empty: bool) -> Iterator[str]:
    root = stage.daemon.root
    with stage.database() as db:
        blobs = {row["digest"] for row in db.execute("SELECT digest FROM blobs")}
        ingests = {row["key"] for row in db.execute("SELECT key FROM ingests")}
        snapshots = {(row["snapshotter"], str(bytes_of(row))) for row in db.execute("SELECT * FROM snapshots")}
        layers = {(row["snapshotter"], str(row["number"])) for row in db.execute("SELECT * FROM layers")}
        referred = {str(row["layer"]) for row in db.execute("SELECT layer FROM snapshots WHERE layer IS NOT NULL")}
        trash = [row["path"] for row in db.execute("SELECT path FROM trash")]
        mounts = {str(row["number"]) for row in db.execute("SELECT number FROM mounts")}
    yield from (f"a row of the trash: {path}" for path in trash)
    yield from (f"in the trash: {name}" for name in _names(root / "trash"))
    files = _blobs(stage)
    yield from (f"a row without bytes: {digest}" for digest in blobs - files)
    yield from (f"bytes without a row: {digest}" for digest in files - blobs)
    yield from (f"not the bytes of its digest: {digest}" for digest in files & blobs if not _is_whole(stage, digest))
    yield from (f"an ingest without a row: {key}" for key in _ingests(stage) - ingests)
    directories = {
        (snapshotter, name)
        for snapshotter in {*_names(root / "snapshots"), "btrfs"}
        for name in _names(stage.snapshots(snapshotter))
        if name.startswith(".") or name.isdecimal()
    }
    snapshots |= layers
    yield from (f"a layer that no snapshot consists of: {one}" for one in layers if one[1] not in referred)
    yield from (f"a snapshot without a directory: {one}" for one in snapshots - directories)
    yield from (f"a snapshot's directory without a row: {one}" for one in directories - snapshots)
    yield from (f"mounts without a row: {name}" for name in set(_names(stage.daemon.state / MOUNTS)) - mounts)
    yield from _strays(stage, empty=empty)
    if empty:
        yield from (f"was deleted and is there: {one}" for one in [*blobs, *ingests, *snapshots, *mounts])


def _strays(stage: Stage, *, empty: bool) -> Iterator[str]:
    """Processes, mounts, cgroups and files that nobody answers for."""
    with stage.database() as db:
        layers = {str(bytes_of(row)) for row in db.execute("SELECT * FROM snapshots WHERE snapshotter = 'erofs'")}
    known = {os.fspath(stage.daemon.root)}
    known |= {f"{stage.daemon.root}/snapshots/erofs/mounted/{number}" for number in layers}
    with stage.database() as db:
        numbers = [str(row["number"]) for row in db.execute("SELECT number FROM mounts")]
    activations = tuple(f"{stage.daemon.state}/{MOUNTS}/{number}/" for number in numbers)
    bundles = list((stage.daemon.state / BUNDLES).glob("*/*"))
    known.update(f"{bundle}/rootfs" for bundle in bundles)
    found = residue.find(stage.daemon.directory)
    yield from (
        f"a mount: {target}" for target in found.mounts if target not in known and not target.startswith(activations)
    )
    if bundles:
        return  # whose processes, cgroups and files these are cannot be told here
    supervisors = stage.supervisors()
    for pid, command in found.processes.items():
        if pid not in supervisors and not _is_below(pid, stage.daemon.pid):
            yield f"a process: {pid}: {command}"
    yield from (f"a cgroup: {path}" for path in residue.cgroups() if f"/{NAMESPACE}/" in path)
    yield from (f"a work directory: {path}" for path in (stage.daemon.root / BUNDLES).glob("*/*"))
    sockets = stage.daemon.state / "s"
    left = [*sockets.glob("*.sandboxes/*"), *sockets.glob("*.gone/*")]
    if empty:  # these are for the namespace's next supervisor to take away, at the latest when it makes a task
        left += sockets.glob("orlop-probe-*")
    yield from (f"left by a supervisor: {path}" for path in left if path.name != RUNTIME_LOG)


def tree(directory: Path) -> str:
    """A hash over everything in a directory: names, kinds, modes, owners, attributes, links, bytes."""
    state = hashlib.sha256()
    if not directory.is_dir():
        return "none"
    for parent, folders, files in os.walk(directory):
        # What was unpacked again while it was in use keeps beside it what it was.
        folders[:] = sorted(name for name in folders if not name.startswith(REPLACED))
        for name in sorted([*folders, *files]):
            path = Path(parent) / name
            found = path.lstat()
            said: list[object] = [path.relative_to(directory), found.st_mode, found.st_uid, found.st_gid, found.st_rdev]
            if stat.S_ISLNK(found.st_mode):
                said.append(os.readlink(path))
            elif name == IMAGE:
                said.append(found.st_size)  # a time is in it
            elif stat.S_ISREG(found.st_mode):
                said += [found.st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
            names = sorted(set(os.listxattr(path, follow_symlinks=False)) - _INODES)
            said += [(one, os.getxattr(path, one, follow_symlinks=False)) for one in names]
            state.update(repr(said).encode())
    return state.hexdigest()[:16]


def _plain(value: Any) -> Any:
    """A column's value; of JSON what it says and not how. Any: SQLite's."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str) and value.startswith("{"):
        return json.loads(value)
    return value


def _blobs(stage: Stage) -> set[str]:
    if stage.elsewhere is not None:
        return stage.elsewhere.blobs()
    blobs = stage.daemon.root / "content/blobs"
    return {f"{algorithm}:{name}" for algorithm in _names(blobs) for name in _names(blobs / algorithm)}


def _ingests(stage: Stage) -> set[str]:
    return set(_names(stage.daemon.root / "content/ingest")) if stage.elsewhere is None else stage.elsewhere.ingests()


def _is_whole(stage: Stage, digest: str) -> bool:
    if stage.elsewhere is not None:
        return stage.elsewhere.is_whole(digest)
    algorithm, _, name = digest.partition(":")
    try:
        with open(stage.daemon.root / "content/blobs" / algorithm / name, "rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest() == name
    except FileNotFoundError:
        return True  # deleted meanwhile; told as a row without bytes if it was not


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _is_below(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        try:
            status = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return True  # it has ended
        pid = int(status.rsplit(b")", 1)[1].split()[1])
    return False
