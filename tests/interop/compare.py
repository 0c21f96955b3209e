"""Runs the same steps against two daemons and compares what a user sees: exit status, output and error, normalised.

A step is a command line for Debian's `ctr`, with `{…}` places; `{ns}` is the scenario's namespace. What differs from
run to run (times, process ids, directories, random ids) is replaced by words before the comparison.
"""

import difflib
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.interop.differences import DIFFERENCES
from tools.daemons import Ctr, Engine

BAR = "\x1b[32m"
PATTERNS = (
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| ?\+0000 UTC| ?[+-]\d\d:\d\d)?( m=\+[\d.]+)?", "TIME"),
    (r"io\.containerd\.snapshotter\.v1\.overlayfs", "OVERLAY"),
    (r"snapshots/overlayfs/", "OVERLAY/snapshots/"),
    (r"OVERLAY/snapshots/\d+/", "OVERLAY/snapshots/N/"),
    (r"(took|in|done:) [\d.]+[mµn]?s", r"\1 T"),
    (r"extract-\d+-\S+", "extract-ID"),
    (r"[0-9]{15,}-\S{4}", "ID"),
)


def _progress_last(lines: Sequence[str]) -> list[str]:
    """Of a progress display, which is drawn over and over, the last state of each line, sorted; no speeds."""
    last = {line.split()[0]: line.replace(": exists ", ": done ") for line in lines if BAR in line}
    kept = [line for line in lines if BAR not in line and not line.startswith("elapsed:")]
    return [*sorted(last.values()), *kept]


def _in_order(match: re.Match[str]) -> str:
    """Labels, which Go prints in a random order; a mount's options are in an order that means something."""
    words = match.group()
    return words if "lowerdir=" in words else ",".join(sorted(words.split(",")))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a step gave: exit status and the two outputs, normalised."""

    status: int
    output: str
    errors: str

    def __str__(self) -> str:
        return f"exit status {self.status}\n--- stdout\n{self.output}--- stderr\n{self.errors}"


def normalise(text: str, daemon: Engine, namespace: str) -> str:
    """Replace what has no meaning outside one run."""
    for path, word in (
        (namespace, "NAMESPACE"),
        (daemon.address, "ADDRESS"),
        (daemon.root, "ROOT"),
        (daemon.state, "STATE"),
    ):
        text = text.replace(str(path), word)
    for pattern, word in PATTERNS:
        text = re.sub(pattern, word, text)
    text = "".join(_progress_last(text.splitlines(keepends=True)))
    text = re.sub(r"(?m)^.*failed to get content info.*context canceled.*\n", "", text)  # a race within ctr
    text = re.sub(r"\S+=\S*(?:,\S+=\S*)+", _in_order, text)
    # A table's columns are as wide as their widest cell, which may be a process id or a time.
    return "".join(f"{re.sub(r'  +', '  ', line).rstrip()}\n" for line in text.splitlines())


def run(ctr: Ctr, daemon: Engine, words: str, places: Mapping[str, str]) -> Answer:
    """One step; pids in `tasks ls` and `tasks ps` become PID."""
    arguments = [word.format(**places) for word in shlex.split(words)]
    stdin = ""
    if "<<<" in arguments:
        at = arguments.index("<<<")
        arguments, stdin = arguments[:at], arguments[at + 1]
    try:
        done = ctr.run(*arguments, stdin=stdin, timeout_s=60)
    except subprocess.TimeoutExpired as error:
        return Answer(-1, str(error.output), "TIMEOUT")
    output, errors = normalise(done.stdout, daemon, ctr.namespace), normalise(done.stderr, daemon, ctr.namespace)
    if arguments == ["content", "active"]:
        output = "".join(sorted(output.splitlines(keepends=True)))  # in the order of containerd's directory
    if arguments[0] in {"t", "task", "tasks"}:
        output = re.sub(r"(?m)(^|  )\d+(  |$)", r"\1PID\2", output)
    return Answer(done.returncode, output, errors)


def compare(
    name: str,
    steps: Sequence[str],
    ctr_of: Mapping[str, tuple[Ctr, Engine]],
    places: Mapping[str, Mapping[str, str]],
    *,
    known: Mapping[tuple[str, str], str] = DIFFERENCES,
    said: Callable[[Answer], Answer] = lambda answer: answer,
) -> list[str]:
    """Run every step on every daemon in turn; a list of what differs and is not listed, and of what is and does not.

    Args:
        known: the list of differences.
        said: takes out of both answers what is not compared.
    """
    problems = []
    for step in steps:
        answers = {who: said(run(ctr, daemon, step, places[who])) for who, (ctr, daemon) in ctr_of.items()}
        theirs, ours = answers["containerd"], answers["orlopd"]
        reason = known.get((name, step))
        if theirs == ours and reason is not None:
            problems.append(f"$ ctr {step}\nis listed as different ({reason}), but is the same")
        elif theirs != ours and reason is None:
            lines = difflib.unified_diff(
                str(theirs).splitlines(), str(ours).splitlines(), "containerd", "orlopd", lineterm=""
            )
            problems.append("\n".join([f"$ ctr {step}", *lines]))
    return problems
