"""The Snapshots service, and the stores behind it as a plug-in of their own."""

from collections.abc import AsyncIterator, Iterable
from typing import Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from orlop.api.services.snapshots.v1 import snapshots_pb2 as pb
from orlop.api.types.mount_pb2 import Mount as MountMessage
from orlop.base import namespaces
from orlop.base.rpc import Call, Service, bind
from orlop.core.kinds import GRPC, METADATA, SNAPSHOTS, SNAPSHOTTER, TRASH
from orlop.core.mount import Mount
from orlop.core.plugin import Context, Registration
from orlop.core.snapshots import Info, Kind
from orlop.core.snapshots.store import Store
from orlop.core.snapshots.stores import Stores

# Snapshots in one message of a List stream, as many as containerd sends.
CHUNK: Final = 100
_KINDS: Final = {Kind.VIEW: pb.VIEW, Kind.ACTIVE: pb.ACTIVE, Kind.COMMITTED: pb.COMMITTED}


class Snapshots:
    """containerd.services.snapshots.v1.Snapshots."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    async def prepare(self, call: Call, request: pb.PrepareSnapshotRequest) -> pb.PrepareSnapshotResponse:
        mounts = await self._stores.named(request.snapshotter).prepare(
            _namespace(call),
            request.key,
            request.parent,
            labels=request.labels,
            lease=call.lease,
            owner_uid=call.peer.uid,
        )
        return pb.PrepareSnapshotResponse(mounts=_mounts(mounts))

    async def view(self, call: Call, request: pb.ViewSnapshotRequest) -> pb.ViewSnapshotResponse:
        mounts = await self._stores.named(request.snapshotter).view(
            _namespace(call),
            request.key,
            request.parent,
            labels=request.labels,
            lease=call.lease,
            owner_uid=call.peer.uid,
        )
        return pb.ViewSnapshotResponse(mounts=_mounts(mounts))

    async def mounts(self, call: Call, request: pb.MountsRequest) -> pb.MountsResponse:
        mounts = await self._stores.named(request.snapshotter).mounts(_namespace(call), request.key)
        return pb.MountsResponse(mounts=_mounts(mounts))

    async def commit(self, call: Call, request: pb.CommitSnapshotRequest) -> Empty:
        await self._stores.named(request.snapshotter).commit(
            _namespace(call),
            request.name,
            request.key,
            labels=request.labels,
            parent=request.parent,
            lease=call.lease,
        )
        return Empty()

    async def remove(self, call: Call, request: pb.RemoveSnapshotRequest) -> Empty:
        await self._stores.named(request.snapshotter).remove(_namespace(call), request.key, lease=call.lease)
        return Empty()

    def stat(self, call: Call, request: pb.StatSnapshotRequest) -> pb.StatSnapshotResponse:
        info = self._stores.named(request.snapshotter).stat(_namespace(call), request.key)
        return pb.StatSnapshotResponse(info=_info(info))

    async def update(self, call: Call, request: pb.UpdateSnapshotRequest) -> pb.UpdateSnapshotResponse:
        info = await self._stores.named(request.snapshotter).update(
            _namespace(call), request.info.name, request.info.labels, paths=request.update_mask.paths
        )
        return pb.UpdateSnapshotResponse(info=_info(info))

    async def list(self, call: Call, request: pb.ListSnapshotsRequest) -> AsyncIterator[pb.ListSnapshotsResponse]:
        store: Store = self._stores.named(request.snapshotter)
        chunk: list[pb.Info] = []
        for info in store.walk(_namespace(call), request.filters):
            chunk.append(_info(info))
            if len(chunk) == CHUNK:
                yield pb.ListSnapshotsResponse(info=chunk)
                chunk = []
        if chunk:
            yield pb.ListSnapshotsResponse(info=chunk)

    async def usage(self, call: Call, request: pb.UsageRequest) -> pb.UsageResponse:
        usage = await self._stores.named(request.snapshotter).usage(_namespace(call), request.key)
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    async def cleanup(self, call: Call, request: pb.CleanupRequest) -> Empty:
        _namespace(call)
        await self._stores.cleanup(request.snapshotter)
        return Empty()


def _namespace(call: Call) -> str:
    return namespaces.validate(call.namespace)


def _mounts(mounts: Iterable[Mount]) -> Iterable[MountMessage]:
    return [
        MountMessage(type=mount.type, source=mount.source, target=mount.target, options=mount.options)
        for mount in mounts
    ]


def _info(info: Info) -> pb.Info:
    return pb.Info(
        name=info.name,
        parent=info.parent,
        kind=_KINDS[info.kind],
        created_at=_timestamp(info.created_at),
        updated_at=_timestamp(info.updated_at),
        labels=info.labels,
    )


def _timestamp(nanoseconds: int) -> Timestamp:
    seconds, rest = divmod(nanoseconds, 10**9)
    return Timestamp(seconds=seconds, nanos=rest)


def _stores(context: Context) -> Stores:
    stores = Stores(context.get(METADATA), context.get(TRASH), context.all(SNAPSHOTTER))
    stores.__enter__()
    context.on_close(stores.aclose)
    return stores


def _init(context: Context) -> Service:
    return bind(pb.DESCRIPTOR.services_by_name["Snapshots"], Snapshots(context.get(SNAPSHOTS)))


REGISTRATIONS: Final = (
    Registration(kind=SNAPSHOTS, id="snapshots", requires=(METADATA, TRASH, SNAPSHOTTER), init=_stores),
    Registration(kind=GRPC, id="snapshots", requires=(SNAPSHOTS,), init=_init),
)
