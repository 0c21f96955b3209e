"""Every command and flag of Go's ctr is one of ours, too: the help of Debian 13's (1.7), and a list of 2.3's."""

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

LIST = Path(__file__).with_name("ctr_2_3.txt")
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


def test_every_command_and_flag_of_2_3_is_ours_too() -> None:
    lines = LIST.read_text().splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    assert len(listed) > 500
    assert {line for line in listed if not _is_ours(line.split(), ctr)} == set(LACKING)


def _is_ours(words: list[str], ours: click.Command) -> bool:
    """Whether `words` name a command of ours, or a flag of one."""
    context = click.Context(ours)
    if words[0].startswith("-"):
        return any(words[0] in (*one.opts, *one.secondary_opts) for one in ours.get_params(context))
    below = ours.get_command(context, words[0]) if isinstance(ours, click.Group) else None
    return below is not None and (len(words) == 1 or _is_ours(words[1:], below))


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
