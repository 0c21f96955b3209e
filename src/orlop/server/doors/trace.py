"""An optional record of every call: one JSON line each, for profiles. Off unless `ORLOP_TRACE_RPC` names a file."""

import json
import os
import time
from collections.abc import Callable
from typing import Final

VARIABLE: Final = "ORLOP_TRACE_RPC"

Record = Callable[[str, str, float, float], None]
"""Called with door, method, start and end (seconds on the monotonic clock)."""


def recorder() -> Record | None:
    """A function that appends a line, or None when no record is wanted.

    Line: {"door", "method", "start": seconds of CLOCK_MONOTONIC, "seconds"}.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def record(door: str, method: str, start: float, end: float) -> None:
        line = json.dumps({"door": door, "method": method, "start": start, "seconds": end - start})
        os.write(descriptor, f"{line}\n".encode())

    return record


clock: Final = time.monotonic
