"""How long the steps of a process's life take, on the clock that all processes of a machine share.

Client, daemon and supervisor each note their own phases; laid together they show where a start's time goes. A phase
costs whoever notes it about half a microsecond, and nothing is sent until somebody asks, so noting is never off.
"""

import os
import time
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, Self, TypeVar

K = TypeVar("K", bound=Hashable)

CLIENT: Final = "client"
DAEMON: Final = "orlopd"
SUPERVISOR: Final = "supervisor"
# Calls go downwards: what one of these does may be a part of what another does that stands before it.
_ORDER: Final = {CLIENT: 0, DAEMON: 1, SUPERVISOR: 2}

PHASES_OF_ONE: Final = 64
PROCESSES: Final = 64

clock: Final = time.monotonic_ns
"""CLOCK_MONOTONIC in nanoseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One step.

    Attributes:
        process, pid: whose step it was: `CLIENT`, `DAEMON` or `SUPERVISOR`.
        start_ns, end_ns: points on `clock`.
    """

    name: str
    process: str
    pid: int
    start_ns: int
    end_ns: int

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.end_ns - self.start_ns) / 1e9


class Phases:
    """The phases of one process's life as one of ours has seen them; of more than `limit` the newest.

    with phases("mounts"):
        …
    """

    __slots__ = ("_noted",)

    def __init__(self, limit: int = PHASES_OF_ONE) -> None:
        self._noted: deque[tuple[str, int, int]] = deque(maxlen=limit)

    def __call__(self, name: str) -> "_Running":
        """A context that is noted when it is left, also by an error."""
        return _Running(self, name)

    def note(self, name: str, start_ns: int, end_ns: int) -> None:
        """Note a phase that is over."""
        self._noted.append((name, start_ns, end_ns))

    def of(self, process: str) -> list[Phase]:
        """What has been noted, in the order of ends, as steps of this process under that name."""
        pid = os.getpid()
        return [
            Phase(name=name, process=process, pid=pid, start_ns=start, end_ns=end) for name, start, end in self._noted
        ]


class _Running:
    __slots__ = ("_name", "_phases", "_start")

    def __init__(self, phases: Phases, name: str) -> None:
        self._phases = phases
        self._name = name

    def __enter__(self) -> Self:
        self._start = clock()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._phases.note(self._name, self._start, clock())


class Recent(Generic[K]):
    """The phases of the processes that began last, by what they are known as; of more than `limit` the newest."""

    def __init__(self, limit: int = PROCESSES) -> None:
        self._limit = limit
        self._phases: OrderedDict[K, Phases] = OrderedDict()

    def begin(self, key: K) -> Phases:
        """Those of a new process; what was noted of another that was known so is forgotten."""
        self._phases.pop(key, None)
        return self.at(key)

    def at(self, key: K) -> Phases:
        """Those of a process, which need not be known."""
        found = self._phases.get(key)
        if found is None:
            found = self._phases[key] = Phases()
            while len(self._phases) > self._limit:
                self._phases.popitem(last=False)
        return found

    def find(self, key: K) -> Phases | None:
        """Those of a process, if it is known."""
        return self._phases.get(key)


def arranged(phases: Iterable[Phase]) -> list[tuple[int, Phase]]:
    """Phases by their start, each after those that it is a part of and with their number."""
    found: list[tuple[int, Phase]] = []
    around: list[Phase] = []
    for phase in sorted(phases, key=lambda one: (one.start_ns, -one.end_ns, _order(one))):
        around = [one for one in around if one.end_ns > phase.start_ns]
        found.append((sum(_is_part(phase, one) for one in around), phase))
        around.append(phase)
    return found


def _is_part(phase: Phase, whole: Phase) -> bool:
    return phase.end_ns <= whole.end_ns and _order(whole) <= _order(phase)


def _order(phase: Phase) -> int:
    return _ORDER.get(phase.process, len(_ORDER))  # of a release that has more of them
