"""Where the time of one `ctr run --rm` goes: request by request, shim, OCI runtime, sync, and whose CPU.

The daemon writes what it does to the file that ORLOP_TRACE_RPC names. The OCI runtime is timed by a wrapper in its
place, which costs a millisecond or two of its own each time: compare the parts with each other, not with the table.
"""

import json
import os
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.pair import Side, orlop_side
from tools import host, images, residue
from tools.daemons import Registry

RUNS: Final = 10

_WRAPPER: Final = """#!/bin/bash
start=$EPOCHREALTIME
"{runtime}" "$@"
status=$?
word=
for argument in "$@"; do
    case $argument in
    create | start | delete | kill | state | exec | ps) word=$argument && break ;;
    esac
done
echo "$word $start $EPOCHREALTIME" >>"{log}"
exit $status
"""


@dataclass(slots=True)
class Part:
    """One line of the profile: how often per run, and milliseconds per run (median of the runs' sums)."""

    calls: float = 0
    ms: float = 0


@dataclass(slots=True)
class Profile:
    """Milliseconds per run, by part; CPU in milliseconds per run, by process."""

    total_ms: float
    requests: dict[str, Part] = field(default_factory=dict)
    shim: dict[str, Part] = field(default_factory=dict)
    runtime: dict[str, Part] = field(default_factory=dict)
    sync: Part = field(default_factory=Part)
    in_requests_ms: float = 0
    cpu_ms: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> Mapping[str, Any]:
        def plain(parts: Mapping[str, Part]) -> dict[str, list[float]]:
            return {name: [part.calls, part.ms] for name, part in parts.items()}

        return {
            "total_ms": self.total_ms,
            "in_requests_ms": self.in_requests_ms,
            "requests": plain(self.requests),
            "shim": plain(self.shim),
            "runtime": plain(self.runtime),
            "sync": [self.sync.calls, self.sync.ms],
            "cpu_ms": self.cpu_ms,
        }

    def __str__(self) -> str:
        lines = [f"one `ctr run --rm`, median of {RUNS}: {self.total_ms:.1f} ms"]
        lines.append(
            f"  {self.total_ms - self.in_requests_ms:7.2f} ms  outside requests: the client, and the way there"
        )
        lines.append(f"  {self.in_requests_ms:7.2f} ms  inside requests (those at the same time count once)")
        for title, parts in (("request", self.requests), ("shim call", self.shim), ("OCI runtime", self.runtime)):
            lines.append(f"{title + 's, each with what it waits for:':48} calls   ms per run")
            for name, part in sorted(parts.items(), key=lambda item: -item[1].ms):
                lines.append(f"  {name:46} {part.calls:5.1f} {part.ms:8.2f}")
        lines.append(f"  {'metadata commits (sync)':46} {self.sync.calls:5.1f} {self.sync.ms:8.2f}")
        lines.append("CPU per run: " + ", ".join(f"{name} {value:.1f} ms" for name, value in self.cpu_ms.items()))
        return "\n".join(lines)


def profile(directory: Path, registry: Registry) -> Profile:
    """Run a daemon of its own with a trace, and take its life apart."""
    trace, runtime_log, wrapper = directory / "trace.json", directory / "runtime.log", directory / "runc-timed"
    runtime = host.find("runc") or Path("runc")
    wrapper.write_text(_WRAPPER.format(runtime=runtime, log=runtime_log))
    wrapper.chmod(0o755)
    side = orlop_side(directory / "profiled", registry, runtime=os.fspath(wrapper), trace=trace)
    image = images.image("busybox")
    with side.engine:
        side.ctr("images", "import", image.archive)
        for _ in range(3):
            side.run(image, "/bin/true")
        # what ends after the client has gone must not be counted for the first run
        before, spans = _cpu(side), list[tuple[float, float]]()
        for _ in range(RUNS):
            began = time.monotonic()
            side.run(image, "/bin/true")
            spans.append((began, time.monotonic()))
            time.sleep(0.1)
        after = _cpu(side)
    found = Profile(total_ms=statistics.median(end - start for start, end in spans) * 1e3)
    found.cpu_ms = {name: (after[name] - before.get(name, 0)) * 1e3 / RUNS for name in after}
    records = [json.loads(line) for line in trace.read_text().splitlines()]
    runs = [[record for record in records if start <= record["start"] <= end] for start, end in spans]
    found.requests = _parts(runs, {"grpc", "ttrpc"})
    found.shim = _parts(runs, {"shim"})
    found.sync = _parts(runs, {"metadata"}).get("commit", Part())
    found.runtime = _runtime_parts(runtime_log, spans)
    found.in_requests_ms = statistics.median(_covered(run) for run in runs) * 1e3
    return found


def _parts(runs: Sequence[Sequence[Mapping[str, Any]]], places: set[str]) -> dict[str, Part]:
    """Calls and milliseconds per run of each method in `places`; events of the supervisor are no client's request."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(runs))
    calls: dict[str, int] = defaultdict(int)
    for number, run in enumerate(runs):
        for record in run:
            if record["place"] in places:
                name = record["method"].removeprefix("/containerd.services.")
                sums[name][number] += record["seconds"] * 1e3
                calls[name] += 1
    return {name: Part(calls[name] / len(runs), statistics.median(values)) for name, values in sums.items()}


def _runtime_parts(log: Path, spans: Sequence[tuple[float, float]]) -> dict[str, Part]:
    offset = time.time() - time.monotonic()  # the wrapper's clock is the wall's
    runs: list[list[Mapping[str, Any]]] = [[] for _ in spans]
    for line in log.read_text().splitlines():
        word, start, end = line.rsplit(" ", 2)
        for number, (began, ended) in enumerate(spans):
            if began <= float(start) - offset <= ended:
                runs[number].append({"place": "runtime", "method": word, "seconds": float(end) - float(start)})
    return _parts(runs, {"runtime"})


def _covered(run: Sequence[Mapping[str, Any]]) -> float:
    """Seconds in which at least one request of the client's was being answered."""
    spans = sorted((r["start"], r["start"] + r["seconds"]) for r in run if r["place"] in {"grpc", "ttrpc"})
    covered, reached = 0.0, 0.0
    for start, end in spans:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered


def _cpu(side: Side) -> dict[str, float]:
    """CPU seconds so far: of the daemon, its supervisor, the runtimes that this waited for, and clients that ended."""
    ticks = os.sysconf("SC_CLK_TCK")
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = {"ctr": usage.ru_utime + usage.ru_stime}
    for pid in {side.engine.pid, *residue.find(side.engine.directory).processes}:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended
            continue
        own = (int(fields[11]) + int(fields[12])) / ticks
        if pid == side.engine.pid:
            seconds["daemon"] = own
        else:
            seconds["supervisor"] = seconds.get("supervisor", 0) + own
            seconds["its runtimes"] = seconds.get("its runtimes", 0) + (int(fields[13]) + int(fields[14])) / ticks
    return seconds
