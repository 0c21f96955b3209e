"""Check the fragments in changelog.d/, or collect them into CHANGELOG.md: `tools/changelog.py [--release X.Y.Z]`."""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
FRAGMENTS: Final = ROOT / "changelog.d"
CHANGELOG: Final = ROOT / "CHANGELOG.md"
KINDS: Final = ("added", "changed", "deprecated", "removed", "fixed", "security")
UNRELEASED: Final = "## [Unreleased]\n\nSee the fragments in `changelog.d/`.\n"


def fragments() -> list[Path]:
    return sorted(path for path in FRAGMENTS.iterdir() if path.name != "README.md")


def problems() -> list[str]:
    """What is wrong with names and texts."""
    found = []
    for path in fragments():
        if not re.fullmatch(rf"[a-z0-9-]+\.({'|'.join(KINDS)})\.md", path.name):
            found.append(f"{path.name}: the name is not <what-it-is-about>.<kind>.md with a kind of {', '.join(KINDS)}")
        elif not path.read_text().strip():
            found.append(f"{path.name}: empty")
    if UNRELEASED not in CHANGELOG.read_text():
        found.append("CHANGELOG.md: the section [Unreleased] does not point to changelog.d/")
    return found


def section(version: str, date: str) -> str:
    """A release's section made from the fragments."""
    lines = [f"## [{version}] - {date}", ""]
    for kind in KINDS:
        entries = [path for path in fragments() if path.name.endswith(f".{kind}.md")]
        if entries:
            lines += [f"### {kind.capitalize()}", ""]
            for path in entries:
                first, *rest = path.read_text().strip().splitlines()
                lines += [f"- {first}", *(f"  {line}" for line in rest)]
            lines.append("")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", metavar="X.Y.Z", help="collect the fragments under this version, and remove them")
    options = parser.parse_args()
    found = problems()
    for problem in found:
        print(f"changelog: {problem}", file=sys.stderr)
    if found:
        return 1
    if options.release:
        text = section(options.release, time.strftime("%Y-%m-%d", time.gmtime()))
        CHANGELOG.write_text(CHANGELOG.read_text().replace(UNRELEASED, f"{UNRELEASED}\n{text}"))
        for path in fragments():
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
