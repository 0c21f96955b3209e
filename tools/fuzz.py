"""Bad input for a bounded time: `make fuzz FUZZ_SECONDS=600`.

Half of the time goes to the parsers in this process, kinds in turn, from seeds that no run before had; the rest to a
daemon of its own, through both doors, where this host allows one. If atheris is installed (`pip install --group fuzz`),
each parser also gets a share of the time guided by coverage, beginning with the corpus. With `--inputs` it goes on
until there were so many. A finding is written to
`.fuzz/` with its traceback, and the command fails.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Final, TypeVar

from tests.hostile import generators
from tests.hostile.targets import TARGETS
from tools import host, peers

FINDINGS: Final = peers.ROOT / ".fuzz"
BATCH: Final = 400
T = TypeVar("T")
SLOW_S: Final = 10.0
"""Seconds for one input that are a finding too."""
_MORE_S: Final = 10.0
_FURTHER: Final = 1 << 40
"""How far the seeds of further inputs are from the first ones."""


class Finding(Exception):
    """An input did what none may."""


def main() -> int:
    """Run for the time asked for; 1 if there was a finding."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--inputs", type=int, default=0, help="go on with the parsers until there were so many in all")
    parser.add_argument("--seed", type=int, default=time.time_ns(), help="of the first input, to repeat a run")
    arguments = parser.parse_args()
    begun = time.monotonic()
    print(f"fuzz: seed {arguments.seed}, {arguments.seconds:.0f} s", flush=True)
    has_daemon, has_atheris = host.forbids_root_tests() is None, importlib.util.find_spec("atheris") is not None
    share = arguments.seconds / (2 + (1 if has_atheris else 0))
    counts: dict[str, int] = {}
    try:
        counts |= parsers(arguments.seed, share if has_daemon or has_atheris else arguments.seconds)
        if has_daemon:
            counts |= daemon(arguments.seed, share)
        if has_atheris:
            counts |= coverage(share)
        for seed in itertools.count(arguments.seed + _FURTHER, _FURTHER):
            if sum(counts.values()) >= arguments.inputs:
                break
            for kind, count in parsers(seed, _MORE_S).items():
                counts[kind] += count
    except Finding as finding:
        print(f"fuzz: {finding}", file=sys.stderr)
        return 1
    finally:
        for kind, count in counts.items():
            print(f"  {kind:<20} {count:>10,}")
        print(f"fuzz: {sum(counts.values()):,} inputs in {time.monotonic() - begun:.0f} s", flush=True)
    return 0


def parsers(seed: int, seconds: float) -> dict[str, int]:
    """Generated input for every parser in turn."""
    counts = dict.fromkeys(TARGETS, 0)
    end = time.monotonic() + seconds
    for start, kind in zip(itertools.count(seed, BATCH), itertools.cycle(TARGETS), strict=False):
        if time.monotonic() > end:
            return counts
        count = BATCH // 10 if kind == "archive" else BATCH  # each is unpacked, which takes its time
        for number in range(start, start + count):
            feed(kind, generators.GENERATORS[kind](Random(f"{kind} {number}")))
        counts[kind] += count
    raise AssertionError("a cycle ended")


def feed(kind: str, blob: bytes) -> None:
    """One input for one parser."""
    begun = time.monotonic()
    try:
        TARGETS[kind](blob)
    except Exception as error:
        raise found(kind, blob, traceback.format_exc()) from error
    if time.monotonic() - begun > SLOW_S:
        raise found(kind, blob, f"it took {time.monotonic() - begun:.1f} s")


def found(kind: str, blob: bytes, what: str) -> Finding:
    """Keep an input that did harm."""
    FINDINGS.mkdir(exist_ok=True)
    path = FINDINGS / f"{kind}-{hashlib.sha256(blob).hexdigest()[:16]}"
    path.write_bytes(blob)
    path.with_suffix(".txt").write_text(what)
    return Finding(f"{kind}: see {path}\n{what}")


def daemon(seed: int, seconds: float) -> dict[str, int]:
    """Messages and frames for a daemon; what it must stand is looked at after each round."""
    import grpc

    from orlop.ttrpc.client import Client
    from tests.hostile import doors
    from tools.daemons import Orlopd

    counts = {"messages, ttrpc": 0, "messages, gRPC": 0, "frames": 0}
    end = time.monotonic() + seconds
    directory = Path(tempfile.mkdtemp(prefix="fuzz."))
    sent: list[tuple[str, bytes]] = []
    try:
        with Orlopd(directory / "daemon") as running:
            for start in itertools.count(seed, BATCH):
                if time.monotonic() > end:
                    return counts
                sent.clear()
                try:
                    with doors.unharmed(running), grpc.insecure_channel(f"unix:{running.address}") as channel:
                        for method in _until(end, doors.methods()):
                            batch = doors.requests(method, 10, start)
                            with Client.connect(f"{running.address}.ttrpc", timeout_s=20) as client:
                                for request in batch:
                                    sent.append((method.full_name, request))
                                    doors.call_ttrpc(client, method, request)
                            counts["messages, ttrpc"] += len(batch)
                            for request in batch[:3]:
                                doors.call_grpc(channel, method, request)
                            counts["messages, gRPC"] += len(batch[:3])
                        for kind, suffix in (("ttrpc", ".ttrpc"), ("http2", "")):
                            for number in _until(end, range(start, start + 50)):
                                blob = generators.GENERATORS[kind](Random(f"{kind} {number}"))
                                sent.append((kind, blob))
                                doors.send(f"{running.address}{suffix}", blob)
                                counts["frames"] += 1
                except Exception as error:
                    listed = b"\n".join(name.encode() + b" " + blob.hex().encode() for name, blob in sent)
                    raise found("daemon", listed, traceback.format_exc()) from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    raise AssertionError("counting ended")


def _until(end: float, things: Iterable[T]) -> Iterator[T]:
    return itertools.takewhile(lambda _: time.monotonic() < end, things)


def coverage(seconds: float) -> dict[str, int]:
    """Each parser under atheris, in a process of its own, for an equal share."""
    counts = {}
    FINDINGS.mkdir(exist_ok=True)
    for kind in TARGETS:
        share = max(seconds / len(TARGETS), 1)
        with tempfile.TemporaryDirectory(prefix="fuzz.") as corpus:
            command = [sys.executable, "-m", "tools.fuzz_guided", kind, f"{share:.0f}", str(FINDINGS), corpus]
            done = subprocess.run(
                command, cwd=peers.ROOT, capture_output=True, text=True, errors="replace", check=False
            )
        if done.returncode != 0:
            raise Finding(f"atheris, {kind}:\n{(done.stdout + done.stderr)[-5000:]}")
        runs = [line for line in done.stderr.splitlines() if line.startswith("Done ")]
        counts[f"guided, {kind}"] = int(runs[-1].split()[1]) if runs else 0
    return counts


if __name__ == "__main__":
    sys.exit(main())
