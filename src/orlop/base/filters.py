"""containerd's filter language: which objects of a list a caller wants.

    selectors := selector ("," selector)*            all must match
    selector  := fieldpath [operator value]          without operator: is the field there?
    fieldpath := field ("." field)*
    field     := quoted | [A-Za-z0-9_-]+
    operator  := "==" | "!=" | "~="                  `~=` takes a regular expression in Go's syntax
    value     := quoted | characters up to a comma or white space
    quoted    := Go's double-quoted string; after `~=` also between `/` or `|`

Several filters are alternatives. An object shows itself as an adaptor, a function from a field path to the field's
value or None where the field is absent. Positions in errors count characters.

Source: containerd's pkg/filters (parser.go, scanner.go, quote.go); what it accepts is accepted and no more.
"""

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from orlop.base.errdefs import InvalidArgumentError
from orlop.base.quoting import QuoteSyntaxError, quote, unquote

Adaptor = Callable[[tuple[str, ...]], str | None]
"""The value of the field at a path, or None where it is absent."""


class Operator(StrEnum):
    PRESENT = "?"
    EQUAL = "=="
    NOT_EQUAL = "!="
    MATCHES = "~="


@dataclass(frozen=True, slots=True)
class Selector:
    """One condition. A regular expression that Go would not compile matches nothing, as in containerd.

    It is compiled here, once, however many objects are asked about and however many filters there are.
    """

    path: tuple[str, ...]
    operator: Operator = Operator.PRESENT
    value: str = ""
    _search: Callable[[str], bool] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.operator is Operator.MATCHES:
            object.__setattr__(self, "_search", _searcher(self.value))

    def __call__(self, adaptor: Adaptor) -> bool:
        value = adaptor(self.path)
        match self.operator:
            case Operator.PRESENT:
                return value is not None
            case Operator.EQUAL:
                return value == self.value
            case Operator.NOT_EQUAL:
                return (value or "") != self.value
            case Operator.MATCHES:
                return self._search is not None and self._search(value or "")


@dataclass(frozen=True, slots=True)
class Filter:
    """What a List request asks for: an object matches if all selectors of one alternative do.

    Stores may read `alternatives` to ask their index; calling the filter is always right.
    """

    alternatives: tuple[tuple[Selector, ...], ...]

    @property
    def always(self) -> bool:
        """Whether everything matches."""
        return () in self.alternatives

    def __call__(self, adaptor: Adaptor) -> bool:
        return any(all(selector(adaptor) for selector in selectors) for selectors in self.alternatives)


ALWAYS: Final = Filter(((),))


def parse(text: str) -> Filter:
    """Compile one filter; an empty one matches everything.

    Raises:
        InvalidArgumentError: with the text and the place where it goes wrong.
    """
    return Filter((_parse(text),))


def parse_all(texts: Iterable[str]) -> Filter:
    """Compile the filters of a request; none at all match everything.

    Raises:
        InvalidArgumentError: as `parse`, for the first that is wrong.
    """
    alternatives = tuple(_parse(text) for text in texts)
    return Filter(alternatives) if alternatives else ALWAYS


def adapt(fields: Mapping[str, str | Mapping[str, str] | None]) -> Adaptor:
    """An adaptor over plain data: texts (absent when empty or None), and maps whose keys may hold dots."""

    def field(path: tuple[str, ...]) -> str | None:
        value = fields.get(path[0])
        if isinstance(value, Mapping):
            return value.get(".".join(path[1:]))
        return value or None

    return field


def _searcher(pattern: str) -> Callable[[str], bool] | None:
    from orlop.base.regexps import RegexpError, compile_regexp

    try:
        return compile_regexp(pattern).search
    except RegexpError:
        return None


class _Token(StrEnum):
    END = "end"
    QUOTED = "quoted"
    VALUE = "value"
    FIELD = "field"
    SEPARATOR = "separator"
    OPERATOR = "operator"
    ILLEGAL = "illegal"
    OTHER = "other"


