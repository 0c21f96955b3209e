"""The gRPC doors as clients feel them: who goes away stops the work, large messages pass, hundreds may wait at once.

A fake service stands behind them whose handlers tell what happens to them.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import BytesValue
from grpc import aio

from orlop.base.errdefs import NotFoundError
from orlop.base.rpc import Method, Service
from orlop.server.doors.grpc import GrpcDoor
from orlop.server.doors.lean import LeanDoor

pytestmark = pytest.mark.usefixtures("grpcio")

TIMEOUT_S = 30
LIMIT = 16 << 20
FOREVER = 3600
MANY = 500


class Handlers:
    """What the methods do, and what became of them."""

    def __init__(self):
        self.entered = asyncio.Semaphore(0)
        self.left = asyncio.Semaphore(0)
        self.deadlines = []
        self.open = asyncio.Event()

    def echo(self, _call, request):
        return request

    def refuse(self, _call, _request):
        raise NotFoundError('thing "x"')

    async def never(self, call, request):
        self.deadlines.append(call.deadline)
        self.entered.release()
        try:
            await self.open.wait()
        finally:
            self.left.release()
        return request

    async def follow(self, _call, request):
        self.entered.release()
        try:
            yield request
            await self.open.wait()
            yield request
        finally:
            self.left.release()

    async def talk(self, _call, requests):
        try:
            async for request in requests:
                yield request
            yield BytesValue(value=b"end")
        finally:
            self.left.release()

    def methods(self):
        kinds = {"echo": (0, 0), "refuse": (0, 0), "never": (0, 0), "follow": (0, 1), "talk": (1, 1)}
        return {
            name: Method(
                name=f"/test.Service/{name}",
                client_streaming=bool(client),
                server_streaming=bool(server),
                decode=BytesValue.FromString,
                handler=getattr(self, name),
            )
            for name, (client, server) in kinds.items()
        }


class Stage:
    """A door, the handlers behind it and a client."""

    def __init__(self, path, handlers):
        self.handlers = handlers
        self.channel = aio.insecure_channel(
            f"unix:{path}",
            options=[("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)],
        )

    def method(self, name, kind="unary_unary"):
        return getattr(self.channel, kind)(
            f"/test.Service/{name}",
            request_serializer=BytesValue.SerializeToString,
            response_deserializer=BytesValue.FromString,
        )


@pytest.fixture(params=[GrpcDoor, LeanDoor])
def door(request):
    return request.param


@contextlib.asynccontextmanager
async def stage(door, tmp_path) -> AsyncIterator[Stage]:
    handlers = Handlers()
    service = Service(name="test.Service", methods=handlers.methods())
    path = tmp_path / "door.sock"
    async with door(path, [service], uid=0, gid=0, max_receive=LIMIT, max_send=LIMIT):
        made = Stage(path, handlers)
        try:
            yield made
        finally:
            handlers.open.set()
            await made.channel.close()


def run(door, tmp_path, test):
    async def main():
        async with asyncio.timeout(TIMEOUT_S), stage(door, tmp_path) as made:
            await test(made)

    asyncio.run(main())


async def refused(call, code, text=None):
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code
    if text is not None:
        assert caught.value.details() == text


def test_answers_and_errors(door, tmp_path):
    async def test(s):
        assert (await s.method("echo")(BytesValue(value=b"x"))).value == b"x"
        await refused(s.method("refuse")(BytesValue()), grpc.StatusCode.NOT_FOUND, 'thing "x": not found')
        await refused(s.method("absent")(BytesValue()), grpc.StatusCode.UNIMPLEMENTED)

    run(door, tmp_path, test)


def test_a_call_that_is_cancelled_stops_its_work(door, tmp_path):
    async def test(s):
        call = s.method("never")(BytesValue())
        await s.handlers.entered.acquire()
        call.cancel()
        await s.handlers.left.acquire()
        assert s.handlers.deadlines == [None]

    run(door, tmp_path, test)


def test_a_deadline_is_told_and_stops_the_work(door, tmp_path):
    async def test(s):
        await refused(s.method("never")(BytesValue(), timeout=0.1), grpc.StatusCode.DEADLINE_EXCEEDED)
        await s.handlers.left.acquire()
        (deadline,) = s.handlers.deadlines
        assert deadline is not None

    run(door, tmp_path, test)


def test_a_stream_that_is_cancelled_is_closed(door, tmp_path):
    async def test(s):
        stream = s.method("follow", "unary_stream")(BytesValue(value=b"1"))
        assert (await stream.read()).value == b"1"
        stream.cancel()
        await s.handlers.left.acquire()

    run(door, tmp_path, test)


def test_a_stream_past_its_deadline_is_closed(door, tmp_path):
    async def test(s):
        stream = s.method("follow", "unary_stream")(BytesValue(value=b"1"), timeout=0.2)
        assert (await stream.read()).value == b"1"
        await refused(stream.read(), grpc.StatusCode.DEADLINE_EXCEEDED)
        await s.handlers.left.acquire()

    run(door, tmp_path, test)


def test_a_connection_that_is_lost_stops_all_its_work(door, tmp_path):
    async def test(s):
        calls = [s.method("never")(BytesValue()) for _ in range(5)]
        streams = [s.method("follow", "unary_stream")(BytesValue()) for _ in range(5)]
        for stream in streams:
            await stream.read()
        for _ in range(10):
            await s.handlers.entered.acquire()
        await s.channel.close()
        for _ in range(10):
            await s.handlers.left.acquire()
        assert all(call.done() for call in calls)

    run(door, tmp_path, test)


def test_a_client_that_stops_sending_ends_a_conversation(door, tmp_path):
    async def test(s):
        talk = s.method("talk", "stream_stream")()
        await talk.write(BytesValue(value=b"a"))
        assert (await talk.read()).value == b"a"
        await talk.done_writing()
        assert (await talk.read()).value == b"end"
        assert await talk.read() is aio.EOF
        await s.handlers.left.acquire()

    run(door, tmp_path, test)


def test_a_client_that_vanishes_ends_a_conversation(door, tmp_path):
    async def test(s):
        talk = s.method("talk", "stream_stream")()
        await talk.write(BytesValue(value=b"a"))
        assert (await talk.read()).value == b"a"
        talk.cancel()
        await s.handlers.left.acquire()

    run(door, tmp_path, test)


@pytest.mark.parametrize("kind", ["unary_unary", "stream_stream"])
def test_messages_up_to_the_limit_pass_and_larger_ones_are_refused(door, tmp_path, kind):
    async def test(s):
        overhead = len(BytesValue(value=bytes(LIMIT)).SerializeToString()) - LIMIT
        fits, too_large = BytesValue(value=bytes(LIMIT - overhead)), BytesValue(value=bytes(LIMIT - overhead + 1))

        async def exchange(message):
            if kind == "unary_unary":
                return await s.method("echo")(message)
            talk = s.method("talk", kind)()
            await talk.write(message)
            answer = await talk.read()
            talk.cancel()
            if answer is aio.EOF:
                raise aio.AioRpcError(await talk.code(), aio.Metadata(), aio.Metadata())
            return answer

        assert len((await exchange(fits)).value) == LIMIT - overhead
        await refused(exchange(too_large), grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert (await s.method("echo")(BytesValue(value=b"still here"))).value == b"still here"

    run(door, tmp_path, test)


def test_hundreds_wait_and_follow_while_others_are_answered(door, tmp_path):
    async def test(s):
        waits = [s.method("never")(BytesValue(value=b"w"), timeout=FOREVER) for _ in range(MANY)]
        streams = [s.method("follow", "unary_stream")(BytesValue(value=b"s")) for _ in range(MANY)]
        for stream in streams:
            assert (await stream.read()).value == b"s"
        for _ in range(2 * MANY):
            await s.handlers.entered.acquire()
        assert (await s.method("echo")(BytesValue(value=b"x"))).value == b"x"
        s.handlers.open.set()
        assert {answer.value for answer in await asyncio.gather(*waits)} == {b"w"}
        assert {answer.value for answer in await asyncio.gather(*(stream.read() for stream in streams))} == {b"s"}

    run(door, tmp_path, test)


def test_a_request_that_is_none_is_refused(door, tmp_path):
    async def test(s):
        raw = s.channel.unary_unary("/test.Service/echo", request_serializer=None, response_deserializer=None)
        await refused(raw(b"\xff\xff"), grpc.StatusCode.INVALID_ARGUMENT)
        assert await raw(Empty().SerializeToString()) == b""

    run(door, tmp_path, test)
