"""An optional record of where a daemon's time goes: one JSON line per call, for profiles.

Off unless `ORLOP_TRACE_RPC` names a file. The doors record each request, the metadata database each commit (its sync
to disk), the runtime each call to a shim.
"""

import json
import os
import time
from collections.abc import Callable
from functools import cache
from typing import Final

VARIABLE: Final = "ORLOP_TRACE_RPC"

Record = Callable[[str, str, float, float], None]
"""Called with the place (a door, `metadata`, `shim`), the method, start and end (seconds on the monotonic clock)."""


def recorder() -> Record | None:
    """A function that appends a line, or None when no record is wanted.

    Line: {"place", "method", "start": seconds of CLOCK_MONOTONIC, "seconds"}.
    """
    path = os.environ.get(VARIABLE)
    return _recorder(path) if path else None


@cache
def _recorder(path: str) -> Record:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def record(place: str, method: str, start: float, end: float) -> None:
        line = json.dumps({"place": place, "method": method, "start": start, "seconds": end - start})
        os.write(descriptor, f"{line}\n".encode())

    return record


clock: Final = time.monotonic
