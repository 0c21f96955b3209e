"""Layers onto mounts and out of them, as `client.diff`."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime

from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.timestamp_pb2 import Timestamp

from orlop.api.services.diff.v1 import diff_pb2 as pb
from orlop.base.errdefs import NotFoundError
from orlop.client.channel import Rpc
from orlop.client.descriptors import from_pb, to_pb
from orlop.client.leases import Held
from orlop.client.session import Session
from orlop.client.snapshots import DEFAULT_SNAPSHOTTER, Kind, Snapshots, to_mounts
from orlop.core.leases import unique_id
from orlop.core.mount import Mount
from orlop.oci.image import Descriptor
from orlop.oci.media_types import OCI_LAYER_GZIP

_SERVICE = "containerd.services.diff.v1.Diff"
APPLY = Rpc(_SERVICE, "Apply", pb.ApplyRequest, pb.ApplyResponse)
DIFF = Rpc(_SERVICE, "Diff", pb.DiffRequest, pb.DiffResponse)


class Diff:
    """The daemon's differs."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def apply(
        self,
        layer: Descriptor,
        mounts: Sequence[Mount],
        *,
        payloads: Mapping[str, PackedAny] | None = None,
        sync: bool = False,
    ) -> Descriptor:
        """Unpack a layer of the content store onto mounts; the answer's digest is the layer's DiffID.

        Args:
            payloads: what the daemon's stream processors are given, such as keys, by the processor's id.
            sync: the files are on disk when this returns.
        """
        request = pb.ApplyRequest(diff=to_pb(layer), mounts=to_mounts(mounts), payloads=payloads, sync_fs=sync)
        return from_pb((await self._session.call(APPLY, request, endless=True)).applied)

    async def compare(
        self,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        *,
        media_type: str = OCI_LAYER_GZIP,
        ref: str = "",
        labels: Mapping[str, str] | None = None,
        source_date_epoch: datetime | None = None,
    ) -> Descriptor:
        """Make a layer of what `upper` has and `lower` has not, and store it as content.

        The collector takes the content unless a lease that the session names, or a label, holds it.

        Args:
            media_type: OCI's layer, uncompressed, gzip or zstd.
            ref: of the ingest; chosen by the daemon when empty.
            labels: of the content.
            source_date_epoch: no file's time in the layer is later, so that building it again gives the same digest.
        """
        request = pb.DiffRequest(
            left=to_mounts(lower),
            right=to_mounts(upper),
            media_type=media_type,
            ref=ref,
            labels=dict(labels or {}),
        )
        if source_date_epoch is not None:
            stamp = Timestamp()
            stamp.FromDatetime(source_date_epoch)
            request.source_date_epoch.CopyFrom(stamp)
        return from_pb((await self._session.call(DIFF, request, endless=True)).diff)

    async def create_diff(
        self,
        key: str,
        *,
        below: str = "",
        snapshotter: str = DEFAULT_SNAPSHOTTER,
        media_type: str = OCI_LAYER_GZIP,
        ref: str = "",
        labels: Mapping[str, str] | None = None,
        source_date_epoch: datetime | None = None,
    ) -> Descriptor:
        """`compare` for a snapshot, active or committed, with its parent or with the snapshot `below`.

        Raises:
            NotFoundError: there is no such snapshot.

        Source: CreateDiff in containerd's pkg/rootfs/diff.go.
        """
        async with Held(self._session) as session:
            snapshots = Snapshots(session, snapshotter)
            info = await snapshots.stat(key)
            lower = below or info.parent
            async with _mounts(snapshots, lower) as lower_mounts, _mounts(snapshots, key) as upper_mounts:
                return await Diff(session).compare(
                    lower_mounts,
                    upper_mounts,
                    media_type=media_type,
                    ref=ref,
                    labels=labels,
                    source_date_epoch=source_date_epoch,
                )


@contextlib.asynccontextmanager
async def _mounts(snapshots: Snapshots, key: str) -> AsyncIterator[list[Mount]]:
    """The mounts of a snapshot: an active one's own, of others those of a view that is removed afterwards."""
    if key and (await snapshots.stat(key)).kind is Kind.ACTIVE:
        yield await snapshots.mounts(key)
        return
    view = f"{key}-view-{unique_id()}"
    mounts = await snapshots.view(view, key)
    try:
        yield mounts
    finally:
        with contextlib.suppress(NotFoundError):
            await snapshots.remove(view)
