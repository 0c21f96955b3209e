"""grpcio's clients, blocking and asyncio, against the server: all four shapes, cancellation, deadlines, sizes."""

import asyncio
import threading
from typing import Any

import grpc
import grpc.aio
import pytest

LARGE = 16 << 20
# Any: the stubs want to be told what the serializers make, and there are none.
connect_blocking: Any = grpc.insecure_channel
connect_asyncio: Any = grpc.aio.insecure_channel
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@pytest.fixture
def serving(start, grpcio):
    return start(listen=True)


@pytest.fixture
def channel(serving):
    with connect_blocking(f"unix:{serving.path}", options=OPTIONS) as channel:
        yield channel


def test_four_shapes(channel):
    assert channel.unary_unary("/t.T/Echo")(b"x", timeout=30) == b"x"
    assert list(channel.unary_stream("/t.T/Count")(b"300", timeout=30)) == [str(n).encode() for n in range(300)]
    assert channel.stream_unary("/t.T/Join")(iter([b"a", b"", b"b"]), timeout=30) == b"a||b"
    assert channel.stream_unary("/t.T/Join")(iter([]), timeout=30) == b""
    many = [bytes([n % 256]) * n for n in range(300)]
    assert list(channel.stream_stream("/t.T/Mirror")(iter(many), timeout=30)) == many


def test_metadata_and_deadline_arrive(serving, channel):
    metadata = [("containerd-namespace", "n"), ("x-bin", b"\x00\xfe")]
    channel.unary_unary("/t.T/Echo")(b"", metadata=metadata, timeout=30)
    (context,) = serving.handlers.contexts
    assert context.request.metadata["containerd-namespace"] == "n"
    assert context.request.binary == {"x-bin": b"\x00\xfe"}
    assert 29 < context.request.timeout_s < 31  # grpcio rounds up
    assert context.peer.uid is not None


