"""A snapshotter behind somebody's Snapshots service: stargz, nydus, fuse-overlayfs and whatever else speaks it.

Our numbers become names there: snapshot 12 is `<prefix>/12` once committed, `<prefix>/12/new` before. So names of two
daemons, and of containerd, never meet in one snapshotter. Labels go along, and the label `containerd.io/snapshot.ref`
becomes the name under which we expect what the snapshotter may have already; it then answers that the snapshot exists.

Source: core/snapshots/proxy and core/metadata/snapshot.go of containerd.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from google.protobuf.message import Message

from orlop.api.services.snapshots.v1 import snapshots_pb2 as pb
from orlop.base.errdefs import AlreadyExistsError, NotFoundError, UnimplementedError
from orlop.base.labels import GC_ROOT, SNAPSHOT_REF
from orlop.core.mount import Mount
from orlop.core.snapshots import Kind, Snapshot, Snapshotter, Usage

_NEW: Final = "/new"
# Where the service has a collector (another orlop or containerd has), it must keep what we hold.
_ROOT: Final = {GC_ROOT: "1970-01-01T00:00:00Z"}


class Channel(Protocol):
    """Blocking calls of the Snapshots service, by the names of its methods. Any: the answer's class depends on it."""

    def unary(self, name: str, request: Message) -> Any: ...

    def stream(self, name: str, request: Message) -> Iterator[Any]: ...


class ProxySnapshotter(Snapshotter):
    """See `orlop.core.snapshots.Snapshotter`. Errors are those that the service answers with.

    Args:
        name: what the snapshotter is called on the other side.
        prefix: of all names there; no other daemon's.
        capabilities: those that the configuration promises.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        name: str,
        prefix: str,
        capabilities: Sequence[str] = (),
        exports: Mapping[str, str] | None = None,
    ) -> None:
        self._channel = channel
        self._name = name
        self._prefix = prefix
        self.capabilities = capabilities
        self.exports = exports or {}

    def prepare(self, snapshot: Snapshot) -> None:
        request: Any = pb.ViewSnapshotRequest if snapshot.kind == Kind.VIEW else pb.PrepareSnapshotRequest
        labels = {**_ROOT, **snapshot.labels}
        if SNAPSHOT_REF in labels:
            labels[SNAPSHOT_REF] = self._committed(snapshot.number)
        method = "View" if snapshot.kind == Kind.VIEW else "Prepare"
        try:
            self._channel.unary(
                method,
                request(
                    snapshotter=self._name,
                    key=self._new(snapshot.number),
                    parent=self._parent(snapshot),
                    labels=labels,
                ),
            )
        except AlreadyExistsError:
            # It is there for us only if it is there under the name that we asked for.
            if SNAPSHOT_REF not in labels or not self._has(self._committed(snapshot.number)):
                raise
            raise AlreadyExistsError(f"snapshot {self._committed(snapshot.number)}") from None

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        answer = self._channel.unary("Mounts", pb.MountsRequest(snapshotter=self._name, key=self._new(snapshot.number)))
        return [Mount(type=m.type, source=m.source, target=m.target, options=tuple(m.options)) for m in answer.mounts]

    def commit(self, snapshot: Snapshot) -> None:
        request = pb.CommitSnapshotRequest(
            snapshotter=self._name,
            name=self._committed(snapshot.number),
            key=self._new(snapshot.number),
            labels={**_ROOT, **snapshot.labels},
            parent=self._parent(snapshot) if "rebase" in self.capabilities else "",
        )
        try:
            self._channel.unary("Commit", request)
        except (AlreadyExistsError, NotFoundError):
            # Asked again, because the row could not be written the first time: then it is committed by now.
            if not self._has(self._committed(snapshot.number)):
                raise

    def usage(self, snapshot: Snapshot) -> Usage:
        for key in (self._new(snapshot.number), self._committed(snapshot.number)):
            try:
                answer = self._channel.unary("Usage", pb.UsageRequest(snapshotter=self._name, key=key))
            except NotFoundError:
                continue
            return Usage(answer.size, answer.inodes)
        raise NotFoundError(f"snapshot {self._committed(snapshot.number)} of {self._name}")

    def remove(self, number: int) -> None:
        for key in (self._new(number), self._committed(number)):
            try:
                self._channel.unary("Remove", pb.RemoveSnapshotRequest(snapshotter=self._name, key=key))
            except NotFoundError:
                continue

    def numbers(self) -> list[int]:
        start = f"{self._prefix}/"
        found = []
        for answer in self._channel.stream("List", pb.ListSnapshotsRequest(snapshotter=self._name)):
            for info in answer.info:
                text = info.name.removeprefix(start).removesuffix(_NEW)
                if info.name.startswith(start) and text.isascii() and text.isdigit():
                    found.append(int(text))
        return found

    def cleanup(self) -> None:
        try:
            self._channel.unary("Cleanup", pb.CleanupRequest(snapshotter=self._name))
        except UnimplementedError:
            return  # it frees what it must when it removes

    def _has(self, key: str) -> bool:
        try:
            answer = self._channel.unary("Stat", pb.StatSnapshotRequest(snapshotter=self._name, key=key))
        except NotFoundError:
            return False
        return bool(answer.info.kind == pb.COMMITTED)

    def _parent(self, snapshot: Snapshot) -> str:
        return self._committed(snapshot.parents[0]) if snapshot.parents else ""

    def _committed(self, number: int) -> str:
        return f"{self._prefix}/{number}"

    def _new(self, number: int) -> str:
        return f"{self._prefix}/{number}{_NEW}"
