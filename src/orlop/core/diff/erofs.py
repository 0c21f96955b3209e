"""The format EROFS, as much of it as an index over a tar needs: inodes, directories, attributes, one superblock.

An image is one file, so that nothing can be missing beside it:

    0 … 4095           zeros, the superblock at 1024; written last
    4096 …             data: a tar as it came, and whatever else files point to, from block to block
    metadata           inodes with their attributes and short directories and links behind them
    blocks             longer directories and links

Blocks have 512 bytes (Linux 6.4), so that a tar's data lies at block addresses. Regular files are "flat plain": one run
of blocks. There is no checksum and no compression.

Source: fs/erofs/erofs_fs.h of the kernel, and Documentation/filesystems/erofs.rst.
"""

import os
import stat
import struct
from collections.abc import Iterator, Mapping
from typing import Final

from orlop.core.diff.errors import LimitError

BLOCK: Final = 512
DATA: Final = 4096
"""Where an image's data begins, in bytes."""

SUPER_OFFSET: Final = 1024
SUPER_MAGIC: Final = 0xE0F5E1E2
_XATTR_SIZE_MAX: Final = 65535  # bytes of one value
_XATTRS_SIZE_MAX: Final = 200_000  # bytes of all of an inode's; some are left for marks that are added

_SUPER: Final = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
_HEAD: Final = struct.Struct("<I8xB23xI")  # magic, log2 of a block's size, number of blocks
HEAD: Final = SUPER_OFFSET + _SUPER.size
"""As many bytes from the beginning hold the superblock."""
_INODE: Final = struct.Struct("<HHHHQIIIIQII16x")
_DIRENT: Final = struct.Struct("<QHBx")
_XATTRS: Final = struct.Struct("<IB7x")
_XATTR: Final = struct.Struct("<BBH")
_SLOT: Final = 32
_EXTENDED: Final = 1
_PLAIN: Final = 0 << 1
_INLINE: Final = 2 << 1
_INLINE_MAX: Final = 448  # fits a block wherever an inode's end is moved to
_FIRST: Final = 64  # no inode has the number 0, which readdir(3) takes for a hole
_PREFIXES: Final = ((b"user.", 1), (b"trusted.", 4), (b"security.", 6))
_TYPES: Final = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFLNK: 7,
}
_PIECE: Final = 1 << 20
_MAX_BLOCKS: Final = (1 << 32) - 1


