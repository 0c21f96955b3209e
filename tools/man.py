"""Make man pages from the programs' own help: `tools/man.py DIRECTORY` writes orlopd.8, ctr.1 and dist.1.

They are built when a package is built and not kept in the repository, so that they cannot be stale.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click

from orlop.cmd import orlopd
from orlop.version import __version__

CLICK_PROGRAMS: Final = {"ctr": "orlop.cmd.ctr.app:ctr", "dist": "orlop.cmd.dist:dist"}


def pages() -> Iterator[tuple[str, str]]:
    """File name and text of every page."""
    yield "orlopd.8", _orlopd()
    for name, where in CLICK_PROGRAMS.items():
        module, _, attribute = where.partition(":")
        group = getattr(importlib.import_module(module), attribute)
        yield f"{name}.1", "\n".join([*_head(name, 1, group.help or ""), *_group(group, [name])]) + "\n"


def _head(name: str, section: int, summary: str) -> list[str]:
    first = summary.strip().splitlines()[0].rstrip(".") if summary.strip() else name
    return [
        f'.TH {name.upper()} {section} "" "orlop {__version__}" "orlop"',
        ".SH NAME",
        f"{name} \\- {_text(first[0].lower() + first[1:])}",
    ]


def _group(group: click.Group, path: Sequence[str]) -> Iterator[str]:
    context = click.Context(group, info_name=" ".join(path))
    yield ".SH SYNOPSIS"
    yield f".B {_text(' '.join(path))}\n{_text(' '.join(group.collect_usage_pieces(context)))}"
    yield ".SH OPTIONS"
    yield from _options(group, context)
    yield ".SH COMMANDS"
    yield from _commands(group, path)


def _commands(group: click.Group, path: Sequence[str]) -> Iterator[str]:
    context = click.Context(group, info_name=" ".join(path))
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        here = [*path, name]
        inner = click.Context(command, info_name=" ".join(here), parent=context)
        if isinstance(command, click.Group):
            yield from _commands(command, here)
            continue
        yield f".SS {_text(' '.join([*here, *command.collect_usage_pieces(inner)]))}"
        yield _text(command.help or "")
        yield from _options(command, inner)


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield f".TP\n.B {_text(record[0])}\n{_text(record[1]) or '.'}"


def _orlopd() -> str:
    parser = orlopd._parser()
    lines = [*_head("orlopd", 8, parser.description or ""), ".SH SYNOPSIS", ".B orlopd\n[OPTIONS] [COMMAND]"]
    return (
        "\n".join([*lines, ".SH OPTIONS", *_arguments(parser), ".SH COMMANDS", *_subcommands(parser, "orlopd")]) + "\n"
    )


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if action.option_strings:
            value = "" if action.nargs == 0 else f" {action.dest.upper()}"
            yield f".TP\n.B {_text(', '.join(action.option_strings) + value)}\n{_text(action.help or '')}"


def _subcommands(parser: argparse.ArgumentParser, path: str) -> Iterator[str]:
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, inner in action.choices.items():
            nested = list(_subcommands(inner, f"{path} {name}"))
            if nested:
                yield from nested
                continue
            yield f".SS {_text(f'{path} {name}')}\n{_text(summaries.get(name, ''))}"
            yield from _arguments(inner)


def _text(text: str) -> str:
    """Escape for roff: backslashes, hyphens that one may copy, and a control character that begins a line."""
    escaped = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: tools/man.py DIRECTORY", file=sys.stderr)
        return 2
    target = Path(arguments[0])
    target.mkdir(parents=True, exist_ok=True)
    for name, text in pages():
        (target / name).write_text(text)
        print(target / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
