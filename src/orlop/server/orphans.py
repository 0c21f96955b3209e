"""Orphans: processes that became the daemon's children because their parent died, for it is a sub-reaper.

They are supervisors (started through a process that ends at once) and the containers of a supervisor that died. The
successor of such a supervisor learns a container's exit status from its zombie, so a zombie is left alone for a while.
Children that the daemon starts itself are waited for where they are started, long before that.
"""

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import Final

SCAN_INTERVAL_S: Final = 5.0
# Longer than a successor needs to start, to adopt and to read the status.
KEEP_ZOMBIE_S: Final = 20.0


async def reap_orphans() -> None:
    """Reap zombies that nobody waited for, until cancelled."""
    seen: dict[int, float] = {}
    while True:
        await asyncio.sleep(SCAN_INTERVAL_S)
        now = time.monotonic()
        zombies = {pid for pid in children() if _is_zombie(pid)}
        seen = {pid: seen.get(pid, now) for pid in zombies}
        for pid, since in list(seen.items()):
            if now - since >= KEEP_ZOMBIE_S:
                with contextlib.suppress(ChildProcessError):  # its owner was quicker after all
                    os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 -- WNOHANG does not wait
                del seen[pid]


def children() -> set[int]:
    """Process ids of this process's children, those started by any of its threads: proc(5)."""
    found: set[int] = set()
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended
            found.update(int(word) for word in (thread / "children").read_text().split())
    return found


def _is_zombie(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "Z"
