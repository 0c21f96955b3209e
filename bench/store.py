"""The file system that both engines keep their state on: fresh, journaled, and out of the disk's moods.

A shared or virtual disk throttles and stalls for seconds, which drowns what is measured. So by default an ext4 in a
loop file lies in memory: journal, syncs and the kernel's own work are real, only the device is quick. `--store disk`
puts the file on the disk instead.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from tools import daemons, residue

SIZE_BYTES: Final = 12 << 30  # sparse: only what is written takes memory

Kind = Literal["memory", "disk"]


@contextmanager
def mounted(directory: Path, kind: Kind) -> Iterator[Path]:
    """Make and mount the file system; its mount point. Both go when the block ends."""
    below, target = directory / "loop", directory / "fs"
    below.mkdir()
    target.mkdir()
    try:
        if kind == "memory":
            _run("mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "orlop-bench", below)
        file = below / "ext4"
        with open(file, "wb") as handle:
            handle.truncate(SIZE_BYTES)
        _run(daemons.program("mke2fs"), "-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", file)
        _run("mount", "-o", "loop", file, target)
        yield target
    finally:
        residue.remove(residue.find(target))
        residue.unmount(os.fspath(target))
        residue.unmount(os.fspath(below))
        (below / "ext4").unlink(missing_ok=True)


def _run(*command: str | Path) -> None:
    subprocess.run([os.fspath(part) for part in command], check=True, env=daemons.environment())
