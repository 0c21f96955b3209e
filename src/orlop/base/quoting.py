"""Go's double-quoted strings, as containerd prints them in errors (`%q`) and reads them in filters.

Source: strconv.Quote and strconv.Unquote of Go; containerd's pkg/filters adds `/` and `|` as quotes.
"""

from typing import Final

_SIMPLE_ESCAPES: Final = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92}
_ESCAPE_OF: Final = {value: "\\" + letter for letter, value in _SIMPLE_ESCAPES.items()} | {ord('"'): '\\"'}
_HEX_DIGITS_OF: Final = {"x": 2, "u": 4, "U": 8}
_QUOTES: Final = "\"'/|"


class QuoteSyntaxError(ValueError):
    """The text between the quotes is none that Go would accept."""

    def __init__(self) -> None:
        super().__init__("quote syntax error")


def quote(text: str) -> str:
    """`text` as Go's `%q` prints it: in double quotes, with what does not print escaped."""
    return '"' + "".join(_quoted_character(character) for character in text) + '"'


def _quoted_character(character: str) -> str:
    code = ord(character)
    if code in _ESCAPE_OF:
        return _ESCAPE_OF[code]
    if character == " " or character.isprintable():
        return character
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as surrogateescape keeps it
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def unquote(literal: str) -> str:
    """The text that a literal in `"`, `/`, `|` or `'` quotes stands for.

    Escapes may name bytes that are not UTF-8; those come back as surrogate escapes (PEP 383).

    Raises:
        QuoteSyntaxError: no quotes, different quotes, or an escape that Go does not know.
    """
    if len(literal) < 2 or literal[0] != literal[-1] or literal[0] not in _QUOTES:
        raise QuoteSyntaxError
    mark, body = literal[0], literal[1:-1]
    if "\n" in body:
        raise QuoteSyntaxError
    decoded = _unescape(body, mark) if "\\" in body or mark in body else body
    if mark == "'" and len(decoded) != 1:
        raise QuoteSyntaxError
    return decoded


def _unescape(body: str, mark: str) -> str:
    out = bytearray()
    position = 0
    while position < len(body):
        character = body[position]
        if character == mark:
            raise QuoteSyntaxError
        if character == "\\":
            encoded, position = _escape(body, position + 1, mark)
            out += encoded
        else:
            out += character.encode("utf-8", "surrogateescape")
            position += 1
    return out.decode("utf-8", "surrogateescape")


def _escape(body: str, position: int, mark: str) -> tuple[bytes, int]:
    """Decode the escape whose letter is at `position`; returns its bytes and where the text goes on."""
    letter = body[position : position + 1]
    if letter in _SIMPLE_ESCAPES and letter:
        return bytes([_SIMPLE_ESCAPES[letter]]), position + 1
    if letter in _HEX_DIGITS_OF and letter:
        length = _HEX_DIGITS_OF[letter]
        value = _number(body[position + 1 : position + 1 + length], length, 16)
        if letter == "x":
            return bytes([value]), position + 1 + length
        if value > 0x10FFFF:
            raise QuoteSyntaxError
        if 0xD800 <= value <= 0xDFFF:  # Go's encoder writes the replacement character for these
            value = 0xFFFD
        return chr(value).encode(), position + 1 + length
    if "0" <= letter <= "7":
        value = _number(body[position : position + 3], 3, 8)
        if value > 255:
            raise QuoteSyntaxError
        return bytes([value]), position + 3
    if letter and letter == mark:
        return letter.encode(), position + 1
    raise QuoteSyntaxError


def _number(digits: str, length: int, base: int) -> int:
    allowed = "01234567" if base == 8 else "0123456789abcdefABCDEF"
    if len(digits) != length or any(digit not in allowed for digit in digits):
        raise QuoteSyntaxError
    return int(digits, base)
