"""Extracting a layer into a tree: each entry as containerd would have made it, with as few system calls as will do.

Per regular file: open with its final mode, one write from the chunk that holds its data, times, close. Nothing is
changed that is right already. Times of directories come last, because what is made inside changes them.

Whiteouts are carried out in one of three ways. In a layer of an overlay (`tree.layered`) they become overlayfs's own:
character device 0:0, and a list of opaque directories that somebody with CAP_SYS_ADMIN marks (`Extracted.opaque`). In a
tree that already holds lower layers' files they delete, but never what this layer has brought. In a tree that was empty
there is nothing to hide.

Source: image-spec's layer.md; applyNaive and createTarFile in containerd's pkg/archive decide where that is silent.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn

from orlop.core.diff import tar
from orlop.core.diff.errors import ArchiveError, LimitError, shown
from orlop.core.diff.tree import Directory, Tree, copy_attributes

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_WHITEOUT: Final = b".wh."
_AUFS: Final = b".wh..wh."
_OPAQUE: Final = b".wh..wh..opq"
_PATH_MAX: Final = 4096
_MAX_ID: Final = 0xFFFFFFFE  # the id after it means "leave as it is" to chown(2)
_MAX_WARNINGS: Final = 20
_MAX_PRIVILEGED: Final = 16 << 20
_ARCHIVES_FAULT: Final = frozenset((errno.ENAMETOOLONG, errno.EFBIG, errno.EMLINK))  # whatever the file system
_FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
_ACL_DEFAULT: Final = b"system.posix_acl_default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a layer may cost.

    Attributes:
        size: bytes of the uncompressed archive, and of its files together (sparse ones by their full length).
        usage: bytes that the tree may take on disk.
        entries: number of headers, those that only extend the next one included.
    """

    size: int = 1 << 40
    usage: int = 1 << 40
    entries: int = 20_000_000


