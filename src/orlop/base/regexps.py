"""Go's regular expressions, matched in time linear in the text.

Filters take regular expressions from clients, in Go's syntax. Python's `re` has another syntax, and a few characters of
it can keep a process busy for years; a daemon must not run such a thing. So the expression becomes a nondeterministic
automaton of bounded size, and the text moves through sets of its states, which are remembered.

Not known here, and so an error: scripts as Unicode classes (`\\p{Greek}`), and expressions whose automaton has more
than 1,000 states or that nest deeper than 100; Go's bounds are wider.

Source: github.com/google/re2/wiki/Syntax; Go's regexp/syntax, whose flags are Perl's.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

MAX_STATES: Final = 1000
MAX_REPEAT: Final = 1000
MAX_DEPTH: Final = 100
MAX_PATTERN: Final = 64 << 10

_MAX_REMEMBERED: Final = 4096
_LAST: Final = 0x10FFFF


class RegexpError(ValueError):
    """Go would not compile this, or it is beyond the bounds here."""


class Regexp:
    """A compiled expression. Not safe for several threads at once: it remembers what it learns while matching."""

    def __init__(self, program: "_Program") -> None:
        self._program = program
        self._closures: dict[tuple[frozenset[int], int], tuple[frozenset[int], bool]] = {}
        self._steps: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def search(self, text: str) -> bool:
        """Whether some part of `text` matches."""
        kernel: frozenset[int] = frozenset()
        for position in range(len(text) + 1):
            where = self._where(text, position) if self._program.looks_around else _Where(0)
            states, matched = self._closure(kernel, where)
            if matched:
                return True
            if position < len(text):
                kernel = self._step(states, text[position])
        return False

    def _where(self, text: str, position: int) -> "_Where":
        before = text[position - 1] if position > 0 else ""
        after = text[position] if position < len(text) else ""
        where = _Where(0)
        if not before:
            where |= _Where.TEXT_BEGIN | _Where.LINE_BEGIN
        if not after:
            where |= _Where.TEXT_END | _Where.LINE_END
        if before == "\n":
            where |= _Where.LINE_BEGIN
        if after == "\n":
            where |= _Where.LINE_END
        is_boundary = _is_word(before) != _is_word(after)
        return where | (_Where.WORD_BOUNDARY if is_boundary else _Where.NO_WORD_BOUNDARY)

    def _closure(self, kernel: frozenset[int], where: "_Where") -> tuple[frozenset[int], bool]:
        """The states reached from `kernel`, or by beginning here, without reading; and whether that is a match."""
        key = (kernel, int(where))
        found = self._closures.get(key)
        if found is None:
            found = self._program.closure(kernel, where)
            if len(self._closures) >= _MAX_REMEMBERED:
                self._closures.clear()
            self._closures[key] = found
        return found

    def _step(self, states: frozenset[int], character: str) -> frozenset[int]:
        key = (states, character)
        found = self._steps.get(key)
        if found is None:
            found = self._program.step(states, character)
            if len(self._steps) >= _MAX_REMEMBERED:
                self._steps.clear()
            self._steps[key] = found
        return found


def compile_regexp(pattern: str) -> Regexp:
    """Compile an expression.

    Raises:
        RegexpError: with what is wrong, as far as Go says it.
    """
    if len(pattern) > MAX_PATTERN:
        raise RegexpError("expression is too long")
    tree = _Parser(pattern).parse()
    program = _Program()
    program.start = program.add(tree, program.new(_Matched()))
    return Regexp(program)


# -- what an expression consists of ---------------------------------------------------------------------------------


class _Where(IntFlag):
    """What is true of a place between two characters."""

    TEXT_BEGIN = 1
    TEXT_END = 2
    LINE_BEGIN = 4
    LINE_END = 8
    WORD_BOUNDARY = 16
    NO_WORD_BOUNDARY = 32


@dataclass(frozen=True, slots=True)
class _Characters:
    """A set of characters: ranges of code points, and general categories (`L`, `Nd`), which can be negated."""

    ranges: tuple[tuple[int, int], ...] = ()
    categories: tuple[tuple[str, bool], ...] = ()
    others: tuple["_Characters", ...] = ()
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
class _Sequence:
    parts: tuple["_Node", ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    parts: tuple["_Node", ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    part: "_Node"
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class _Condition:
    where: _Where


_Node = _Characters | _Sequence | _Choice | _Repeat | _Condition
_EMPTY: Final = _Sequence(())


# -- the automaton --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Matched:
    pass


@dataclass(frozen=True, slots=True)
class _Read:
    characters: _Characters
    following: int


@dataclass(frozen=True, slots=True)
class _Check:
    where: _Where
    following: int


@dataclass(slots=True)
class _Split:
    following: tuple[int, ...]


_State = _Matched | _Read | _Check | _Split


class _Program:
    """States by number. Each part of the tree is added before what follows it, so it is built from the end."""

    def __init__(self) -> None:
        self.start = 0
        self.looks_around = False
        self._states: list[_State] = []

    def new(self, state: _State) -> int:
        if len(self._states) >= MAX_STATES:
            raise RegexpError("expression too large")
        self._states.append(state)
        return len(self._states) - 1

    def add(self, node: _Node, following: int) -> int:
        """Add the states of `node`; returns where they begin."""
        match node:
            case _Characters():
                return self.new(_Read(node, following))
            case _Condition():
                self.looks_around = True
                return self.new(_Check(node.where, following))
            case _Sequence():
                for part in reversed(node.parts):
                    following = self.add(part, following)
                return following
            case _Choice():
                return self.new(_Split(tuple(self.add(part, following) for part in node.parts)))
            case _Repeat():
                return self._add_repeat(node, following)

    def _add_repeat(self, node: _Repeat, following: int) -> int:
        if node.most is None:
            loop = _Split(())
            begin = self.new(loop)
            loop.following = (self.add(node.part, begin), following)
            following = begin
        else:
            end = following
            for _ in range(node.most - node.least):
                following = self.new(_Split((self.add(node.part, following), end)))
        for _ in range(node.least):
            following = self.add(node.part, following)
        return following

    def closure(self, kernel: frozenset[int], where: _Where) -> tuple[frozenset[int], bool]:
        seen: set[int] = set()
        reading: set[int] = set()
        waiting = [*kernel, self.start]
        while waiting:
            number = waiting.pop()
            if number in seen:
                continue
            seen.add(number)
            state = self._states[number]
            match state:
                case _Matched():
                    return frozenset(), True
                case _Read():
                    reading.add(number)
                case _Check():
                    if state.where & where:
                        waiting.append(state.following)
                case _Split():
                    waiting.extend(state.following)
        return frozenset(reading), False

    def step(self, states: frozenset[int], character: str) -> frozenset[int]:
        following = set()
        for number in states:
            state = self._states[number]
            if isinstance(state, _Read) and character in state.characters:
                following.add(state.following)
        return frozenset(following)


# -- the syntax -----------------------------------------------------------------------------------------------------

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

    def parse(self) -> _Node:
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

    def _choice(self) -> _Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RegexpError("expression nests too deeply")
        parts = [self._sequence()]
        while self._skip("|"):
            parts.append(self._sequence())
        self._depth -= 1
        return parts[0] if len(parts) == 1 else _Choice(tuple(parts))

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while (ahead := self._peek()) and ahead not in "|)":
            if self._skip("\\Q"):
                parts.extend(self._quoted())
                continue
            atom = self._atom()
            if atom is not None:
                parts.append(self._repeated(atom))
        return _Sequence(tuple(parts))

    def _quoted(self) -> list[_Node]:
        end = self._text.find("\\E", self._at)
        literal = self._text[self._at : end if end >= 0 else None]
        self._at = end + 2 if end >= 0 else len(self._text)
        nodes: list[_Node] = [self._literal(ord(character)) for character in literal]
        if nodes:
            nodes[-1] = self._repeated(nodes[-1])
        return nodes

    def _repeated(self, atom: _Node) -> _Node:
        bounds = self._bounds()
        if bounds is None:
            return atom
        self._skip("?")  # which of several matches is preferred makes no difference here
        if self._bounds() is not None:
            raise RegexpError("invalid nested repetition operator")
        least, most = bounds
        if max(least, most or 0) > MAX_REPEAT or (most is not None and most < least):
            raise RegexpError("invalid repeat count")
        repeat = _Repeat(atom, least, most)
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

    def _atom(self) -> _Node | None:
        """The next atom; None for a group that only sets flags."""
        character = self._take()
        match character:
            case "(":
                return self._group()
            case "[":
                return self._class()
            case ".":
                return _Characters(_ANY if self._flags.dot_newline else _NO_NEWLINE)
            case "^":
                return _Condition(_Where.LINE_BEGIN if self._flags.multi_line else _Where.TEXT_BEGIN)
            case "$":
                return _Condition(_Where.LINE_END if self._flags.multi_line else _Where.TEXT_END)
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

    def _literal(self, code: int) -> _Characters:
        return _Characters(((code, code),), fold=self._flags.fold)

    def _group(self) -> _Node | None:
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
        if not name or not all(_is_word(character) for character in name):
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

    def _escape(self) -> _Node:
        conditions = {"A": _Where.TEXT_BEGIN, "z": _Where.TEXT_END}
        conditions |= {"b": _Where.WORD_BOUNDARY, "B": _Where.NO_WORD_BOUNDARY}
        ahead = self._peek()
        if ahead in conditions and ahead:
            self._at += 1
            return _Condition(conditions[ahead])
        return self._class_escape() or self._literal(self._escaped_code())

    def _class_escape(self) -> _Characters | None:
        """`\\d`, `\\W`, `\\pL`, `\\P{Lu}`, after the backslash."""
        ahead = self._peek()
        if ahead and ahead.lower() in _PERL:
            self._at += 1
            return _Characters(_PERL[ahead.lower()], negated=ahead.isupper())
        if ahead in {"p", "P"}:
            self._at += 1
            return self._unicode_class(negated=ahead == "P")
        return None

    def _unicode_class(self, *, negated: bool) -> _Characters:
        name = self._take()
        if name == "{":
            end = self._text.find("}", self._at)
            if end < 0:
                raise RegexpError("invalid character class range")
            name, self._at = self._text[self._at : end], end + 1
        if name.startswith("^"):
            name, negated = name[1:], not negated
        if name == "Any":
            return _Characters(_ANY, negated=negated)
        if name not in _CATEGORIES:
            raise RegexpError("invalid character class range")
        return _Characters(categories=((name, False),), negated=negated, fold=self._flags.fold)

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
        if letter == "_" or (letter.isascii() and not _is_word(letter)):
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

    def _class(self) -> _Characters:
        negated = self._skip("^")
        ranges: list[tuple[int, int]] = []
        others: list[_Characters] = []
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
        return _Characters(tuple(ranges), others=tuple(others), negated=negated, fold=self._flags.fold)

    def _special_class(self) -> _Characters | None:
        if self._peek(2) == "[:":
            end = self._text.find(":]", self._at + 2)
            if end >= 0:
                name = self._text[self._at + 2 : end]
                negated, name = name.startswith("^"), name.removeprefix("^")
                if name not in _POSIX:
                    raise RegexpError("invalid character class range")
                self._at = end + 2
                return _Characters(_POSIX[name], negated=negated, fold=self._flags.fold)
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


def _repeats(node: _Node) -> int:
    """How often the most repeated part of a tree is repeated; unbounded repetition counts by its least."""
    match node:
        case _Repeat():
            times = max(node.least, node.most or 0, 1)
            return times * _repeats(node.part)
        case _Sequence() | _Choice():
            return max((_repeats(part) for part in node.parts), default=1)
    return 1


def _is_number(text: str) -> bool:
    """Whether `text` is a count as Go reads it: digits, no leading zero, not absurdly many."""
    return text.isascii() and text.isdigit() and len(text) < 9 and (text == "0" or text[0] != "0")


def _is_word(character: str) -> bool:
    return character == "_" or (character.isascii() and character.isalnum())


def _folded(character: str) -> set[str]:
    """A character and those that differ from it by case only."""
    forms: list[Callable[[str], str]] = [str.lower, str.upper, str.title, str.swapcase]
    near = {form(character) for form in forms} | {character}
    near |= {form(other) for other in near if len(other) == 1 for form in forms}
    return {other for other in near if len(other) == 1}
