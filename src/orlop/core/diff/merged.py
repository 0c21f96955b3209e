"""The tree of an index, in memory, over the layers below it: `core.diff.tree` without files.

What is said there holds here too: a directory that exists below only is made like the one below, and a link below is
followed inside the merged view. Both must come to the same tree; a test compares.
"""

import errno
import os
import stat
from typing import Final

from orlop.core.diff.erofs import Node, fits
from orlop.core.diff.errors import ArchiveError, LimitError, UnsuitableError, shown
from orlop.core.diff.resolving import Place, Resolver

_MAX_DEPTH: Final = 16384  # bytes of a real path
_NAME_MAX: Final = 255


class Directory(Place):
    """A directory of the tree, merged with the one at the same path below or not.

    Attributes:
        below: whether the layers below are seen through it.
    """

    __slots__ = ("below", "children", "node")

    def __init__(self, node: Node, path: bytes, below: bool) -> None:
        assert node.children is not None
        super().__init__(path)
        self.node = node
        self.children = node.children
        self.below = below


class MergedTree(Resolver[Directory]):
    """Args:
        root: the root's node, a directory.
        lower_fd: root of the merged lower layers, or -1; stays the caller's.
        layered: whether this is to be a layer of an overlay.
        alone: what will be below is not known; an archive that depends on it is refused as ArchiveError.
        now: nanoseconds since 1970, the time of what no entry gives one.

    Attributes:
        opaque: real paths of directories that hide what is below them.
        times: modification times that directories get at the end, by real path.
    """

    def __init__(self, root: Node, lower_fd: int, *, layered: bool, now: int, alone: bool = False) -> None:
        super().__init__(Directory(root, b"", lower_fd >= 0 or alone))
        self._alone = alone
        self.lower_fd: Final = lower_fd
        self.layered: Final = layered
        self.now: Final = now
        self.opaque: set[bytes] = set()
        self.times: dict[bytes, int] = {}

    def real(self, path: bytes) -> Node | None:
        """The directory at a real path, or None if there is none any more."""
        node = self.root.node
        for name in path.split(b"/") if path else ():
            child = (node.children or {}).get(name)
            if child is None or child.children is None:
                return None
            node = child
        return node

    def put(self, parent: Directory, name: bytes, node: Node) -> None:
        """Let `name` be this; whatever was there goes.

        Raises:
            ArchiveError: the name is longer than one can be.
        """
        check(name)
        children = parent.children
        if name in children:
            self.remove(parent, name)
        children[name] = node
        self.touched(parent.child(name))

    def remove(self, parent: Directory, name: bytes) -> None:
        """Remove what is at `name`, with all that is inside."""
        path = parent.child(name)
        if parent.children.pop(name).children is not None:
            self.forget()
        self.opaque.discard(path)
        self.times.pop(path, None)

    def make_opaque(self, path: bytes) -> None:
        """Let the directory hide what is below it."""
        if path not in self.opaque:
            self.opaque.add(path)
            if not path:
                self._look_below(path)
                self.root.below = False
            self.forget()

    def is_whiteout(self, node: Node) -> bool:
        """Whether this is overlayfs's mark for "deleted"."""
        return self.layered and node.block == 0 and stat.S_ISCHR(node.mode)

    def status_below(self, path: bytes) -> os.stat_result | None:
        """What the layers below have at a path whose directories are real ones there; None for nothing.

        Raises:
            ArchiveError: the path is longer than one can be, or nobody knows.
        """
        self._look_below(path)
        try:
            return os.stat(path, dir_fd=self.lower_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            if error.errno == errno.ENAMETOOLONG:
                raise ArchiveError(os.strerror(error.errno).lower()) from None
            raise

    def link_below(self, path: bytes) -> bytes:
        """The target of the symbolic link that is below at `path`."""
        return os.readlink(path, dir_fd=self.lower_fd)

    def copy(self, path: bytes, status: os.stat_result) -> Node:
        """What is below at `path`, for this tree: a directory without its children, a file whose data is still to come.

        Raises:
            UnsuitableError: it has attributes that an index cannot keep right.
        """
        node = Node(status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
        if stat.S_ISDIR(status.st_mode):
            node.children = {}
        elif stat.S_ISREG(status.st_mode):
            node.size = status.st_size
            node.copied = path
        elif stat.S_ISLNK(status.st_mode):
            node.target = self.link_below(path)
            return node
        else:
            node.block = status.st_rdev
            return node
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.lower_fd)
        try:
            xattrs = {}
            for name in map(os.fsencode, os.listxattr(fd)):
                if name.startswith((b"trusted.", b"user.overlay.")):
                    continue
                if not name.startswith((b"user.", b"security.")):
                    raise UnsuitableError(f"attribute {shown(name)} of {shown(path)} below")
                xattrs[name] = os.getxattr(fd, name)
            if not fits(xattrs):
                raise UnsuitableError(f"attributes of {shown(path)} below that are too large")
            node.xattrs = xattrs or None
        finally:
            os.close(fd)
        return node

    def _above(self, current: Directory) -> Directory:
        path = current.path.rpartition(b"/")[0]
        found = self._real.get(path)
        if found is None:
            found = self.root
            for name in path.split(b"/"):
                child = found.children[name]  # the parent of a directory that is there
                found = self._adopt(found, name, child)
        return found

    def _child(self, parent: Directory, name: bytes, *, create: bool) -> Directory | bytes:
        path = parent.child(name)
        found = self._real.get(path)
        if found is not None:
            return found
        node = parent.children.get(name)
        if node is None:
            return self._missing(parent, name, create=create)
        if node.children is not None:
            return self._adopt(parent, name, node)
        if node.target:
            self._followed.add(path)
            return node.target
        if not self.is_whiteout(node):
            raise ArchiveError(f"{shown(path)} is not a directory")
        if not create:
            raise FileNotFoundError(errno.ENOENT, "deleted", path)
        self.remove(parent, name)  # deleted below by this layer, which now puts its own in place
        self.opaque.add(path)
        return self._make(parent, name)

    def _missing(self, parent: Directory, name: bytes, *, create: bool) -> Directory | bytes:
        """Nothing of that name in the tree itself: take it from below, or make it."""
        check(name)
        path = parent.child(name)
        if parent.below:
            status = self.status_below(path)
            if status is not None and stat.S_ISDIR(status.st_mode):
                node = parent.children[name] = self.copy(path, status)
                directory = self._adopt(parent, name, node)
                if directory.below:
                    self.times[path] = status.st_mtime_ns
                else:
                    node.mtime = self.now
                return directory
            if status is not None and stat.S_ISLNK(status.st_mode):
                self._followed.add(path)
                return self.link_below(path)
            # else a file below, which the new directory hides (as containerd's mkparent has it)
        if not create:
            raise FileNotFoundError(errno.ENOENT, "missing", path)
        return self._make(parent, name)

    def _make(self, parent: Directory, name: bytes) -> Directory:
        node = Node(stat.S_IFDIR | 0o755, 0, parent.node.gid if parent.node.mode & stat.S_ISGID else 0, self.now)
        node.children = {}
        parent.children[name] = node
        return self._adopt(parent, name, node)

    def _adopt(self, parent: Directory, name: bytes, node: Node) -> Directory:
        path = parent.child(name)
        if len(path) > _MAX_DEPTH:
            raise LimitError(f"{shown(parent.path)} lies too deep")
        below = parent.below and path not in self.opaque
        if below and not self._alone:
            status = self.status_below(path)
            below = status is not None and stat.S_ISDIR(status.st_mode)
        directory = self._real[path] = Directory(node, path, below)
        return directory

    def _look_below(self, path: bytes) -> None:
        if self._alone:
            raise ArchiveError(f"what is to be done at {shown(path)} depends on the layers below")


def check(name: bytes) -> None:
    """Raises ArchiveError for a name that no directory takes."""
    if len(name) > _NAME_MAX:
        raise ArchiveError("file name too long")
