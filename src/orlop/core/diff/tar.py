"""Reading tar archives as they stream by: ustar, v7, GNU and PAX, as Go's archive/tar understands them.

The standard library's `tarfile` takes five times as long per header and wants text for names. Here names are bytes,
a header is one `struct` unpacking, and the data of an entry is handed on in slices of the chunks that came in.

A `Reader` is fed by an iterator of chunks. For each entry the caller takes the data it wants (`pieces`); what it leaves
is skipped. Everything that an archive can make large (extended headers, sparse maps, names) is bounded here.

Sources: POSIX pax(1), the GNU tar manual ("Basic Tar Format", "Sparse Formats"), and the documented behaviour of Go's
archive/tar, which decides what containerd accepts.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from orlop.core.diff.errors import ArchiveError, LimitError

BLOCK: Final = 512
MAX_SPECIAL: Final = 1 << 20
"""Bytes that an extended header, a long name or a sparse map may have, as in Go's archive/tar."""

REGULAR: Final = 0x30
LINK: Final = 0x31
SYMLINK: Final = 0x32
CHARACTER: Final = 0x33
BLOCK_DEVICE: Final = 0x34
DIRECTORY: Final = 0x35
FIFO: Final = 0x36
_CONTIGUOUS: Final = 0x37
_PAX: Final = 0x78  # x
_PAX_GLOBAL: Final = 0x67  # g
_GNU_LONG_NAME: Final = 0x4C  # L
_GNU_LONG_LINK: Final = 0x4B  # K
_GNU_SPARSE: Final = 0x53  # S
_WITHOUT_DATA: Final = frozenset((LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO))

_HEADER: Final = struct.Struct("100s 8s 8s 8s 12s 12s 8s B 100s 8s 32s 32s 8s 8s 155s 12s")
_ZEROS: Final = bytes(BLOCK)
_USTAR: Final = b"ustar\x0000"
_GNU: Final = b"ustar  \x00"
_MAX_INT64: Final = (1 << 63) - 1
_XATTR: Final = b"SCHILY.xattr."
_MAX_NS: Final = (1 << 63) - 1

Segments = list[tuple[int, int]]
"""The parts of a sparse file that hold data: offset and length in bytes, ascending."""


class Entry:
    """One member of an archive.

    Attributes:
        name, link: as they stand in the archive, not cleaned.
        type: one of REGULAR, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO.
        mode: the permission bits, with set-uid and its like.
        size: bytes of the file once unpacked; 0 for all but regular files.
        mtime, atime: nanoseconds since 1970; `atime` is never before `mtime`.
        xattrs: extended attributes, None for none.
        segments: where the data goes in a sparse file, None for an ordinary one.
        stored: bytes of data that the archive holds for it.
    """

    __slots__ = (
        "atime",
        "gid",
        "link",
        "major",
        "minor",
        "mode",
        "mtime",
        "name",
        "segments",
        "size",
        "stored",
        "type",
        "uid",
        "xattrs",
    )

    name: bytes
    link: bytes
    type: int
    mode: int
    uid: int
    gid: int
    size: int
    stored: int
    mtime: int
    atime: int
    major: int
    minor: int
    xattrs: dict[bytes, bytes] | None
    segments: Segments | None


