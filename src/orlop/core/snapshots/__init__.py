"""Snapshots: file systems that build on each other, kept as changes.

A *snapshot* is the state of a file system. It has at most one *parent*; what it keeps itself is the difference. Three
kinds exist:

    active      can be written. Made by `prepare`, known by its *key*. Never a parent.
    view        the same, read-only. Made by `view`. Never a parent, never committed.
    committed   will not change any more. Made by `commit` out of an active one, known by its *name*. May be a parent.

Keys and names share one space per namespace and snapshotter: a key that is in use cannot be a name as well.

The life of an image's file system, layer by layer:

    prepare("extract-1", parent="")          mounts to write to; nothing is below yet
    … the mounts are performed, the layer's archive is unpacked into them, they are undone …
    commit("sha256:<chain id>", "extract-1") the key is gone, the name is there
    prepare("extract-2", parent="sha256:…")  the next layer, on top of it, and so on

and of a container:

    prepare("web", parent="sha256:<chain id of the top layer>")
    … the runtime performs the mounts as the container's root file system …
    remove("web")                            or commit it, to make an image of what the container wrote

A snapshot with children cannot be removed; what nobody holds (a label `containerd.io/gc.root`, a lease, a container, an
image) is removed by the collector, from the top down.

Who knows what
--------------

`Store` (`core.snapshots.store`) knows names, namespaces, labels, leases and times; its rows are in the metadata
database. A `Snapshotter`, which is what a plug-in's author writes, knows none of these. It is told *numbers*: each
snapshot has one for its whole life, unique in the daemon and never used again, so that a directory named after it needs
no renaming and no bookkeeping. The order of things is always: bytes first, then the row; on removal the row first, then
the bytes.

Mounts are data (`core.mount.Mount`): who gets them performs them, the snapshotter need not.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Final, Protocol

from orlop.base.labels import SNAPSHOT_REF
from orlop.core.mount import Mount

INHERITED_PREFIX: Final = "containerd.io/snapshot/"
UID_MAPPING: Final = "containerd.io/snapshot/uidmapping"
GID_MAPPING: Final = "containerd.io/snapshot/gidmapping"

# Keys that unpackers use begin so; nobody but the unpacker writes to such a snapshot (UnpackKeyPrefix in containerd).
UNPACK_KEY_PREFIX: Final = "extract-"


class Kind(IntEnum):
    """What a snapshot is; the numbers are those of the wire."""

    UNKNOWN = 0
    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What a namespace knows of one of its snapshots.

    Attributes:
        parent: name of the snapshot below, empty for none.
        created_at, updated_at: nanoseconds since the epoch, UTC. A commit sets both anew.
    """

    name: str
    parent: str = ""
    kind: Kind
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot takes on disk by itself, without its parents: bytes allocated, and inodes."""

    size: int = 0
    inodes: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.size + other.size, self.inodes + other.inodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A snapshot as a snapshotter sees it.

    Attributes:
        number: its own, for life.
        parents: numbers of the committed snapshots below, the nearest first; the whole chain.
        labels: those beginning with `containerd.io/snapshot/`, and `containerd.io/snapshot.ref`; no others.
    """

    number: int
    parents: tuple[int, ...] = ()
    kind: Kind
    labels: Mapping[str, str] = field(default_factory=dict)