@dataclass(slots=True, kw_only=True)
class Extracted:
    """What remains to be told after extraction.

    Attributes:
        opaque: real paths of directories to mark opaque.
        privileged: attributes that need more capabilities than the extractor has: path, name, value.
        ignored: names of attributes that were left out, as containerd leaves them out; at most 20.
        marked: whether the tree would be another one if it were no layer of an overlay.
    """

    opaque: list[bytes] = field(default_factory=list)
    privileged: list[tuple[bytes, bytes, bytes]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    marked: bool = False


class Extractor:
    """Extracts one archive into one tree.

    Args:
        reader: the archive.
        tree: where to; with or without lower layers.
        merging: whether the tree, no layer of an overlay, holds files already, which whiteouts then delete.
        limits: bounds; beyond them the archive is refused.

    Attributes:
        current: name of the entry at work, for whoever reports a failure.
    """

    def __init__(self, reader: tar.Reader, tree: Tree, *, merging: bool = False, limits: Limits | None = None) -> None:
        self._reader = reader
        self._tree = tree
        self._merging = merging
        self._limits = limits or Limits()
        reader.max_entries = self._limits.entries
        self._total = 0
        self._reported = 0
        self._unpacked: set[bytes] = set()
        self._late: dict[bytes, bytes] = {}
        self._result = Extracted()
        self._make: dict[int, Callable[[Directory, bytes, tar.Entry], None]] = {
            tar.REGULAR: self._regular,
            tar.DIRECTORY: self._directory,
            tar.SYMLINK: self._symlink,
            tar.LINK: self._link,
            tar.CHARACTER: self._device,
            tar.BLOCK_DEVICE: self._device,
            tar.FIFO: self._device,
        }
        self.current: bytes | None = None

    def run(self) -> Extracted:
        """Extract everything.

        The umask must be 0.

        Raises:
            ArchiveError: the archive is malformed, hostile or too large; `current` names the entry.
            OSError: the file system refuses.
        """
        try:
            self._entries()
            self._finish()
        except OSError as error:
            if error.errno in _ARCHIVES_FAULT:
                raise ArchiveError(os.strerror(error.errno).lower(), self.current) from error
            raise
        return self._result

    def _entries(self) -> None:
        tree, read, make = self._tree, self._reader.next, self._make
        while True:
            self.current = None
            entry = read()
            if entry is None:
                break
            self.current = name = entry.name
            self._bound(entry)
            path = clean(name)
            if not path:
                continue  # the root's own entry: containerd leaves the snapshot's root as it is
            if path.startswith(_AUFS) and path != _OPAQUE:
                continue  # what aufs kept for itself and old layers have; containerd leaves it out too
            tree.trim()
            head, _, base = path.rpartition(b"/")
            parent = tree.directory(head)
            if base.startswith(_WHITEOUT):
                self._result.marked = True
                self._whiteout(parent, base, entry)
                continue
            make[entry.type](parent, base, entry)
            if self._merging:
                self._remember(parent.child(base))

    def _bound(self, entry: tar.Entry) -> None:
        self._total += entry.size
        if self._total > self._limits.size:
            raise LimitError(f"files of more than {self._limits.size} bytes")
        if self._tree.bytes > self._limits.usage:
            self._refuse_usage()
        if entry.uid > _MAX_ID or entry.gid > _MAX_ID:
            raise ArchiveError(f"owner {entry.uid}:{entry.gid} is out of range")

    def _refuse_usage(self) -> NoReturn:
        raise LimitError(f"files that take more than {self._limits.usage} bytes on disk")

    def _regular(self, parent: Directory, name: bytes, entry: tar.Entry) -> None:
        tree = self._tree
        try:
            fd = os.open(name, _CREATE, entry.mode, dir_fd=parent.fd)
        except FileExistsError:
            self._clear(parent, name)
            fd = os.open(name, _CREATE, entry.mode, dir_fd=parent.fd)
        try:
            if entry.stored:
                if tree.bytes + tree.blocks(entry.stored) > self._limits.usage:
                    self._refuse_usage()
                self._write(fd, entry)
            elif entry.size:
                os.ftruncate(fd, entry.size)
            if entry.uid or entry.gid or parent.inherits or entry.xattrs:
                self._attributes(fd, parent.child(name), entry)
            os.utime(fd, ns=(entry.atime, entry.mtime))
        finally:
            os.close(fd)
        tree.inodes += 1
        tree.bytes += tree.blocks(entry.stored)
        tree.touched(parent.child(name))

    def _write(self, fd: int, entry: tar.Entry) -> None:
        if entry.segments is not None:
            for offset, length in entry.segments:
                os.lseek(fd, offset, os.SEEK_SET)
                for piece in self._reader.pieces(length):
                    _write_all(fd, piece)
            os.ftruncate(fd, entry.size)
            return
        data = self._reader.take()
        if data is not None:
            _write_all(fd, data)
            return
        for piece in self._reader.pieces(entry.stored):
            _write_all(fd, piece)

    def _directory(self, parent: Directory, name: bytes, entry: tar.Entry) -> None:
        tree = self._tree
        path = parent.child(name)
        made = True
        try:
            tree.make_directory(parent, name, entry.mode)
        except FileExistsError:
            status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                made = False
            else:
                # Whatever it was had hidden what is below; the directory in its place must not show that again.
                self._clear(parent, name)
                tree.make_directory(parent, name, entry.mode)
                if tree.layered:
                    tree.make_opaque(path)
        if not made or entry.uid or entry.gid or parent.inherits:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent.fd, follow_symlinks=False)
        if not made or entry.mode & 0o6000 or parent.inherits:
            os.chmod(name, entry.mode, dir_fd=parent.fd)
        tree.touched(path)  # it may have been a link; and what is made inside inherits the group from now on, or not
        if entry.xattrs:
            directory = tree.open_child(parent, name)
            self._xattrs(directory.fd, path, entry)
            os.fchmod(directory.fd, entry.mode)
        tree.times[path] = (entry.atime, entry.mtime)

    def _symlink(self, parent: Directory, name: bytes, entry: tar.Entry) -> None:
        if not entry.link or b"\0" in entry.link:
            raise ArchiveError("a symbolic link without a target")
        try:
            os.symlink(entry.link, name, dir_fd=parent.fd)
        except FileExistsError:
            self._clear(parent, name)
            os.symlink(entry.link, name, dir_fd=parent.fd)
        self._tree.inodes += 1
        self._nameable(parent, name, entry)

    def _device(self, parent: Directory, name: bytes, entry: tar.Entry) -> None:
        if entry.type == tar.FIFO:
            mode, device = stat.S_IFIFO, 0
        else:
            if not (0 <= entry.major < 1 << 12 and 0 <= entry.minor < 1 << 20):
                raise ArchiveError(f"device number {entry.major}:{entry.minor} is out of range")
            mode = stat.S_IFCHR if entry.type == tar.CHARACTER else stat.S_IFBLK
            device = os.makedev(entry.major, entry.minor)
            self._result.marked |= device == 0  # as overlayfs marks what is deleted
        try:
            os.mknod(name, mode | entry.mode, device, dir_fd=parent.fd)
        except FileExistsError:
            self._clear(parent, name)
            os.mknod(name, mode | entry.mode, device, dir_fd=parent.fd)
        self._tree.inodes += 1
        self._nameable(parent, name, entry)

    def _link(self, parent: Directory, name: bytes, entry: tar.Entry) -> None:
        tree = self._tree
        path = clean(entry.link)
        head, _, base = path.rpartition(b"/")
        try:
            if not base:
                raise FileNotFoundError
            source = tree.directory(head, create=False)
            status = self._link_source(source, base)
        except FileNotFoundError:
            raise ArchiveError(f"links to {shown(entry.link)}, which does not exist") from None
        if stat.S_ISDIR(status.st_mode):
            raise ArchiveError(f"links to {shown(entry.link)}, which is a directory")
        if source.path == parent.path and base == name:
            raise ArchiveError("links to itself")
        try:
            os.link(base, name, src_dir_fd=source.fd, dst_dir_fd=parent.fd, follow_symlinks=False)
        except FileExistsError:
            try:
                self._clear(parent, name)
                os.link(base, name, src_dir_fd=source.fd, dst_dir_fd=parent.fd, follow_symlinks=False)
            except FileNotFoundError:
                raise ArchiveError(f"links to {shown(entry.link)}, which it takes the place of") from None
        if stat.S_ISLNK(status.st_mode):
            entry.mode = stat.S_IMODE(status.st_mode)
        if (status.st_uid, status.st_gid) != (entry.uid, entry.gid):
            os.chown(name, entry.uid, entry.gid, dir_fd=parent.fd, follow_symlinks=False)
            status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        if entry.xattrs:
            self._xattrs_by_name(parent, name, entry)
        if stat.S_IMODE(status.st_mode) != entry.mode:
            os.chmod(name, entry.mode, dir_fd=parent.fd)
        if (status.st_atime_ns, status.st_mtime_ns) != (entry.atime, entry.mtime):
            os.utime(name, ns=(entry.atime, entry.mtime), dir_fd=parent.fd, follow_symlinks=False)
        tree.touched(parent.child(name))

    def _link_source(self, source: Directory, base: bytes) -> os.stat_result:
        """The status of what is to be linked; a file that only lies below is copied into the tree first.

        Raises:
            FileNotFoundError: there is no such file, or this layer deletes it.
        """
        try:
            status = os.stat(base, dir_fd=source.fd, follow_symlinks=False)
        except FileNotFoundError:
            if source.lower < 0:
                raise
            self._copy_up(source, base)
            return os.stat(base, dir_fd=source.fd, follow_symlinks=False)
        if self._tree.is_whiteout(status):
            raise FileNotFoundError(errno.ENOENT, "deleted", base)
        return status

    def _copy_up(self, parent: Directory, name: bytes) -> None:
        """Copy what is not a directory from the lower layers into the tree, as overlayfs would."""
        tree = self._tree
        status = os.stat(name, dir_fd=parent.lower, follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent.lower)
            try:
                target = os.open(name, _CREATE, 0o600, dir_fd=parent.fd)
                try:
                    while os.sendfile(target, source, None, 1 << 30):
                        pass
                    copy_attributes(source, target)
                    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
                finally:
                    os.close(target)
            finally:
                os.close(source)
            tree.bytes += tree.blocks(status.st_size)
        elif stat.S_ISDIR(status.st_mode):
            tree.directory(parent.child(name))
            return
        else:
            if stat.S_ISLNK(status.st_mode):
                os.symlink(os.readlink(name, dir_fd=parent.lower), name, dir_fd=parent.fd)
            else:
                os.mknod(name, status.st_mode, status.st_rdev, dir_fd=parent.fd)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=parent.fd, follow_symlinks=False)
            os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=parent.fd, follow_symlinks=False)
        tree.inodes += 1

    def _whiteout(self, parent: Directory, base: bytes, entry: tar.Entry) -> None:
        if base == _OPAQUE:
            if self._tree.layered:
                self._tree.make_opaque(parent.path)
            elif self._merging:
                self._purge(parent)
            return
        name = base[len(_WHITEOUT) :]
        if name in (b"", b".", b".."):
            raise ArchiveError("the whiteout has no valid name")
        if self._tree.layered:
            self._hide(parent, name, entry)
        elif self._merging:
            self._delete(parent, name)

    def _hide(self, parent: Directory, name: bytes, entry: tar.Entry) -> None:
        """Hide what is below with a whiteout of overlayfs; what this layer itself has at that name stays."""
        path = parent.child(name)
        try:
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent.fd)
        except FileExistsError:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent.fd, follow_symlinks=False).st_mode):
                self._tree.make_opaque(path)
            return
        self._tree.inodes += 1
        if entry.uid or entry.gid or parent.inherits:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent.fd, follow_symlinks=False)
        self._tree.touched(path)

    def _delete(self, parent: Directory, name: bytes) -> None:
        """Delete what lower layers have at that name."""
        path = parent.child(name)
        if path not in self._unpacked:
            self._clear(parent, name)
            return
        directory = self._tree.real(path)
        if directory is not None:
            self._purge(directory)

    def _purge(self, directory: Directory) -> None:
        """Delete everything inside that this layer has not brought."""
        pending = [directory.path]
        while pending:
            found = self._tree.real(pending.pop())
            if found is None:
                continue
            path = found.path
            for name in map(os.fsencode, os.listdir(found.fd)):
                inner = path + b"/" + name if path else name
                if inner not in self._unpacked:
                    self._clear(found, name)
                else:
                    pending.append(inner)

    def _remember(self, path: bytes) -> None:
        while path and path not in self._unpacked:
            self._unpacked.add(path)
            path = path.rpartition(b"/")[0]

    def _clear(self, parent: Directory, name: bytes) -> None:
        """Make room at a name; nothing there is fine."""
        try:
            status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        self._tree.remove(parent, name, status)

    def _nameable(self, parent: Directory, name: bytes, entry: tar.Entry) -> None:
        """Owner, attributes and times of something that is not opened: a link, a device, a fifo."""
        owned = bool(entry.uid or entry.gid or parent.inherits)
        if owned:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent.fd, follow_symlinks=False)
        if entry.xattrs:
            self._xattrs_by_name(parent, name, entry)
        if owned and entry.mode & 0o6000 and entry.type != tar.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=parent.fd)
        os.utime(name, ns=(entry.atime, entry.mtime), dir_fd=parent.fd, follow_symlinks=False)
        self._tree.touched(parent.child(name))

    def _attributes(self, fd: int, path: bytes, entry: tar.Entry) -> None:
        """Owner, then extended attributes, then mode: the order matters, for each can undo what follows it."""
        os.fchown(fd, entry.uid, entry.gid)
        if entry.xattrs:
            self._xattrs(fd, path, entry)
        if entry.mode & 0o6000 or entry.xattrs:
            os.fchmod(fd, entry.mode)

    def _xattrs_by_name(self, parent: Directory, name: bytes, entry: tar.Entry) -> None:
        """For what cannot be opened: the calls take no directory descriptor, so go there."""
        os.fchdir(parent.fd)
        try:
            self._xattrs(name, parent.child(name), entry)
        finally:
            os.fchdir(self._tree.root.fd)

    def _xattrs(self, target: int | bytes, path: bytes, entry: tar.Entry) -> None:
        for name, value in (entry.xattrs or {}).items():
            if name.startswith((b"trusted.", b"user.overlay.")):
                self._ignore(name)  # containerd takes no trusted.* from archives; overlayfs's own are never theirs
            elif name == _ACL_DEFAULT and isinstance(target, int):
                self._late[path] = value  # at the end, or what is made inside inherits it
            else:
                self._set_xattr(target, path, name, value)

    def _set_xattr(self, target: int | bytes, path: bytes, name: bytes, value: bytes) -> None:
        try:
            if isinstance(target, int):
                os.setxattr(target, name, value)
            else:
                os.setxattr(target, name, value, follow_symlinks=False)
        except ValueError:
            raise ArchiveError(f"attribute {shown(name)} has no valid name") from None
        except OSError as error:
            if error.errno == errno.ENOTSUP or (error.errno == errno.EPERM and name.startswith(b"user.")):
                self._ignore(name)  # the file system has none, or not for links, devices and fifos
            elif error.errno == errno.EPERM and name.startswith(b"security."):
                self._reported += len(path) + len(name) + len(value)
                if self._reported > _MAX_PRIVILEGED:
                    raise LimitError(f"security attributes of more than {_MAX_PRIVILEGED} bytes") from error
                self._result.privileged.append((path, name, value))
            elif error.errno in _FULL:
                raise
            else:
                raise ArchiveError(f"attribute {shown(name)}: {error.strerror}") from error

    def _ignore(self, name: bytes) -> None:
        text = shown(name)
        if text not in self._result.ignored and len(self._result.ignored) < _MAX_WARNINGS:
            self._result.ignored.append(text)

    def _finish(self) -> None:
        """Default ACLs and times of directories, now that nothing more is made in them."""
        tree = self._tree
        for path, value in self._late.items():
            tree.trim()
            directory = tree.real(path)
            if directory is not None:
                self._set_xattr(directory.fd, path, _ACL_DEFAULT, value)
        for path, times in tree.times.items():
            tree.trim()
            head, _, name = path.rpartition(b"/")
            parent = tree.real(head)
            if parent is None:
                continue
            with contextlib.suppress(FileNotFoundError):  # removed again later in the archive
                status = os.stat(name, dir_fd=parent.fd, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    os.utime(name, ns=times, dir_fd=parent.fd, follow_symlinks=False)
        if b"" in tree.opaque:
            self._hide_below_root()
        self._result.opaque = sorted(tree.opaque)

    def _hide_below_root(self) -> None:
        """Hide each name that the lower layers have in their root: overlayfs looks for no opaque mark on its own."""
        tree = self._tree
        tree.opaque.discard(b"")
        if tree.lower_fd < 0:
            return
        for name in sorted(map(os.fsencode, os.listdir(tree.lower_fd))):
            try:
                status = os.stat(name, dir_fd=tree.root.fd, follow_symlinks=False)
            except FileNotFoundError:
                os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=tree.root.fd)
                tree.inodes += 1
                continue
            if stat.S_ISDIR(status.st_mode):
                tree.opaque.add(name)


def clean(name: bytes) -> bytes:
    """The path below the root that a name in an archive means: as filepath.Clean("/" + name), without the slash.

    Raises:
        ArchiveError: it is longer than a path can be, or has a zero byte.
    """
    if name.startswith(b"./"):
        name = name[2:]
    if name.endswith(b"/"):
        name = name[:-1]
    if len(name) > _PATH_MAX or b"\0" in name:
        raise ArchiveError(f"a path of {len(name)} bytes" if b"\0" not in name else "a path with a zero byte")
    if b"//" not in name and b"/." not in name and name[:1] not in (b"/", b".", b""):
        return name
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


def _write_all(fd: int, data: memoryview) -> None:
    written = os.write(fd, data)
    while written < len(data):
        data = data[written:]
        written = os.write(fd, data)
