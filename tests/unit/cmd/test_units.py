"""Sizes, durations and labels as Go's clients print and read them."""

from datetime import UTC, datetime, timedelta

import pytest

from orlop.base.errdefs import InvalidArgumentError
from orlop.cmd import units


@pytest.mark.parametrize(("size", "text"), [(0, "0.0 B"), (485, "485.0 B"), (1085508, "1.0 MiB"), (1 << 40, "1.0 TiB")])
def test_binary(size: int, text: str) -> None:
    assert units.binary(size) == text


@pytest.mark.parametrize(("size", "text"), [(485, "485B"), (1084674, "1.085MB"), (1000, "1kB"), (0, "0B")])
def test_decimal(size: int, text: str) -> None:
    assert units.decimal(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (61, "About a minute"),
        (30 * 60, "30 minutes"),
        (3600, "About an hour"),
        (47 * 3600, "47 hours"),
        (50 * 3600, "2 days"),
        (20 * 86400, "2 weeks"),
        (90 * 86400, "3 months"),
        (800 * 86400, "2 years"),
    ],
)
def test_ago(seconds: int, text: str) -> None:
    assert units.ago(datetime.now(UTC) - timedelta(seconds=seconds, milliseconds=20)) == text


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("10s", 10), ("1m30s", 90), ("500ms", 0.5), ("24h0m0s", 86400), ("1.5h", 5400)]
)
def test_duration(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["10", "s", "1 m", "-1s", "1d"])
def test_no_duration(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        units.parse_duration(text)


def test_labels_are_sorted() -> None:
    assert units.labels({"b": "1", "a": "2"}) == "a=2,b=1"
    assert units.parse_labels(["a=b=c", "d"]) == {"a": "b=c", "d": "true"}


def test_time_as_go_prints_it() -> None:
    assert units.go_time(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), 120) == "2026-01-02 03:04:05.00000012 +0000 UTC"
