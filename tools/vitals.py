"""What a daemon and its helpers hold at a moment: memory, descriptors, threads, mounts, cgroups, processes, rows,
files.

Containers' own processes count as processes and not as memory. Memory is what a process has for itself (private pages):
the proportional share of shared pages changes with what else runs on the machine.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from tools import residue
from tools.daemons import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """Counts of one moment. `daemon` is orlopd, `helpers` are supervisors, keepers and workers."""

    daemon_bytes: int
    helper_bytes: int
    daemon_descriptors: int
    helper_descriptors: int
    daemon_threads: int
    helper_threads: int
    processes: int
    mounts: int
    cgroups: int
    rows: int
    files: int

    @classmethod
    def of(cls, engine: Engine, cgroup_word: str) -> Self:
        """Look once.

        Args:
            cgroup_word: a cgroup counts whose path has this in it, such as the namespace that the engine is used with.
        """
        found = residue.find(engine.directory)
        helpers = [pid for pid, command in found.processes.items() if pid != engine.pid and "orlop" in command]
        return cls(
            daemon_bytes=private_bytes(engine.pid),
            helper_bytes=sum(map(private_bytes, helpers)),
            daemon_descriptors=_count(engine.pid, "fd"),
            helper_descriptors=sum(_count(pid, "fd") for pid in helpers),
            daemon_threads=_count(engine.pid, "task"),
            helper_threads=sum(_count(pid, "task") for pid in helpers),
            processes=len(found.processes),
            mounts=len(found.mounts),
            cgroups=sum(cgroup_word in path for path in residue.cgroups()),
            rows=_rows(engine.root / "meta.db"),
            files=sum(len(files) + len(folders) for _, folders, files in os.walk(engine.root)),
        )

    @classmethod
    def settled(cls, engine: Engine, cgroup_word: str, *, timeout_s: float = 60) -> Self:
        """Look until two looks in a row see the same counts, memory aside, and nothing in the trash.

        Deletions end after their answer, and on a disk that others use they pause.
        """
        deadline = time.monotonic() + timeout_s
        before = cls.of(engine, cgroup_word)
        while True:
            time.sleep(0.5)
            now = cls.of(engine, cgroup_word)
            still = now.counts() == before.counts() and not _rows(engine.root / "meta.db", "trash")
            if still or time.monotonic() > deadline:
                return now
            before = now

    def counts(self) -> dict[str, int]:
        """Everything but memory."""
        return {one.name: getattr(self, one.name) for one in fields(self) if not one.name.endswith("_bytes")}


def private_bytes(pid: int) -> int:
    """Private memory of a process; 0 if it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return 1024 * sum(int(kb) for kb in re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", text, re.MULTILINE))


def peak_bytes(pid: int) -> int:
    """The most that a process had resident since it began."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def _count(pid: int, what: str) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/{what}"))
    except OSError:
        return 0


def _rows(database: Path, *tables: str) -> int:
    """How many rows some tables have, or all of them."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        if not tables:
            found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            tables = tuple(name for (name,) in found)
        return sum(connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables)
    finally:
        connection.close()
