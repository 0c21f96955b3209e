"""docs/compatibility.md lists every method of every service once, and calls absent what the README calls a gap."""

import re
from pathlib import Path

from tests.integration.test_every_method import METHODS, gaps

DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"
STATES = {"works", "differs", "absent"}


def rows():
    """(method's full name, state, what differs) of each row."""
    for section in DOCUMENT.read_text().split("\n## ")[1:]:
        service, _, body = section.partition("\n")
        for method, state, text in re.findall(r"^\| `(\w+)` \| (\w+) \| ?(.*?) ?\|$", body, re.MULTILINE):
            yield f"/{service}/{method}", state, text


def test_every_method_is_listed_once():
    listed = [name for name, _, _ in rows()]
    assert sorted(listed) == sorted(name for name, _, _ in METHODS)


def test_what_differs_says_how_and_what_works_needs_no_words():
    assert {state for _, state, _ in rows()} <= STATES
    assert [name for name, state, text in rows() if bool(text) != (state == "differs")] == []


def test_what_is_absent_is_a_gap_of_the_readme():
    assert {name for name, state, _ in rows() if state == "absent"} == gaps()
