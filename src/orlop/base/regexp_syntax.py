"""The syntax of Go's regular expressions, read into a tree.

Source: Go's regexp/syntax with Perl's flags; github.com/google/re2/wiki/Syntax. See `regexps` for what is not known.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

MAX_REPEAT: Final = 1000
MAX_DEPTH: Final = 100
MAX_PATTERN: Final = 64 << 10

_LAST: Final = 0x10FFFF


class RegexpError(ValueError):
    """Go would not compile this, or it is beyond the bounds here."""


class Where(IntFlag):
    """What is true of a place between two characters."""

    TEXT_BEGIN = 1
    TEXT_END = 2
    LINE_BEGIN = 4
    LINE_END = 8
    WORD_BOUNDARY = 16
    NO_WORD_BOUNDARY = 32


@dataclass(frozen=True, slots=True)
class Characters:
    """A set of characters: ranges of code points, and general categories (`L`, `Nd`), which can be negated."""

    ranges: tuple[tuple[int, int], ...] = ()
    categories: tuple[tuple[str, bool], ...] = ()
    others: tuple["Characters", ...] = ()
    negated: bool = False
    fold: bool = False

    def __contains__(self, character: str) -> bool:
        candidates = _folded(character) if self.fold else (character,)
        return any(self._has(candidate) for candidate in candidates) != self.negated

    def _has(self, character: str) -> bool:
        code = ord(character)
        if any(low <= code <= high for low, high in self.ranges):
            return True
        if self.categories:
            category = unicodedata.category(character)
            if any(category.startswith(wanted) != negated for wanted, negated in self.categories):
                return True
        return any(character in other for other in self.others)


@dataclass(frozen=True, slots=True)
class Sequence:
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Choice:
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    part: "Node"
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Condition:
    where: Where


Node = Characters | Sequence | Choice | Repeat | Condition
_EMPTY: Final = Sequence(())


def parse(pattern: str) -> Node:
    """The tree of an expression.

    Raises:
        RegexpError: with what is wrong, as far as Go says it.
    """
    if len(pattern) > MAX_PATTERN:
        raise RegexpError("expression is too long")
    return _Parser(pattern).parse()


_DIGITS: Final = ((0x30, 0x39),)
_SPACES: Final = ((9, 10), (12, 13), (32, 32))
_WORDS: Final = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_PERL: Final = {"d": _DIGITS, "s": _SPACES, "w": _WORDS}
_POSIX: Final = {
    "alnum": ((0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A)),
    "alpha": ((0x41, 0x5A), (0x61, 0x7A)),
    "ascii": ((0, 0x7F),),
    "blank": ((9, 9), (32, 32)),
    "cntrl": ((0, 0x1F), (0x7F, 0x7F)),
    "digit": _DIGITS,
    "graph": ((0x21, 0x7E),),
    "lower": ((0x61, 0x7A),),
    "print": ((0x20, 0x7E),),
    "punct": ((0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E)),
    "space": ((9, 13), (32, 32)),
    "upper": ((0x41, 0x5A),),
    "word": _WORDS,
    "xdigit": ((0x30, 0x39), (0x41, 0x46), (0x61, 0x66)),
}
_ESCAPES: Final = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
_ANY: Final = ((0, _LAST),)
_NO_NEWLINE: Final = ((0, 9), (11, _LAST))
_CATEGORIES: Final = frozenset(
    {"C", "Cc", "Cf", "Co", "Cs", "L", "Ll", "Lm", "Lo", "Lt", "Lu", "M", "Mc", "Me", "Mn", "N", "Nd", "Nl", "No"}
    | {"P", "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S", "Sc", "Sk", "Sm", "So", "Z", "Zl", "Zp", "Zs"}
)


@dataclass(frozen=True, slots=True)
class _Flags:
    fold: bool = False
    multi_line: bool = False
    dot_newline: bool = False


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._depth = 0
        self._flags = _Flags()
        self._names: set[str] = set()

    def parse(self) -> Node:
        node = self._choice()
        if self._at < len(self._text):
            raise RegexpError("unexpected )")
        return node

    def _peek(self, length: int = 1) -> str:
        return self._text[self._at : self._at + length]

    def _take(self, length: int = 1) -> str:
        taken = self._peek(length)
        if len(taken) < length:
            raise RegexpError("unexpected end of expression")
        self._at += length
        return taken

    def _skip(self, literal: str) -> bool:
        if not self._text.startswith(literal, self._at):
            return False
        self._at += len(literal)
        return True

    def _choice(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RegexpError("expression nests too deeply")
        parts = [self._sequence()]
        while self._skip("|"):
            parts.append(self._sequence())
        self._depth -= 1
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while (ahead := self._peek()) and ahead not in "|)":
            if self._skip("\\Q"):
                parts.extend(self._quoted())
                continue
            atom = self._atom()
            if atom is not None:
                parts.append(self._repeated(atom))
        return Sequence(tuple(parts))

    def _quoted(self) -> list[Node]:
        end = self._text.find("\\E", self._at)
        literal = self._text[self._at : end if end >= 0 else None]
        self._at = end + 2 if end >= 0 else len(self._text)
        nodes: list[Node] = [self._literal(ord(character)) for character in literal]
        if nodes:
            nodes[-1] = self._repeated(nodes[-1])
        return nodes

    def _repeated(self, atom: Node) -> Node:
        bounds = self._bounds()
        if bounds is None:
            return atom
        self._skip("?")  # which of several matches is preferred makes no difference here
        if self._bounds() is not None:
            raise RegexpError("invalid nested repetition operator")
        least, most = bounds
        if max(least, most or 0) > MAX_REPEAT or (most is not None and most < least):
            raise RegexpError("invalid repeat count")
        repeat = Repeat(atom, least, most)
        if _repeats(repeat) > MAX_REPEAT:
            raise RegexpError("invalid repeat count")
        return repeat

    def _bounds(self) -> tuple[int, int | None] | None:
        simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        ahead = self._peek()
        if ahead in simple and ahead:
            self._at += 1
            return simple[ahead]
        if ahead != "{":
            return None
        end = self._text.find("}", self._at)
        least, comma, most = self._text[self._at + 1 : end].partition(",") if end > 0 else ("", "", "")
        if not _is_number(least) or (most and not _is_number(most)):
            return None  # a brace that says no number is a character
        self._at = end + 1
        if not comma:
            return int(least), int(least)
        return int(least), int(most) if most else None

    def _atom(self) -> Node | None:
        """The next atom; None for a group that only sets flags."""
        character = self._take()
        match character:
            case "(":
                return self._group()
            case "[":
                return self._class()
            case ".":
                return Characters(_ANY if self._flags.dot_newline else _NO_NEWLINE)
            case "^":
                return Condition(Where.LINE_BEGIN if self._flags.multi_line else Where.TEXT_BEGIN)
            case "$":
                return Condition(Where.LINE_END if self._flags.multi_line else Where.TEXT_END)
            case "\\":
                return self._escape()
            case "*" | "+" | "?":
                raise RegexpError("missing argument to repetition operator")
        if character == "{":
            self._at -= 1
            if self._bounds() is not None:
                raise RegexpError("missing argument to repetition operator")
            self._at += 1
        return self._literal(ord(character))

    def _literal(self, code: int) -> Characters:
        return Characters(((code, code),), fold=self._flags.fold)

    def _group(self) -> Node | None:
        outer = self._flags
        if self._skip("?P<") or (self._peek(2) == "?<" and self._peek(3) not in {"?<=", "?<!"} and self._skip("?<")):
            self._name()
        elif self._skip("?") and not self._set_flags():
            return None  # the flags hold to the end of the group around this
        node = self._choice()
        if not self._skip(")"):
            raise RegexpError("missing closing )")
        self._flags = outer
        return node

    def _name(self) -> None:
        end = self._text.find(">", self._at)
        name = self._text[self._at : end] if end >= 0 else ""
        if not name or not all(is_word(character) for character in name):
            raise RegexpError("invalid named capture")
        if name in self._names:
            raise RegexpError("duplicate capture group name")
        self._names.add(name)
        self._at = end + 1

    def _set_flags(self) -> bool:
        """Read flags after `(?`; whether a group follows them."""
        changes = {"i": "fold", "m": "multi_line", "s": "dot_newline", "U": ""}
        values = {"fold": self._flags.fold, "multi_line": self._flags.multi_line}
        values["dot_newline"] = self._flags.dot_newline
        setting, seen = True, False
        while True:
            character = self._take()
            if character in changes:
                seen = True
                if changes[character]:
                    values[changes[character]] = setting
            elif character == "-" and setting:
                setting, seen = False, False
            elif character in ":)" and (setting or seen):
                self._flags = _Flags(**values)
                return character == ":"
            else:
                raise RegexpError("invalid or unsupported Perl syntax")

    def _escape(self) -> Node:
        conditions = {"A": Where.TEXT_BEGIN, "z": Where.TEXT_END}
        conditions |= {"b": Where.WORD_BOUNDARY, "B": Where.NO_WORD_BOUNDARY}
        ahead = self._peek()
        if ahead in conditions and ahead:
            self._at += 1
            return Condition(conditions[ahead])
        return self._class_escape() or self._literal(self._escaped_code())

    def _class_escape(self) -> Characters | None:
        """`\\d`, `\\W`, `\\pL`, `\\P{Lu}`, after the backslash."""
        ahead = self._peek()
        if ahead and ahead.lower() in _PERL:
            self._at += 1
            return Characters(_PERL[ahead.lower()], negated=ahead.isupper())
        if ahead in {"p", "P"}:
            self._at += 1
            return self._unicode_class(negated=ahead == "P")
        return None

    def _unicode_class(self, *, negated: bool) -> Characters:
        name = self._take()
        if name == "{":
            end = self._text.find("}", self._at)
            if end < 0:
                raise RegexpError("invalid character class range")
            name, self._at = self._text[self._at : end], end + 1
        if name.startswith("^"):
            name, negated = name[1:], not negated
        if name == "Any":
            return Characters(_ANY, negated=negated)
        if name not in _CATEGORIES:
            raise RegexpError("invalid character class range")
        return Characters(categories=((name, False),), negated=negated, fold=self._flags.fold)

    def _escaped_code(self) -> int:
        """The code point of an escape that stands for one character, after the backslash."""
        if not self._peek():
            raise RegexpError("trailing backslash at end of expression")
        letter = self._take()
        if letter in "1234567" and self._peek() not in _OCTAL:
            raise RegexpError("invalid escape sequence")  # a back reference
        if letter in "01234567":
            digits = letter
            while len(digits) < 3 and self._peek() in _OCTAL:
                digits += self._take()
            return int(digits, 8)
        if letter == "x":
            return self._hexadecimal()
        if letter in _ESCAPES:
            return _ESCAPES[letter]
        if letter == "_" or (letter.isascii() and not is_word(letter)):
            return ord(letter)
        raise RegexpError("invalid escape sequence")

    def _hexadecimal(self) -> int:
        if self._skip("{"):
            end = self._text.find("}", self._at)
            digits = self._text[self._at : end] if end >= 0 else ""
            self._at = end + 1
        else:
            digits = self._take(2)
        if not digits or len(digits) > 8 or any(digit not in "0123456789abcdefABCDEF" for digit in digits):
            raise RegexpError("invalid escape sequence")
        code = int(digits, 16)
        if code > _LAST:
            raise RegexpError("invalid escape sequence")
        return code

    def _class(self) -> Characters:
        negated = self._skip("^")
        ranges: list[tuple[int, int]] = []
        others: list[Characters] = []
        first = True
        while first or self._peek() != "]":
            if not self._peek():
                raise RegexpError("missing closing ]")
            # A hyphen is itself at either end; between two others Perl mode lets it stand for itself too.
            special = self._special_class()
            if special is not None:
                others.append(special)
            else:
                ranges.append(self._range())
            first = False
        self._at += 1
        return Characters(tuple(ranges), others=tuple(others), negated=negated, fold=self._flags.fold)

    def _special_class(self) -> Characters | None:
        if self._peek(2) == "[:":
            end = self._text.find(":]", self._at + 2)
            if end >= 0:
                name = self._text[self._at + 2 : end]
                negated, name = name.startswith("^"), name.removeprefix("^")
                if name not in _POSIX:
                    raise RegexpError("invalid character class range")
                self._at = end + 2
                return Characters(_POSIX[name], negated=negated, fold=self._flags.fold)
        if self._peek() == "\\":
            self._at += 1
            found = self._class_escape()
            if found is None:
                self._at -= 1
            return found
        return None

    def _range(self) -> tuple[int, int]:
        low = self._class_code()
        if self._peek() != "-" or self._peek(2) == "-]":
            return low, low
        self._at += 1
        high = self._class_code()
        if high < low:
            raise RegexpError("invalid character class range")
        return low, high

    def _class_code(self) -> int:
        if not self._peek():
            raise RegexpError("missing closing ]")
        character = self._take()
        return self._escaped_code() if character == "\\" else ord(character)


_OCTAL: Final = frozenset("01234567")


def _repeats(node: Node) -> int:
    """How often the most repeated part of a tree is repeated; unbounded repetition counts by its least."""
    match node:
        case Repeat():
            times = max(node.least, node.most or 0, 1)
            return times * _repeats(node.part)
        case Sequence() | Choice():
            return max((_repeats(part) for part in node.parts), default=1)
    return 1


def _is_number(text: str) -> bool:
    """Whether `text` is a count as Go reads it: digits, no leading zero, not absurdly many."""
    return text.isascii() and text.isdigit() and len(text) < 9 and (text == "0" or text[0] != "0")


def is_word(character: str) -> bool:
    return character == "_" or (character.isascii() and character.isalnum())


def _folded(character: str) -> set[str]:
    """A character and those that differ from it by case only."""
    forms: list[Callable[[str], str]] = [str.lower, str.upper, str.title, str.swapcase]
    near = {form(character) for form in forms} | {character}
    near |= {form(other) for other in near if len(other) == 1 for form in forms}
    return {other for other in near if len(other) == 1}
