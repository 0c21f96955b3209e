"""A directory per snapshot, for snapshotters that keep files.

    <root>/<number>/fs       the snapshot's files
    <root>/<number>/work     beside it, what the snapshotter needs

The root and each `<number>` are 0700: an image's set-uid programs must not be within reach of the host's users (that
was CVE-2021-41103); a mount is entered without passing here. Numbers are short, and all directories of one snapshotter
have one parent, so that many of them fit into a page of mount options.
"""

import os
import stat
from pathlib import Path
from typing import Final

from orlop.base import failpoints
from orlop.core import trees
from orlop.core.mount.perform import unmount_below
from orlop.core.snapshots import Usage
from orlop.linux import files as kernel

FILES: Final = "fs"
WORK: Final = "work"
_BLOCK_BYTES: Final = 512  # unit of st_blocks, stat(3type)


class Directories:
    """Paths by number below `root`, which is made when it is missing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = f"{os.fspath(root)}/"

    def create_root(self) -> None:
        """Make the root; a mode that an administrator has set stays."""
        if not self.root.is_dir():
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def remove_scratch(self, prefix: str) -> None:
        """Remove what begins with `prefix`, and its mounts: who tried here what the kernel can was killed meanwhile."""
        for path in self.root.glob(f"{prefix}*"):
            unmount_below(os.fspath(path))
            if path.is_dir():
                trees.remove(path)
            else:
                path.unlink()

    def home(self, number: int) -> Path:
        """The snapshot's own directory."""
        return self.root / str(number)

    def files(self, number: int) -> str:
        """The directory that is mounted."""
        return f"{self._prefix}{number}/{FILES}"

    def work(self, number: int) -> str:
        """The directory beside it."""
        return f"{self._prefix}{number}/{WORK}"

    def make(self, number: int, *, work: bool, owner: tuple[int, int] | None = None) -> None:
        """Make the directories of a new snapshot, or nothing.

        Args:
            work: make `work` too.
            owner: uid and gid of `fs`, if not ours. Its mode is 0755, as containerd gives it.
        """
        home, files = f"{self._prefix}{number}", self.files(number)
        os.mkdir(home, 0o700)
        try:
            failpoints.reach("snapshots.prepare.made")
            os.mkdir(files, 0o755)
            os.chmod(files, 0o755)  # mkdir(2) has taken the umask off
            if work:
                os.mkdir(self.work(number), 0o700)
            if owner is not None:
                os.chown(files, *owner, follow_symlinks=False)
            failpoints.reach("snapshots.prepare.filled")
        except BaseException:
            for path in (self.work(number), files, home):
                if os.path.isdir(path):
                    os.rmdir(path)
            raise

    def lacks(self, number: int, *, work: bool) -> list[Path]:
        """Which of the directories that `make` makes are not there."""
        wanted = (self.files(number), *((self.work(number),) if work else ()))
        return [Path(path) for path in wanted if not os.path.isdir(path)]

    def complete(self, number: int, *, work: bool, owner: tuple[int, int] | None = None) -> None:
        """Make those that are not there, as `make` does."""
        for path in self.lacks(number, work=work):
            if path.name == WORK:
                path.mkdir(0o700)
                continue
            # In its place with its mode and owner, or not at all: a crash leaves `fs` missing.
            scratch = path.with_name(f".{FILES}")
            scratch.mkdir(0o755, exist_ok=True)
            scratch.chmod(0o755)
            if owner is not None:
                os.chown(scratch, *owner, follow_symlinks=False)
            scratch.rename(path)

    def is_fresh(self, number: int, owner: tuple[int, int] | None) -> bool:
        """Whether the files' directory is as `make` made it with that owner: empty, of that owner and mode."""
        path = self.files(number)
        found = os.stat(path)
        wanted = (0o755, *(owner or (os.geteuid(), os.getegid())))
        if (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) != wanted:
            return False
        with os.scandir(path) as entries:
            return next(entries, None) is None

    def numbers(self) -> list[int]:
        """Of every directory that is there; what is not named by a number is not ours."""
        with os.scandir(self.root) as entries:
            return [int(entry.name) for entry in entries if entry.name.isascii() and entry.name.isdecimal()]

    def locate(self, path: str) -> int | None:
        """The number of the snapshot that `path` is the `fs` directory of."""
        if not path.startswith(self._prefix):
            return None
        name, _, rest = path[len(self._prefix) :].partition("/")
        return int(name) if rest == FILES and name.isascii() and name.isdecimal() else None

    def sync(self) -> None:
        """Write everything out. One syncfs(2) is cheaper than an fsync(2) per file from a few dozen files on."""
        kernel.syncfs(self.root)


def exchange(one: Path, other: Path) -> None:
    """Let two directories change places, at once; on disk when the directory that holds them is synced.

    Raises:
        OSError: as renameat2(2).
    """
    kernel.exchange(one, other)


def usage(directory: str) -> Usage:
    """What a tree takes: allocated bytes and inodes, itself included, each file with several names once.

    Files that vanish meanwhile are not counted. Source: DiskUsage in containerd's continuity/fs.
    """
    size = inodes = 0
    seen: set[tuple[int, int]] = set()
    for status in trees.statuses(directory):
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            if identity in seen:
                continue
            seen.add(identity)
        inodes += 1
        size += status.st_blocks * _BLOCK_BYTES
    return Usage(size, inodes)
