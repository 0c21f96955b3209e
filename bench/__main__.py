"""`make bench`: measure, print the table, write JSON. See the package's docstring."""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import machine, profile, report, store
from bench.pair import Samples, Side, clear, containerd_side, orlop_side
from bench.rows import ROWS, Row
from tools import daemons, host, peers
from tools.daemons import Registry

PEERS = ("containerd", "ctr", "docker-registry", "unpigz")  # without unpigz, containerd would not be at its best


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description="orlopd beside Debian's containerd, on this machine")
    keys = [*(row.key for row in ROWS), "profile"]
    parser.add_argument("--only", default=",".join(keys), help=f"rows, with commas between: {', '.join(keys)}")
    parser.add_argument("--runs", type=int, help="runs of each row, instead of its own number")
    parser.add_argument("--runtime", choices=["runc", "crun"], default="runc", help="OCI runtime on orlop's side")
    parser.add_argument("--ruler", action="store_true", help="containerd beside itself: how far the ruler is off")
    parser.add_argument("--store", choices=["memory", "disk"], default="memory", help="where the file system lies")
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := set(wanted) - set(keys):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(keys)}")
    refusal = host.forbids_root_tests() or next(filter(None, map(host.lacks_peer, PEERS)), None)
    if refusal:
        print(f"bench: nothing to compare: {refusal}", file=sys.stderr)
        return 1
    directory = Path(tempfile.mkdtemp(prefix="orlop-bench."))
    try:
        run(directory, [row for row in ROWS if row.key in wanted], "profile" in wanted, options)
    except (daemons.DaemonError, daemons.Missing, peers.PeerError, subprocess.SubprocessError, RuntimeError) as error:
        notes = getattr(error, "__notes__", [])
        print("\n".join([f"bench: {error}", *notes]), file=sys.stderr)
        return 1
    finally:
        clear(directory)
    return 0


def run(directory: Path, rows: Sequence[Row], profiled: bool, options: argparse.Namespace) -> None:
    facts = {**machine.facts(), "load before": f"{os.getloadavg()[0]:.2f}"}
    for name, value in facts.items():
        print(f"{name:12} {value}")
    with ExitStack() as stack:
        place = stack.enter_context(store.mounted(directory, options.store))
        registry = stack.enter_context(Registry(place / "registry"))
        sides = pair(place, registry, options)
        for side in sides:
            stack.enter_context(side.engine)
        first, second = (side.name for side in sides)
        print("\n" + report.head(first, second))
        results: list[tuple[Row, Samples]] = []
        for row in rows:
            samples = row.measure(sides, options.runs or row.runs)
            results.append((row, samples))
            print(report.line(row, samples), flush=True)
        extra: dict[str, Any] = {"pair": [first, second], "runtime": options.runtime, "store": options.store}
        if profiled and not options.ruler:
            taken = profile.profile(place, registry)
            extra["profile"] = taken.as_json()
            print(f"\n{taken}")
    extra["load after"] = machine.load()
    print(f"\nraw figures: {report.write(facts, results, extra)}")


def pair(directory: Path, registry: Registry, options: argparse.Namespace) -> list[Side]:
    reference = containerd_side(directory / "containerd", registry)
    if options.ruler:
        return [containerd_side(directory / "ruler", registry, name="containerd again"), reference]
    return [orlop_side(directory / "orlopd", registry, runtime=options.runtime), reference]


if __name__ == "__main__":
    sys.exit(main())
