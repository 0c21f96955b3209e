"""The power goes at each place of a recorded life; what a daemon finds there is compared with what was answered.

A machine that comes up again has the disk's image, an empty state directory and another boot id. That one the daemon is
told: a mount namespace with a file over the kernel's would keep other tests' mounts.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import orlop
from orlop.base.errdefs import OrlopError
from orlop.core.fsck import Finding
from orlop.core.snapshots import UNPACK_KEY_PREFIX
from tools.daemons import COLLECT_ON_REQUEST, DaemonError, Orlopd
from tools.power.life import LOOK, NAMESPACE, START, TIMEOUT_S, Life, Moment, Parts
from tools.power.state import LOOK as LOOK_PREFIX
from tools.power.state import State, observe, trees, wrong_blobs
from tools.recording_disk import Cut, Kept, mounted

_REBOOTED: Final = """
import sys
from pathlib import Path
from orlop.cmd.orlopd import main
from orlop.core.snapshots import upkeep
from orlop.plugins.content.local import ingest
upkeep._BOOT_ID = ingest._BOOT_ID = Path(sys.argv.pop(1))
sys.exit(main())
"""
_TRANSIENT: Final = (": ingest ", ": lease ", " holds ingests ", " snapshot extract-", f" snapshot {LOOK_PREFIX}")
"""What a call has for itself while it runs."""
_BETWEEN: Final = "between calls"


class Outcome(StrEnum):
    """What became of the call in which the power went."""

    HELD = "held"  # none was being made: all that had been answered was there
    UNDONE = "not done"
    DONE = "done"
    PARTLY = "begun"  # some of its parts, each whole
    BROKEN = "broken"  # an answered call was undone, something is half there, or the call did not succeed afterwards


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """One place, the call that was being made there if one was, and what was found.

    Attributes:
        why: it is broken.
    """

    cut: Cut
    moment: Moment | None
    outcome: Outcome
    why: str = ""

    def __str__(self) -> str:
        return f"{self.cut!s:16} {self.moment.step if self.moment else _BETWEEN}: {self.outcome} {self.why}".rstrip()


class PowerError(Exception):
    """An answered call was undone, or something is half there; the text says what."""


class Rebooted(Orlopd):
    """A daemon that finds another boot id than the one before."""

    def configure(self) -> None:
        super().configure()
        (self.directory / "boot_id").write_text(f"{uuid.uuid4()}\n")

    def command(self) -> Sequence[str | Path]:
        _program, *arguments = super().command()
        return [sys.executable, "-c", _REBOOTED, self.directory / "boot_id", *arguments]


def places(life: Life, seeds: int = 2) -> Iterator[tuple[Moment | None, list[Cut]]]:
    """Every place at which the power can go that makes a difference, by the call that was being made.

    Between two flushes: nothing of what was written since the first is there; all is; some is, or torn, `seeds` times
    each. And right after each answer, when nothing more has reached the disk than was flushed.
    """
    begin = life.moments[0].begun
    for moment in life.moments:
        if moment.begun > begin:
            yield None, _between(life, begin, moment.begun, seeds)
        yield moment, _between(life, moment.begun, moment.answered, seeds)
        begin = moment.answered


def _between(life: Life, begin: int, end: int, seeds: int) -> list[Cut]:
    """Cuts in [begin, end)."""
    found = [Cut(begin, Kept.NOTHING)]
    edges = [*(at for at in life.history.flushes(begin + 1) if at < end), end]
    start = begin
    for edge in edges:
        if edge - 1 > start:
            found.append(Cut(edge - 1, Kept.ALL))
            for seed in range(seeds):
                found += [Cut(edge - 1, Kept.SOME, seed), Cut(edge - 1, Kept.TORN, seed)]
        start = edge
    return found


def play(
    life: Life, cuts: Iterable[Cut], parts: Parts, directory: Path, *, say: Callable[[str], None] = lambda _line: None
) -> list[Loss]:
    """Come up after each of the cuts."""
    losses = []
    for cut, image in life.history.images(cuts, directory / "image"):
        moment = next((one for one in life.moments if one.begun < cut.position < one.answered), None)
        outcome, why = Outcome.BROKEN, ""
        try:
            with mounted(image, directory / "disk"):
                outcome = _come_up(life, cut, moment, parts, directory)
        except (PowerError, OrlopError, DaemonError, OSError) as error:
            why = f"{type(error).__name__}: {error}"
        losses.append(Loss(cut=cut, moment=moment, outcome=outcome, why=why))
        say(str(losses[-1]))
    return losses


def _come_up(life: Life, cut: Cut, moment: Moment | None, parts: Parts, directory: Path) -> Outcome:
    before = _state(life, lambda one: one.answered <= cut.position)
    after = before if moment is None else moment.state
    with _daemon(directory) as daemon, _connect(daemon) as client:
        found = observe(client)
        outcome = _judge(before, after, found, running=moment is not None)
        _inside(life, client, before.keys() & after.keys())
        if moment is not None and moment.step not in {START, LOOK}:
            moment.step.call(client, parts)
            _judge(after, after, observe(client), running=False, repeated=True)
            _inside(life, client, after.keys())
    return outcome


@contextlib.contextmanager
def _daemon(directory: Path) -> Iterator[Orlopd]:
    home = directory / "again"
    home.mkdir()
    (home / "root").symlink_to(directory / "disk")
    try:
        with Rebooted(home, config=COLLECT_ON_REQUEST) as daemon:
            try:
                yield daemon
            except (PowerError, OrlopError) as error:
                raise PowerError(f"{error}\n{_complaints(daemon.log)}") from error
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _complaints(log: str) -> str:
    return "\n".join(line for line in log.splitlines() if not line.startswith("time=") or "level=info" not in line)


def _connect(daemon: Orlopd) -> orlop.Client:
    return orlop.Client(os.fspath(daemon.address), NAMESPACE, timeout_s=TIMEOUT_S)


def _state(life: Life, holds: Callable[[Moment], bool]) -> State:
    """What was there after the last of the moments for which `holds`."""
    state: State = {}
    for moment in itertools.takewhile(holds, life.moments):
        state = moment.state
    return state


def _judge(before: State, after: State, found: State, *, running: bool, repeated: bool = False) -> Outcome:
    """Compare what is there with what may be: each line as before the call that was running or as after it.

    Args:
        repeated: it has been made again; what the first one had for itself may be there until the collector takes it.
    """
    wrong = []
    for line in sorted({*before, *after, *found}):
        old, new, now = before.get(line), after.get(line), found.get(line)
        if now in {old, new}:
            continue
        own = any(word in line for word in _TRANSIENT)
        if running and (own or (old is None and new is not None) or (now is not None and " blob " in line)):
            continue  # the call's own, or a blob that has not all of its labels
        if repeated and own and old is None:
            continue
        wrong.append(f"{line}: {now!r} is there; {old!r} was before" + (f", {new!r} after" if running else ""))
    if wrong:
        raise PowerError("\n".join(wrong))
    if not running:
        return Outcome.HELD
    if found == before:
        return Outcome.UNDONE
    return Outcome.DONE if found == after else Outcome.PARTLY


def _inside(life: Life, client: orlop.Client, lines: Collection[str]) -> None:
    """All that is there is whole; of snapshots, those of `lines` are compared with what they were."""
    wrong = wrong_blobs(client)
    if wrong:
        raise PowerError(f"blobs whose bytes are others: {wrong}")
    for name, tree in trees(client).items():
        if name in lines and tree != life.trees.get(name, tree):
            raise PowerError(f"{name}: its files are not those that were committed")
    found = [one for one in client.fsck() if not isinstance(one, Finding) or f"/{UNPACK_KEY_PREFIX}" not in one.object]
    if found:
        raise PowerError("\n".join(map(str, found)))


def chosen(life: Life, count: int, seed: int = 0) -> list[Cut]:
    """Some of the places, spread over all kinds of calls: each has its turn before one has its second."""
    choice = random.Random(seed)
    groups: dict[str, list[Cut]] = {}
    for moment, cuts in places(life, seeds=1):
        if moment is not None:
            groups.setdefault(str(moment.step), []).extend(cuts[1:])
    for cuts in groups.values():
        choice.shuffle(cuts)
    rows = itertools.chain.from_iterable(itertools.zip_longest(*groups.values()))
    return sorted([cut for cut in rows if cut is not None][:count])


def table(losses: Sequence[Loss]) -> str:
    """Places by outcomes, a row for each call."""
    counts: dict[str, Counter[Outcome]] = {}
    for loss in losses:
        counts.setdefault(str(loss.moment.step) if loss.moment else _BETWEEN, Counter())[loss.outcome] += 1
    head = f"| {'the power went in':44} | places | " + " | ".join(str(outcome) for outcome in Outcome) + " |"
    rows = [head, "|---|---|" + "---|" * len(Outcome)]
    for name, by_outcome in counts.items():
        cells = " | ".join(f"{by_outcome[outcome] or '':>{len(outcome)}}" for outcome in Outcome)
        rows.append(f"| {name:44} | {by_outcome.total():6} | {cells} |")
    return "\n".join(rows)