def test_compression(channel):
    echo = channel.unary_unary("/t.T/Echo")
    assert echo(b"x" * 10_000, compression=grpc.Compression.Gzip, timeout=30) == b"x" * 10_000
    with pytest.raises(grpc.RpcError) as caught:
        echo(b"x" * 10_000, compression=grpc.Compression.Deflate, timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_errors(channel):
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/t.T/Fail")("kein Schlüssel: 100 %".encode(), timeout=30)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "kein Schlüssel: 100 %")
    trailers: Any = caught.value.trailing_metadata()
    assert dict(trailers) == {"grpc-status-details-bin": b"\x08\x05"}
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/t.T/Nope")(b"", timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    received = []
    with pytest.raises(grpc.RpcError) as caught:
        received.extend(channel.unary_stream("/t.T/CountAndFail")(b"3", timeout=30))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("path", ["/t.T/Echo", "/t.T/Later"])
def test_messages_up_to_the_limit_both_ways(channel, path):
    data = bytes(range(256)) * (LARGE // 256)
    assert channel.unary_unary(path)(data, timeout=60) == data
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(path)(data + b"x", timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    text = f"grpc: received message larger than max ({LARGE + 1} vs. {LARGE})"
    assert caught.value.details() == text
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/t.T/Large")(str(LARGE + 1).encode(), timeout=60)
    assert caught.value.details() == f"grpc: trying to send message larger than max ({LARGE + 1} vs. {LARGE})"


def test_large_messages_in_streams(channel):
    sizes = b"5000000 1 16000000 0 70000"
    assert [len(part) for part in channel.unary_stream("/t.T/LargeOnes")(sizes, timeout=60)] == [
        5_000_000,
        1,
        16_000_000,
        0,
        70_000,
    ]
    parts = [bytes(1 << 20)] * 40
    assert channel.stream_unary("/t.T/Total")(iter(parts), timeout=60) == str(40 << 20).encode()
    assert sum(map(len, channel.stream_stream("/t.T/Mirror")(iter(parts), timeout=60))) == 40 << 20


def test_cancellation(serving, channel):
    for path in ("/t.T/Never", "/t.T/Forever"):
        shape = channel.unary_unary if path == "/t.T/Never" else channel.unary_stream
        call = shape(path).future(b"x") if path == "/t.T/Never" else shape(path)(b"x")
        assert serving.handlers.entered.acquire(timeout=30)
        call.cancel()
        assert serving.handlers.cancelled.acquire(timeout=30)
    assert serving.state()[1:] == (0, 0)


def test_deadline(serving, channel):
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/t.T/Never")(b"", timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert serving.handlers.cancelled.acquire(timeout=30)


def test_a_slow_reader_blocks_neither_others_nor_memory(serving, channel):
    slow = channel.unary_stream("/t.T/LargeOnes")(b"1000000 " * 50, timeout=60)
    next(slow)
    # grpcio reads ahead a little; the handler stops long before the end.
    for _ in range(200):
        assert channel.unary_unary("/t.T/Echo")(b"x", timeout=30) == b"x"
    entered = 0
    while serving.handlers.entered.acquire(blocking=False):
        entered += 1
    assert entered < 40
    assert sum(1 for _ in slow) == 49


def test_a_thousand_waits_at_once(serving):
    async def main():
        async with connect_asyncio(f"unix:{serving.path}") as channel:
            waits = [channel.unary_unary("/t.T/Never")(b"") for _ in range(1000)]
            for _ in range(1000):
                await asyncio.to_thread(serving.handlers.entered.acquire, timeout=30)
            echoes = await asyncio.gather(*(channel.unary_unary("/t.T/Later")(b"%d" % n) for n in range(200)))
            assert echoes == [b"%d" % n for n in range(200)]
            assert serving.state()[1] == 1000
            for wait in waits:
                wait.cancel()
            for _ in range(1000):
                await asyncio.to_thread(serving.handlers.cancelled.acquire, timeout=30)
            assert await channel.unary_unary("/t.T/Echo")(b"x") == b"x"

    asyncio.run(main())


def test_four_shapes_with_asyncio(serving):
    async def main():
        async with connect_asyncio(f"unix:{serving.path}") as channel:
            assert await channel.unary_unary("/t.T/AtOnce")(b"x") == b"x"
            assert [part async for part in channel.unary_stream("/t.T/Count")(b"3")] == [b"0", b"1", b"2"]
            assert await channel.stream_unary("/t.T/Join")(iter([b"a", b"b"])) == b"a|b"
            call = channel.stream_stream("/t.T/Mirror")()
            for number in range(20):
                await call.write(b"%d" % number)
                assert await call.read() == b"%d" % number
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK

    asyncio.run(main())


def test_many_channels_at_once(serving):
    failures = []

    def work():
        with connect_blocking(f"unix:{serving.path}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            echo = channel.unary_unary("/t.T/Later")
            for number in range(50):
                if echo(b"%d" % number, timeout=30) != b"%d" % number:
                    failures.append(number)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


def test_keepalive_pings_of_an_idle_client_are_no_offence(serving):
    options = [
        ("grpc.keepalive_time_ms", 10),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10),
    ]
    with connect_blocking(f"unix:{serving.path}", options=options) as channel:
        wait = channel.unary_unary("/t.T/Never").future(b"")
        assert serving.handlers.entered.acquire(timeout=30)
        with pytest.raises(grpc.FutureTimeoutError):
            wait.result(timeout=0.5)
        wait.cancel()
        assert channel.unary_unary("/t.T/Echo")(b"x", timeout=30) == b"x"


def test_a_graceful_end_lets_calls_finish(serving, channel):
    release = threading.Event()

    def messages():
        yield b"a"
        release.wait(30)
        yield b"b"

    call = channel.stream_unary("/t.T/Total").future(messages(), timeout=30)
    assert serving.handlers.received.acquire(timeout=30)
    done = asyncio.run_coroutine_threadsafe(serving.server.close(30), serving.loop)
    release.set()
    assert call.result() == b"2"
    done.result(30)


def test_an_end_is_unavailable_to_those_who_wait(serving, channel):
    call = channel.unary_unary("/t.T/Never").future(b"", timeout=30)
    assert serving.handlers.entered.acquire(timeout=30)
    serving.run(serving.server.close(0))
    assert call.exception().code() is grpc.StatusCode.UNAVAILABLE
