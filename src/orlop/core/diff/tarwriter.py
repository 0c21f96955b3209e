"""Writing tar headers, byte for byte as Go's archive/tar writes those of containerd's layers.

That is plain ustar where everything fits, and else a PAX extended header before one: for names that are long or not
ASCII, ids and sizes that do not fit octal digits, and extended attributes. So a layer made here has the digest that
containerd's would have had.

Sources: POSIX pax(1), "ustar Interchange Format" and "pax Interchange Format"; the documented behaviour of Go's
archive/tar with FormatPAX.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from orlop.core.diff import tar

_NAME: Final = 100
_PREFIX: Final = 155
_HEADER: Final = struct.Struct("100s 8s 8s 8s 12s 12s 8s 1s 100s 8s 32s 32s 8s 8s 155s 12x")
_MAGIC: Final = b"ustar\x0000"
_XATTR: Final = b"SCHILY.xattr."
_NO_SUM: Final = b" " * 8
_PAX: Final = 0x78

END: Final = bytes(2 * tar.BLOCK)
"""What ends an archive."""


@dataclass(slots=True, kw_only=True)
class Header:
    """What an entry's header says.

    Attributes:
        name: a directory's ends in a slash.
        type: one of `tar.REGULAR` and its siblings.
        mtime: whole seconds since 1970.
        size: bytes of data that follow.
    """

    name: bytes
    type: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


def encode(header: Header) -> bytes:
    """The blocks of an entry's header, the extended one included.

    Raises:
        ValueError: the mode or a device number is too large for the format.
    """
    prefix, name = _split(header.name)
    pax: dict[bytes, bytes] = {_XATTR + key: value for key, value in header.xattrs.items()}
    needed = bool(pax)
    if len(header.name) > _NAME or not header.name.isascii():
        pax[b"path"] = header.name
        needed = needed or name is None
    if len(header.link) > _NAME or not header.link.isascii():
        pax[b"linkpath"] = header.link
        needed = True
    for key, value, width in (
        (b"uid", header.uid, 8),
        (b"gid", header.gid, 8),
        (b"size", header.size, 12),
        (b"mtime", header.mtime, 12),
    ):
        if not _fits(value, width):
            pax[key] = b"%d" % value
            needed = True
    if not needed:
        return _block(header, name if name is not None else header.name, prefix)
    data = b"".join(_record(key, pax[key]) for key in sorted(pax))
    extended = _special(_pax_name(header.name), len(data))
    return extended + data + bytes(-len(data) % tar.BLOCK) + _block(header, _ascii(header.name), b"")


def _split(name: bytes) -> tuple[bytes, bytes | None]:
    """The prefix and the rest of a name that is too long for one field, or None if there is no place to split it."""
    if len(name) <= _NAME:
        return (b"", name) if name.isascii() else (b"", None)
    if not name.isascii():
        return b"", None
    length = len(name)
    if length > _PREFIX + 1:
        length = _PREFIX + 1
    elif name.endswith(b"/"):
        length -= 1
    at = name.rfind(b"/", 0, length)
    rest = len(name) - at - 1
    if at <= 0 or rest > _NAME or rest == 0 or at > _PREFIX:
        return b"", None
    return name[:at], name[at + 1 :]


def _block(header: Header, name: bytes, prefix: bytes) -> bytes:
    return _summed(
        (
            _text(name, _NAME),
            _octal(header.mode, 8),
            _octal_or_zero(header.uid, 8),
            _octal_or_zero(header.gid, 8),
            _octal_or_zero(header.size, 12),
            _octal_or_zero(header.mtime, 12),
            _NO_SUM,
            bytes((header.type,)),
            _text(_ascii(header.link), _NAME),
            _MAGIC,
            b"",
            b"",
            _octal(header.major, 8),
            _octal(header.minor, 8),
            prefix,
        )
    )


def _special(name: bytes, size: int) -> bytes:
    """The header of an extended header; it has no device fields, as Go leaves them."""
    name = _ascii(name)[:_NAME].rstrip(b"/")
    zero = _octal(0, 8)
    fields = (name, zero, zero, zero, _octal(size, 12), _octal(0, 12), _NO_SUM, bytes((_PAX,)))
    return _summed((*fields, b"", _MAGIC, b"", b"", b"", b"", b""))


def _summed(fields: tuple[bytes, ...]) -> bytes:
    block = _HEADER.pack(*fields)
    return b"%b%06o\0 %b" % (block[:148], sum(block), block[156:])


def _text(value: bytes, width: int) -> bytes:
    """A field's text; one that is cut must not end in a slash, or old readers take a file for a directory."""
    if len(value) > width and value[width - 1 : width] == b"/":
        return value[: width - 1].rstrip(b"/")
    return value


def _fits(value: int, width: int) -> bool:
    return 0 <= value < 1 << (width - 1) * 3


def _octal(value: int, width: int) -> bytes:
    if not _fits(value, width):
        raise ValueError(f"{value} does not fit {width - 1} octal digits")
    return b"%0*o" % (width - 1, value)


def _octal_or_zero(value: int, width: int) -> bytes:
    """What does not fit stands in the extended header."""
    return _octal(value if _fits(value, width) else 0, width)


def _ascii(text: bytes) -> bytes:
    return text if text.isascii() else bytes(byte for byte in text if byte < 0x80)


def _pax_name(name: bytes) -> bytes:
    """Where an extended header claims to be: `PaxHeaders.0` beside its entry."""
    directory, _, base = name.rpartition(b"/")
    parts = [part for part in directory.split(b"/") if part]
    return b"/".join([*parts, b"PaxHeaders.0", *([base] if base else [])])


def _record(key: bytes, value: bytes) -> bytes:
    """A line of an extended header: its own length, in decimal digits that count themselves."""
    rest = len(key) + len(value) + 3
    size = rest + len(str(rest))
    size = rest + len(str(size))  # its digits may be one more for counting themselves
    return b"%d %b=%b\n" % (size, key, value)
