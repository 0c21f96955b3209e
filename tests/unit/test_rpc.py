"""Binding handlers to descriptors."""

import asyncio

import pytest

from orlop.api.services.version.v1 import version_pb2
from orlop.base import rpc
from orlop.base.errdefs import FailedPreconditionError, InvalidArgumentError, UnimplementedError

DESCRIPTOR = version_pb2.DESCRIPTOR.services_by_name["Version"]
CALL = rpc.Call(peer=rpc.Peer(door="test"))


class Sync:
    def version(self, call, request):
        return version_pb2.VersionResponse(version="1")


class Async:
    async def version(self, call, request):
        return version_pb2.VersionResponse(version="2")


def test_unary_handlers_may_wait_or_not():
    method = rpc.bind(DESCRIPTOR, Sync()).methods["Version"]
    answer = method.unary(CALL, b"")
    assert isinstance(answer, bytes)
    assert version_pb2.VersionResponse.FromString(answer).version == "1"
    later = rpc.bind(DESCRIPTOR, Async()).methods["Version"].unary(CALL, b"")

    async def wait():
        assert not isinstance(later, bytes)
        return await later

    assert version_pb2.VersionResponse.FromString(asyncio.run(wait())).version == "2"


def test_absent_methods_are_unimplemented():
    with pytest.raises(UnimplementedError, match=r"/containerd.services.version.v1.Version/Version"):
        rpc.bind(DESCRIPTOR, object()).methods["Version"].unary(CALL, b"")


def test_garbage_is_an_invalid_argument():
    with pytest.raises(InvalidArgumentError):
        rpc.bind(DESCRIPTOR, Sync()).methods["Version"].unary(CALL, b"\xff\xff")


def test_a_call_without_namespace_is_refused():
    with pytest.raises(FailedPreconditionError, match="namespace is required"):
        _ = CALL.namespace


@pytest.mark.parametrize(
    ("name", "snake"),
    [("Get", "get"), ("ListStatuses", "list_statuses"), ("CloseIO", "close_io"), ("ResizePty", "resize_pty")],
)
def test_snake_case(name, snake):
    assert rpc.snake_case(name) == snake
