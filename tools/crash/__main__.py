"""`make crash`: the whole matrix, or what `--only` picks. Prints what came of each crash; fails if something broke."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from orlop.base import failpoints
from tools import host, images
from tools.crash.matrix import Outcome, Row, course, crash, crashes, errors
from tools.crash.operations import Operation
from tools.crash.plan import EVERY
from tools.crash.stage import BTRFS_BYTES, Stage, Where
from tools.daemons import Missing
from tools.filesystems import mounted


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make crash", description=__doc__)
    parser.add_argument("--only", default="*", help="operations by pattern, separated by commas")
    parser.add_argument("--points", default="*", help="points by pattern, separated by commas")
    parser.add_argument("--actions", default="kill,error", help="what is done at a point: kill, error, or both")
    options = parser.parse_args(arguments)
    reason = host.forbids_root_tests()
    if reason:
        print(f"crash: {reason}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the daemon is ended and its files go
    began = time.monotonic()
    points = {point for point in failpoints.POINTS if _matches(point, options.points)}
    chosen = [one for one in EVERY if _matches(one.name, options.only)]
    rows: list[Row] = []
    lacking: set[str] = set()
    for where in Where:
        there = [one for one in chosen if one.where is where]
        reason = _lacks(where) if there else ""
        if reason:
            print(f"\n{', '.join(one.name for one in there)}: skipped, {reason}")
            lacking.update(point for point in failpoints.POINTS if point.startswith(f"{where}."))
        elif there:
            directory = Path(tempfile.mkdtemp(prefix="orlop.crash."))
            with Stage(directory, images.image("busybox"), where=where) as stage:
                rows += play(stage, there, points, options.actions.split(","))
    print(summary(rows))
    print(f"{len(rows)} crashes and errors in {time.monotonic() - began:.0f} s")
    missing = failpoints.POINTS.keys() - {row.point for row in rows} - lacking if chosen == [*EVERY] else set()
    if missing:
        print(f"no operation passes {', '.join(sorted(missing & points))}")
    return 1 if missing & points or any(row.problems for row in rows) else 0


def play(
    stage: Stage, chosen: Sequence[Operation], points: Collection[str], actions: Collection[str] = ("kill", "error")
) -> Iterator[Row]:
    """Every crash and error that was asked for, told as it is played."""
    for operation in chosen:
        run = course(stage, operation)
        print(f"\n{operation.name}")
        turns: list[tuple[str, str, int]] = []
        if "kill" in actions:
            turns += crashes(operation, run.passed, points)
        if "error" in actions:
            turns += errors(run.passed, points)
        for point, victim, turn in turns:
            row = crash(stage, operation, run, point, victim, turn)
            print(f"  {row.point:32} {row.victim:10} {row.turn:4} of {row.turns:<4} {row.outcome}", flush=True)
            for problem in row.problems:
                print(f"    {problem}", flush=True)
            yield row
        if operation.apart:
            stage.afresh()


def _lacks(where: Where) -> str:
    """Why this host cannot have such a daemon; empty if it can."""
    if where is Where.BTRFS:
        try:
            with tempfile.TemporaryDirectory() as directory, mounted(Path(directory), "btrfs", BTRFS_BYTES):
                return ""
        except (RuntimeError, Missing) as error:
            return str(error)
    return ""


def _matches(name: str, patterns: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns.split(","))


def summary(rows: Sequence[Row]) -> str:
    """Points by outcomes, over all operations."""
    counts: dict[str, Counter[Outcome]] = {}
    for row in rows:
        counts.setdefault(row.point, Counter())[row.outcome] += 1
    lines = ["", f"{'':36}" + "".join(f"{outcome:>12}" for outcome in Outcome)]
    for point, found in sorted(counts.items()):
        lines.append(f"{point:36}" + "".join(f"{found[outcome] or '':>12}" for outcome in Outcome))
    total = Counter(row.outcome for row in rows)
    lines.append(f"{'all':36}" + "".join(f"{total[outcome] or '':>12}" for outcome in Outcome))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