class Snapshotter(Protocol):
    """Makes, mounts, measures and removes snapshots by number. Subclass it: what has a body here is a default.

    Methods block and are called on worker threads, several at once; those named in `quick` take well under a
    millisecond and are called where that saves a switch of threads. Errors of `base.errdefs` reach the client as they
    are, an `OSError` in words that name the snapshot and the step.

    Attributes:
        quick: which of `prepare` and `mounts` are quick.
        whole: a snapshot holds its parents' files too, so that it takes more than the layer unpacked into it.
        stacked: a snapshot holds its own layer alone, whatever is in those below.
        shares: a number may be a parent in several chains, in any place where the same numbers are below it, so that
            snapshots can have a layer in common (`core.snapshots.layers`). Takes `untouched`.
        capabilities: words for introspection that clients look for: `rebase` (a parent may be chosen at commit),
            `remap-ids` (mounts take the id mapping of the labels).
        exports: facts for introspection, such as `root`.
    """

    quick: frozenset[str] = frozenset()
    whole: bool = False
    stacked: bool = False
    shares: bool = False
    capabilities: Sequence[str] = ()
    exports: Mapping[str, str] = {}

    def prepare(self, snapshot: Snapshot) -> None:
        """Make an active snapshot or a view, wholly or not at all. Nothing need be synced.

        Raises:
            AlreadyExistsError: only when the labels have `containerd.io/snapshot.ref`, and meaning: the content it
                names need not be unpacked, `snapshot.number` is there and committed. (Remote snapshotters do this.)
        """
        ...

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        """The mounts of an active snapshot or a view, the same for every call. May perform what must lie below them."""
        ...

    def commit(self, snapshot: Snapshot) -> None:
        """An active snapshot, with its final parents and new labels, is about to become committed: freeze it.

        May be called again, if the row could not be written; must then do nothing.
        """
        return

    def usage(self, snapshot: Snapshot) -> Usage:
        """What it takes on disk, measured now."""
        ...

    def home(self, number: int) -> Path | None:
        """The directory below the daemon's root that holds all of a snapshot, existing or not; None if there is no
        such.

        When the row is deleted, it is renamed into the trash under the same lock, and unlinked later.
        """
        return None

    def lacks(self, number: int, kind: Kind) -> Sequence[Path]:
        """Which directories in its `home` a snapshot of that kind should have and has not, for a check; quick."""
        return ()

    def complete(self, snapshot: Snapshot) -> bool:
        """Make, empty, what an active snapshot or a view `lacks`; False if that cannot be. Quick.

        Raises:
            OSError: from the file system.
        """
        return False

    def place(self, number: int) -> Path | None:
        """The directory that is all of a snapshot, and that may change places with another's; None if there is none."""
        return self.home(number)

    def exchanged(self, number: int) -> None:
        """Another directory is in a snapshot's `place` now; from now on that is shown."""
        return

    def opened(self, number: int) -> AbstractContextManager[str] | None:
        """Shows what a committed snapshot itself holds, its parents' files too unless it is `stacked`.

        It is shown as it is on disk now. For a check that compares it with its layer; None if that cannot be.
        """
        return None

    def remove(self, number: int) -> None:
        """Free what is left of a snapshot after its row and its `home` are gone; may be called twice for one."""
        return

    def numbers(self) -> Iterable[int]:
        """Every number of which there is something, for the sweep of what has no row."""
        ...

    def sync(self, numbers: Sequence[int]) -> None:
        """Make what these snapshots hold survive a loss of power."""
        return

    def locate(self, path: str) -> int | None:
        """The number of the snapshot that is written to through `path`, a directory in its mounts; else None."""
        return None

    def image(self, number: int) -> str | None:
        """A path at which a whole layer may be put as a file system image instead of being unpacked; None for no.

        Asked for active snapshots that only an unpacker writes to, before it does. What lies there at `commit` is the
        snapshot.
        """
        return None

    def untouched(self, snapshot: Snapshot) -> bool:
        """Whether an active snapshot is as `prepare` made it; asked where `shares`."""
        return False

    def shown_labels(self, number: int, kind: Kind) -> Mapping[str, str]:
        """Labels that clients see of a snapshot beside its own; quick. They are stored nowhere."""
        return {}

    def cleanup(self) -> None:
        """Free what removed snapshots still take, however long it lasts."""
        return


Factory = Callable[[Path], Snapshotter]
"""Makes a snapshotter that keeps everything below a directory; what the contract suite is run with."""


def inherited(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels that a snapshotter is told. Source: FilterInheritedLabels in containerd's core/snapshots."""
    return {key: value for key, value in labels.items() if key == SNAPSHOT_REF or key.startswith(INHERITED_PREFIX)}
