"""A layer as an EROFS image instead of a tree: the tar is kept as it is, and an index points into it.

The tar passes once: each chunk is written to the image and parsed, then the metadata is put behind it and the
superblock in front. What `core.diff.extract` would have made of each entry is what the index shows, to one difference:
EROFS knows no access times. What an index cannot show rightly (sparse files, access control lists, rare attributes) is
refused as `UnsuitableError`, so that the caller extracts that layer.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from orlop.core.diff import erofs, tar
from orlop.core.diff.erofs import Metadata, Node
from orlop.core.diff.errors import ArchiveError, LimitError, UnsuitableError, shown
from orlop.core.diff.extract import Limits, clean
from orlop.core.diff.merged import Directory, MergedTree

MAX_ENTRIES: Final = 1_000_000
"""Headers of a layer to be indexed; each takes about 420 bytes of memory. Beyond, it is extracted."""

_WHITEOUT: Final = b".wh."
_AUFS: Final = b".wh..wh."
_OPAQUE: Final = b".wh..wh..opq"
_MAX_ID: Final = 0xFFFFFFFE
_MAX_WARNINGS: Final = 20
_MAX_XATTRS: Final = 64 << 20  # bytes of attributes that are held in memory
_SYMLINK_MAX: Final = 4095
_CAPABILITY: Final = b"security.capability"
_CAPABILITY_V2: Final = ((20, b"\0\0\0\x02"), (20, b"\1\0\0\x02"))  # linux/capability.h: size, magic and flag
_OPAQUE_MARK: Final = {b"trusted.overlay.opaque": b"y"}
_PIECE: Final = 1 << 20


class Builder:
    """Builds the image of one layer.

    Args:
        chunks: of the uncompressed tar.
        image: descriptor of an empty file, written from its beginning.
        root: the root directory's node, as the snapshot has it; an archive does not change it.
        lower_fd: root of the merged lower layers, or -1.
        layered: whether it becomes a layer of an overlay, in which "deleted" is written as overlayfs does.
        alone: the lower layers are not known; see `MergedTree`.
        now: nanoseconds since 1970: the time of directories that no entry stands for, and of whiteouts.

    Attributes:
        current: name of the entry at work, for whoever reports a failure.
        ignored: names of attributes that were left out, as `Extracted.ignored`.
        marked: as `Extracted.marked`.
        inodes: how many the image has, once it is built.
    """

    def __init__(
        self,
        chunks: Iterable[bytes],
        image: int,
        root: Node,
        *,
        lower_fd: int = -1,
        layered: bool = False,
        alone: bool = False,
        now: int = 0,
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._image = image
        self._fed = 0
        self._ended = False
        self._reader = tar.Reader(self._kept(chunks))
        self._reader.max_entries = self._limits.entries
        root.children = {}
        self._tree = MergedTree(root, lower_fd, layered=layered, now=now, alone=alone)
        self._total = 0
        self._xattr_bytes = 0
        self._copies: list[Node] = []
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
        self.ignored: list[str] = []
        self.marked = False
        self.inodes = 0

    def run(self) -> None:
        """Write the image; it can be mounted when this returns, and is not synced.

        Raises:
            ArchiveError: the archive is malformed, hostile or too large; `current` names the entry.
            UnsuitableError: it must be extracted.
            OSError: the file system refuses.
        """
        os.lseek(self._image, erofs.DATA, os.SEEK_SET)
        self._entries()
        self._ended = True
        self._reader.drain()
        self._finish()
        self._write_metadata(self._copy_data())

    def _kept(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            if not self._ended:
                self._fed += len(chunk)
                if erofs.DATA + self._fed > self._limits.usage:
                    raise LimitError(f"an image that takes more than {self._limits.usage} bytes on disk")
                _write_all(self._image, chunk)
            yield chunk

    def _entries(self) -> None:
        tree, reader, make, layered = self._tree, self._reader, self._make, self._tree.layered
        while True:
            self.current = None
            entry = reader.next()
            if entry is None:
                return
            self.current = entry.name
            self._bound(entry)
            path = clean(entry.name)
            if not path:
                continue  # the root's own entry, as in `extract`
            if path.startswith(_AUFS) and path != _OPAQUE:
                continue
            head, _, base = path.rpartition(b"/")
            parent = tree.directory(head)
            if not base.startswith(_WHITEOUT):
                make[entry.type](parent, base, entry)
                continue
            self.marked = True
            if base == _OPAQUE:
                if layered:
                    tree.make_opaque(parent.path)
            else:
                self._whiteout(parent, base[len(_WHITEOUT) :], entry)

    def _bound(self, entry: tar.Entry) -> None:
        self._total += entry.size
        if self._total > self._limits.size:
            raise LimitError(f"files of more than {self._limits.size} bytes")
        if entry.uid > _MAX_ID or entry.gid > _MAX_ID:
            raise ArchiveError(f"owner {entry.uid}:{entry.gid} is out of range")
        if self._reader.entries > MAX_ENTRIES:
            raise UnsuitableError(f"more than {MAX_ENTRIES} entries")

    def _node(self, kind: int, entry: tar.Entry) -> Node:
        node = Node(kind | entry.mode, entry.uid, entry.gid, entry.mtime)
        if entry.xattrs:
            self._set_xattrs(node, entry)
        return node

    def _regular(self, parent: Directory, name: bytes, entry: tar.Entry) -> None:
        if entry.segments is not None:
            raise UnsuitableError("a sparse file")
        node = self._node(stat.S_IFREG, entry)
        node.size = entry.size
        if entry.size:
            offset = self._fed - self._reader.unread
            if offset % erofs.BLOCK:
                raise UnsuitableError("data that does not begin at a block")
            node.block = (erofs.DATA + offset) // erofs.BLOCK
        self._tree.put(parent, name, node)

    def _directory(self, parent: Directory, name: bytes, entry: tar.Entry) -> None:
        tree = self._tree
        path = parent.child(name)
        node = parent.children.get(name)
        if node is None or node.children is None:
            made = self._node(stat.S_IFDIR, entry)
            made.children = {}
            tree.put(parent, name, made)
            if node is not None and tree.layered:
                # Whatever it was had hidden what is below; the directory in its place must not show that again.
                tree.make_opaque(path)
        else:
            node.uid, node.gid, node.mode = entry.uid, entry.gid, stat.S_IFDIR | entry.mode
            if entry.xattrs:
                self._set_xattrs(node, entry)
            tree.touched(path)
        tree.times[path] = entry.mtime

    def _symlink(self, parent: Directory, name: bytes, entry: tar.Entry) -> None:
        if not entry.link or b"\0" in entry.link:
            raise ArchiveError("a symbolic link without a target")
        if len(entry.link) > _SYMLINK_MAX:
            raise ArchiveError("file name too long")
        entry.mode = 0o777
        node = self._node(stat.S_IFLNK, entry)
        node.target = entry.link
        self._tree.put(parent, name, node)

    def _device(self, parent: Directory, name: bytes, entry: tar.Entry) -> None:
        kind, number = stat.S_IFIFO, 0
        if entry.type != tar.FIFO:
            if not (0 <= entry.major < 1 << 12 and 0 <= entry.minor < 1 << 20):
                raise ArchiveError(f"device number {entry.major}:{entry.minor} is out of range")
            kind = stat.S_IFCHR if entry.type == tar.CHARACTER else stat.S_IFBLK
            number = os.makedev(entry.major, entry.minor)
            self.marked |= number == 0
        node = self._node(kind, entry)
        node.block = number
        self._tree.put(parent, name, node)

    def _link(self, parent: Directory, name: bytes, entry: tar.Entry) -> None:
        source, base, node = self._link_source(entry.link)
        if node.children is not None:
            raise ArchiveError(f"links to {shown(entry.link)}, which is a directory")
        if source.path == parent.path and base == name:
            raise ArchiveError("links to itself")
        tree = self._tree
        there = parent.children.get(name)
        if there is not None and there.children is not None:
            path = parent.child(name)
            if f"{os.fsdecode(source.path)}/".startswith(f"{os.fsdecode(path)}/"):
                raise ArchiveError(f"links to {shown(entry.link)}, which it takes the place of")
        tree.put(parent, name, node)
        if (node.uid, node.gid) != (entry.uid, entry.gid):
            node.uid, node.gid = entry.uid, entry.gid
            if stat.S_ISREG(node.mode) and node.xattrs:  # chown(2) takes capabilities away
                node.xattrs = {key: value for key, value in node.xattrs.items() if key != _CAPABILITY} or None
        if entry.xattrs:
            self._set_xattrs(node, entry)
        if not stat.S_ISLNK(node.mode):
            node.mode = stat.S_IFMT(node.mode) | entry.mode
        node.mtime = entry.mtime

    def _link_source(self, link: bytes) -> tuple[Directory, bytes, Node]:
        """What a hard link leads to; a file that only lies below comes into the tree."""
        tree = self._tree
        head, _, base = clean(link).rpartition(b"/")
        try:
            if not base:
                raise FileNotFoundError
            source = tree.directory(head, create=False)
            node = source.children.get(base)
            if node is None:
                path = source.child(base)
                status = tree.status_below(path) if source.below else None
                if status is None:
                    raise FileNotFoundError
                node = tree.copy(path, status)
                if node.children is None:
                    source.children[base] = node
                if node.copied is not None:
                    self._total += node.size
                    if self._total > self._limits.size:
                        raise LimitError(f"files of more than {self._limits.size} bytes")
                    self._copies.append(node)
            elif tree.is_whiteout(node):
                raise FileNotFoundError
        except FileNotFoundError:
            raise ArchiveError(f"links to {shown(link)}, which does not exist") from None
        return source, base, node

    def _whiteout(self, parent: Directory, name: bytes, entry: tar.Entry) -> None:
        if name in (b"", b".", b".."):
            raise ArchiveError("the whiteout has no valid name")
        tree = self._tree
        if not tree.layered:
            return
        there = parent.children.get(name)
        if there is None:
            tree.put(parent, name, Node(stat.S_IFCHR, entry.uid, entry.gid, tree.now))
        elif there.children is not None:
            tree.make_opaque(parent.child(name))

    def _set_xattrs(self, node: Node, entry: tar.Entry) -> None:
        """Add an entry's attributes, those that an extraction would set.

        Raises:
            UnsuitableError: what the kernel would make of one is not known here.
        """
        kept = dict(node.xattrs or {})
        for name, value in (entry.xattrs or {}).items():
            if name.startswith((b"trusted.", b"user.overlay.")):
                self._ignore(name)
            elif name.startswith(b"user."):
                if b"\0" in name:
                    raise ArchiveError(f"attribute {shown(name)} has no valid name")
                if stat.S_ISREG(node.mode) or stat.S_ISDIR(node.mode):
                    kept[name] = value
                else:
                    self._ignore(name)
            elif name == _CAPABILITY and stat.S_ISREG(node.mode) and (len(value), value[:4]) in _CAPABILITY_V2:
                kept[name] = value
            else:
                raise UnsuitableError(f"attribute {shown(name)}")
            self._xattr_bytes += len(name) + len(value)
        if not erofs.fits(kept):
            raise UnsuitableError("attributes that are too large")
        if self._xattr_bytes > _MAX_XATTRS:
            raise UnsuitableError(f"attributes of more than {_MAX_XATTRS} bytes")
        node.xattrs = kept or None

    def _ignore(self, name: bytes) -> None:
        text = shown(name)
        if text not in self.ignored and len(self.ignored) < _MAX_WARNINGS:
            self.ignored.append(text)

    def _finish(self) -> None:
        """Times and opaque marks of directories, now that nothing more comes."""
        tree = self._tree
        for path, time in tree.times.items():
            node = tree.real(path)
            if node is not None:
                node.mtime = time
        if b"" in tree.opaque:
            self._hide_below_root()
        for path in tree.opaque:
            node = tree.real(path)
            if node is not None:
                node.xattrs = {**(node.xattrs or {}), **_OPAQUE_MARK}

    def _hide_below_root(self) -> None:
        """As in `extract`: overlayfs looks for no opaque mark on its own root."""
        tree = self._tree
        tree.opaque.discard(b"")
        if tree.lower_fd < 0:
            return
        for name in map(os.fsencode, os.listdir(tree.lower_fd)):
            node = tree.root.children.get(name)
            if node is None:
                tree.root.children[name] = Node(stat.S_IFCHR, 0, 0, tree.now)
            elif node.children is not None:
                tree.opaque.add(name)

    def _copy_data(self) -> int:
        """Put behind the tar what has to be copied from below; returns where the metadata begins, in bytes."""
        end = erofs.DATA + self._fed
        for node in self._copies:
            end += self._pad(end)
            node.block = end // erofs.BLOCK
            assert node.copied is not None
            fd = os.open(node.copied, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._tree.lower_fd)
            try:
                left = node.size
                while left and (data := os.read(fd, min(left, _PIECE))):
                    _write_all(self._image, data)
                    left -= len(data)
                if left:
                    raise ArchiveError(f"{shown(node.copied)} below is shorter than it says")
            finally:
                os.close(fd)
            end += node.size
        return end + self._pad(end)

    def _pad(self, end: int) -> int:
        padding = -end % erofs.BLOCK
        if padding:
            _write_all(self._image, bytes(padding))
        return padding

    def _write_metadata(self, start: int) -> None:
        metadata = Metadata(self._tree.root.node, start // erofs.BLOCK)
        for piece in metadata.pieces():
            _write_all(self._image, piece)
        self.inodes = metadata.inodes
        os.lseek(self._image, erofs.SUPER_OFFSET, os.SEEK_SET)
        _write_all(self._image, metadata.superblock())


def _write_all(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])
