"""A snapshotter without files, for tests of what stands in front of one."""

import threading

from orlop.base.errdefs import AlreadyExistsError
from orlop.base.labels import SNAPSHOT_REF
from orlop.core.mount import Mount
from orlop.core.snapshots import Kind, Snapshot, Snapshotter, Usage


class FakeSnapshotter(Snapshotter):
    """Remembers what there is by number, and checks how it is called.

    Attributes:
        held: kind of what there is.
        remote: targets (`containerd.io/snapshot.ref`) that it claims to have committed already.
        failing: by name of a method, the error that the next call of it raises.
        keeps: whether `remove` keeps what there is, as one whose bytes go to the trash.
        entered, gate: `prepare` sets the one and waits for the other, if a test has put it there.
        calls: names of the methods called so far, in order.
    """

    capabilities = ("rebase",)

    def __init__(self, *, quick: bool = True) -> None:
        self.quick = frozenset({"prepare", "mounts"}) if quick else frozenset()
        self.held: dict[int, Kind] = {}
        self.remote: set[str] = set()
        self.failing: dict[str, Exception] = {}
        self.keeps = False
        self.entered = threading.Event()
        self.gate: threading.Event | None = None
        self.calls: list[str] = []

    def prepare(self, snapshot: Snapshot) -> None:
        self._called("prepare")
        if self.gate is not None:
            self.entered.set()
            assert self.gate.wait(30)
        assert snapshot.number not in self.held
        assert all(self.held[parent] == Kind.COMMITTED for parent in snapshot.parents)
        if snapshot.labels.get(SNAPSHOT_REF) in self.remote:
            self.held[snapshot.number] = Kind.COMMITTED
            raise AlreadyExistsError("it is here")
        self.held[snapshot.number] = snapshot.kind

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        self._called("mounts")
        assert self.held[snapshot.number] == snapshot.kind
        chain = ":".join(map(str, (snapshot.number, *snapshot.parents)))
        return [Mount(type="fake", source=chain, options=(snapshot.kind.name, *sorted(snapshot.labels)))]

    def commit(self, snapshot: Snapshot) -> None:
        self._called("commit")
        assert self.held[snapshot.number] in (Kind.ACTIVE, Kind.COMMITTED)
        self.held[snapshot.number] = Kind.COMMITTED

    def usage(self, snapshot: Snapshot) -> Usage:
        self._called("usage")
        return Usage(snapshot.number, len(snapshot.parents))

    def remove(self, number: int) -> None:
        self._called("remove")
        if not self.keeps:
            self.held.pop(number, None)

    def numbers(self) -> list[int]:
        return list(self.held)

    def sync(self, numbers: object) -> None:
        self._called("sync")

    def cleanup(self) -> None:
        self._called("cleanup")

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failing:
            raise self.failing.pop(name)
