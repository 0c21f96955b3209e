"""Every command and flag of Debian 13's ctr (containerd 1.7) is one of ours, too: its help beside our commands."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from orlop.cmd.ctr.app import ctr
from tools import containerd17
from tools.peers import PeerError

pytestmark = pytest.mark.interop

LACKING: dict[str, str] = {}
"""What ours has not, and why. A word of a command line each."""


@pytest.fixture
def program() -> Path:
    try:
        return containerd17.program("ctr")
    except PeerError as error:
        pytest.skip(str(error))


def test_every_command_and_flag_is_ours_too(program: Path) -> None:
    lacking = set(_lacking(program, (), ctr))
    assert lacking == set(LACKING)


def _lacking(program: Path, words: tuple[str, ...], ours: click.Command) -> Iterator[str]:
    """Commands and flags below a command of theirs that the same command of ours does not know."""
    shown = subprocess.run([program, *words, "--help"], capture_output=True, text=True, check=True).stdout
    context = click.Context(ours)
    known = {name for one in ours.get_params(context) for name in (*one.opts, *one.secondary_opts)}
    for flag in _flags(shown):
        if flag not in known:
            yield " ".join((*words, flag))
    for names in _commands(shown):
        found = {name: ours.get_command(context, name) for name in names} if isinstance(ours, click.Group) else {}
        for name in names:
            if found.get(name) is None:
                yield " ".join((*words, name))
        command = found.get(names[0])
        if command is not None:
            yield from _lacking(program, (*words, names[0]), command)


def _section(text: str, *titles: str) -> list[str]:
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if line and not line.startswith(" "):
            inside = line.rstrip(":") in titles
        elif inside and line.strip():
            lines.append(line)
    return lines


def _flags(text: str) -> list[str]:
    names: list[str] = []
    for line in _section(text, "OPTIONS", "GLOBAL OPTIONS"):
        spelled = line.strip().split("  ", 1)[0]  # what comes after the gap is prose
        names += [word for word in re.split(r",? ", spelled) if word.startswith("-")]
    return [name for name in names if name not in ("--help", "-h", "--version", "-v")]


def _commands(text: str) -> list[list[str]]:
    """Names of each command, with its aliases."""
    found = []
    for line in _section(text, "COMMANDS"):
        match = re.match(r"   +((?:[a-z][a-z0-9-]*, )*[a-z][a-z0-9-]*)(?:  |$)", line)
        if match and not match[1].startswith("help"):
            found.append([name for name in match[1].split(", ") if name != "h"])
    return found
