"""What a daemon has: rows, files, mounts, processes, cgroups; so that a test can say that a failure added nothing."""

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from tools import residue
from tools.daemons import Engine

# Supervisors stay for the next container of their namespace, and the zygote for the next layer.
LASTING = ("orlop.cmd.shim ", "orlop.core.diff.zygote", "orlopd ")
# What was unpacked ahead of a pull that failed waits a minute for the next attempt.
SPARE = ".ahead-"
# Written all the time, and owned by nobody's request.
RESTLESS = ("meta.db", "meta.db-wal", "meta.db-shm", "orlopd.log", "lock")


class Ledger:
    """Takes stock of one daemon on being made; `check` compares with now."""

    def __init__(self, daemon: Engine) -> None:
        self._daemon = daemon
        deadline = time.monotonic() + 10
        self._before = self._stock()
        while _going(self._before) and time.monotonic() < deadline:
            time.sleep(0.02)
            self._before = self._stock()

    def check(self, collect: Callable[[], object] = lambda: None, timeout_s: float = 20) -> None:
        """Fail unless everything is as it was, once what is about to end has ended: trash, processes, the kernel.

        Args:
            collect: has the daemon collect; once more each time, for it lets an ingest be whose stream is just closing.
        """
        deadline = time.monotonic() + timeout_s
        collect()
        while (now := self._stock()) != self._before and time.monotonic() < deadline:
            time.sleep(0.2)
            collect()
        left = [f"{kind}: {one}" for kind in now for one in sorted(now[kind] ^ self._before[kind])]
        assert not left, "left behind or taken away:\n" + "\n".join(left)

    def _stock(self) -> dict[str, frozenset[str]]:
        daemon = self._daemon
        found = residue.find(daemon.directory)
        return {
            "rows": frozenset(f"{count} of {table}" for table, count in rows(daemon.root).items()),
            "files": files(daemon.root) | files(daemon.state),
            "mounts": frozenset(found.mounts),
            "processes": frozenset(
                line for line in found.processes.values() if not any(word in line for word in LASTING)
            ),
            "cgroups": frozenset(path for path in residue.cgroups() if "/bad-input/" in path),
        }


def _going(stock: dict[str, frozenset[str]]) -> bool:
    """Whether something is on its way out that a test before had deleted: processes, trash, tombstones of tasks."""
    tombstones = any(os.path.basename(os.path.dirname(file)).endswith(".gone") for file in stock["files"])
    return bool(stock["processes"]) or "0 of trash" not in stock["rows"] or tombstones


def rows(root: Path) -> dict[str, int]:
    """How many rows each table of the daemon's metadata has."""
    database = sqlite3.connect(f"file:{root}/meta.db?mode=ro", uri=True)
    try:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in sorted(tables)}
    finally:
        database.close()


def files(directory: Path) -> frozenset[str]:
    """Everything below a directory, mounts not entered."""
    found = set()
    for parent, folders, names in os.walk(directory):
        folders[:] = [
            name for name in folders if not name.startswith(SPARE) and not os.path.ismount(os.path.join(parent, name))
        ]
        found |= {os.path.join(parent, name) for name in (*folders, *names) if name not in RESTLESS}
    return frozenset(found)
