"""Changes as a layer: an archive in image-spec's form, as containerd's ChangeWriter writes it.

Deleted is an empty file `.wh.<name>`. Nothing is opaque: image-spec asks who makes layers for explicit whiteouts. A
changed entry's directories come before it, once each, so that who applies the layer knows their owner and mode. Further
names of a file are links to its first one, also those that were there before. Times are whole seconds, no names of
users are recorded, sockets are left out.

Sources: image-spec's layer.md; ChangeWriter in containerd's pkg/archive/tar.go.
"""

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from orlop.core.diff import tar
from orlop.core.diff.changes import Change, Kind, attributes, is_gone, open_directory, open_file
from orlop.core.diff.errors import ArchiveError, LimitError
from orlop.core.diff.tarwriter import END, Header, encode

WHITEOUT: Final = b".wh."
MAX_SIZE: Final = 1 << 40
"""Bytes of an uncompressed layer, as much as `apply` takes."""

_WHOLE: Final = 1 << 20  # bytes up to which a file is read before its header is written
_PIECE: Final = 1 << 20
_TYPES: Final = {
    stat.S_IFREG: tar.REGULAR,
    stat.S_IFDIR: tar.DIRECTORY,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFCHR: tar.CHARACTER,
    stat.S_IFBLK: tar.BLOCK_DEVICE,
    stat.S_IFIFO: tar.FIFO,
}


class ChangedError(Exception):
    """A file of a tree in use became another while it was read, too late to leave it out."""


