"""Durations in Go's spelling."""

import pytest

from orlop.base import durations
from orlop.base.errdefs import InvalidArgumentError


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("100ms", 100_000_000),
        ("1.5h", 5_400_000_000_000),
        ("1h15m30.918273645s", 4_530_918_273_645),
        ("-.5us", -500),
        ("+1µs", 1000),
        ("1μs2ns", 1002),
    ],
)
def test_durations(text, nanoseconds):
    assert durations.parse(text) == nanoseconds


@pytest.mark.parametrize("text", ["", "-", "1", "s", "1 s", "1d", ".s", "1h-1m", "300000000h", "1s\n", "٣s"])
def test_what_is_no_duration(text):
    with pytest.raises(InvalidArgumentError, match="invalid duration"):
        durations.parse(text)
