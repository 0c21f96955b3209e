"""Durations as Go writes them: `300ms`, `1.5h`, `1h15m30.918273645s`.

Source: time.ParseDuration of Go.
"""

import re
from typing import Final

from orlop.base.errdefs import InvalidArgumentError
from orlop.base.quoting import quote

_NANOSECONDS: Final = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,  # micro sign
    "\u03bcs": 1_000,  # Greek letter mu
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_PART: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([^0-9.]+)")
_LIMIT: Final = 1 << 63


def parse(text: str) -> int:
    """A duration in nanoseconds, negative ones included.

    Raises:
        InvalidArgumentError: it is none.
    """
    rest, negative = text, text.startswith("-")
    if rest[:1] in {"-", "+"}:
        rest = rest[1:]
    if rest == "0":
        return 0
    total, at = 0, 0
    while at < len(rest):
        part = _PART.match(rest, at)
        if part is None or part[2] not in _NANOSECONDS:
            raise InvalidArgumentError(f"invalid duration {quote(text[:128])}")
        whole, _, fraction = part[1].partition(".")
        unit = _NANOSECONDS[part[2]]
        total += int(whole or "0") * unit + int(fraction or "0") * unit // 10 ** len(fraction)
        at = part.end()
    if not rest or total >= _LIMIT:
        raise InvalidArgumentError(f"invalid duration {quote(text[:128])}")
    return -total if negative else total
