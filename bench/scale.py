"""`make bench-scale`: how orlopd alone behaves as its store grows, from ten objects of each kind to ten thousand.

Nothing is compared but orlop with itself: what climbs with the number of objects and should not is the find.
What one object costs is asserted by counting, in tests/unit/core/metadata/test_scaling.py; here is what a user feels.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench import machine, many, memory, metadata, report, store
from bench.layers import timed
from bench.pair import Side, clear, orlop_side
from tools import daemons, host, images, peers
from tools.daemons import Orlopd, Registry

SIZES: Final = (10, 100, 1_000, 10_000)
RUNS: Final = 5

COLUMNS: Final[Mapping[str, str]] = {
    "run": "ctr run --rm, ms",
    "containers": "containers ls, ms",
    "images": "images ls, ms",
    "collect": "a collection, ms",
    "memory": "daemon's PSS, MB",
    "start": "start to first answer, ms",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.scale", description="orlopd with more and more objects")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="objects of each kind, with commas between")
    sizes = [int(size) for size in parser.parse_args().sizes.split(",")]
    refusal = host.forbids_root_tests() or host.lacks_peer("ctr") or host.lacks_peer("docker-registry")
    if refusal:
        print(f"bench: nothing to drive: {refusal}", file=sys.stderr)
        return 1
    directory = Path(tempfile.mkdtemp(prefix="orlop-bench."))
    try:
        run(directory, sizes)
    except (daemons.DaemonError, daemons.Missing, peers.PeerError, subprocess.SubprocessError, RuntimeError) as error:
        print("\n".join([f"bench: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 1
    finally:
        clear(directory)
    return 0


def run(directory: Path, sizes: list[int]) -> None:
    facts = {**machine.facts(), "load before": f"{os.getloadavg()[0]:.2f}"}
    for name, value in facts.items():
        print(f"{name:12} {value}")
    print("\n" + "  ".join([f"{'objects':>8}", *(f"{title:>26}" for title in COLUMNS.values())]))
    lines: dict[int, dict[str, float]] = {}
    with ExitStack() as stack:
        place = stack.enter_context(store.mounted(directory, "memory"))
        registry = stack.enter_context(Registry(place / "registry"))
        for size in sizes:
            found = lines[size] = measure(place / f"orlopd-{size}", registry, size)
            print("  ".join([f"{size:>8}", *(f"{found[key]:26.1f}" for key in COLUMNS)]), flush=True)
    report.RESULTS.mkdir(exist_ok=True)
    path = report.RESULTS / time.strftime("scale-%Y%m%dT%H%M%SZ.json", time.gmtime())
    path.write_text(json.dumps({"facts": facts, "columns": COLUMNS, "lines": lines}, indent=1) + "\n")
    print(f"\nraw figures: {path}")


def measure(directory: Path, registry: Registry, size: int) -> dict[str, float]:
    """One line of the table: medians, with so many containers and images in a store of its own."""
    side = orlop_side(directory, registry)
    image = images.image("busybox")
    with side.engine as engine:
        side.ctr("images", "import", image.archive)
        for kind in ("containers", "images"):
            metadata.fill(side, kind, size)
        found = {
            "run": _median(lambda: side.run(image, "/bin/true")),
            "containers": _median(lambda: side.ctr("containers", "ls", "-q")),
            "images": _median(lambda: side.ctr("images", "ls", "-q")),
            "collect": _median(lambda: _collect(side)),
            "memory": sum(memory.outside_containers(engine, side.ctr).values()) / 1e6,
        }
        assert isinstance(engine, Orlopd)
        started = []
        for _ in range(RUNS):
            engine.stop()
            started.append(many.first_answer(engine))
        return {**found, "start": statistics.median(started)}


def _collect(side: Side) -> None:
    """An image that is made and removed; the removal waits for a collection."""
    name = f"collect-{side.fresh_id()}"
    side.ctr("images", "tag", images.image("busybox").reference, name)
    side.ctr("images", "rm", "--sync", name)


def _median(work: Callable[[], object]) -> float:
    work()
    return statistics.median(timed(work) for _ in range(RUNS))


if __name__ == "__main__":
    sys.exit(main())