class Reader:
    """Reads entries from chunks of an uncompressed archive.

    Args:
        chunks: the archive, in pieces of any size but preferably about a megabyte.

    Attributes:
        entries: how many headers have been read, those that extend the next one included.
        max_entries: how many there may be.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._buffer = b""
        self._position = 0
        self._left = 0  # data and padding of the current entry not yet taken
        self._padding = 0
        self._numbers: dict[bytes, int] = {}
        self._sums: dict[bytes, int] = {}
        self.entries = 0
        self.max_entries = _MAX_INT64

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self.next()) is not None:
            yield entry

    def next(self) -> Entry | None:
        """The next entry, or None at the archive's end (its trailer, or the end of the stream between two entries).

        Raises:
            ArchiveError: the header is damaged, of an unknown type, too large, or the stream ends inside an entry.
        """
        name = link = b""
        pax: dict[bytes, bytes] | None = None
        while True:
            if self._left or self._padding:
                self._skip()
            header = self._block()
            if header is None:
                return None
            if header == _ZEROS:
                self._trailer()
                return None
            self.entries += 1
            if self.entries > self.max_entries:
                raise LimitError(f"more than {self.max_entries} entries")
            fields = _HEADER.unpack(header)
            self._check_sum(header, fields)
            kind = fields[7]
            if kind in (_PAX, _PAX_GLOBAL, _GNU_LONG_NAME, _GNU_LONG_LINK):
                raw = self._special(self._number(fields[4], "size"), fields[0])
                if kind == _PAX:
                    pax = _pax_records(raw)
                elif kind == _PAX_GLOBAL:
                    _pax_records(raw)  # checked and ignored, as containerd does; for Go it is an entry of its own,
                    name, link, pax = b"", b"", None  # so that what came before it does not reach the next one
                elif kind == _GNU_LONG_NAME:
                    name = raw.partition(b"\0")[0]
                else:
                    link = raw.partition(b"\0")[0]
                continue
            try:
                return self._entry(header, fields, name, link, pax)
            except ArchiveError as error:
                if error.entry is None:
                    error.entry = name or fields[0].partition(b"\0")[0]
                raise

    def pieces(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes of the current entry's data, in slices that must be used before the next is taken.

        Raises:
            ArchiveError: the stream ends before.
        """
        self._left -= size
        while size:
            available = len(self._buffer) - self._position
            if not available:
                if not self._more():
                    raise ArchiveError("the archive ends in the middle of its data")
                continue
            count = min(available, size)
            start = self._position
            self._position = start + count
            size -= count
            yield memoryview(self._buffer)[start : start + count]

    def take(self) -> memoryview | None:
        """All of the current entry's data in one slice, or None if it lies across chunks (then use `pieces`)."""
        start, size = self._position, self._left
        end = start + size
        if end > len(self._buffer):
            return None
        self._left = 0
        self._position = end
        return memoryview(self._buffer)[start:end]

    @property
    def unread(self) -> int:
        """Bytes that have come in and are not yet taken or passed."""
        return len(self._buffer) - self._position

    def drain(self) -> None:
        """Read the stream to its end, so that whoever hashes it has seen all of it."""
        self._buffer = b""
        self._position = 0
        for _ in self._chunks:
            pass

    def _entry(
        self, header: bytes, fields: tuple[bytes, ...], name: bytes, link: bytes, pax: dict[bytes, bytes] | None
    ) -> Entry:
        (raw_name, mode, uid, gid, size, mtime, _, _, raw_link, magic, _, _, major, minor, prefix, _) = fields
        kind: int = fields[7]  # type: ignore[assignment]  # "B" among strings
        entry = Entry()
        number = self._number
        entry.mode = number(mode, "mode") & 0o7777
        entry.uid = number(uid, "uid")
        entry.gid = number(gid, "gid")
        entry.mtime = entry.atime = number(mtime, "mtime") * 1_000_000_000
        stored = number(size, "size")
        entry.major = entry.minor = 0
        entry.xattrs = None
        entry.segments = None
        if not name:
            name = raw_name.partition(b"\0")[0]
            if magic == _USTAR:
                if prefix[0]:
                    if header[508:512] == b"tar\0":
                        prefix = prefix[:131]
                    name = prefix.partition(b"\0")[0] + b"/" + name
            elif magic == _GNU and prefix[0]:
                name = self._gnu_times(entry, prefix, name)
        elif magic == _GNU and prefix[0]:
            self._gnu_times(entry, prefix, b"")
        entry.name = name
        entry.link = link or raw_link.partition(b"\0")[0]
        if kind in (CHARACTER, BLOCK_DEVICE):
            entry.major = number(major, "device")
            entry.minor = number(minor, "device")
        if pax:
            stored = self._apply_pax(entry, pax, stored)
        if kind in (0, _CONTIGUOUS):
            kind = DIRECTORY if kind == 0 and entry.name.endswith(b"/") else REGULAR
        if stored < 0 or entry.uid < 0 or entry.gid < 0:
            raise ArchiveError("a size or an owner is negative", entry.name)
        if kind in _WITHOUT_DATA:
            stored = 0
        self._left = stored
        self._padding = -stored % BLOCK
        entry.size = stored
        if kind == _GNU_SPARSE:
            kind = REGULAR
            self._old_sparse(entry, header)
        elif kind != REGULAR and kind not in _WITHOUT_DATA:
            raise ArchiveError(f"header type {chr(kind)!r} is not supported", entry.name)
        elif pax and kind == REGULAR:
            self._pax_sparse(entry, pax)
        entry.type = kind
        entry.stored = self._left
        if entry.mtime > _MAX_NS or entry.mtime < 0:
            entry.mtime = 0  # as containerd bounds times
        if entry.atime > _MAX_NS or entry.atime < entry.mtime:
            entry.atime = entry.mtime
        return entry

    def _gnu_times(self, entry: Entry, prefix: bytes, name: bytes) -> bytes:
        """GNU headers have times where ustar has its prefix; but Go before 1.8 wrote a prefix there all the same."""
        try:
            entry.atime = max(entry.mtime, self._number(prefix[:12], "atime") * 1_000_000_000)
            if prefix[12]:
                self._number(prefix[12:24], "ctime")
        except ArchiveError:
            text = prefix.partition(b"\0")[0]
            if name and text.isascii():
                return text + b"/" + name
        return name

    def _apply_pax(self, entry: Entry, pax: dict[bytes, bytes], stored: int) -> int:
        """Let the extended header's values take the place of the header's; returns the data's size."""
        atime = None
        for key, value in pax.items():
            if key.startswith(_XATTR):
                if entry.xattrs is None:
                    entry.xattrs = {}
                entry.xattrs[key[len(_XATTR) :]] = value
            elif not value:
                continue  # the header's own value holds
            elif key == b"path":
                entry.name = value
            elif key == b"linkpath":
                entry.link = value
            elif key == b"size":
                stored = _decimal(key, value)
            elif key == b"uid":
                entry.uid = _decimal(key, value)
            elif key == b"gid":
                entry.gid = _decimal(key, value)
            elif key == b"mtime":
                entry.mtime = _pax_time(key, value)
            elif key == b"atime":
                atime = _pax_time(key, value)
        entry.atime = entry.mtime if atime is None else max(atime, entry.mtime)
        return stored

    def _old_sparse(self, entry: Entry, header: bytes) -> None:
        """The map in a GNU sparse header (type S) and its continuation blocks."""
        if header[257:265] != _GNU:
            raise ArchiveError("a sparse entry without GNU's magic", entry.name)
        segments: Segments = []
        table, count, extended = header[386:482], 4, header[482]
        entry.size = self._number(header[483:495], "sparse size")
        read = 0
        while True:
            for start in range(0, count * 24, 24):
                offset = table[start : start + 12]
                if not offset[0]:
                    extended = 0
                    break
                segments.append(
                    (self._number(offset, "sparse"), self._number(table[start + 12 : start + 24], "sparse"))
                )
            if not extended:
                break
            block = self._block()
            read += BLOCK
            if block is None or read > MAX_SPECIAL:
                raise ArchiveError("the sparse map is cut or too large", entry.name)
            table, count, extended = block[:504], 21, block[504]
        self._set_segments(entry, segments)

    def _pax_sparse(self, entry: Entry, pax: dict[bytes, bytes]) -> None:
        """The sparse formats 0.0, 0.1 and 1.0, which say so in the extended header only."""
        major, minor = pax.get(b"GNU.sparse.major"), pax.get(b"GNU.sparse.minor")
        text = pax.get(b"GNU.sparse.map")
        if major == b"1" and minor == b"0":
            numbers = self._sparse_table(entry)
        elif major in (None, b"0") and minor in (None, b"0", b"1") and text:
            if len(text) > MAX_SPECIAL:
                raise ArchiveError("the sparse map is too large", entry.name)
            numbers = [_decimal(b"GNU.sparse.map", part) for part in text.split(b",")]
            if len(numbers) != 2 * _decimal(b"GNU.sparse.numblocks", pax.get(b"GNU.sparse.numblocks", b"")):
                raise ArchiveError("the sparse map has the wrong length", entry.name)
        else:
            return
        entry.name = pax.get(b"GNU.sparse.name") or entry.name
        size = pax.get(b"GNU.sparse.realsize") or pax.get(b"GNU.sparse.size")
        if size:
            entry.size = _decimal(b"GNU.sparse.size", size)
        self._set_segments(entry, list(zip(numbers[::2], numbers[1::2], strict=True)))

    def _sparse_table(self, entry: Entry) -> list[int]:
        """The map of format 1.0: decimal lines before the data, padded to a block; the first is their number."""
        raw = bytearray()
        wanted: int | None = None
        while True:
            lines = raw.count(b"\n")
            if wanted is None and lines:
                wanted = 1 + 2 * _decimal(b"GNU.sparse.map", bytes(raw[: raw.index(b"\n")]))
                if wanted < 1:
                    raise ArchiveError("the sparse map's length is negative", entry.name)
            if wanted is not None and lines >= wanted:
                break
            if self._left < BLOCK or len(raw) >= MAX_SPECIAL:
                raise ArchiveError("the sparse map is cut or too large", entry.name)
            raw += b"".join(map(bytes, self.pieces(BLOCK)))
        parts = bytes(raw).split(b"\n")[1:wanted]
        return [_decimal(b"GNU.sparse.map", part) for part in parts]

    def _set_segments(self, entry: Entry, segments: Segments) -> None:
        if not 0 <= entry.size <= _MAX_INT64:
            raise ArchiveError("the sparse file's size is out of range", entry.name)
        end = total = 0
        for offset, length in segments:
            if length < 0 or offset < end or offset + length > entry.size:
                raise ArchiveError("the sparse map is not ascending or leaves the file", entry.name)
            end = offset + length
            total += length
        if total != self._left:
            raise ArchiveError("the sparse map does not fit the data", entry.name)
        entry.segments = segments

    def _check_sum(self, header: bytes, fields: tuple[bytes, ...]) -> None:
        """Verify the header's checksum, by way of Adler-32, whose low half is 1 plus the sum of the bytes."""
        raw = fields[6]
        expected = self._sums.get(raw)
        if expected is None:
            if len(self._sums) > 65536:
                self._sums.clear()
            expected = self._sums[raw] = (1 + self._number(raw, "checksum") - 256 + sum(raw)) % 65521
        if zlib.adler32(header) & 0xFFFF != expected:
            signed = sum(header) - sum(raw) + 256 - 256 * sum(1 for byte in header[:148] + header[156:] if byte > 127)
            if signed != self._number(raw, "checksum"):  # some old programs summed signed characters
                raise ArchiveError("the header's checksum is wrong", fields[0].partition(b"\0")[0])

    def _number(self, field: bytes, what: str) -> int:
        """An octal or base-256 number; fields repeat so often that they are remembered."""
        value = self._numbers.get(field)
        if value is None:
            value = _parse_number(field, what)
            if len(self._numbers) > 65536:
                self._numbers.clear()
            self._numbers[field] = value
        return value

    def _special(self, size: int, name: bytes) -> bytes:
        if size < 0 or size > MAX_SPECIAL:
            raise ArchiveError(f"an extended header of {size} bytes", name.partition(b"\0")[0])
        self._left = size
        self._padding = -size % BLOCK
        return b"".join(map(bytes, self.pieces(size)))

    def _trailer(self) -> None:
        """After one block of zeros: the end is there, or another block of zeros."""
        second = self._block()
        if second is not None and second != _ZEROS:
            raise ArchiveError("a block of zeros between two entries")

    def _block(self) -> bytes | None:
        """The next 512 bytes; None at the end of the stream."""
        start = self._position
        end = start + BLOCK
        if end <= len(self._buffer):
            self._position = end
            return self._buffer[start:end]
        while len(self._buffer) - self._position < BLOCK:
            rest = self._buffer[self._position :]
            chunk = next(self._chunks, None)
            if chunk is None:
                if rest:
                    raise ArchiveError("the archive ends in the middle of a header")
                return None
            self._buffer = rest + chunk if rest else chunk
            self._position = 0
        self._position = BLOCK
        return self._buffer[:BLOCK]

    def _more(self) -> bool:
        chunk = next(self._chunks, None)
        if chunk is None:
            return False
        self._buffer = chunk
        self._position = 0
        return True

    def _skip(self) -> None:
        """Pass what is left of the current entry; its padding may be missing at the end of the stream."""
        available = len(self._buffer) - self._position
        if self._left + self._padding <= available:
            self._position += self._left + self._padding
            self._left = self._padding = 0
            return
        for _ in self.pieces(self._left):
            pass
        padding, self._padding = self._padding, 0
        while padding:
            available = min(len(self._buffer) - self._position, padding)
            self._position += available
            padding -= available
            if padding and not self._more():
                return


