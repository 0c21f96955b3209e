"""Copying a directory tree as it is: owners, modes, times, extended attributes, hard links, devices, holes.

File contents are shared where the file system can (reflink), else copied inside the kernel, extent by extent. The
source must not change meanwhile; a committed snapshot does not. Links are copied and never followed.
"""

import contextlib
import errno
import os
import stat
from typing import Final

from orlop.linux.files import reflink

_CHUNK: Final = 1 << 30
# Labels of a security module cannot be set where it is not loaded or forbids it (moby/buildkit#1189); it relabels then.
_UNSETTABLE: Final = frozenset({errno.EPERM, errno.EACCES, errno.EOPNOTSUPP})


def copy_tree(source: str, target: str) -> None:
    """Make the existing, empty directory `target` equal to `source`, all inside it included.

    Raises:
        OSError: from the step that failed, with its path; what has been copied stays.
    """
    _Copy().directory(source, target)


class _Copy:
    """State of one copy: which files with several names have been copied, and whether to try sharing extents."""

    def __init__(self) -> None:
        self._linked: dict[tuple[int, int], str] = {}
        self._shares = True

    def directory(self, source: str, target: str) -> None:
        """Copy depth first, without recursion; a directory's times are set when nothing will be made in it any more."""
        finished: list[tuple[str, str]] = []
        pending = [(source, target)]
        while pending:
            here, there = pending.pop()
            finished.append((here, there))
            with os.scandir(here) as entries:
                for entry in entries:
                    copy = f"{there}/{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        os.mkdir(copy, 0o700)
                        pending.append((entry.path, copy))
                    else:
                        self._entry(entry.path, copy)
        for here, there in reversed(finished):
            _copy_attributes(here, there, os.lstat(here))

    def _entry(self, source: str, target: str) -> None:
        status = os.lstat(source)
        if status.st_nlink > 1:
            identity = (status.st_dev, status.st_ino)
            first = self._linked.setdefault(identity, target)
            if first != target:
                os.link(first, target, follow_symlinks=False)
                return
        if stat.S_ISREG(status.st_mode):
            self._contents(source, target, status)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(source), target)
        else:  # devices, FIFOs, sockets
            os.mknod(target, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev)
        _copy_attributes(source, target, status)

    def _contents(self, source: str, target: str, status: os.stat_result) -> None:
        with contextlib.ExitStack() as undo:
            here = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            undo.callback(os.close, here)
            there = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            undo.callback(os.close, there)
            if status.st_size and not self._share(here, there):
                _copy_extents(here, there, status.st_size)

    def _share(self, here: int, there: int) -> bool:
        if not self._shares:
            return False
        try:
            reflink(here, there)
        except OSError:
            # Not on this file system, then not for the next file either; and why else it may fail, copying will tell.
            self._shares = False
            return False
        return True


def _copy_extents(here: int, there: int, size: int) -> None:
    """Copy what is not a hole, and set the size, so that holes stay holes."""
    os.ftruncate(there, size)
    end = 0
    while True:
        try:
            start = os.lseek(here, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data any more
                return
            raise
        end = os.lseek(here, start, os.SEEK_HOLE)
        while start < end:
            copied = os.copy_file_range(here, there, min(end - start, _CHUNK), start, start)
            if not copied:  # truncated meanwhile
                return
            start += copied


def _copy_attributes(source: str, target: str, status: os.stat_result) -> None:
    """Owner, extended attributes, mode and times, in this order: chown(2) takes away set-uid bits and capabilities."""
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    for name in _attribute_names(source):
        try:
            os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
        except OSError as error:
            is_label = name.startswith("security.") and name != "security.capability"
            if not is_label or error.errno not in _UNSETTABLE:
                raise
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def _attribute_names(path: str) -> list[str]:
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:  # a file system without any
            return []
        raise
