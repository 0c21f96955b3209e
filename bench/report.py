"""The table that people read and the JSON that programs read."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.pair import Samples
from bench.rows import Row
from tools import peers

RESULTS: Final = peers.ROOT / "bench-results"


def line(row: Row, samples: Samples, first: str, second: str) -> str:
    """One row as text: medians, spread, ratio and what it should be."""
    ratio = samples.ratio(first, second)
    verdict = "" if row.target is None else f"≤ {row.target:.2f} {'ok' if ratio <= row.target else 'MISSED'}"
    cells = [f"{row.title:50}", *(_spread(samples, side, row.unit) for side in (first, second))]
    return "  ".join([*cells, f"{ratio:5.2f} x", verdict])


def head(first: str, second: str) -> str:
    return "  ".join([f"{'':50}", f"{first:>28}", f"{second:>28}", "ratio  ", "aim"])


def write(facts: Mapping[str, Any], results: Sequence[tuple[Row, Samples]], extra: Mapping[str, Any]) -> Path:
    """Write all raw figures; the file's path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / time.strftime("bench-%Y%m%dT%H%M%SZ.json", time.gmtime())
    rows = [
        {
            "key": row.key,
            "title": row.title,
            "unit": row.unit,
            "target": row.target,
            "samples": samples.values,
            "medians": {side: samples.median(side) for side in samples.values},
        }
        for row, samples in results
    ]
    path.write_text(json.dumps({"facts": dict(facts), "rows": rows, **extra}, indent=1) + "\n")
    (RESULTS / "latest.json").write_bytes(path.read_bytes())
    return path


def _spread(samples: Samples, side: str, unit: str) -> str:
    values = samples.values[side]
    digits = 0 if min(values) >= 100 else 1
    text = f"{samples.median(side):.{digits}f} {unit}"
    if len(values) > 1:
        text += f" ({min(values):.{digits}f}-{max(values):.{digits}f})"
    return f"{text:>28}"
