"""A differ behind somebody's Diff service.

Source: core/diff/proxy of containerd.
"""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol

from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.message import Message

from orlop.api.services.diff.v1 import diff_pb2 as pb
from orlop.api.types.descriptor_pb2 import Descriptor
from orlop.api.types.mount_pb2 import Mount as MountMessage
from orlop.core.diff import Applied, LayerBlob
from orlop.core.mount import Mount


class Channel(Protocol):
    """Calls of the Diff service, by the names of its methods. Any: the answer's class depends on it."""

    def unary(self, name: str, request: Message, *, namespace: str, lease: str = "") -> Awaitable[Any]: ...


class ProxyDiffer:
    """See `orlop.core.diff.Differ`. Errors are those that the service answers with."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def apply(
        self,
        namespace: str,
        layer: LayerBlob,
        mounts: Sequence[Mount],
        *,
        sync: bool = False,
        payloads: Mapping[str, bytes] | None = None,
    ) -> Applied:
        packed = {key: PackedAny.FromString(value) for key, value in (payloads or {}).items()}
        request = pb.ApplyRequest(diff=_descriptor(layer), mounts=_mounts(mounts), sync_fs=sync, payloads=packed)
        answer = await self._channel.unary("Apply", request, namespace=namespace)
        return Applied(digest=answer.applied.digest, size=answer.applied.size)

    async def compare(
        self,
        namespace: str,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        *,
        media_type: str,
        ref: str,
        labels: Mapping[str, str],
        source_date_epoch: int | None,
        lease: str,
    ) -> LayerBlob:
        request = pb.DiffRequest(
            left=_mounts(lower), right=_mounts(upper), media_type=media_type, ref=ref, labels=labels
        )
        if source_date_epoch is not None:
            request.source_date_epoch.FromNanoseconds(source_date_epoch)
        answer = await self._channel.unary("Diff", request, namespace=namespace, lease=lease)
        made = answer.diff
        return LayerBlob(
            media_type=made.media_type, digest=made.digest, size=made.size, annotations=dict(made.annotations)
        )


def _descriptor(layer: LayerBlob) -> Descriptor:
    return Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size, annotations=layer.annotations)


def _mounts(mounts: Sequence[Mount]) -> list[MountMessage]:
    return [MountMessage(type=m.type, source=m.source, target=m.target, options=m.options) for m in mounts]
