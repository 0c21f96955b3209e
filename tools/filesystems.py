"""Fresh file systems in loop files, for tests that need another one than the host's, or a small one."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from tools import daemons, residue

Kind = Literal["ext4", "btrfs"]

_MAKERS: Final[dict[Kind, tuple[str, ...]]] = {
    "ext4": ("mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}


@contextmanager
def mounted(directory: Path, kind: Kind, size_bytes: int) -> Iterator[Path]:
    """Make and mount one below `directory`; its mount point. Both go when the block ends, with what was left in it."""
    file, target = directory / f"{kind}.img", directory / kind
    target.mkdir()
    with open(file, "wb") as handle:
        handle.truncate(size_bytes)
    program, *options = _MAKERS[kind]
    _run(daemons.program(program), *options, file)
    try:
        _run("mount", "-o", "loop", file, target)
        yield target
    finally:
        residue.remove(residue.find(target))
        residue.unmount(os.fspath(target))
        file.unlink()
        target.rmdir()


def _run(*command: str | Path) -> None:
    argv = [os.fspath(part) for part in command]
    done = subprocess.run(argv, check=False, env=daemons.environment(), capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {done.stderr.decode(errors='replace').strip()}")
