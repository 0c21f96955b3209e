"""Pages of the debug socket: what the daemon does at this moment, in text, at the paths where Go programs have theirs.

    /debug/pprof/goroutine      stacks of all threads and of all tasks of the event loop
    /debug/pprof/profile        where time goes: stacks seen while `seconds` pass, one line each, for flame graphs
    /debug/pprof/heap           what memory is held: by source line once `?start=1` was asked for, else objects by type
    /debug/vars                 numbers: threads, tasks, descriptors, memory

The formats are Python's, not Go's: `go tool pprof` does not read them. The other pages of Go answer that there is
nothing of the kind here.
"""

import asyncio
import gc
import json
import os
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Final

from orlop.base import stacks
from orlop.base.errdefs import InvalidArgumentError, UnimplementedError
from orlop.server.doors.http import Page

TEXT: Final = "text/plain; charset=utf-8"
SAMPLE_S: Final = 0.01
PROFILE_LIMIT_S: Final = 600.0
_TOP: Final = 60


def pages() -> dict[str, Page]:
    """The pages by path."""
    absent = ("allocs", "block", "mutex", "symbol", "threadcreate", "trace")
    return {
        "/debug/pprof/": Page(_index, TEXT),
        "/debug/pprof/goroutine": Page(_stacks, TEXT),
        "/debug/pprof/profile": Page(_profile, TEXT),
        "/debug/pprof/heap": Page(_heap, TEXT),
        "/debug/pprof/cmdline": Page(_command_line, TEXT),
        "/debug/vars": Page(_numbers, "application/json"),
        **{f"/debug/pprof/{name}": Page(_absent(name), TEXT) for name in absent},
    }


async def _index(_query: Mapping[str, str]) -> bytes:
    return (__doc__ or "").encode()


async def _command_line(_query: Mapping[str, str]) -> bytes:
    return "\0".join(sys.argv).encode()


async def _stacks(_query: Mapping[str, str]) -> bytes:
    return stacks.text().encode()


async def _profile(query: Mapping[str, str]) -> bytes:
    text = query.get("seconds", "30")
    try:
        seconds = float(text)
    except ValueError:
        raise InvalidArgumentError(f'seconds: "{text}" is no number') from None
    if not 0 < seconds <= PROFILE_LIMIT_S:
        raise InvalidArgumentError(f"seconds: {text}: must be between 0 and {PROFILE_LIMIT_S:g}")
    seen = await asyncio.to_thread(_sample, seconds)
    return "".join(f"{stack} {count}\n" for stack, count in seen.most_common()).encode()


def _sample(seconds: float) -> Counter[str]:
    """Collapsed stacks of all threads but this one, and how often each was seen."""
    seen: Counter[str] = Counter()
    own, until = threading.get_ident(), time.monotonic() + seconds
    while time.monotonic() < until:
        for ident, frame in sys._current_frames().items():
            if ident != own:
                seen[_collapsed(frame)] += 1
        time.sleep(SAMPLE_S)
    return seen


def _collapsed(frame: FrameType | None) -> str:
    parts = []
    while frame is not None:
        code = frame.f_code
        parts.append(f"{code.co_qualname} ({Path(code.co_filename).name}:{frame.f_lineno})")
        frame = frame.f_back
    return ";".join(reversed(parts))


async def _heap(query: Mapping[str, str]) -> bytes:
    import tracemalloc

    if query.get("start"):
        tracemalloc.start()
        return b"memory is traced from now on; it slows the daemon until ?stop=1\n"
    if query.get("stop"):
        tracemalloc.stop()
        return b"memory is not traced any more\n"
    if not tracemalloc.is_tracing():
        return await asyncio.to_thread(_by_type)
    snapshot = await asyncio.to_thread(tracemalloc.take_snapshot)
    lines = [str(line) for line in snapshot.statistics("lineno")[:_TOP]]
    return "\n".join([*lines, ""]).encode()


def _by_type() -> bytes:
    counts = Counter(type(thing).__qualname__ for thing in gc.get_objects())
    lines = [f"{count:9} {name}" for name, count in counts.most_common(_TOP)]
    return "\n".join(["objects by type; ?start=1 traces memory by source line", *lines, ""]).encode()


async def _numbers(_query: Mapping[str, str]) -> bytes:
    used = resource.getrusage(resource.RUSAGE_SELF)
    numbers: dict[str, Any] = {
        "cmdline": sys.argv,
        "pid": os.getpid(),
        "threads": threading.active_count(),
        "tasks": len(asyncio.all_tasks()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "max_rss_bytes": used.ru_maxrss * 1024,
        "cpu_user_s": used.ru_utime,
        "cpu_system_s": used.ru_stime,
        "gc": gc.get_stats(),
    }
    return json.dumps(numbers).encode()


def _absent(name: str) -> Any:
    async def refuse(_query: Mapping[str, str]) -> bytes:
        raise UnimplementedError(f"profile {name}: there is none of a Python program")

    return refuse
