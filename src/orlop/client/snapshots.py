"""Snapshots, as `client.snapshots(name)`: the layers of file systems and the active ones on top."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from orlop.api.services.snapshots.v1 import snapshots_pb2 as pb
from orlop.api.types import mount_pb2
from orlop.base.errdefs import NotFoundError
from orlop.client.channel import Rpc
from orlop.client.session import Session
from orlop.client.stamps import to_datetime
from orlop.core.mount import Mount

_SERVICE = "containerd.services.snapshots.v1.Snapshots"
PREPARE = Rpc(_SERVICE, "Prepare", pb.PrepareSnapshotRequest, pb.PrepareSnapshotResponse)
VIEW = Rpc(_SERVICE, "View", pb.ViewSnapshotRequest, pb.ViewSnapshotResponse)
MOUNTS = Rpc(_SERVICE, "Mounts", pb.MountsRequest, pb.MountsResponse)
COMMIT = Rpc(_SERVICE, "Commit", pb.CommitSnapshotRequest, Empty)
REMOVE = Rpc(_SERVICE, "Remove", pb.RemoveSnapshotRequest, Empty)
STAT = Rpc(_SERVICE, "Stat", pb.StatSnapshotRequest, pb.StatSnapshotResponse)
UPDATE = Rpc(_SERVICE, "Update", pb.UpdateSnapshotRequest, pb.UpdateSnapshotResponse)
LIST = Rpc(_SERVICE, "List", pb.ListSnapshotsRequest, pb.ListSnapshotsResponse)
USAGE = Rpc(_SERVICE, "Usage", pb.UsageRequest, pb.UsageResponse)
CLEANUP = Rpc(_SERVICE, "Cleanup", pb.CleanupRequest, Empty)

DEFAULT_SNAPSHOTTER = "overlayfs"


class Kind(StrEnum):
    """What a snapshot is."""

    UNKNOWN = "Unknown"
    VIEW = "View"
    ACTIVE = "Active"
    COMMITTED = "Committed"


_KINDS = {pb.UNKNOWN: Kind.UNKNOWN, pb.VIEW: Kind.VIEW, pb.ACTIVE: Kind.ACTIVE, pb.COMMITTED: Kind.COMMITTED}


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInfo:
    """A snapshot's record; `parent` is empty for a bottom one."""

    name: str
    parent: str
    kind: Kind
    created_at: datetime
    updated_at: datetime
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a snapshot holds itself, without its parents."""

    size_bytes: int
    inodes: int


class Snapshots:
    """One snapshotter."""

    def __init__(self, session: Session, name: str = DEFAULT_SNAPSHOTTER) -> None:
        self._session = session
        self._name = name

    @property
    def name(self) -> str:
        """The snapshotter's name."""
        return self._name

    async def prepare(self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Make an active snapshot on top of a committed one and return its mounts. Raises AlreadyExistsError."""
        request = pb.PrepareSnapshotRequest(snapshotter=self._name, key=key, parent=parent, labels=dict(labels or {}))
        return from_mounts((await self._session.call(PREPARE, request)).mounts)

    async def view(self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None) -> list[Mount]:
        """As `prepare`, read-only."""
        request = pb.ViewSnapshotRequest(snapshotter=self._name, key=key, parent=parent, labels=dict(labels or {}))
        return from_mounts((await self._session.call(VIEW, request)).mounts)

    async def mounts(self, key: str) -> list[Mount]:
        """The mounts of an active snapshot or view."""
        request = pb.MountsRequest(snapshotter=self._name, key=key)
        return from_mounts((await self._session.call(MOUNTS, request)).mounts)

    async def commit(self, name: str, key: str, *, labels: Mapping[str, str] | None = None) -> None:
        """Turn the active snapshot `key` into the committed one `name`."""
        request = pb.CommitSnapshotRequest(snapshotter=self._name, name=name, key=key, labels=dict(labels or {}))
        await self._session.call(COMMIT, request)

    async def remove(self, key: str) -> None:
        """Remove a snapshot. Raises FailedPreconditionError while it has children."""
        await self._session.call(REMOVE, pb.RemoveSnapshotRequest(snapshotter=self._name, key=key))

    async def stat(self, key: str) -> SnapshotInfo:
        """A snapshot's record. Raises NotFoundError."""
        response = await self._session.call(STAT, pb.StatSnapshotRequest(snapshotter=self._name, key=key))
        return _info(response.info)

    async def exists(self, key: str) -> bool:
        """Whether there is a snapshot of that key or name."""
        try:
            await self.stat(key)
        except NotFoundError:
            return False
        return True

    async def label(self, key: str, labels: Mapping[str, str]) -> SnapshotInfo:
        """Set labels and keep the others; an empty value removes a label."""
        request = pb.UpdateSnapshotRequest(
            snapshotter=self._name,
            info=pb.Info(name=key, labels=dict(labels)),
            update_mask=FieldMask(paths=[f"labels.{name}" for name in labels]),
        )
        return _info((await self._session.call(UPDATE, request)).info)

    async def list(self, filters: Sequence[str] = ()) -> list[SnapshotInfo]:
        """All snapshots that match one of the filters, by key."""
        return sorted([info async for info in self.walk(filters)], key=lambda info: info.name)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[SnapshotInfo]:
        """Yield snapshots as the daemon lists them."""
        request = pb.ListSnapshotsRequest(snapshotter=self._name, filters=list(filters))
        async for response in self._session.receive(LIST, request):
            for info in response.info:
                yield _info(info)

    async def usage(self, key: str) -> Usage:
        """Bytes and inodes of one snapshot."""
        response = await self._session.call(USAGE, pb.UsageRequest(snapshotter=self._name, key=key))
        return Usage(size_bytes=response.size, inodes=response.inodes)

    async def cleanup(self) -> None:
        """Free what removed snapshots have left."""
        await self._session.call(CLEANUP, pb.CleanupRequest(snapshotter=self._name))


def from_mounts(mounts: Iterable[mount_pb2.Mount]) -> "list[Mount]":
    """Mounts from the wire."""
    return [Mount(type=one.type, source=one.source, target=one.target, options=tuple(one.options)) for one in mounts]


def to_mounts(mounts: Iterable[Mount]) -> "list[mount_pb2.Mount]":
    """Mounts for the wire."""
    return [
        mount_pb2.Mount(type=one.type, source=one.source, target=one.target, options=list(one.options))
        for one in mounts
    ]


def _info(info: pb.Info) -> SnapshotInfo:
    return SnapshotInfo(
        name=info.name,
        parent=info.parent,
        kind=_KINDS.get(info.kind, Kind.UNKNOWN),
        created_at=to_datetime(info.created_at),
        updated_at=to_datetime(info.updated_at),
        labels=dict(info.labels),
    )
