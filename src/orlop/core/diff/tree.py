"""The tree that a layer is extracted into, walked by descriptors so that no name ever leaves it.

Every step is an open relative to a directory's descriptor with O_NOFOLLOW, and links are resolved by `resolving`, not
by the kernel. So it holds whether or not the process is locked into the tree as well.

With lower layers (an overlay's upper directory is written, the layers below are seen through `lower_fd`), a directory
that exists below only is made in the tree with the lower one's owner, mode, attributes and times, and a link below is
followed inside the merged view: what a write through the mounted overlay would have done, at the price of a plain one.

A layer of an overlay can also be extracted before anything is known of those below it (`alone`). Whatever would have
to be looked up there is refused then; what is not refused comes out the same.

Directories stay open in a cache, by the name used in the archive and by their real path. Nobody but this process
changes the tree meanwhile.
"""

import errno
import os
import stat
from typing import Final

from orlop.core import trees
from orlop.core.diff.errors import ArchiveError, LimitError, shown
from orlop.core.diff.resolving import Place, Resolver

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_DIRECTORY: Final = (errno.ENOTDIR, errno.ELOOP)


class Directory(Place):
    """An open directory of the tree.

    Attributes:
        fd: its descriptor.
        lower: descriptor of the directory that it is merged with, or -1.
        inherits: whether what is made inside takes the directory's group (set-group-ID).
    """

    __slots__ = ("fd", "inherits", "lower")

    def __init__(self, fd: int, lower: int, path: bytes, inherits: bool) -> None:
        super().__init__(path)
        self.fd = fd
        self.lower = lower
        self.inherits = inherits


