"""Layers onto mounts and out of them, as `client.diff`."""

from collections.abc import Mapping, Sequence

from orlop.api.services.diff.v1 import diff_pb2 as pb
from orlop.client.channel import Rpc
from orlop.client.descriptors import from_pb, to_pb
from orlop.client.session import Session
from orlop.client.snapshots import to_mounts
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

    async def apply(self, layer: Descriptor, mounts: Sequence[Mount]) -> Descriptor:
        """Unpack a layer of the content store onto mounts; the answer's digest is the layer's DiffID."""
        request = pb.ApplyRequest(diff=to_pb(layer), mounts=to_mounts(mounts))
        return from_pb((await self._session.call(APPLY, request, endless=True)).applied)

    async def compare(
        self,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        *,
        media_type: str = OCI_LAYER_GZIP,
        ref: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> Descriptor:
        """Make a layer of what `upper` has and `lower` has not, and store it as content."""
        request = pb.DiffRequest(
            left=to_mounts(lower),
            right=to_mounts(upper),
            media_type=media_type,
            ref=ref,
            labels=dict(labels or {}),
        )
        return from_pb((await self._session.call(DIFF, request, endless=True)).diff)
