"""SECURITY.md is true: the tests that it names are there, and each invariant has some. What is installed has a hash."""

import re

from tools import peers

ROOT = peers.ROOT
TEXT = (ROOT / "SECURITY.md").read_text()
ROWS = dict(re.findall(r"^\| (\d) \| (.*) \|$", TEXT, re.MULTILINE))


def test_every_invariant_has_tests_that_exist():
    section = TEXT.partition("## What must hold")[2].partition("\n## ")[0]
    assert list(ROWS) == re.findall(r"^(\d)\. ", section, re.MULTILINE)
    for tests in ROWS.values():
        named = re.findall(r"`(tests/[^`]+)`: ((?:`test_\w+`(?:, )?)+)", tests)
        assert named
        for path, names in named:
            source = (ROOT / path).read_text()
            assert [name for name in re.findall(r"`(\w+)`", names) if f"def {name}(" not in source] == []
        assert sum(len(re.findall("`test_", names)) for _, names in named) == tests.count("`test_")


def test_what_is_installed_has_a_hash():
    """From the lock, by hash; what else is installed is this tree itself, without dependencies."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    installs = [
        line for line in makefile.splitlines() if re.search(r"\bpip install\b", line) and ".cache/uv" not in line
    ]
    assert installs
    for line in installs:
        assert "--require-hashes --requirement requirements.lock" in line or "--no-deps --no-build-isolation" in line
    lock = (ROOT / "requirements.lock").read_text()
    pins = re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE)
    assert [pin.partition(" ")[0] for pin in pins if "==" in pin and "--hash=sha256:" not in pin] == []
