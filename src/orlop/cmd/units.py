"""Sizes, durations and times as Go's clients read and print them."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from orlop.base.errdefs import InvalidArgumentError

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def binary(size: float) -> str:
    """`1.0 MiB`. Source: pkg/progress/humaans.go of containerd."""
    unit = 0
    while size >= 1024 and unit < len(_BINARY) - 1:
        size /= 1024
        unit += 1
    return f"{size:.1f} {_BINARY[unit]}"


def decimal(size: float) -> str:
    """`1.085MB`. Source: HumanSize of docker/go-units."""
    unit = 0
    while size >= 1000 and unit < len(_DECIMAL) - 1:
        size /= 1000
        unit += 1
    return f"{size:.4g}{_DECIMAL[unit]}"


def ago(moment: datetime) -> str:
    """How long ago, roughly. Source: HumanDuration of docker/go-units."""
    seconds = int((datetime.now(UTC) - moment) / timedelta(seconds=1))
    minutes, hours = seconds // 60, int(seconds / 3600 + 0.5)
    if seconds < 1:
        return "Less than a second"
    if seconds == 1:
        return "1 second"
    if seconds < 60:
        return f"{seconds} seconds"
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{hours // 24 // 365} years"


def parse_duration(text: str) -> float:
    """Seconds in `1h30m`, `500ms`, `10s`, or a bare `0`. Source: ParseDuration of Go's time.

    Raises:
        InvalidArgumentError: it is not of that form.
    """
    if text in ("0", ""):
        return 0.0
    if not re.fullmatch(r"([0-9]*\.?[0-9]+(ns|us|µs|ms|s|m|h))+", text):
        raise InvalidArgumentError(f"invalid duration {text!r}", hint="write it like 10s, 1m30s or 500ms")
    return sum(
        float(number) * _UNITS[unit] for number, unit in re.findall(r"([0-9]*\.?[0-9]+)(ns|us|µs|ms|s|m|h)", text)
    )


def go_time(moment: datetime, nanoseconds: int | None = None) -> str:
    """`2026-01-02 03:04:05.123456789 +0000 UTC`, as Go prints a time."""
    nanos = moment.microsecond * 1000 if nanoseconds is None else nanoseconds
    fraction = f"{nanos:09d}".rstrip("0")
    text = moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{text}{'.' + fraction if fraction else ''} +0000 UTC"


def labels(values: Mapping[str, str]) -> str:
    """`a=b,c=d`, by name."""
    return ",".join(f"{key}={value}" for key, value in sorted(values.items()))


def parse_labels(texts: Sequence[str]) -> dict[str, str]:
    """`a=b c=d` as a mapping; a bare name gets `true`. Raises InvalidArgumentError for an empty name.

    Source: LabelArgs in cmd/ctr/commands/commands.go.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not name:
            raise InvalidArgumentError(f"label {text!r} has no name")
        found[name] = value if separator else "true"
    return found
