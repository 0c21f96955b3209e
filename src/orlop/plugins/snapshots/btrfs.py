"""Snapshots as btrfs subvolumes: a new one costs nothing and shares its parent's extents.

    <root>/<number>         a subvolume; read-only once committed

An active snapshot is a writable btrfs snapshot of its parent, a view a read-only one. Mounts name the subvolume, in
containerd's shape (its snapshotter plug-in of this name): type `btrfs`, the device, `subvolid=`. Skipped where the root
is not on btrfs.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orlop.base import failpoints
from orlop.base.errdefs import InternalError
from orlop.base.platforms import default_string
from orlop.core import trees
from orlop.core.kinds import SNAPSHOTTER
from orlop.core.mount import Mount
from orlop.core.plugin import Context, Registration, SkipPlugin
from orlop.core.snapshots import Kind, Snapshot, Snapshotter, Usage
from orlop.linux import btrfs, probe
from orlop.linux.files import syncfs
from orlop.linux.mount import mountinfo
from orlop.plugins.snapshots import root_of

NAME: Final = "btrfs"
_BLOCK_BYTES: Final = 512  # unit of st_blocks, stat(3type)


@dataclass(slots=True)
class Config:
    """The plug-in's section of the configuration."""

    root_path: str = ""


class Btrfs(Snapshotter):
    """Args:
    root: on btrfs; made if it is missing.
    """

    quick = frozenset({"mounts"})  # making one waits for a transaction of the file system

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root = os.fspath(root)
        self._device = _device(self._root)
        self.exports = {"root": self._root}

    def prepare(self, snapshot: Snapshot) -> None:
        name = str(snapshot.number)
        if snapshot.parents:
            parent = self._path(snapshot.parents[0])
            btrfs.snapshot(parent, self._root, name, read_only=snapshot.kind == Kind.VIEW)
            failpoints.reach("btrfs.prepare.copied")
        else:
            btrfs.create(self._root, name)
            failpoints.reach("btrfs.prepare.made")
            os.chmod(self._path(snapshot.number), 0o755)
            if snapshot.kind == Kind.VIEW:
                btrfs.set_read_only(self._path(snapshot.number), True)

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        if snapshot.kind == Kind.ACTIVE:
            # A commit may have been cut off, or have failed, when it had forbidden writing.
            btrfs.set_read_only(self._path(snapshot.number), False)
        options: tuple[str, ...] = (f"subvolid={btrfs.subvolume_id(self._path(snapshot.number))}",)
        if snapshot.kind == Kind.VIEW:
            options = (*options, "ro")
        return [Mount(type="btrfs", source=self._device, options=options)]

    def commit(self, snapshot: Snapshot) -> None:
        btrfs.set_read_only(self._path(snapshot.number), True)
        failpoints.reach("btrfs.commit.frozen")

    def usage(self, snapshot: Snapshot) -> Usage:
        parent = self._path(snapshot.parents[0]) if snapshot.parents else None
        return _difference(self._path(snapshot.number), parent)

    def place(self, number: int) -> Path:
        return Path(self._path(number))

    def opened(self, number: int) -> contextlib.AbstractContextManager[str]:
        return contextlib.nullcontext(self._path(number))

    def remove(self, number: int) -> None:
        _destroy(self._root, str(number))
        failpoints.reach("btrfs.remove.destroyed")

    def numbers(self) -> list[int]:
        with os.scandir(self._root) as entries:
            return [int(entry.name) for entry in entries if entry.name.isascii() and entry.name.isdecimal()]

    def sync(self, numbers: Sequence[int]) -> None:
        syncfs(self._root)

    def _path(self, number: int) -> str:
        return f"{self._root}/{number}"


def _device(path: str) -> str:
    """The device of the file system that `path` lies on.

    Raises:
        InternalError: the mount table does not show it.
    """
    real = os.path.realpath(path)
    best = None
    for entry in mountinfo():  # the last of those with the longest mount point is on top
        point = entry.mount_point.rstrip("/")
        if (real == point or real.startswith(f"{point}/")) and (best is None or len(point) >= len(best.mount_point)):
            best = entry
    if best is None or best.fs_type != "btrfs":
        raise InternalError(f"snapshotter btrfs: {real}: no mount of btrfs leads there")
    return best.source


def _difference(directory: str, parent: str | None) -> Usage:
    """What a subvolume takes by itself: files that are not the parent's, as inode, size and change time tell.

    A btrfs snapshot keeps inode numbers, and ctime cannot be set back. Directories count where they are new or changed.
    """
    known: set[tuple[int, int, int]] = set()
    if parent is not None:
        known = {_identity(status) for status in trees.statuses(parent)}
    size = inodes = 0
    seen: set[int] = set()
    for status in trees.statuses(directory):
        if _identity(status) in known or status.st_ino in seen:
            continue
        if not stat.S_ISDIR(status.st_mode):
            seen.add(status.st_ino)
        inodes += 1
        size += status.st_blocks * _BLOCK_BYTES
    return Usage(size, inodes)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_ctime_ns


def _destroy(directory: str, name: str) -> None:
    """Delete a subvolume and those that a container has made in it; one that is not there is no error."""
    try:
        btrfs.destroy(directory, name)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        path = os.path.join(directory, name)
        btrfs.set_read_only(path, False)
        for inner in _subvolumes(path):
            _destroy(os.path.dirname(inner), os.path.basename(inner))
        btrfs.destroy(directory, name)


def _subvolumes(path: str) -> Iterator[str]:
    """The nearest subvolumes below a directory."""
    device = os.lstat(path).st_dev
    pending = [path]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    continue
                status = entry.stat(follow_symlinks=False)
                if status.st_dev != device and status.st_ino == btrfs.BTRFS_FIRST_FREE_OBJECTID:
                    yield entry.path
                elif status.st_dev == device:
                    pending.append(entry.path)


def _init(context: Context) -> Btrfs:
    allowed = probe.mount_allowed()
    if not allowed:
        raise SkipPlugin(allowed.reason)
    root = Path(context.config.root_path) if context.config.root_path else root_of(context, NAME)
    nearest = next(path for path in (root, *root.parents) if path.is_dir())
    if not btrfs.is_btrfs(os.fspath(nearest)):
        raise SkipPlugin(f"path {root} must be a btrfs filesystem to be used with the btrfs snapshotter")
    snapshotter = Btrfs(root)
    context.exports.update(snapshotter.exports)
    context.platforms.append(default_string())
    return snapshotter


REGISTRATION: Final = Registration(kind=SNAPSHOTTER, id=NAME, config=Config, init=_init)
