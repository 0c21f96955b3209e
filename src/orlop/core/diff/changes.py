"""What turns one tree into another: a walk over both at once, in the order in which the changes can be applied.

The rules are those of containerd's double walk. Two things at one path are the same if type, mode, owner, device
number and the attributes that a layer keeps are equal, and, but for directories, size and modification time too. Times
that have no fraction of a second in both trees may have been cut by an archive, so there the content decides.

A layer of an overlay is a shortcut: what it does not name is as it is below, so the walk looks only at what it names.
It is a hint and nothing more, for everything is read through the merged tree; whiteouts, opaque directories and files
of which only the metadata was copied up need no knowledge here.

A tree may be in use. What vanishes under the walk is not there; what changes between two looks is seen as it was at one
of them.

Sources: doubleWalkDiff and sameFile in containerd/continuity's fs/diff.go and fs/path.go.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from orlop.core.diff.errors import EntryError, LimitError, shown

_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH_MAX: Final = 4096
_PIECE: Final = 1 << 17
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE})
_KEPT: Final = frozenset({"security.capability", "system.posix_acl_access", "system.posix_acl_default"})


class Kind(Enum):
    """How a path differs. UNMODIFIED is told only of what has several names, for one of them may be new."""

    ADDED = "added"
    MODIFIED = "modified"
    UNMODIFIED = "unmodified"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Change:
    """One path that differs.

    Attributes:
        path: from the root, without a leading slash.
        directory: descriptor of the directory in the upper tree that it is in; open until the next change is asked for.
        status: of what is there now; None for DELETED.
    """

    kind: Kind
    path: bytes
    directory: int = -1
    status: os.stat_result | None = None

    @property
    def name(self) -> bytes:
        """The last part of the path."""
        return self.path.rpartition(b"/")[2]


class _Level:
    """A directory that is being walked; -1 stands for a tree that has no such directory."""

    __slots__ = ("below", "changed", "lower", "names", "path", "upper")

    def __init__(self, path: bytes, upper: int, lower: int, changed: int) -> None:
        self.path = path
        self.upper = upper
        self.lower = lower
        self.changed = changed
        above, below = _names(upper), _names(lower)
        names = above | below
        if changed >= 0:
            names -= (above & below) - _names(changed)
        self.below = below
        self.names = iter(sorted(names))

    def close(self) -> None:
        for fd in (self.upper, self.lower, self.changed):
            if fd >= 0:
                os.close(fd)


def changes(upper: int, lower: int, changed: int = -1) -> Iterator[Change]:
    """What turns the tree `lower` into `upper`, parents before children, names in byte order.

    Args:
        upper, lower: descriptors of the two roots, which stay the caller's; -1 for an empty tree.
        changed: descriptor of the directory that overlayfs merges over `lower` to give `upper`, or -1.

    Raises:
        LimitError: a path is longer than the kernel takes.
        EntryError: something cannot be read; the cause is an OSError.
    """
    stack = [_Level(b"", *(os.dup(fd) if fd >= 0 else -1 for fd in (upper, lower, changed)))]
    try:
        while stack:
            level = stack[-1]
            name = next(level.names, None)
            if name is None:
                stack.pop().close()
                continue
            path = level.path + b"/" + name if level.path else name
            if len(path) >= _PATH_MAX:
                raise LimitError(f"{shown(path)} lies too deep")
            try:
                change, following = _look(path, name, level)
            except OSError as error:
                raise EntryError(path) from error
            if following is not None:
                stack.append(following)
            if change is not None:
                yield change
    finally:
        for level in stack:
            level.close()


def open_file(name: bytes, directory: int) -> int:
    """Open what was a regular file a moment ago, without waiting for anything if it is none any more."""
    return os.open(name, _OPEN_FILE, dir_fd=directory)


def open_directory(name: bytes, directory: int) -> int:
    """Open a directory, not a link to one."""
    return os.open(name, _OPEN_DIRECTORY, dir_fd=directory)


def is_gone(error: OSError) -> bool:
    """Whether what was there before is now something else or nothing."""
    return error.errno in _GONE


def attributes(fd: int) -> Mapping[bytes, bytes]:
    """The extended attributes that a layer keeps: the user's, access lists, and a program's capabilities.

    Others belong to a host (labels of SELinux, measurements) or to a file system (overlayfs's own).
    """
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    found = {}
    for name in names:
        if name in _KEPT or (name.startswith("user.") and not name.startswith("user.overlay.")):
            try:
                found[os.fsencode(name)] = os.getxattr(fd, name)
            except OSError as error:
                if error.errno != errno.ENODATA:  # removed meanwhile
                    raise
    return found


def _names(fd: int) -> set[bytes]:
    return set(map(os.fsencode, os.listdir(fd))) if fd >= 0 else set()


def _status(name: bytes, directory: int) -> os.stat_result | None:
    if directory < 0:
        return None
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _look(path: bytes, name: bytes, level: _Level) -> tuple[Change | None, _Level | None]:
    """What differs at one path, and the level below it where there is one to walk."""
    above = _status(name, level.upper)
    below = _status(name, level.lower) if name in level.below else None
    if above is None:
        return (Change(Kind.DELETED, path) if below is not None else None), None
    kind = Kind.ADDED if below is None else _compare(name, level, above, below)
    if kind is Kind.DELETED:
        return Change(kind, path), None
    directory = stat.S_ISDIR(above.st_mode)
    if kind is Kind.UNMODIFIED and (directory or above.st_nlink == 1):
        change = None
    else:
        change = Change(kind, path, level.upper, above)
    return change, _descend(path, name, level, below) if directory else None


def _descend(path: bytes, name: bytes, level: _Level, below: os.stat_result | None) -> _Level | None:
    """The level of a directory in the upper tree, or None if it has gone."""
    with contextlib.ExitStack() as undo:

        def opened(directory: int) -> int:
            fd = open_directory(name, directory)
            undo.callback(os.close, fd)
            return fd

        try:
            upper = opened(level.upper)
        except OSError as error:
            if is_gone(error):
                return None
            raise
        lower = opened(level.lower) if below is not None and stat.S_ISDIR(below.st_mode) else -1
        changed = -1
        if lower >= 0 and level.changed >= 0:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # then all of it is compared
                changed = opened(level.changed)
        following = _Level(path, upper, lower, changed)
        undo.pop_all()
        return following


def _compare(name: bytes, level: _Level, above: os.stat_result, below: os.stat_result) -> Kind:
    """MODIFIED, UNMODIFIED, or DELETED if it vanished while it was looked at."""
    if (above.st_dev, above.st_ino) == (below.st_dev, below.st_ino):
        return Kind.UNMODIFIED
    if (above.st_mode, above.st_uid, above.st_gid, above.st_rdev) != (
        below.st_mode,
        below.st_uid,
        below.st_gid,
        below.st_rdev,
    ):
        return Kind.MODIFIED
    directory = stat.S_ISDIR(above.st_mode)
    if not directory and (above.st_size, above.st_mtime_ns) != (below.st_size, below.st_mtime_ns):
        return Kind.MODIFIED
    doubtful = above.st_mtime_ns % 1_000_000_000 == 0
    try:
        if directory or stat.S_ISREG(above.st_mode):
            same = _same_contents(name, level, directory=directory, doubtful=doubtful)
        elif stat.S_ISLNK(above.st_mode) and doubtful:
            same = os.readlink(name, dir_fd=level.upper) == os.readlink(name, dir_fd=level.lower)
        else:
            same = True
    except OSError as error:
        if is_gone(error) and _status(name, level.upper) is None:
            return Kind.DELETED
        if not is_gone(error) and error.errno != errno.EINVAL:  # EINVAL: no link any more
            raise
        same = False
    return Kind.UNMODIFIED if same else Kind.MODIFIED


def _same_contents(name: bytes, level: _Level, *, directory: bool, doubtful: bool) -> bool:
    """Whether attributes, and if the times leave it in doubt the bytes, are equal."""
    opening = open_directory if directory else open_file
    above = opening(name, level.upper)
    try:
        below = opening(name, level.lower)
        try:
            if attributes(above) != attributes(below):
                return False
            return directory or not doubtful or _same_bytes(above, below)
        finally:
            os.close(below)
    finally:
        os.close(above)


def _same_bytes(one: int, other: int) -> bool:
    while True:
        data = os.read(one, _PIECE)
        if data != os.read(other, _PIECE):
            return False
        if not data:
            return True
