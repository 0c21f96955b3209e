"""Make docs/reference.md, the client library's reference, from its docstrings: `python -m tools.reference`.

Public names are those of `orlop.__all__` and what their methods return; a test keeps the page fresh.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orlop

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "reference.md"
# What the client's properties and methods lead to, beside the public names.
MORE: Final = (
    ("orlop.client.sync", "Containers"),
    ("orlop.client.sync", "Content"),
    ("orlop.client.sync", "Images"),
    ("orlop.client.sync", "Leases"),
    ("orlop.client.sync", "Mounts"),
    ("orlop.client.sync", "Timings"),
    ("orlop.base.phases", "Phase"),
    ("orlop.client.sync", "Namespaces"),
    ("orlop.client.sync", "Sandbox"),
    ("orlop.client.sync", "Sandboxes"),
    ("orlop.client.sync", "Snapshots"),
)
HEAD: Final = """# The client library: reference

Made from the docstrings by `tools/reference.py`; [the guide](client.md) has examples. `orlop.Client` and what it leads
to block; `orlop.aio.Client` has the same names as coroutines.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name in orlop.__all__:
        parts += _entry(f"orlop.{name}", getattr(orlop, name))
    for module, name in MORE:
        found = getattr(importlib.import_module(module), name, None)
        if found is not None:
            parts += _entry(name, found)
    return "\n".join(parts).rstrip() + "\n"


def _entry(name: str, thing: Any) -> Iterator[str]:
    # Any: a class or a function
    yield f"## {name}\n"
    if inspect.isclass(thing):
        yield from _class(name.rpartition(".")[2], thing)
    else:
        yield f"```\n{thing.__name__}{_signature(thing)}\n```\n"
        yield _text(thing)


def _class(name: str, cls: type) -> Iterator[str]:
    yield _text(cls)
    if issubclass(cls, enum.Enum):
        yield "Values: " + ", ".join(f"`{member.value}`" for member in cls) + "\n"
        return
    if dataclasses.is_dataclass(cls):
        yield "Fields: " + ", ".join(f"`{field.name}`" for field in dataclasses.fields(cls)) + "\n"
    elif not issubclass(cls, BaseException):
        yield f"```\n{name}{_signature(cls)}\n```\n"
    for attribute, value in vars(cls).items():
        if attribute.startswith("_"):
            continue
        if isinstance(value, property):
            yield f"### {name}.{attribute}\n"
            yield _text(value)
        elif isinstance(value, classmethod | staticmethod) or inspect.isfunction(value):
            function = getattr(value, "__func__", value)
            if not function.__doc__:
                continue
            yield f"### {name}.{attribute}\n"
            yield f"```\n{attribute}{_signature(function)}\n```\n"
            yield _text(function)


def _signature(thing: Any) -> str:
    try:
        text = str(inspect.signature(thing))
    except (TypeError, ValueError):
        return "(…)"
    return re.sub(r"'([^']+)'", r"\1", text)


def _text(thing: Any) -> str:
    """A docstring as Markdown: its sections stay readable as they are."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    out, listed = [], False
    for line in lines:
        section = line.rstrip(":") in ("Args", "Attributes", "Raises", "Returns") and line.endswith(":")
        if section:
            out += [f"*{line.rstrip(':')}*", ""]
            listed = True
        elif listed and line.startswith("    ") and not line.startswith("     "):
            key, colon, rest = line.strip().partition(": ")
            out.append(f"- `{key}`: {rest}" if colon else f"- {line.strip()}")
        elif listed and line.startswith("     "):
            out.append(f"  {line.strip()}")
        else:
            listed = listed and not line.strip()
            out.append(line)
    return "\n".join(out).strip() + "\n"


def main() -> None:
    """Write the page, or say whether it is fresh."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if the page is stale")
    if parser.parse_args().check:
        sys.exit(
            0 if PAGE.exists() and PAGE.read_text() == page() else "docs/reference.md is stale: tools/reference.py"
        )
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
