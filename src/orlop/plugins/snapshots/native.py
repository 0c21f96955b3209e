"""Snapshots as whole copies: works on every file system, costs the space unless it shares extents.

    <root>/<number>/fs      all files of the snapshot, its parents' included

An active snapshot begins as a copy of its nearest parent. A view has no files of its own: it is its parent's directory,
mounted read-only. Mounts are bind mounts in containerd's shape (plugins/snapshots/native): `rbind,rw` or `rbind,ro`.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from orlop.base import failpoints
from orlop.base.platforms import default_string
from orlop.core.kinds import SNAPSHOTTER
from orlop.core.mount import Mount
from orlop.core.plugin import Context, Registration, SkipPlugin
from orlop.core.snapshots import Kind, Snapshot, Snapshotter, Usage
from orlop.core.snapshots.directories import Directories, usage
from orlop.linux import probe
from orlop.plugins.snapshots import root_of
from orlop.plugins.snapshots.copying import copy_tree

NAME: Final = "native"


class Native(Snapshotter):
    """Args:
    root: made if it is missing.
    """

    quick = frozenset({"mounts"})
    whole = True

    def __init__(self, root: Path) -> None:
        self._directories = Directories(root)
        self._directories.create_root()
        self.exports = {"root": os.fspath(root)}

    def prepare(self, snapshot: Snapshot) -> None:
        self._directories.make(snapshot.number, work=False)
        if snapshot.kind == Kind.ACTIVE and snapshot.parents:
            # A copy that fails half-way is taken back by the store, as one whose row cannot be written.
            copy_tree(self._directories.files(snapshot.parents[0]), self._directories.files(snapshot.number))
            failpoints.reach("native.prepare.copied")

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        view = snapshot.kind == Kind.VIEW
        shown = snapshot.parents[0] if view and snapshot.parents else snapshot.number
        options = ("rbind", "ro" if view else "rw")
        return [Mount(type="bind", source=self._directories.files(shown), options=options)]

    def usage(self, snapshot: Snapshot) -> Usage:
        return usage(self._directories.files(snapshot.number))

    def home(self, number: int) -> Path:
        return self._directories.home(number)

    def lacks(self, number: int, kind: Kind) -> Sequence[Path]:
        return () if kind == Kind.VIEW else self._directories.lacks(number, work=False)

    def opened(self, number: int) -> contextlib.AbstractContextManager[str]:
        return contextlib.nullcontext(self._directories.files(number))

    def numbers(self) -> list[int]:
        return self._directories.numbers()

    def sync(self, numbers: Sequence[int]) -> None:
        self._directories.sync()

    def locate(self, path: str) -> int | None:
        return self._directories.locate(path)


def _init(context: Context) -> Native:
    allowed = probe.mount_allowed()
    if not allowed:
        raise SkipPlugin(allowed.reason)
    snapshotter = Native(root_of(context, NAME))
    context.exports.update(snapshotter.exports)
    context.platforms.append(default_string())
    return snapshotter


REGISTRATION: Final = Registration(kind=SNAPSHOTTER, id=NAME, init=_init)
