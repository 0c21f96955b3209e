"""Go's regular expressions, matched in time linear in the text and in bounded memory.

Filters take regular expressions from clients, in Go's syntax. Python's `re` has another syntax, and a few characters of
it can keep a process busy for years; a daemon must not run such a thing. So the expression becomes a nondeterministic
automaton of bounded size, and the text moves through sets of its states. A set is a number with a bit per state, and
what follows four of them is remembered: a step costs a look-up for each four states, whatever the text, and what is
remembered of the largest expression takes a megabyte.

Not known here, and so an error: scripts as Unicode classes (`\\p{Greek}`), expressions of more than 8,192 characters,
and those whose automaton has more than 1,000 states or that nest deeper than 100; Go's bounds are wider.

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

__all__ = ["MAX_LENGTH", "MAX_STATES", "Regexp", "RegexpError", "compile_regexp"]

MAX_STATES: Final = 1000
MAX_LENGTH: Final = 8192

_MAX_REMEMBERED: Final = 1024
_MAX_LEARNED: Final = 4096  # as much as there is to learn of the largest expression at one kind of place
_NOWHERE: Final = Where(0)


class Regexp:
    """A compiled expression. It remembers what matching teaches it; threads may share it and at worst learn twice."""

    def __init__(self, program: "_Program") -> None:
        self._program = program
        self._readers: dict[str, int] = {}
        self._moves: dict[int, _Moves] = {}

    def search(self, text: str) -> bool:
        """Whether some part of `text` matches."""
        looks_around = self._program.looks_around
        moves = self._moves_at(_where(text, 0) if looks_around else _NOWHERE)
        states = moves.begin
        for position, character in enumerate(text):
            if states & _MATCHED_BIT:
                return True
            if looks_around:
                moves = self._moves_at(_where(text, position + 1))
            states = moves.step(states & self._readers_of(character))
        if len(self._moves) > 1 and sum(one.learned for one in self._moves.values()) > _MAX_LEARNED:
            self._moves = {}
        return bool(states & _MATCHED_BIT)

    def _readers_of(self, character: str) -> int:
        """The states that read a character."""
        found = self._readers.get(character)
        if found is None:
            if len(self._readers) >= _MAX_REMEMBERED:
                self._readers.clear()
            found = self._readers[character] = self._program.readers(character)
        return found

    def _moves_at(self, where: Where) -> "_Moves":
        found = self._moves.get(where)
        if found is None:
            found = self._moves[where] = _Moves(self._program, where)
        return found


class _Moves:
    """What follows sets of states, at places of one kind.

    Attributes:
        begin: the states of a match that begins here.
        learned: how much is remembered.
    """

    __slots__ = ("_after", "_known", "_width", "begin", "learned")

    def __init__(self, program: "_Program", where: Where) -> None:
        closures = program.closures(where)
        self.begin = closures[program.start]
        self._after = program.followings(closures)
        self._width = -(-len(closures) // 8)
        # For each four states and what is set among them: what follows any of those.
        self._known: list[dict[int, int]] = [{0: 0} for _ in range(2 * self._width)]
        self.learned = 0

    def step(self, states: int) -> int:
        """What follows any of `states`, and what may begin here."""
        found = self.begin
        known = self._known
        for place, eight in enumerate(states.to_bytes(self._width, "little")):
            if eight:
                low, high = eight & 0xF, eight >> 4
                following = known[2 * place].get(low)
                found |= self._learn(2 * place, low) if following is None else following
                following = known[2 * place + 1].get(high)
                found |= self._learn(2 * place + 1, high) if following is None else following
        return found

    def _learn(self, place: int, four: int) -> int:
        found = 0
        for number in range(4):
            if four >> number & 1:
                found |= self._after[4 * place + number]
        self._known[place][four] = found
        self.learned += 1
        return found


def compile_regexp(pattern: str) -> Regexp:
    """Compile an expression.

    Raises:
        RegexpError: with what is wrong, as far as Go says it.
    """
    if len(pattern) > MAX_LENGTH:
        raise RegexpError("expression too large")
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
_MATCHED_BIT: Final = 1  # the state that every program has first


class _Program:
    """States by number. Each part of the tree is added before what follows it, so it is built from the end."""

    def __init__(self) -> None:
        self.start = 0
        self.looks_around = False
        self._states: list[_State] = []
        self._reading: dict[Characters, int] = {}

    def new(self, state: _State) -> int:
        if len(self._states) >= MAX_STATES:
            raise RegexpError("expression too large")
        self._states.append(state)
        number = len(self._states) - 1
        if isinstance(state, _Read):
            self._reading[state.characters] = self._reading.get(state.characters, 0) | 1 << number
        return number

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

    def readers(self, character: str) -> int:
        """The states that read `character`, as bits."""
        found = 0
        for characters, states in self._reading.items():
            if character in characters:
                found |= states
        return found

    def closures(self, where: Where) -> list[int]:
        """For each state, the reading and matching states that are reached from it without reading.

        What follows a state has mostly a lower number, so one round settles all but loops of loops.
        """
        found = [1 << number if isinstance(state, _Read | _Matched) else 0 for number, state in enumerate(self._states)]
        passing = [
            (number, state.following if isinstance(state, _Split) else (state.following,))
            for number, state in enumerate(self._states)
            if isinstance(state, _Split) or (isinstance(state, _Check) and state.where & where)
        ]
        changed = True
        while changed:
            changed = False
            for number, following in passing:
                reached = found[number]
                for one in following:
                    reached |= found[one]
                if reached != found[number]:
                    found[number] = reached
                    changed = True
        return found

    def followings(self, closures: list[int]) -> list[int]:
        """For each state that reads, what is reached when it has."""
        return [closures[state.following] if isinstance(state, _Read) else 0 for state in self._states]


def _where(text: str, position: int) -> Where:
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
