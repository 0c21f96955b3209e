"""Directory trees of any depth and width, walked and removed by descriptors.

A layer's archive, or a program in a container, can nest directories deeper than a path can be long (PATH_MAX), than
Python recurses, and than a process may open files. `shutil.rmtree` and `os.walk` fail there. Links are never followed.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import Final

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LONG: Final = 2048  # bytes of a relative path after which a new base is opened; PATH_MAX is 4096

Stop = Callable[[], bool]
"""Asked before each directory whether to leave the rest."""

Removed = Callable[[os.stat_result], object]
"""Told the status that each thing had before it was removed."""


class StoppedError(Exception):
    """A removal was stopped; some of the tree is there."""


def remove(path: str | os.PathLike[str] | bytes, *, stop: Stop | None = None) -> None:
    """Remove a directory with all that is in it.

    Raises:
        StoppedError: `stop` said so.
        OSError: NotADirectoryError for anything else; EXDEV if something is mounted inside, whose files stay;
            what else unlink(2) and rmdir(2) may say. What was removed before is gone.
    """
    fd = os.open(path, _OPEN)
    try:
        remove_inside(fd, stop=stop)
    finally:
        os.close(fd)
    os.rmdir(path)


def remove_inside(fd: int, removed: Removed | None = None, *, stop: Stop | None = None) -> None:
    """Empty the directory behind `fd`, which stays open; nobody else may move directories in it meanwhile.

    Each directory is read once and two descriptors are open at a time: down by name, up by "..".

    Raises:
        OSError, StoppedError: as `remove`.
    """
    mount = _mount_of(fd)
    here = os.open(".", _OPEN, dir_fd=fd)
    levels: list[tuple[bytes, tuple[int, int], list[bytes]]] = []  # name, identity of the parent, its other directories
    try:
        below = _unlink_files(here, removed)
        while True:
            if stop is not None and stop():
                raise StoppedError
            if below:
                name = below.pop()
                try:
                    inner = os.open(name, _OPEN, dir_fd=here)
                except FileNotFoundError:
                    continue
                parent = os.fstat(here)
                os.close(here)
                here = inner
                if _mount_of(here) != mount:
                    raise OSError(errno.EXDEV, "something is mounted inside", os.fsdecode(name))
                levels.append((name, (parent.st_dev, parent.st_ino), below))
                below = _unlink_files(here, removed)
            elif levels:
                name, identity, below = levels.pop()
                status = os.fstat(here)
                outer = os.open("..", _OPEN, dir_fd=here)
                os.close(here)
                here = outer
                found = os.fstat(here)
                if (found.st_dev, found.st_ino) != identity:
                    raise OSError(errno.ESTALE, "the directory was moved meanwhile", os.fsdecode(name))
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(name, dir_fd=here)
                    if removed is not None:
                        removed(status)
            else:
                return
    finally:
        os.close(here)


def statuses(directory: str | os.PathLike[str]) -> Iterator[os.stat_result]:
    """The status of a directory and of everything in it; what vanishes meanwhile is left out."""
    yield os.lstat(directory)
    pending: list[tuple[_Base | None, str]] = [(None, os.fspath(directory))]
    while pending:
        base, path = pending.pop()
        try:
            fd = os.open(path, _OPEN, dir_fd=None if base is None else base.fd)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if len(os.fsencode(path)) > _LONG:
            base, path = _Base(fd), "."
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    try:
                        yield entry.stat(follow_symlinks=False)
                        if entry.is_dir(follow_symlinks=False):
                            pending.append((base, f"{path}/{entry.name}"))
                    except FileNotFoundError:
                        continue
        finally:
            if base is None or base.fd != fd:
                os.close(fd)


class _Base:
    """A descriptor that is closed when the last path relative to it has been dealt with."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


def _mount_of(fd: int) -> tuple[str, int]:
    """Which mount a descriptor is on: its id, for a bind mount has its device in common with what it lies on, and a
    subvolume of btrfs a device of its own; where there is no /proc, the device."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
            for line in file:
                if line.startswith(b"mnt_id:"):
                    return "mount", int(line.split()[1])
    except OSError:  # in an unpack worker's own root, say, where nothing can be mounted
        pass
    return "device", os.fstat(fd).st_dev


def _unlink_files(fd: int, removed: Removed | None) -> list[bytes]:
    """Remove all but directories; the names of those."""
    below = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below.append(os.fsencode(entry.name))
                continue
            with contextlib.suppress(FileNotFoundError):  # somebody else removes the same tree
                status = entry.stat(follow_symlinks=False) if removed is not None else None
                os.unlink(entry.name, dir_fd=fd)
                if removed is not None and status is not None:
                    removed(status)
    return below
