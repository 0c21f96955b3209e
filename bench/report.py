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


def line(row: Row, samples: Samples) -> str:
    """One row as text: medians, spread, ratio and what it should be; below it what was measured beside."""
    lines = [f"{_compared(row.title, samples, row.unit)}  {_verdict(row, samples)}".rstrip()]
    lines += (_compared(f"  {title}", other, other.unit or row.unit) for title, other in samples.beside.items())
    return "\n".join(lines)


def _compared(title: str, samples: Samples, unit: str) -> str:
    first, second = samples.values
    ratio = f"{samples.ratio(first, second):5.2f} x" if samples.median(second) else ""
    return "  ".join([f"{title:54}", *(_spread(samples, side, unit) for side in (first, second)), ratio])


def _verdict(row: Row, samples: Samples) -> str:
    first, second = samples.values
    verdicts = []
    if row.target is not None:
        ratio = samples.ratio(first, second)
        verdicts.append(f"≤ {row.target:.2f} {'ok' if ratio <= row.target else 'MISSED'}")
    if row.most is not None:
        verdicts.append(f"≤ {row.most:.0f} {row.unit} {'ok' if samples.median(first) <= row.most else 'MISSED'}")
    if row.more is not None:
        beyond = samples.median(first) - samples.median(second)
        verdicts.append(f"{first}: {beyond:+.0f}, ≤ +{row.more:.0f} {'ok' if beyond <= row.more else 'MISSED'}")
    return ", ".join(verdicts)


def head(first: str, second: str) -> str:
    return "  ".join([f"{'':54}", f"{first:>28}", f"{second:>28}", "ratio  ", "aim"])


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
            "most": row.most,
            "more": row.more,
            **_figures(samples),
            "beside": {title: _figures(other) for title, other in samples.beside.items()},
        }
        for row, samples in results
    ]
    path.write_text(json.dumps({"facts": dict(facts), "rows": rows, **extra}, indent=1) + "\n")
    (RESULTS / "latest.json").write_bytes(path.read_bytes())
    return path


def _figures(samples: Samples) -> Mapping[str, Any]:
    """Raw figures and the noise in them."""
    return {
        "samples": samples.values,
        "medians": {side: samples.median(side) for side in samples.values},
        "min": {side: min(values) for side, values in samples.values.items()},
        "max": {side: max(values) for side, values in samples.values.items()},
    }


def _spread(samples: Samples, side: str, unit: str) -> str:
    values = samples.values[side]
    digits = 0 if min(values) >= 100 else 1
    text = f"{samples.median(side):.{digits}f} {unit}"
    if len(values) > 1:
        text += f" ({min(values):.{digits}f}-{max(values):.{digits}f})"
    return f"{text:>28}"
