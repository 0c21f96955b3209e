"""HPACK header compression: RFC 7541. Decoding in full; encoding without a table, so that answers are constants.

Names and values are `str` of latin-1, one character per octet: nothing is lost, and lengths are those on the wire.
"""

from typing import Final

from orlop.http2 import huffman
from orlop.http2.frames import COMPRESSION_ERROR, ConnectionFault

Field = tuple[str, str]

TABLE_SIZE: Final = 4096
# What an entry costs beside its octets. Section 4.1.
OVERHEAD: Final = 32

# Appendix A.
STATIC: Final[tuple[Field, ...]] = (
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
)
_STATIC_NAMES: Final = {name: index for index, (name, _) in reversed(list(enumerate(STATIC, 1)))}
_STATIC_FIELDS: Final = {field: index for index, field in reversed(list(enumerate(STATIC, 1)))}

# Clients of one daemon send the same paths and names again and again; new connections find them decoded.
_REMEMBERED: Final = 1024
_REMEMBERED_LENGTH: Final = 128
_remembered: dict[bytes, str] = {}


class Decoder:
    """The state of one connection's header compression.

    Attributes:
        generation: grows whenever the dynamic table changes; while it stands still, equal blocks mean equal fields.
    """

    __slots__ = ("_allowed", "_capacity", "_entries", "_size", "generation")

    def __init__(self, table_size: int = TABLE_SIZE) -> None:
        self._allowed = table_size
        self._capacity = table_size
        self._entries: list[Field] = []  # the newest last
        self._size = 0
        self.generation = 0

    def decode(self, block: bytes, limit: int) -> list[Field] | None:
        """The fields of a whole header block, or None if their size by section 4.1 is beyond `limit`.

        The table has followed the block in either case.

        Raises:
            ConnectionFault: COMPRESSION_ERROR: not a header block, and with it the connection's state is lost.
        """
        fields: list[Field] = []
        size = 0
        position, end = 0, len(block)
        try:
            while position < end:
                octet = block[position]
                position += 1
                if octet >= 0x80:
                    index = octet & 0x7F
                    if index == 0x7F:
                        index, position = _integer(block, position, 0x7F)
                    field = STATIC[index - 1] if 0 < index <= 61 else self._dynamic(index)
                elif octet >= 0x40:
                    field, position = self._literal(block, position, octet & 0x3F, 0x3F)
                    self._insert(field)
                elif octet < 0x20:
                    field, position = self._literal(block, position, octet & 0x0F, 0x0F)
                else:
                    capacity = octet & 0x1F
                    if capacity == 0x1F:
                        capacity, position = _integer(block, position, 0x1F)
                    if size:
                        raise _fault("table size changes inside a block")
                    self._resize(capacity)
                    continue
                size += len(field[0]) + len(field[1]) + OVERHEAD
                if size <= limit:
                    fields.append(field)
        except IndexError:
            raise _fault("header block ends early") from None
        except huffman.HuffmanError as error:
            raise _fault(f"Huffman code: {error}") from None
        return fields if size <= limit else None

    def _literal(self, block: bytes, position: int, index: int, mask: int) -> tuple[Field, int]:
        if index == mask:
            index, position = _integer(block, position, mask)
        if index == 0:
            name, position = _string(block, position)
        elif index <= len(STATIC):
            name = STATIC[index - 1][0]
        else:
            name = self._dynamic(index)[0]
        value, position = _string(block, position)
        return (name, value), position

    def _dynamic(self, index: int) -> Field:
        entries = self._entries
        back = index - len(STATIC)
        if not 0 < back <= len(entries):
            raise _fault(f"index {index} of a table of {len(STATIC) + len(entries)}")
        return entries[-back]

    def _insert(self, field: Field) -> None:
        self.generation += 1
        self._entries.append(field)
        self._size += len(field[0]) + len(field[1]) + OVERHEAD
        if self._size > self._capacity:
            self._evict()

    def _resize(self, capacity: int) -> None:
        if capacity > self._allowed:
            raise _fault(f"table of {capacity} bytes, allowed are {self._allowed}")
        self.generation += 1
        self._capacity = capacity
        self._evict()

    def _evict(self) -> None:
        gone = 0
        while self._size > self._capacity:
            name, value = self._entries[gone]
            self._size -= len(name) + len(value) + OVERHEAD
            gone += 1
        del self._entries[:gone]


def encode(fields: list[Field]) -> bytes:
    """A header block that leaves no trace in the peer's table; names must be lower case, values latin-1."""
    out = bytearray()
    for field in fields:
        index = _STATIC_FIELDS.get(field, 0)
        if index and field[1]:
            out.append(0x80 | index)
            continue
        name, value = field
        index = _STATIC_NAMES.get(name, 0)
        out += _encoded_integer(index, 0x0F, 0)
        if not index:
            out += _encoded_integer(len(name), 0x7F, 0) + name.encode("latin-1")
        out += _encoded_integer(len(value), 0x7F, 0) + value.encode("latin-1")
    return bytes(out)


def _fault(text: str) -> ConnectionFault:
    return ConnectionFault(COMPRESSION_ERROR, text)


def _integer(block: bytes, position: int, mask: int) -> tuple[int, int]:
    """Section 5.1, after a prefix of ones; four more octets are plenty for anything that is within bounds."""
    value = mask
    for shift in (0, 7, 14, 21):
        octet = block[position]
        position += 1
        value += (octet & 0x7F) << shift
        if octet < 0x80:
            return value, position
    raise _fault("integer is too large")


def _encoded_integer(value: int, mask: int, first: int) -> bytes:
    if value < mask:
        return bytes((first | value,))
    out = bytearray((first | mask,))
    value -= mask
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _string(block: bytes, position: int) -> tuple[str, int]:
    """Section 5.2."""
    octet = block[position]
    position += 1
    length = octet & 0x7F
    if length == 0x7F:
        length, position = _integer(block, position, 0x7F)
    end = position + length
    if end > len(block):
        raise _fault("string ends after its block")
    raw = block[position:end]
    if octet < 0x80:
        return raw.decode("latin-1"), end
    text = _remembered.get(raw)
    if text is None:
        text = huffman.decode(raw).decode("latin-1")
        if length <= _REMEMBERED_LENGTH:
            if len(_remembered) >= _REMEMBERED:
                _remembered.clear()
            _remembered[raw] = text
    return text, end
