"""HPACK's Huffman code, decoding only: RFC 7541, section 5.2 and appendix B.

The code is canonical: codes of one length are consecutive and in the order of their symbols, and a longer code starts
where the shorter ones end. So the lengths alone say everything.
"""

from typing import Final

_EOS: Final = 256
# Bits of the code of each octet, then of EOS.
# fmt: off
_LENGTHS: Final = (
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28,
    28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15,
    6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22,
    20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23,
    23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22,
    22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26,
    27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27,
    26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
)
# fmt: on
# Codes up to this length, which is what names and paths consist of, are found by one look at the next octet.
_SHORT: Final = 8


class HuffmanError(Exception):
    """Not a Huffman code: an EOS symbol inside, or padding that is too long or not of ones."""


def _assign() -> tuple[list[tuple[int, int]], list[tuple[int, int, list[int]]]]:
    """(symbol, length) by the next octet, length 0 where the code is longer; (length, first code, symbols) of those."""
    short: list[tuple[int, int]] = []
    long = []
    code = 0
    for length in range(min(_LENGTHS), max(_LENGTHS) + 1):
        symbols = [symbol for symbol, bits in enumerate(_LENGTHS) if bits == length]
        if length <= _SHORT:
            for symbol in symbols:
                short += [(symbol, length)] * (1 << (_SHORT - length))
        elif symbols:
            long.append((length, code, symbols))
        code = (code + len(symbols)) << 1
    short += [(0, 0)] * ((1 << _SHORT) - len(short))
    return short, long


_short, _long = _assign()


def decode(data: bytes) -> bytes:
    """The octets that `data` stands for.

    Raises:
        HuffmanError: it stands for none.
    """
    out = bytearray()
    bits = 0  # not yet decoded, `count` of them
    count = 0
    for octet in data:
        bits = bits << 8 | octet
        count += 8
        while count >= _SHORT:
            symbol, length = _short[bits >> (count - _SHORT)]
            if not length:
                symbol, length = _longer(bits, count)
                if not length:
                    break
            out.append(symbol)
            count -= length
            bits &= (1 << count) - 1
    while count:
        padding = _SHORT - count
        if padding <= 0:
            raise HuffmanError("ends inside a code")
        symbol, length = _short[bits << padding | (1 << padding) - 1]
        if not length or length > count:
            break
        out.append(symbol)
        count -= length
        bits &= (1 << count) - 1
    if bits != (1 << count) - 1:
        raise HuffmanError("padding is not of ones")
    return bytes(out)


def _longer(bits: int, count: int) -> tuple[int, int]:
    """Symbol and length of the long code at the front of `bits`; length 0 if more bits are needed."""
    for length, first, symbols in _long:
        if length > count:
            break
        offset = (bits >> (count - length)) - first
        if offset < len(symbols):
            symbol = symbols[offset]
            if symbol == _EOS:
                raise HuffmanError("EOS inside")
            return symbol, length
    return 0, 0