def _parse_number(field: bytes, what: str) -> int:
    if field[0] & 0x80:  # base 256, two's complement without the marking bit
        value = int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
        if field[0] & 0x40:
            value -= 0x80 << 8 * (len(field) - 1)
        if not -_MAX_INT64 <= value <= _MAX_INT64:
            raise ArchiveError(f"the {what} field is out of range")
        return value
    text = field.strip(b" \0").partition(b"\0")[0]
    if not text:
        return 0
    if text.strip(b"01234567"):
        raise ArchiveError(f"the {what} field is no number")
    return int(text, 8)


def _pax_records(raw: bytes) -> dict[bytes, bytes]:
    """The records of an extended header: `length key=value newline`, each with its own length in decimal."""
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    position, end = 0, len(raw)
    while position < end:
        space = raw.find(b" ", position, position + 21)
        length = raw[position:space] if space > 0 else b""
        if not length.isdigit():
            raise ArchiveError("an extended header's record has no length")
        stop = position + int(length)
        if stop > end or stop <= space + 1 or raw[stop - 1] != 0x0A:
            raise ArchiveError("an extended header's record has the wrong length")
        key, equals, value = raw[space + 1 : stop - 1].partition(b"=")
        if not equals or not key or b"\0" in key:
            raise ArchiveError("an extended header's record has no key")
        if b"\0" in value and not key.startswith(_XATTR):
            raise ArchiveError("an extended header's value has a zero byte")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            if (len(sparse) % 2 == 0) != (key == b"GNU.sparse.offset") or b"," in value:
                raise ArchiveError("an extended header's sparse records are out of order")
            sparse.append(value)
        else:
            records[key] = value
        position = stop
    if sparse:
        records[b"GNU.sparse.map"] = b",".join(sparse)
    return records


def _decimal(key: bytes, value: bytes) -> int:
    digits = value[1:] if value[:1] == b"-" else value
    if not digits.isdigit() or len(digits) > 19 or abs(int(value)) > _MAX_INT64:
        raise ArchiveError(f"the extended header's {key.decode(errors='replace')} is no number")
    return int(value)


def _pax_time(key: bytes, value: bytes) -> int:
    """Seconds with an optional fraction, in nanoseconds; what is finer is cut towards the past."""
    seconds, _, fraction = value.partition(b".")
    negative = seconds[:1] == b"-"
    whole = _decimal(key, seconds)
    if fraction and not fraction.isdigit():
        raise ArchiveError(f"the extended header's {key.decode()} is no time")
    nanoseconds = int((fraction + b"000000000")[:9])
    return whole * 1_000_000_000 + (-nanoseconds if negative else nanoseconds)
