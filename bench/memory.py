"""Memory of a daemon and all its helpers, without the containers: proportional set size (shared pages count once)."""

import re
from collections.abc import Iterator
from pathlib import Path

from tools import residue
from tools.daemons import Ctr, Engine


def outside_containers(engine: Engine, ctr: Ctr) -> dict[int, int]:
    """PSS in bytes by process: daemon, shims, supervisors, keepers, workers; no process of a container."""
    inside = set(_with_descendants(_task_pids(ctr)))
    ours = {engine.pid, *_with_descendants([engine.pid]), *residue.find(engine.directory).processes}
    return {pid: pss for pid in sorted(ours - inside) if (pss := _pss(pid)) is not None}


def _task_pids(ctr: Ctr) -> list[int]:
    return [int(line.split()[1]) for line in ctr("tasks", "ls").splitlines()[1:]]


def _with_descendants(roots: list[int]) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text(errors="replace")
        except OSError:  # it has ended
            continue
        children.setdefault(int(text.rsplit(")", 1)[1].split()[1]), []).append(int(stat.parent.name))
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children.get(pid, [])


def _pss(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has ended
        return None
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None