class Layer:
    """Writes one archive.

    Args:
        write: takes the archive's bytes, in order.
        root: descriptor of the upper tree's root, stays the caller's; -1 for an empty tree.
        epoch: nanoseconds since 1970 beyond which no modification time goes, or None.

    Attributes:
        current: path at work, for whoever reports a failure.
        size: bytes written.
        entries: headers written.
    """

    def __init__(self, write: Callable[[bytes], object], root: int, *, epoch: int | None = None) -> None:
        self._write = write
        self._root = root
        self._epoch = epoch
        self._directories: set[bytes] = {b""}
        self._first: dict[tuple[int, int], bytes] = {}
        self._waiting: dict[tuple[int, int], list[bytes]] = {}
        self.current: bytes | None = None
        self.size = 0
        self.entries = 0

    def add(self, change: Change) -> None:
        """Write what one change takes; changes come in the order of `changes`.

        Raises:
            ArchiveError: the name means something else in a layer, or the layer becomes too large (LimitError).
            ChangedError: see there.
            OSError: something cannot be read.
        """
        self.current = change.path
        if change.status is None:
            self._delete(change.path)
            return
        try:
            self._entry(change, change.status)
        except OSError as error:
            if not is_gone(error):
                raise
            if change.kind is not Kind.ADDED:  # it has vanished since it was listed
                self._delete(change.path)

    def finish(self) -> None:
        """Write the archive's end."""
        self._put(END)

    def _entry(self, change: Change, status: os.stat_result) -> None:
        kind = _TYPES.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            return  # a socket
        if kind == tar.REGULAR:
            self._regular(change)
        elif kind == tar.DIRECTORY:
            fd = open_directory(change.name, change.directory)
            try:
                self._directory(change.path, fd)
            finally:
                os.close(fd)
        else:
            header = self._header(change.path, status, kind)
            if kind == tar.SYMLINK:
                header.link = os.readlink(change.name, dir_fd=change.directory)
            elif kind != tar.FIFO:
                header.major, header.minor = os.major(status.st_rdev), os.minor(status.st_rdev)
            self._named(header, status, change.kind)

    def _regular(self, change: Change) -> None:
        fd = open_file(change.name, change.directory)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ChangedError("it was a regular file a moment ago")
            header = self._header(change.path, status, tar.REGULAR, attributes(fd))
            header.size = status.st_size
            self._named(header, status, change.kind, fd)
        finally:
            os.close(fd)

    def _named(self, header: Header, status: os.stat_result, kind: Kind, fd: int | None = None) -> None:
        """Write something that can have several names: the first as it is, the others as links to it."""
        if status.st_nlink < 2:
            if kind is not Kind.UNMODIFIED:
                self._emit(header, fd)
            return
        inode = (status.st_dev, status.st_ino)
        first = self._first.get(inode)
        if first is not None:
            self._link(header, header.name, first)
        elif kind is Kind.UNMODIFIED:
            self._waiting.setdefault(inode, []).append(header.name)
        else:
            self._first[inode] = header.name
            self._emit(header, fd)
            for name in self._waiting.pop(inode, ()):
                self._link(header, name, header.name)

    def _link(self, header: Header, name: bytes, first: bytes) -> None:
        self._emit(replace(header, name=name, type=tar.LINK, link=first, size=0))

    def _delete(self, path: bytes) -> None:
        head, slash, name = path.rpartition(b"/")
        _check(head)
        self._parents(path)
        self._put(encode(Header(name=head + slash + WHITEOUT + name, type=tar.REGULAR)))
        self.entries += 1

    def _directory(self, path: bytes, fd: int) -> None:
        _check(path)
        self._parents(path)
        self._directories.add(path)
        self._put(encode(self._header(path, os.fstat(fd), tar.DIRECTORY, attributes(fd))))
        self.entries += 1

    def _parents(self, path: bytes) -> None:
        """Write the directories above `path` that the archive has not yet."""
        missing = []
        while (path := path.rpartition(b"/")[0]) not in self._directories:
            missing.append(path)
        for path in reversed(missing):
            try:
                fd = self._open(path)
            except OSError as error:
                if is_gone(error):
                    return  # the entry stands without them; who applies it makes them
                raise
            try:
                self._directory(path, fd)
            finally:
                os.close(fd)

    def _open(self, path: bytes) -> int:
        """A directory of the upper tree, no link on the way."""
        fd = os.dup(self._root)
        for name in path.split(b"/"):
            try:
                following = open_directory(name, fd)
            finally:
                os.close(fd)
            fd = following
        return fd

    def _header(
        self, path: bytes, status: os.stat_result, kind: int, xattrs: Mapping[bytes, bytes] | None = None
    ) -> Header:
        mtime = status.st_mtime_ns if self._epoch is None else min(status.st_mtime_ns, self._epoch)
        return Header(
            name=path + b"/" if kind == tar.DIRECTORY else path,
            type=kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            mtime=mtime // 1_000_000_000,
            xattrs=xattrs or {},
        )

    def _emit(self, header: Header, fd: int | None = None) -> None:
        """Write a header, the directories above it, and what `fd` has as its data."""
        _check(header.name)
        if not header.size or fd is None:
            self._parents(header.name)
            self._put(encode(header))
        elif header.size <= _WHOLE:
            # Its size is what could be read: a file that shrinks meanwhile still gives an entry that is right.
            data = _read(fd, header.size)
            header.size = len(data)
            self._parents(header.name)
            self._put(encode(header) + data + bytes(-len(data) % tar.BLOCK))
        else:
            self._parents(header.name)
            self._put(encode(header))
            self._copy(fd, header.size)
        self.entries += 1

    def _copy(self, fd: int, size: int) -> None:
        left = size
        while left:
            data = os.read(fd, min(left, _PIECE))
            if not data:
                raise ChangedError(f"it shrank from {size} to {size - left} bytes while it was read")
            left -= len(data)
            self._put(data)
        self._put(bytes(-size % tar.BLOCK))

    def _put(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > MAX_SIZE:
            raise LimitError(f"the layer has more than {MAX_SIZE} bytes")
        if data:
            self._write(data)


def _check(path: bytes) -> None:
    if path.startswith(WHITEOUT) or b"/" + WHITEOUT in path:
        raise ArchiveError('a name that begins with ".wh." would delete another when the layer is applied', path)


def _read(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    while len(data) < size and (more := os.read(fd, size - len(data))):
        data += more
    return data
