"""Documents are true: links lead somewhere, commands exist, Python in them is Python, paths are there."""

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import orlop
from tools import daemons, peers

ROOT = peers.ROOT
DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("changelog.d/*.md")]
    if "CHANGELOG" not in path.name
)
# What a reader types besides our own programs; the others are peers or come with every system.
SYSTEM_PROGRAMS = {"apt-get", "cat", "cd", "echo", "git", "kill", "pip", "python", "python3", "sudo", "systemctl"}


def documents():
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in DOCUMENTS]


def blocks(path: Path, *languages: str) -> Iterator[str]:
    """Fenced blocks of a document in one of the languages."""
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        if language in languages:
            yield text


def commands(path: Path) -> Iterator[list[str]]:
    """Words of each command in a document's shell blocks; of a transcript only the lines with a prompt."""
    for text in blocks(path, "sh", "console"):
        lines = text.replace("\\\n", " ").splitlines()
        prompted = [line[2:] for line in lines if line.startswith(("$ ", "# "))]
        for line in prompted or lines:
            line = re.sub(r"(^|\s)#.*", "", line)  # noqa: PLW2901 - the comment may hold anything
            for part in re.split(r"[;|]|&&|&$", line):
                words = shlex.split(part)
                while words and re.fullmatch(r"\w+=\S*|sudo", words[0]):
                    words.pop(0)
                if words:
                    yield words


@cache
def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", documents())
def test_links_lead_somewhere(path: Path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and "://" not in target and not target.startswith("mailto:")]
    assert [target for target in local if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", documents())
def test_paths_are_there(path: Path):
    named = re.findall(
        r"`((?:src|tests|tools|bench|docs|packaging|examples|proto|changelog\.d)/[\w./-]*)`", path.read_text()
    )
    assert [name for name in named if "NNNN" not in name and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", documents())
def test_make_targets_exist(path: Path):
    assert set(re.findall(r"`make ([a-z-]+)", path.read_text())) - make_targets() == set()


@pytest.mark.parametrize("path", documents())
def test_commands_exist(path: Path):
    known = SYSTEM_PROGRAMS | {row.name for row in peers.programs()}
    for words in commands(path):
        name = Path(words[0]).name
        if name == "make":
            targets = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
            assert targets <= make_targets(), words
        elif name in {"ctr", "dist", "orlopd"}:
            _check_our_command([name, *words[1:]])
        else:
            assert name in known, f"{path.name}: no program {name!r} in {words}"


def _check_our_command(words: list[str]) -> None:
    """Ask the program itself for help on the longest part that is a chain of commands."""
    chain = [word for word in words[1:] if re.fullmatch(r"[a-z-]+", word) and not word.startswith("-")]
    program = daemons.our_program(words[0])
    for length in range(min(2, len(chain)), -1, -1):
        if _has_help((str(program), *chain[:length])):
            assert length or not chain, f"{words[0]} has no command {chain[0]!r}"
            return
    pytest.fail(f"{words[0]} --help fails")


@cache
def _has_help(words: tuple[str, ...]) -> bool:
    return subprocess.run([*words, "--help"], capture_output=True, check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("path", documents())
def test_python_is_python(path: Path):
    """It compiles, at top level or inside a coroutine, and the names it takes from orlop are exported."""
    for text in blocks(path, "python"):
        tree = ast.parse(text)
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "orlop"
        }
        used |= {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "orlop"
            for alias in node.names
        }
        assert used <= set(dir(orlop)), text
