"""Two engines side by side, and the alternation of runs between them."""

import os
import re
import shutil
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools import daemons, residue
from tools.daemons import Containerd, Ctr, Engine, Orlopd, Registry
from tools.images import Image


@dataclass(slots=True, kw_only=True)
class Side:
    """One engine and the client that drives it."""

    name: str
    engine: Engine
    ctr: Ctr
    registry: Registry
    run_options: Sequence[str] = ()
    counter: int = 0

    def fresh_id(self) -> str:
        self.counter += 1
        return f"bench-{self.counter}"

    def run_argv(self, image: Image, *command: str) -> list[str]:
        """`ctr run --rm` of a command in a container with an id never used before."""
        return self.ctr.argv("run", "--rm", *self.run_options, image.reference, self.fresh_id(), *command)

    def run(self, image: Image, *command: str) -> None:
        finish([start(self.run_argv(image, *command))])


def start(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=daemons.environment(),
    )


def finish(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for all.

    Raises:
        RuntimeError: one failed; a figure with a failure in it is none.
    """
    for process in processes:
        _, errors = process.communicate(timeout=120)
        if process.returncode != 0:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}: {errors.decode(errors='replace')}")


@dataclass(slots=True)
class Samples:
    """What a row measured on each side, in the order of measuring.

    Attributes:
        beside: what was measured beside it, by title.
        unit: of what is beside, if it is not the row's.
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    beside: "dict[str, Samples]" = field(default_factory=dict)
    unit: str = ""

    def add(self, side: str, value: float) -> None:
        self.values.setdefault(side, []).append(value)

    def forget(self, runs: int) -> None:
        """Drop the first figures of all sides together, those of warming up, which came in turns."""
        sides = len(self.values)
        for values in self.values.values():
            del values[: runs // sides]

    def median(self, side: str) -> float:
        return statistics.median(self.values[side])

    def ratio(self, first: str, second: str) -> float:
        """Median of the first over median of the second."""
        return self.median(first) / self.median(second)


def alternate(sides: Sequence[Side], measure: Callable[[Side], float], *, runs: int, warm_up: int = 1) -> Samples:
    """Measure A B A B …, after warming both up."""
    for _ in range(warm_up):
        for side in sides:
            measure(side)
    samples = Samples()
    for _ in range(runs):
        for side in sides:
            samples.add(side.name, measure(side))
    return samples


def containerd_side(directory: Path, registry: Registry, name: str = "containerd") -> Side:
    engine = Containerd(directory)
    return Side(name=name, engine=engine, ctr=_go_ctr(engine), registry=registry)


def orlop_side(
    directory: Path, registry: Registry, *, runtime: str = "runc", name: str = "orlop", trace: Path | None = None
) -> Side:
    """Our daemon with the same runc, or another runtime, told by the option that Debian's ctr has for it."""
    engine = Orlopd(directory, env={"ORLOP_TRACE_RPC": str(trace)} if trace else None)
    options = [] if runtime == "runc" else ["--runc-binary", runtime]
    return Side(name=name, engine=engine, ctr=_go_ctr(engine), registry=registry, run_options=options)


def _go_ctr(engine: Engine) -> Ctr:
    """In a namespace of its own: cgroups are named after namespace and container, on the whole host."""
    return Ctr(daemons.program("ctr"), engine.address, f"bench-{engine.directory.name}-{os.getpid()}")


def clear(directory: Path) -> None:
    """Remove all that engines below `directory` left, and the cgroups of their namespaces."""
    found = residue.find(directory)
    mine = re.compile(rf"bench-.*-{os.getpid()}")
    found.cgroups = [path for path in residue.cgroups() if mine.fullmatch(os.path.basename(path))]
    residue.remove(found)
    shutil.rmtree(directory, ignore_errors=True)