class Tree(Resolver[Directory]):
    """A root directory with its cache.

    Args:
        root_fd: the root; stays the caller's.
        lower_fd: root of the merged lower layers, or -1; stays the caller's.
        layered: whether this is to be a layer of an overlay, in which "deleted" is written as overlayfs does.
        open_limit: directories to keep open at most (each may take two descriptors).
        alone: there will be layers below that are not known now.
        always_inherits: the file system gives the parent's group to what is made in it (mount option grpid).

    Attributes:
        lower_fd: root of the merged lower layers, or -1.
        opaque: real paths of directories that hide what is below them.
        times: access and modification times in nanoseconds that directories get at the end, by real path.
        inodes, bytes: what has been made and not removed again, in blocks of the file system.
    """

    def __init__(
        self,
        root_fd: int,
        lower_fd: int = -1,
        *,
        layered: bool | None = None,
        open_limit: int = 1000,
        alone: bool = False,
        always_inherits: bool = False,
    ) -> None:
        self._alone = alone
        self._always_inherits = always_inherits
        self._open_limit = open_limit
        self.lower_fd: Final = lower_fd
        status = os.fstat(root_fd)
        super().__init__(Directory(root_fd, lower_fd, b"", always_inherits or bool(status.st_mode & stat.S_ISGID)))
        self.layered: Final = lower_fd >= 0 if layered is None else layered
        self._retired: list[Directory] = []
        self.opaque: set[bytes] = set()
        self.times: dict[bytes, tuple[int, int]] = {}
        self.block = os.fstatvfs(root_fd).f_frsize or 4096
        self.inodes = 1
        self.bytes = self.block

    def close(self) -> None:
        """Close what is open, the roots excepted."""
        self.forget()
        self.trim()

    def real(self, path: bytes) -> Directory | None:
        """The directory at a real path, or None if there is none any more."""
        pending: list[bytes] = []
        while (found := self._real.get(path)) is None:
            path, _, name = path.rpartition(b"/")
            pending.append(name)
        while pending:
            name = pending.pop()
            try:
                fd = os.open(name, _OPEN_DIRECTORY, dir_fd=found.fd)
            except OSError as error:
                if error.errno in (errno.ENOENT, *_NO_DIRECTORY):
                    return None
                raise
            found = self._adopt(found, name, fd)
        return found

    def trim(self) -> None:
        """Between two entries, when no directory is in use: close what has been dropped, and all if it is much."""
        if len(self._real) > self._open_limit or len(self._alias) > 16 * self._open_limit:
            self.forget()
        if self._retired:
            for directory in self._retired:
                os.close(directory.fd)
                if directory.lower >= 0:
                    os.close(directory.lower)
            self._retired.clear()

    def forget(self) -> None:
        """Drop the cache; its directories stay open until `trim`, so that who works with one can finish."""
        self._retired += (directory for directory in self._real.values() if directory is not self.root)
        super().forget()

    def make_opaque(self, path: bytes) -> None:
        """Let the directory hide what is below it (`opaque` is for the caller to carry out)."""
        if path not in self.opaque:
            self.opaque.add(path)
            if not path:
                self._look_below(path)
                self.root.lower = -1
            self.forget()

    def is_whiteout(self, status: os.stat_result) -> bool:
        """Whether this is overlayfs's mark for "deleted"."""
        return self.layered and stat.S_ISCHR(status.st_mode) and status.st_rdev == 0

    def remove(self, parent: Directory, name: bytes, status: os.stat_result) -> None:
        """Remove what is at `name`, with all that is inside."""
        path = parent.child(name)
        if stat.S_ISDIR(status.st_mode):
            self.forget()
            fd = os.open(name, _OPEN_DIRECTORY, dir_fd=parent.fd)
            try:
                trees.remove_inside(fd, self._discount)
            finally:
                os.close(fd)
            os.rmdir(name, dir_fd=parent.fd)
        else:
            os.unlink(name, dir_fd=parent.fd)
        self._discount(status)
        self.opaque.discard(path)
        self.times.pop(path, None)

    def make_directory(self, parent: Directory, name: bytes, mode: int) -> None:
        """mkdir(2), counted. Raises FileExistsError."""
        os.mkdir(name, mode, dir_fd=parent.fd)
        self.inodes += 1
        self.bytes += self.block

    def open_child(self, parent: Directory, name: bytes) -> Directory:
        """The directory `name` in `parent`, which exists in the tree and is no link."""
        found = self._real.get(parent.child(name))
        if found is not None:
            return found
        return self._adopt(parent, name, os.open(name, _OPEN_DIRECTORY, dir_fd=parent.fd))

    def _above(self, current: Directory) -> Directory:
        above = self.real(current.path.rpartition(b"/")[0])
        assert above is not None  # the parent of an open directory, and nobody moves any
        return above

    def _child(self, parent: Directory, name: bytes, *, create: bool) -> Directory | bytes:
        path = parent.child(name)
        found = self._real.get(path)
        if found is not None:
            return found
        try:
            fd = os.open(name, _OPEN_DIRECTORY, dir_fd=parent.fd)
        except FileNotFoundError:
            return self._missing(parent, name, create=create)
        except OSError as error:
            if error.errno not in _NO_DIRECTORY:
                raise
        else:
            return self._adopt(parent, name, fd)
        status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            self._followed.add(path)
            return os.readlink(name, dir_fd=parent.fd)
        if not self.is_whiteout(status):
            raise ArchiveError(f"{shown(path)} is not a directory")
        if not create:
            raise FileNotFoundError(errno.ENOENT, "deleted", path)
        self.remove(parent, name, status)  # deleted below by this layer, which now puts its own in place
        self.opaque.add(path)
        return self._make(parent, name)

    def _missing(self, parent: Directory, name: bytes, *, create: bool) -> Directory | bytes:
        """Nothing of that name in the tree itself: take it from below, or make it."""
        if parent.lower >= 0:
            try:
                lower = os.open(name, _OPEN_DIRECTORY, dir_fd=parent.lower)
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno not in _NO_DIRECTORY:
                    raise
                if stat.S_ISLNK(os.stat(name, dir_fd=parent.lower, follow_symlinks=False).st_mode):
                    self._followed.add(parent.child(name))
                    return os.readlink(name, dir_fd=parent.lower)
                # else a file below, which the new directory hides (as containerd's mkparent has it)
            else:
                return self._copy_up(parent, name, lower)
        if not create:
            raise FileNotFoundError(errno.ENOENT, "missing", parent.child(name))
        self._look_below(parent.child(name))
        return self._make(parent, name)

    def _look_below(self, path: bytes) -> None:
        """What happens at `path` depends on the layers below. Raises ArchiveError if there is no looking."""
        if self._alone:
            raise ArchiveError(f"what is to be done at {shown(path)} depends on the layers below")

    def _make(self, parent: Directory, name: bytes) -> Directory:
        self.make_directory(parent, name, 0o755)
        if parent.inherits:
            os.chmod(name, 0o755, dir_fd=parent.fd)
        return self._adopt(parent, name, os.open(name, _OPEN_DIRECTORY, dir_fd=parent.fd))

    def _copy_up(self, parent: Directory, name: bytes, lower: int) -> Directory:
        """Make a directory as it is below; its children stay there."""
        try:
            self.make_directory(parent, name, 0o700)
            fd = os.open(name, _OPEN_DIRECTORY, dir_fd=parent.fd)
            try:
                copy_attributes(lower, fd)
            except BaseException:
                os.close(fd)
                raise
        finally:
            os.close(lower)
        directory = self._adopt(parent, name, fd)
        if directory.lower >= 0:
            status = os.fstat(directory.lower)
            self.times[directory.path] = (status.st_atime_ns, status.st_mtime_ns)
        return directory

    def _adopt(self, parent: Directory, name: bytes, fd: int) -> Directory:
        """Put an open directory into the cache, with the one below that it is merged with."""
        lower = -1
        try:
            if len(self._real) + len(self._retired) >= 8 * self._open_limit:
                raise LimitError(f"{shown(parent.path)} lies too deep")
            path = parent.child(name)
            if parent.lower >= 0 and path not in self.opaque:
                try:
                    lower = os.open(name, _OPEN_DIRECTORY, dir_fd=parent.lower)
                except OSError as error:
                    if error.errno not in (errno.ENOENT, *_NO_DIRECTORY):
                        raise
            inherits = self._always_inherits or bool(os.fstat(fd).st_mode & stat.S_ISGID)
        except BaseException:
            os.close(fd)
            raise
        directory = self._real[path] = Directory(fd, lower, path, inherits)
        return directory

    def _discount(self, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            self.inodes -= 1
            self.bytes -= self.block
        elif status.st_nlink == 1:
            self.inodes -= 1
            self.bytes -= self.blocks(status.st_size) if stat.S_ISREG(status.st_mode) else 0

    def blocks(self, size: int) -> int:
        """Bytes that a file of `size` bytes takes."""
        return -(-size // self.block) * self.block


def copy_attributes(source: int, target: int) -> None:
    """Owner, extended attributes (but trusted.*) and mode of one open file for another."""
    status = os.fstat(source)
    if status.st_uid or status.st_gid or os.fstat(target).st_gid:
        os.fchown(target, status.st_uid, status.st_gid)
    try:
        names = os.listxattr(source)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        names = []
    for name in names:
        if name.startswith(("trusted.", "user.overlay.")):
            continue
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENODATA, errno.EPERM):
                raise
    os.fchmod(target, stat.S_IMODE(status.st_mode))
