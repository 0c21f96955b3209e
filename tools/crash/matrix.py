"""Which points an operation passes, a crash at each of them, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatch
from typing import Final

import orlop
from tools.crash.operations import Operation
from tools.crash.picture import Picture, differences, picture, settled
from tools.crash.stage import NAMESPACE, OTHER, Stage, StageError, until
from tools.daemons import DaemonError

DAEMON: Final = "daemon"
HELPERS: Final = "helpers"
SUPERVISOR: Final = "supervisor"
BOTH: Final = "both"
WAITING: Final = "supervisor-orphan"
"""What a supervisor had still to do that was killed and held nothing more: the namespace's next one does it."""
SHIM: Final = "shim."
"""What names of points begin with that supervisors pass, or programs that are to start one."""
BACKGROUND_S: Final = 10.0
"""How long what goes on after the answer may take to come to a point."""


class Outcome(StrEnum):
    """What the daemon says after the crash and its restart, before anything is done again."""

    BEFORE = "as before"
    BETWEEN = "a part"
    AFTER = "done"
    MISSED = "not passed"
    NOBODY = "no victim"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One crash.

    Attributes:
        victim: who was killed: `daemon`, `helpers`, `supervisor` or `both` the first and the last.
        turn, turns: at which passage of how many.
        problems: what did not hold; none if all is well.
    """

    operation: str
    point: str
    victim: str
    turn: int
    turns: int
    outcome: Outcome
    problems: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """An undisturbed run: how often each point is passed, and what is said afterwards."""

    passed: Counter[str]
    after: Picture


def course(stage: Stage, operation: Operation) -> Course:
    """Do it once without a crash, and take everything away.

    Raises:
        StageError: something does not hold even so.
    """
    _prepare(stage, operation)
    stage.disarm()
    operation.perform(stage)
    _raise(operation, settled(stage))
    passed = Counter(stage.passed())
    stage.disarm()
    stage.later()
    after = picture(stage)
    _raise(operation, stage.broken())
    _raise(operation, _clear(stage))
    return Course(passed=passed, after=after)


def crashes(
    operation: Operation, passed: Counter[str], wanted: Collection[str], *, every: bool = True
) -> Iterator[tuple[str, str, int]]:
    """Points of those wanted, victims and turns.

    Args:
        every: of each point its first, second and last passage where who passes it is killed; else, and for other
            victims, the second, or the only one.
    """
    for point, turns in sorted(passed.items()):
        if point not in wanted:
            continue
        for number, victim in enumerate(_victims(operation, point)):
            chosen = {1, min(2, turns), turns} if every and not number else {min(2, turns)}
            yield from ((point, victim, turn) for turn in sorted(chosen))


def _victims(operation: Operation, point: str) -> Sequence[str]:
    """Who passes the point, and then the others."""
    if operation.tasks:
        return (SUPERVISOR, DAEMON, BOTH) if point.startswith(SHIM) else (DAEMON, SUPERVISOR, BOTH)
    return (DAEMON, HELPERS) if fnmatch(point, operation.helpers) else (DAEMON,)


def _pids(stage: Stage, point: str, victim: str) -> Sequence[str]:
    """The victims as the process that passes the point is to be told of them."""
    supervised = point.startswith(SHIM)
    supervisor = ["self"] if supervised else [str(pid) for pid in stage.supervisors()]
    daemon = [str(stage.daemon.pid)] if supervised and stage.daemon.process is not None else ["self"]
    match victim:
        case "daemon":
            return daemon
        case "supervisor":
            return supervisor
        case "both":
            return sorted([*daemon, *supervisor])  # digits before letters: who does it goes last
        case _:
            return ["below"]


def crash(stage: Stage, operation: Operation, run: Course, point: str, victim: str, turn: int) -> Row:
    """Prepare, do it and be killed at the turn of a point, come back, look, do it again, look, and take it all away."""
    try:
        outcome, problems = _crash(stage, operation, run, point, victim, turn)
        if outcome is Outcome.MISSED and not problems:
            stage.afresh()  # who was there already was not started again
            outcome, problems = _crash(stage, operation, run, point, victim, turn)
    except (orlop.OrlopError, DaemonError, StageError, AssertionError, OSError) as error:
        problems = [f"{type(error).__name__}: {error}"]
    if problems:
        outcome = Outcome.FAILED
        stage.disarm()
        stage.afresh()
    return Row(
        operation=operation.name,
        point=point,
        victim=victim,
        turn=turn,
        turns=run.passed[point],
        outcome=outcome,
        problems=problems,
    )


def _crash(
    stage: Stage, operation: Operation, run: Course, point: str, victim: str, turn: int
) -> tuple[Outcome, list[str]]:
    _prepare(stage, operation)
    before = None if operation.restarts else picture(stage)
    pids = _pids(stage, point, victim)
    if not pids:
        return Outcome.NOBODY, _clear(stage)
    stage.arm(point, turn, *pids)
    struck = _strike(stage, operation)
    if victim in (DAEMON, BOTH):
        stage.kill()
    stage.disarm()
    stage.start()
    problems = [*settled(stage), *_fsck(stage), *stage.broken()]
    outcome = _outcome(before, picture(stage), run.after)
    operation.perform(stage)
    stage.later()
    problems += [f"done again: {one}" for one in [*settled(stage), *stage.broken()]]
    problems += [f"done again: {one}" for one in differences(picture(stage), run.after)]
    problems += [f"taken away: {one}" for one in _clear(stage)]
    return outcome if struck else Outcome.MISSED, problems


def _strike(stage: Stage, operation: Operation) -> bool:
    """Do it; whether what was armed has been done meanwhile, or by what goes on after the answer."""
    try:
        operation.perform(stage)
    except (orlop.OrlopError, DaemonError, OSError):
        if not stage.struck:
            raise
        return True
    try:
        until(lambda: stage.struck, "not passed", BACKGROUND_S)
    except StageError:
        return False
    return True


def _prepare(stage: Stage, operation: Operation) -> None:
    stage.promises.clear()
    operation.prepare(stage)
    if not operation.restarts:
        _raise(operation, settled(stage))


def _outcome(before: Picture | None, found: Picture, after: Picture) -> Outcome:
    if found == after:
        return Outcome.AFTER
    return Outcome.BEFORE if found == before else Outcome.BETWEEN


def _fsck(stage: Stage) -> list[str]:
    """What the daemon itself finds wrong; all content and snapshots are read. What waits for a supervisor is mended."""
    with stage.client() as client:
        found = list(client.fsck(repair=True))
    waiting = [one for one in found if isinstance(one, orlop.Finding) and one.kind == WAITING and one.mended]
    return [f"fsck: {one}" for one in found if one not in waiting]


def _clear(stage: Stage) -> list[str]:
    """Remove all that there is, by its users' means; what stays."""
    for namespace in (NAMESPACE, OTHER):
        with stage.client(namespace) as client:
            client.remove_namespace()
    return settled(stage, empty=True)


def _raise(operation: Operation, problems: Sequence[str]) -> None:
    if problems:
        raise StageError(f"{operation.name}: " + "; ".join(problems))
