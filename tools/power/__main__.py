"""Play every loss of power: `make power`. Prints places by outcomes, and ends with 1 if one is broken.

Usage: .venv/bin/python -m tools.power [--kind ext4|xfs] [--seeds N] [--points N] [--only AREA,…] [-v]
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tools.power import life as living
from tools.power import matrix
from tools.power.parts import parts


def main() -> int:
    options = argparse.ArgumentParser(prog="make power")
    options.add_argument("--kind", choices=("ext4", "xfs"), default="ext4")
    options.add_argument("--seeds", type=int, default=1, help="how often what is kept is chosen anew at each place")
    options.add_argument("--points", type=int, default=0, help="play only so many, of all kinds")
    options.add_argument("--only", default="", help="areas, such as content,images")
    options.add_argument("-v", "--verbose", action="store_true")
    given = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the daemon is ended and its file system goes
    begun = time.monotonic()
    with scratch() as directory, parts(directory) as needed:
        life = living.record(directory, needed, living.ALL, kind=given.kind, size_bytes=living.SIZE_BYTES[given.kind])
        _say(f"{len(life.history)} writes and flushes, {len(life.moments)} calls")
        if given.points:
            cuts = matrix.chosen(life, given.points)
        else:
            cuts = [
                cut for moment, some in matrix.places(life, given.seeds) if _wanted(moment, given.only) for cut in some
            ]
        losses = matrix.play(life, cuts, needed, directory, say=_say if given.verbose else _ignore)
    broken = [loss for loss in losses if loss.outcome is matrix.Outcome.BROKEN]
    print(matrix.table(losses))
    print(f"{len(losses)} places in {time.monotonic() - begun:.0f} s, {len(broken)} broken")
    for loss in broken:
        print(loss)
    return 1 if broken else 0


def _say(line: str) -> None:
    print(line, flush=True)


def _ignore(_line: str) -> None:
    """Without -v."""


def _wanted(moment: living.Moment | None, only: str) -> bool:
    return not only or (moment is not None and moment.step.area in only.split(","))


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="orlop.power."))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
