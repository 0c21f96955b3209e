"""The Diff service: layers onto mounts and out of them.

Source: plugins/services/diff/local.go of containerd: differs are asked in their order, and one that answers
"not implemented" passes the layer on to the next.
"""

from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from orlop.api.services.diff.v1 import diff_pb2
from orlop.api.types import descriptor_pb2
from orlop.base import namespaces
from orlop.base.errdefs import InvalidArgumentError, UnimplementedError, UnknownError
from orlop.base.rpc import Call, Service, bind
from orlop.core.diff import Differ, LayerBlob
from orlop.core.diff.choice import first_able
from orlop.core.kinds import DIFFER, GRPC
from orlop.core.mount import Mount
from orlop.core.plugin import Context, Registration
from orlop.oci import media_types


class Diff:
    """containerd.services.diff.v1.Diff."""

    def __init__(self, differs: Sequence[Differ]) -> None:
        self._differs = differs

    async def apply(self, call: Call, request: diff_pb2.ApplyRequest) -> diff_pb2.ApplyResponse:
        namespace = namespaces.validate(call.namespace)
        layer = LayerBlob(
            media_type=request.diff.media_type,
            digest=request.diff.digest,
            size=request.diff.size,
            annotations=dict(request.diff.annotations),
        )
        payloads = {key: value.SerializeToString() for key, value in request.payloads.items()}
        mounts = _mounts(request.mounts)
        try:
            applied = await first_able(
                self._differs,
                lambda one: one.apply(namespace, layer, mounts, sync=request.sync_fs, payloads=payloads),
            )
        except UnimplementedError as error:
            # Of an unknown class: so says containerd that nobody takes a media type.
            raise UnknownError(error.text) from None
        plain = layer.media_type if media_types.is_plain_file_system(layer.media_type) else media_types.OCI_LAYER
        descriptor = descriptor_pb2.Descriptor(media_type=plain, digest=applied.digest, size=applied.size)
        return diff_pb2.ApplyResponse(applied=descriptor)

    async def diff(self, call: Call, request: diff_pb2.DiffRequest) -> diff_pb2.DiffResponse:
        namespace = namespaces.validate(call.namespace)
        epoch = _nanoseconds(request.source_date_epoch) if request.HasField("source_date_epoch") else None
        left, right = _mounts(request.left), _mounts(request.right)
        layer = await first_able(
            self._differs,
            lambda one: one.compare(
                namespace,
                left,
                right,
                media_type=request.media_type or media_types.OCI_LAYER_GZIP,
                ref=request.ref,
                labels=dict(request.labels),
                source_date_epoch=epoch,
                lease=call.lease,
            ),
        )
        descriptor = descriptor_pb2.Descriptor(
            media_type=layer.media_type, digest=layer.digest, size=layer.size, annotations=layer.annotations
        )
        return diff_pb2.DiffResponse(diff=descriptor)


def _nanoseconds(stamp: Timestamp) -> int:
    try:
        return stamp.ToNanoseconds()
    except ValueError as error:
        raise InvalidArgumentError(f"source date epoch: {error}") from None


def _mounts(messages: Any) -> list[Mount]:
    # Any: protobuf's repeated field has no public type.
    return [Mount(type=m.type, source=m.source, target=m.target, options=tuple(m.options)) for m in messages]


def _init(context: Context) -> Service:
    return bind(diff_pb2.DESCRIPTOR.services_by_name["Diff"], Diff(list(context.all(DIFFER).values())))


REGISTRATION: Final = Registration(kind=GRPC, id="diff", requires=(DIFFER,), init=_init)
