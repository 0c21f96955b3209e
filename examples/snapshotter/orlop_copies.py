"""A snapshotter in fifty lines: every snapshot is a whole copy by cp(1), which shares extents where it can."""

import os
import subprocess
from pathlib import Path

from orlop.base.errdefs import InternalError
from orlop.core.kinds import SNAPSHOTTER
from orlop.core.mount import Mount
from orlop.core.plugin import Context, Registration
from orlop.core.snapshots import Kind, Snapshot, Snapshotter, Usage
from orlop.core.snapshots.directories import usage


class Copies(Snapshotter):
    quick = frozenset({"mounts"})  # the other methods may take their time, in a thread
    whole = True  # a snapshot holds its parents' files too

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def prepare(self, snapshot: Snapshot) -> None:
        home = self.home(snapshot.number)
        if not snapshot.parents:
            home.mkdir(mode=0o755)
            return
        parent = self.home(snapshot.parents[0])
        copied = subprocess.run(["cp", "-a", "--reflink=auto", parent, home], check=False, stderr=subprocess.PIPE)
        if copied.returncode != 0:
            raise InternalError(f"snapshot {snapshot.number}: {copied.stderr.decode(errors='replace').strip()}")

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        access = "ro" if snapshot.kind == Kind.VIEW else "rw"
        return [Mount(type="bind", source=os.fspath(self.home(snapshot.number)), options=("rbind", access))]

    def usage(self, snapshot: Snapshot) -> Usage:
        return usage(os.fspath(self.home(snapshot.number)))

    def home(self, number: int) -> Path:
        return self.root / str(number)

    def numbers(self) -> list[int]:
        return [int(entry.name) for entry in self.root.iterdir()]

    def sync(self, numbers: object) -> None:
        os.sync()


def _init(context: Context) -> Copies:
    return Copies(Path(context.daemon.root) / "snapshots" / "copies")


REGISTRATION = Registration(kind=SNAPSHOTTER, id="copies", init=_init)
