"""The Diff service: what it refuses before any differ is asked."""

import asyncio

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from orlop.api.services.diff.v1 import diff_pb2 as api
from orlop.base.errdefs import InvalidArgumentError
from orlop.base.rpc import NAMESPACE_HEADER, Call, Peer
from orlop.plugins.services.diff import Diff

CALL = Call(peer=Peer(door="test"), metadata={NAMESPACE_HEADER: "default"})


@pytest.mark.parametrize(
    "stamp", [Timestamp(seconds=(1 << 63) - 1), Timestamp(nanos=-1), Timestamp(nanos=(1 << 31) - 1)]
)
def test_a_time_out_of_range_is_the_callers_fault(stamp):
    with pytest.raises(InvalidArgumentError, match="source date epoch"):
        asyncio.run(Diff([]).diff(CALL, api.DiffRequest(source_date_epoch=stamp)))
