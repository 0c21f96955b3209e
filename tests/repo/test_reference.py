"""The client library's reference is what its docstrings say today."""

from tools import reference


def test_the_reference_is_fresh():
    assert reference.PAGE.read_text() == reference.page(), "run: .venv/bin/python -m tools.reference"
