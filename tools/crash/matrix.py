"""Which points an operation passes, a crash at each of them, and what came of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatch
from typing import Final

import orlop
from orlop.base import failpoints
from orlop.base.errdefs import DeadlineExceededError
from tools.crash.operations import Operation
from tools.crash.picture import Picture, differences, picture, settled
from tools.crash.stage import NAMESPACE, OTHER, Stage, StageError, until
from tools.daemons import DaemonError

DAEMON: Final = "daemon"
HELPERS: Final = "helpers"
SUPERVISOR: Final = "supervisor"
BOTH: Final = "both"
NOBODY: Final = "nobody"
LOST: Final = "snapshot-lost"
"""What the disk did not take is unpacked again before anybody gets it."""
SHIM: Final = "shim."
"""What names of points begin with that supervisors pass, or programs that are to start one."""
BYSTANDER: Final = "bystander"
"""The promise of a container that runs on, whose supervisor must."""
BACKGROUND_S: Final = 10.0
"""How long what goes on after the answer may take to come to a point."""


class Outcome(StrEnum):
    """What the daemon says after the crash and its restart, before anything is done again; or to whom came an error."""

    BEFORE = "as before"
    BETWEEN = "a part"
    AFTER = "done"
    REFUSED = "refused"
    """The caller was told of the error."""
    ENDURED = "endured"
    """The caller was not, and all is as if there had been none."""
    MISSED = "not passed"
    ABSENT = "no victim"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One crash, or one error.

    Attributes:
        victim: who was killed: `daemon`, `helpers`, `supervisor` or `both` the first and the last; `nobody` if
            the point was one of an error.
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
    _raise(operation, settled(stage, ahead=True))
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
        if point not in wanted or point in failpoints.FAILING:
            continue
        for number, victim in enumerate(_victims(operation, point)):
            chosen = {1, min(2, turns), turns} if every and not number else {min(2, turns)}
            yield from ((point, victim, turn) for turn in sorted(chosen))


def errors(passed: Counter[str], wanted: Collection[str], *, every: bool = True) -> Iterator[tuple[str, str, int]]:
    """As `crashes`, where there can be an error."""
    for point, turns in sorted(passed.items()):
        if point in wanted and point not in failpoints.SOUND:
            yield from (
                (point, NOBODY, turn) for turn in sorted({1, min(2, turns), turns} if every else {min(2, turns)})
            )


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
    """Prepare, do it and be killed at the turn of a point, come back, look, do it again, look, and take it all away.

    If the victim is nobody, the point fails, and there is nothing to come back from.
    """

    def play() -> tuple[Outcome, list[str]]:
        if victim == NOBODY:
            return _error(stage, operation, run, point, turn)
        return _crash(stage, operation, run, point, victim, turn)

    try:
        outcome, problems = play()
        if outcome is Outcome.MISSED and not problems:
            stage.afresh()  # who was there already was not started again
            outcome, problems = play()
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
        return Outcome.ABSENT, _clear(stage)
    stage.arm(point, turn, *pids)
    struck = _strike(stage, operation)
    if victim in (DAEMON, BOTH):
        stage.kill()
    stage.disarm()
    stage.start()
    problems = [*settled(stage), *_fsck(stage), *stage.broken()]
    outcome = _outcome(before, picture(stage), run.after)
    problems += _again(stage, operation, run)
    return outcome if struck else Outcome.MISSED, problems


def _strike(stage: Stage, operation: Operation) -> bool:
    """Do it; whether what was armed has been done meanwhile, or by what goes on after the answer."""
    try:
        operation.perform(stage)
    except (orlop.OrlopError, DaemonError, OSError):
        if not stage.struck:
            raise
        return True
    return _is_struck(stage)


def _is_struck(stage: Stage) -> bool:
    try:
        until(lambda: stage.struck, "not passed", BACKGROUND_S)
    except StageError:
        return False
    return True


def _error(stage: Stage, operation: Operation, run: Course, point: str, turn: int) -> tuple[Outcome, list[str]]:
    _prepare(stage, operation)
    daemon = None if operation.restarts else stage.daemon.pid
    # One that is about to end may be among them, as it has nothing to do any more.
    supervisors = stage.supervisors() if BYSTANDER in stage.promises else []
    said = len(stage.daemon.log)
    stage.arm_error(point, turn)
    told: Exception | None = None
    try:
        operation.perform(stage)
    except (orlop.OrlopError, DaemonError) as error:
        if not stage.struck:
            raise
        told = error
    struck = told is not None or _is_struck(stage)
    stage.disarm()
    if operation.restarts and told is None and point in _failed_plugins(stage):
        told = StageError("a daemon without all of its plug-ins")
    problems = []
    if told is not None and operation.restarts:  # then what needs the disk is not there, and the log says why
        problems += [] if point in stage.daemon.log[said:] else [f"the log does not say what has failed: {told}"]
        stage.kill()
    elif told is not None:
        problems += _unclear(told, point)
    stage.start()
    if daemon is not None and not _lives(daemon):
        problems.append("the daemon has ended")
    if supervisors and not any(map(_lives, supervisors)):
        problems.append("the supervisor has ended")
    problems += [*settled(stage, ahead=True), *_fsck(stage, LOST), *stage.broken()]
    if told is None and struck:
        stage.later()
        problems += [f"not as if it had not been: {one}" for one in differences(picture(stage), run.after)]
    problems += _again(stage, operation, run)
    outcome = Outcome.ENDURED if told is None else Outcome.REFUSED
    return outcome if struck else Outcome.MISSED, problems


def _lives(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}/exe")  # a zombie has none


def _failed_plugins(stage: Stage) -> str:
    """What plug-ins that have failed say of it."""
    with stage.client() as client:
        return " ".join(str(one.error) for one in client.introspection.plugins() if one.error)


def _unclear(error: Exception, point: str) -> list[str]:
    """What is wrong with what a caller was told."""
    if isinstance(error, DeadlineExceededError):
        return [f"no answer: {error}"]
    return [] if point in str(error) else [f"does not say what has failed: {type(error).__name__}: {error}"]


def _again(stage: Stage, operation: Operation, run: Course) -> list[str]:
    """Do it again, look, and take it all away; what is wrong then."""
    operation.perform(stage)
    stage.later()
    problems = [f"done again: {one}" for one in [*settled(stage, ahead=True), *stage.broken()]]
    problems += [f"done again: {one}" for one in differences(picture(stage), run.after)]
    return problems + [f"taken away: {one}" for one in _clear(stage)]


def _prepare(stage: Stage, operation: Operation) -> None:
    stage.promises.clear()
    operation.prepare(stage)
    if not operation.restarts:
        _raise(operation, settled(stage, ahead=True))


def _outcome(before: Picture | None, found: Picture, after: Picture) -> Outcome:
    if found == after:
        return Outcome.AFTER
    return Outcome.BEFORE if found == before else Outcome.BETWEEN


def _fsck(stage: Stage, mends: str = "") -> list[str]:
    """What the daemon itself finds wrong and should not; all content and snapshots are read.

    Args:
        mends: the kind of what may be wrong and is mended.
    """
    with stage.client() as client:
        found = list(client.fsck(repair=True))
    mended = [one for one in found if isinstance(one, orlop.Finding) and one.kind == mends and one.mended]
    return [f"fsck: {one}" for one in found if one not in mended]


def _clear(stage: Stage) -> list[str]:
    """Remove all that there is, by its users' means; what stays."""
    for namespace in (NAMESPACE, OTHER):
        with stage.client(namespace) as client:
            client.remove_namespace()
    return settled(stage, empty=True)


def _raise(operation: Operation, problems: Sequence[str]) -> None:
    if problems:
        raise StageError(f"{operation.name}: " + "; ".join(problems))