class Node:
    """One inode.

    Attributes:
        mode: type and permission bits.
        mtime: nanoseconds since 1970.
        size: of a regular file in bytes.
        block: where a regular file's data begins in the image, in blocks; a device's number as of `os.makedev`.
        target: of a symbolic link.
        children: of a directory, by name.
        xattrs: extended attributes, None for none.
        copied: path below of a file whose data is still to be copied into the image, or None.
    """

    __slots__ = (
        "block",
        "blocks",
        "children",
        "copied",
        "gid",
        "links",
        "mode",
        "mtime",
        "nid",
        "offset",
        "size",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(self, mode: int, uid: int, gid: int, mtime: int) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.size = 0
        self.block = 0
        self.target = b""
        self.children: dict[bytes, Node] | None = None
        self.xattrs: Mapping[bytes, bytes] | None = None
        self.copied: bytes | None = None
        self.links = 0
        self.nid = 0
        self.offset = -1  # where a long directory or link lies, in bytes from the first such block; -1 for inline
        self.blocks: list[list[bytes]] | None = None  # a directory's names, block by block


def fits(xattrs: Mapping[bytes, bytes]) -> bool:
    """Whether an inode can have these attributes, and a mark of overlayfs beside them."""
    return (
        all(1 < len(_split(name)[1]) + 1 <= 256 and len(value) <= _XATTR_SIZE_MAX for name, value in xattrs.items())
        and _xattrs_size(xattrs) <= _XATTRS_SIZE_MAX
    )


def damage(head: bytes, size: int) -> str:
    """What speaks against a file of `size` bytes being an image, or an empty string: the kernel would only find later.

    It may be longer than its superblock says, for what is no part of the file system (dm-verity's hashes).

    Args:
        head: the file's first `HEAD` bytes; anybody's image, not only ours.
    """
    if len(head) < HEAD:
        return f"it ends after {len(head)} bytes"
    magic, block_bits, blocks = _HEAD.unpack_from(head, SUPER_OFFSET)
    if magic != SUPER_MAGIC:
        return "it has no superblock of EROFS"
    if not 9 <= block_bits <= 16:
        return f"its blocks have 2^{block_bits} bytes"
    if size < blocks << block_bits:
        return f"{size} bytes, {blocks << block_bits} expected"
    return ""


class Metadata:
    """The metadata of one tree, laid out; a directory is in it once, a file as often as it has names.

    Args:
        start: of the metadata in the image, in blocks.

    Attributes:
        inodes: how many there are.

    Raises:
        LimitError: it lies beyond what block addresses can say.
    """

    def __init__(self, root: Node, start: int) -> None:
        self._start = start
        self._order: list[tuple[Node, Node]] = []
        self._end = _FIRST
        self._tail = 0
        self._place(root)
        self.inodes = len(self._order)
        self._tail_block = start + -(-self._end // BLOCK)
        self._total = self._tail_block + self._tail // BLOCK
        if self._total > _MAX_BLOCKS:
            raise LimitError(f"an image of more than {_MAX_BLOCKS} blocks")
        self.root = root

    def pieces(self) -> Iterator[bytes]:
        """All of it, in order; as many bytes as whole blocks have."""
        out = bytearray(_FIRST)
        written = 0
        for node, parent in self._order:
            position = node.nid * _SLOT
            out += bytes(position - written - len(out))
            out += self._inode(node, parent)
            if len(out) >= _PIECE:
                written += len(out)
                yield bytes(out)
                out.clear()
        out += bytes(-(written + len(out)) % BLOCK)
        for node, parent in self._order:
            if node.offset >= 0:
                content = _content(node, parent)
                out += content + bytes(-len(content) % BLOCK)
                if len(out) >= _PIECE:
                    yield bytes(out)
                    out.clear()
        yield bytes(out)

    def superblock(self) -> bytes:
        """What goes to `SUPER_OFFSET`."""
        return _SUPER.pack(
            SUPER_MAGIC, 0, 0, BLOCK.bit_length() - 1, 0, self.root.nid, self.inodes,
            0, 0, self._total, self._start, 0, b"", b"", 0, 0, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip

    def _place(self, root: Node) -> None:
        """Give every inode its place."""
        order = self._order
        order.append((root, root))
        root.links = 2
        for node, _ in order:  # grows while it is walked
            self._place_one(node)
            if node.children is None:
                continue
            for child in node.children.values():
                if child.children is not None:
                    child.links = 2
                    node.links += 1
                    order.append((child, node))
                elif child.links:
                    child.links += 1
                else:
                    child.links = 1
                    order.append((child, node))

    def _place_one(self, node: Node) -> None:
        head = _INODE.size
        if node.xattrs:
            head += _xattrs_size(node.xattrs)
        size = 0
        if node.children is not None:
            node.blocks = _blocks(node.children)
            size = _directory_size(node.blocks)
        elif node.target:
            size = len(node.target)
        offset = self._end
        if size > _INLINE_MAX:
            node.offset = self._tail
            self._tail += -(-size // BLOCK) * BLOCK
            size = 0
        elif size and (offset + head) % BLOCK + size > BLOCK:
            offset = -(-(offset + head) // BLOCK) * BLOCK - head
            offset = -(-offset // _SLOT) * _SLOT
        node.nid = offset // _SLOT
        self._end = -(-(offset + head + size) // _SLOT) * _SLOT

    def _inode(self, node: Node, parent: Node) -> bytes:
        layout, content, size, where = _PLAIN, b"", node.size, node.block
        if node.children is not None or node.target:
            if node.offset < 0:
                layout, where = _INLINE, 0
                content = _content(node, parent)
                size = len(content)
            else:
                where = self._tail_block + node.offset // BLOCK
                size = _directory_size(node.blocks) if node.blocks is not None else len(node.target)
        elif not stat.S_ISREG(node.mode):
            where = _encoded_device(node.block)
        xattrs = _xattrs(node.xattrs) if node.xattrs else b""
        return (
            _INODE.pack(
                _EXTENDED | layout,
                1 + (len(xattrs) - _XATTRS.size) // 4 if xattrs else 0,
                node.mode,
                0,
                size,
                where,
                node.nid & 0xFFFFFFFF,
                node.uid,
                node.gid,
                node.mtime // 1_000_000_000,
                node.mtime % 1_000_000_000,
                node.links,
            )
            + xattrs
            + content
        )


def _encoded_device(number: int) -> int:
    """The kernel's new_encode_dev."""
    major, minor = os.major(number), os.minor(number)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def _blocks(children: Mapping[bytes, Node]) -> list[list[bytes]]:
    """Names in order, as many to a block as fit."""
    blocks: list[list[bytes]] = []
    names: list[bytes] = []
    left = BLOCK
    for name in sorted((b".", b"..", *children)):
        need = _DIRENT.size + len(name)
        if need > left:
            blocks.append(names)
            names, left = [], BLOCK
        names.append(name)
        left -= need
    blocks.append(names)
    return blocks


def _directory_size(blocks: list[list[bytes]]) -> int:
    last = blocks[-1]
    return (len(blocks) - 1) * BLOCK + len(last) * _DIRENT.size + sum(map(len, last))


def _content(node: Node, parent: Node) -> bytes:
    """A link's target, or a directory's entries."""
    if node.blocks is None or node.children is None:
        return node.target
    out = bytearray()
    last = len(node.blocks) - 1
    special = {b".": node, b"..": parent}
    for index, names in enumerate(node.blocks):
        start = len(out)
        offset = len(names) * _DIRENT.size
        for name in names:
            child = special.get(name) or node.children[name]
            out += _DIRENT.pack(child.nid, offset, _TYPES[stat.S_IFMT(child.mode)])
            offset += len(name)
        out += b"".join(names)
        if index != last:
            out += bytes(start + BLOCK - len(out))
    return bytes(out)


def _split(name: bytes) -> tuple[int, bytes]:
    for prefix, index in _PREFIXES:
        if name.startswith(prefix):
            return index, name[len(prefix) :]
    raise ValueError(f"attribute {name!r} has no prefix that EROFS knows")


def _xattrs_size(xattrs: Mapping[bytes, bytes]) -> int:
    """Bytes of `_xattrs`."""
    size = _XATTRS.size
    for name, value in xattrs.items():
        size += -(-(_XATTR.size + len(_split(name)[1]) + len(value)) // 4) * 4
    return size


def _xattrs(xattrs: Mapping[bytes, bytes]) -> bytes:
    out = bytearray(_XATTRS.pack(0, 0))
    for name, value in xattrs.items():
        index, rest = _split(name)
        out += _XATTR.pack(len(rest), index, len(value)) + rest + value
        out += bytes(-len(out) % 4)
    return bytes(out)
