"""Tar archives from raw headers: whatever a hostile program could write, and no library would."""

from collections.abc import Iterable, Sequence

USTAR = b"ustar\x0000"
GNU = b"ustar  \x00"
V7 = bytes(8)
MTIME = 1_500_000_000
END = bytes(1024)

Records = Iterable[tuple[bytes, bytes]]


def header(
    name: bytes = b"file",
    kind: bytes = b"0",
    *,
    size: int | bytes = 0,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = MTIME,
    link: bytes = b"",
    magic: bytes = USTAR,
    major: int | bytes = 0,
    minor: int | bytes = 0,
    prefix: bytes = b"",
    rest: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """One block. Numbers become octal; bytes are taken as they are, cut or filled with zeros to the field's width."""
    block = b"".join(
        (
            _field(name, 100),
            _field(mode, 8),
            _field(uid, 8),
            _field(gid, 8),
            _field(size, 12),
            _field(mtime, 12),
            b" " * 8,
            _field(kind, 1),
            _field(link, 100),
            _field(magic, 8),
            _field(b"", 64),
            _field(major, 8),
            _field(minor, 8),
            _field(prefix, 155),
            _field(rest, 12),
        )
    )
    return sealed(block, checksum)


def sealed(block: bytes, checksum: bytes | None = None) -> bytes:
    """A block with its checksum in place, the right one or the given one."""
    block = block[:148] + b" " * 8 + block[156:]
    return block[:148] + (b"%06o\0 " % sum(block) if checksum is None else _field(checksum, 8)) + block[156:]


def base256(value: int, width: int) -> bytes:
    """A number in GNU's binary form; negative ones in two's complement."""
    return bytes([0xFF if value < 0 else 0x80]) + value.to_bytes(width - 1, "big", signed=value < 0)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def member(name: bytes = b"file", data: bytes = b"", kind: bytes = b"0", **fields) -> bytes:
    """Header and data."""
    return header(name, kind, **{"size": len(data), **fields}) + padded(data)


def directory(name: bytes, **fields) -> bytes:
    return member(name, kind=b"5", **{"mode": 0o755, **fields})


def symlink(name: bytes, target: bytes, **fields) -> bytes:
    return member(name, kind=b"2", link=target, **{"mode": 0o777, **fields})


def hardlink(name: bytes, target: bytes, **fields) -> bytes:
    return member(name, kind=b"1", link=target, **fields)


def device(name: bytes, major: int | bytes, minor: int | bytes, kind: bytes = b"3", **fields) -> bytes:
    return member(name, kind=kind, major=major, minor=minor, **fields)


def record(key: bytes, value: bytes) -> bytes:
    """One record of an extended header, its own length included."""
    length = len(key) + len(value) + 3
    while len(b"%d" % length) + len(key) + len(value) + 3 != length:
        length = len(b"%d" % length) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


def pax(records: Records, kind: bytes = b"x") -> bytes:
    """An extended header, in the order of the records, repeated ones too."""
    return raw_pax(b"".join(record(key, value) for key, value in records), kind)


def raw_pax(data: bytes, kind: bytes = b"x") -> bytes:
    """An extended header with these very bytes."""
    return member(b"././@PaxHeader", data, kind)


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    """GNU's header for a name (L) or link target (K) of any length."""
    return member(b"././@LongLink", name + b"\0", kind, magic=GNU)


def old_sparse(
    name: bytes,
    segments: Sequence[tuple[int | bytes, int | bytes]],
    data: bytes,
    *,
    real_size: int | bytes,
    size: int | bytes | None = None,
) -> bytes:
    """GNU's own sparse format: four segments in the header, then blocks of 21."""
    table = [_field(part, 12) for segment in segments for part in segment]
    first, table = table[:8], table[8:]
    block = bytearray(header(name, b"S", size=len(data) if size is None else size, magic=GNU))
    block[386 : 386 + 12 * len(first)] = b"".join(first)
    block[482] = bool(table)
    block[483:495] = _field(real_size, 12)
    blocks = [sealed(bytes(block))]
    while table:
        some, table = table[:42], table[42:]
        blocks.append(b"".join(some).ljust(504, b"\0") + bytes([bool(table)]) + bytes(7))
    return b"".join(blocks) + padded(data)


def archive(*members: bytes) -> bytes:
    """The members and the trailer."""
    return b"".join(members) + END


def _field(value: int | bytes, width: int) -> bytes:
    if isinstance(value, int):
        value = b"%0*o\0" % (width - 1, value) if width > 1 else b"%o" % value
    return value[:width].ljust(width, b"\0")