class _SyntaxError(Exception):
    """A place in the text and what was wrong there."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(message)
        self.position = position
        self.message = message


def _parse(text: str) -> tuple[Selector, ...]:
    if not text:
        return ()
    try:
        return tuple(_Parser(text).selectors())
    except _SyntaxError as error:
        at = error.position
        shown = f"{text[:at]} >|{text[at]}|< {text[at + 1 :]}" if at < len(text) else text
        raise InvalidArgumentError(f"filters: parse error: [{shown}]: {error.message}") from None


class _Parser:
    def __init__(self, text: str) -> None:
        self._scanner = _Scanner(text)

    def selectors(self) -> list[Selector]:
        found = [self._selector()]
        while (ahead := self._scanner.peek()) != "":
            if ahead != ",":
                raise _SyntaxError(self._scanner.position, f"unexpected input: {ahead}")
            self._scanner.scan()
            found.append(self._selector())
        return found

    def _selector(self) -> Selector:
        path = self._path()
        if self._scanner.peek() in {"", ","}:
            return Selector(path)
        operator = self._operator()
        value = self._value(any_quote=operator is Operator.MATCHES)
        return Selector(path, operator, value)

    def _path(self) -> tuple[str, ...]:
        fields = [self._field()]
        while self._scanner.peek() == ".":
            self._scanner.scan()
            fields.append(self._field())
        return tuple(fields)

    def _field(self) -> str:
        position, token, text = self._scanner.scan()
        if token is _Token.FIELD:
            return text
        if token is _Token.QUOTED:
            return self._unquote(position, text, any_quote=False)
        raise self._error(position, token, "expected field or quoted")

    def _operator(self) -> Operator:
        position, token, text = self._scanner.scan()
        if token is not _Token.OPERATOR:
            raise self._error(position, token, 'expected an operator ("=="|"!="|"~=")')
        if text not in {"==", "!=", "~="}:
            raise _SyntaxError(position, f"unsupported operator {quote(text)}")
        return Operator(text)

    def _value(self, *, any_quote: bool) -> str:
        position, token, text = self._scanner.scan()
        if token in {_Token.VALUE, _Token.FIELD}:
            return text
        if token is _Token.QUOTED:
            return self._unquote(position, text, any_quote=any_quote)
        raise self._error(position, token, "expected value or quoted")

    def _unquote(self, position: int, literal: str, *, any_quote: bool) -> str:
        if not any_quote and literal[0] != '"':
            raise _SyntaxError(position, "invalid quote encountered")
        try:
            return unquote(literal)
        except QuoteSyntaxError as error:
            raise _SyntaxError(position, f"unquoting failed: {error}") from None

    def _error(self, position: int, token: _Token, expected: str) -> _SyntaxError:
        return _SyntaxError(position, self._scanner.error if token is _Token.ILLEGAL else expected)


class _Scanner:
    """Splits the text into tokens; what a run of characters is depends on whether a value is due."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.position = 0
        self.error = ""
        self._value_due = False

    def peek(self) -> str:
        """The next character, or an empty string at the end."""
        return self._text[self.position : self.position + 1]

    def scan(self) -> tuple[int, _Token, str]:
        """The next token, where it begins, and its text."""
        while (character := self.peek()) and _is_legal(character) and _is_space(character):
            self.position += 1
        start = self.position
        token = self._token(character)
        return start, token, self._text[start : self.position]

    def _token(self, character: str) -> _Token:
        if not character:
            return _Token.END
        self.position += 1
        if not _is_legal(character):
            return self._illegal("unexpected null" if character == "\0" else "rune error")
        if character in '/|"':
            return _Token.QUOTED if self._quoted(character) else _Token.ILLEGAL
        if character in ",.":
            self._value_due = False
            return _Token.SEPARATOR
        if character in "=!~":
            self._run(lambda ahead: ahead in "=!~")
            self._value_due = True
            return _Token.OPERATOR
        if self._value_due:
            self._run(_is_value)
            self._value_due = False
            return _Token.VALUE
        if _is_field(character):
            self._run(_is_field)
            return _Token.FIELD
        return _Token.OTHER

    def _run(self, belongs: Callable[[str], bool]) -> None:
        while (ahead := self.peek()) and belongs(ahead):
            self.position += 1

    def _next(self) -> str:
        character = self.peek()
        self.position += len(character)
        if character and not _is_legal(character):
            self._illegal("unexpected null" if character == "\0" else "rune error")
            return ""
        return character

    def _quoted(self, mark: str) -> bool:
        """Read up to the closing mark; False, with the error set, if it is missing or an escape is bad."""
        legal = True
        character = self._next()
        while character != mark:
            if character in {"", "\n"}:
                self._illegal("quoted literal not terminated")
                return False
            if character == "\\":
                character, escape_legal = self._escape(mark)
                legal = legal and escape_legal
            else:
                character = self._next()
        return legal

    def _escape(self, mark: str) -> tuple[str, bool]:
        """Read an escape's letter and digits; returns the character after it."""
        letter = self._next()
        if letter and (letter in "abfnrtv\\" or letter == mark):
            return self._next(), True
        if letter and letter in "01234567":
            return self._digits(letter, 8, 3)
        if letter and letter in "xuU":
            return self._digits(self._next(), 16, {"x": 2, "u": 4, "U": 8}[letter])
        self._illegal("illegal escape sequence")
        return letter, False

    def _digits(self, character: str, base: int, count: int) -> tuple[str, bool]:
        allowed = "01234567" if base == 8 else "0123456789abcdefABCDEF"
        while count > 0 and character and character in allowed:
            character = self._next()
            count -= 1
        if count > 0:
            self._illegal("illegal numeric escape sequence")
            return character, False
        return character, True

    def _illegal(self, message: str) -> _Token:
        self.error = self.error or message
        return _Token.ILLEGAL


def _is_legal(character: str) -> bool:
    # Go's decoder yields U+FFFD for bytes that are not UTF-8 and its scanner refuses that rune wherever it came from.
    return character not in {"\0", "\ufffd"} and not "\ud800" <= character <= "\udfff"


def _is_field(character: str) -> bool:
    return character in "-_" or (character.isascii() and character.isalnum())


def _is_space(character: str) -> bool:
    # Go's unicode.IsSpace; Python's isspace() also takes U+001C to U+001F.
    return character.isspace() and not "\x1c" <= character <= "\x1f"


def _is_value(character: str) -> bool:
    if character == "," or _is_space(character) or not _is_legal(character):
        return False
    # Letters, marks, numbers, punctuation, symbols, and Zs (of which the white space is gone already).
    return unicodedata.category(character)[0] in "LMNPS"
