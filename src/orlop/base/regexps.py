"""Go's regular expressions, matched in time linear in the text.

Filters take regular expressions from clients, in Go's syntax. Python's `re` has another syntax, and a few characters of
it can keep a process busy for years; a daemon must not run such a thing. So the expression becomes a nondeterministic
automaton of bounded size, and the text moves through sets of its states, which are remembered.

Not known here, and so an error: scripts as Unicode classes (`\\p{Greek}`), and expressions whose automaton has more
than 1,000 states or that nest deeper than 100; Go's bounds are wider.

Source: github.com/google/re2/wiki/Syntax; Go's regexp/syntax, whose flags are Perl's.
"""

from dataclasses import dataclass
from typing import Final

from orlop.base.regexp_syntax import (
    Characters,
    Choice,
    Condition,
    Node,
    RegexpError,
    Repeat,
    Sequence,
    Where,
    is_word,
    parse,
)

__all__ = ["MAX_STATES", "Regexp", "RegexpError", "compile_regexp"]

MAX_STATES: Final = 1000

_MAX_REMEMBERED: Final = 4096


class Regexp:
    """A compiled expression. It remembers what matching teaches it; threads may share it and at worst learn twice."""

    def __init__(self, program: "_Program") -> None:
        self._program = program
        self._closures: dict[tuple[frozenset[int], int], tuple[frozenset[int], bool]] = {}
        self._steps: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def search(self, text: str) -> bool:
        """Whether some part of `text` matches."""
        kernel: frozenset[int] = frozenset()
        for position in range(len(text) + 1):
            where = self._where(text, position) if self._program.looks_around else Where(0)
            states, matched = self._closure(kernel, where)
            if matched:
                return True
            if position < len(text):
                kernel = self._step(states, text[position])
        return False

    def _where(self, text: str, position: int) -> "Where":
        before = text[position - 1] if position > 0 else ""
        after = text[position] if position < len(text) else ""
        where = Where(0)
        if not before:
            where |= Where.TEXT_BEGIN | Where.LINE_BEGIN
        if not after:
            where |= Where.TEXT_END | Where.LINE_END
        if before == "\n":
            where |= Where.LINE_BEGIN
        if after == "\n":
            where |= Where.LINE_END
        is_boundary = is_word(before) != is_word(after)
        return where | (Where.WORD_BOUNDARY if is_boundary else Where.NO_WORD_BOUNDARY)

    def _closure(self, kernel: frozenset[int], where: "Where") -> tuple[frozenset[int], bool]:
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
    tree = parse(pattern)
    program = _Program()
    program.start = program.add(tree, program.new(_Matched()))
    return Regexp(program)


@dataclass(frozen=True, slots=True)
class _Matched:
    pass


@dataclass(frozen=True, slots=True)
class _Read:
    characters: Characters
    following: int


@dataclass(frozen=True, slots=True)
class _Check:
    where: Where
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

    def add(self, node: Node, following: int) -> int:
        """Add the states of `node`; returns where they begin."""
        match node:
            case Characters():
                return self.new(_Read(node, following))
            case Condition():
                self.looks_around = True
                return self.new(_Check(node.where, following))
            case Sequence():
                for part in reversed(node.parts):
                    following = self.add(part, following)
                return following
            case Choice():
                return self.new(_Split(tuple(self.add(part, following) for part in node.parts)))
            case Repeat():
                return self._add_repeat(node, following)

    def _add_repeat(self, node: Repeat, following: int) -> int:
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

    def closure(self, kernel: frozenset[int], where: Where) -> tuple[frozenset[int], bool]:
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
