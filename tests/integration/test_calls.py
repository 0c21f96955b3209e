"""Calls of a whole daemon: hundreds that wait, clients that go away in the middle, large messages."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from grpc import aio

from orlop.api.services.containers.v1 import containers_pb2
from orlop.api.services.content.v1 import content_pb2
from orlop.api.services.events.v1 import events_pb2
from orlop.api.services.leases.v1 import leases_pb2
from orlop.api.services.tasks.v1 import tasks_pb2
from tests.interop.api import steps
from tools.daemons import Ctr, Orlopd
from tools.images import Image

pytestmark = pytest.mark.root

MANY = 300
TIMEOUT_S = 60
MESSAGE_LIMIT = 16 << 20
WRITE, COMMIT = content_pb2.WriteAction.WRITE, content_pb2.WriteAction.COMMIT


@pytest.fixture(params=["lean", "grpcio"])
def daemon(request: pytest.FixtureRequest, grpcio: None) -> Orlopd:
    return request.getfixturevalue(f"{request.param}_orlopd")


class Client:
    """grpcio's client in one namespace. Any: methods and messages by their names."""

    def __init__(self, channel: Any, namespace: str) -> None:
        self.channel = channel
        self.metadata = [("containerd-namespace", namespace)]

    def __call__(self, method: str, *request: Any, timeout: float = TIMEOUT_S) -> Any:
        service, _, name = method.partition(".")
        rpc = steps.SERVICES[service].methods_by_name[name]
        kind = f"{'stream' if rpc.client_streaming else 'unary'}_{'stream' if rpc.server_streaming else 'unary'}"
        call = getattr(self.channel, kind)(
            f"/{rpc.containing_service.full_name}/{rpc.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=steps.answer_class(method).FromString,
        )
        return call(*request, metadata=self.metadata, timeout=timeout)


def run(daemon: Orlopd, namespace: str, test: Callable[[Client], Awaitable[None]]) -> None:
    async def main() -> None:
        sizes = [("grpc.max_receive_message_length", 32 << 20), ("grpc.max_send_message_length", 32 << 20)]
        async with asyncio.timeout(TIMEOUT_S), aio.insecure_channel(f"unix:{daemon.address}", options=sizes) as channel:
            await test(Client(channel, namespace))

    asyncio.run(main())


def test_hundreds_wait_for_one_exit(
    daemon: Orlopd, go_ctr: Callable[..., Ctr], busybox_image: Image, namespace: str
) -> None:
    ctr = go_ctr(daemon, namespace)
    ctr("images", "import", busybox_image.archive)
    ctr("run", "--detach", busybox_image.reference, "one", "sleep", "1000")

    async def test(client: Client) -> None:
        wait = tasks_pb2.WaitRequest(container_id="one")
        waits = [asyncio.ensure_future(client("Tasks.Wait", wait)) for _ in range(MANY)]
        with pytest.raises(aio.AioRpcError) as caught:
            await client("Tasks.Wait", wait, timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        for gone in waits[::3]:
            gone.cancel()
        # Who asks meanwhile is answered.
        assert len((await client("Tasks.List", tasks_pb2.ListTasksRequest())).tasks) == 1
        await client("Tasks.Kill", tasks_pb2.KillRequest(container_id="one", signal=9))
        answers = await asyncio.gather(*waits, return_exceptions=True)
        ended = [answer for answer in answers if not isinstance(answer, BaseException)]
        assert len(ended) == MANY - len(waits[::3])
        assert {(one.exit_status, one.exited_at.ToNanoseconds()) for one in ended} == {
            (137, ended[0].exited_at.ToNanoseconds())
        }
        assert (await client("Tasks.Wait", wait)).exit_status == 137

    try:
        run(daemon, namespace, test)
    finally:
        ctr("tasks", "rm", "--force", "one", check=False)
        ctr("containers", "rm", "one", check=False)
        ctr("images", "rm", "--sync", busybox_image.reference, check=False)
        daemon.forget_cgroup(namespace)


def test_hundreds_subscribe_and_each_gets_its_own_in_order(daemon: Orlopd, namespace: str) -> None:
    rounds = 5

    async def test(client: Client) -> None:
        async def publish(topic: str, value: bytes = b"") -> None:
            request = events_pb2.PublishRequest(topic=topic, event=AnyMessage(type_url="x", value=value))
            await client("Events.Publish", request)

        async def follow(number: int) -> list[bytes]:
            mine = [f'namespace=={namespace},topic=="/{topic}"' for topic in (f"mine/n{number}", "ready")]
            stream = client("Events.Subscribe", events_pb2.SubscribeRequest(filters=mine))
            found: list[bytes] = []
            while len(found) < rounds:
                envelope = await stream.read()
                if envelope.topic == "/ready":
                    ready.add(number)
                else:
                    assert envelope.topic == f"/mine/n{number}"
                    found.append(envelope.event.value)
            stream.cancel()
            return found

        ready: set[int] = set()
        followers = [asyncio.ensure_future(follow(number)) for number in range(MANY)]
        while len(ready) < MANY:
            await publish("/ready")
        for index in range(rounds):
            await asyncio.gather(*(publish(f"/mine/n{number}", b"%d" % index) for number in range(MANY)))
        for found in await asyncio.gather(*followers):
            assert found == [b"%d" % index for index in range(rounds)]

    run(daemon, namespace, test)


def test_a_write_that_is_cut_off_lets_go_of_its_ref(daemon: Orlopd, namespace: str) -> None:
    async def test(client: Client) -> None:
        first = client("Content.Write")
        await first.write(content_pb2.WriteContentRequest(ref="r", action=WRITE, data=b"half"))
        assert (await first.read()).offset == 4
        second = client("Content.Write")
        await second.write(content_pb2.WriteContentRequest(ref="r"))
        with pytest.raises(aio.AioRpcError) as caught:
            await second.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        first.cancel()
        codes = [grpc.StatusCode.UNAVAILABLE]
        while codes[-1] is grpc.StatusCode.UNAVAILABLE:  # until the daemon has seen that the client is gone
            again = client("Content.Write")
            await again.write(content_pb2.WriteContentRequest(ref="r"))
            await again.done_writing()
            answers = [answer async for answer in _answers(again, codes)]
        assert [answer.offset for answer in answers] == [4]
        await client("Content.Abort", content_pb2.AbortRequest(ref="r"))

    run(daemon, namespace, test)


def test_messages_of_16_mib_both_ways(daemon: Orlopd, namespace: str) -> None:
    async def test(client: Client) -> None:
        data = bytes(range(256)) * ((MESSAGE_LIMIT - 1024) // 256)
        write = client("Content.Write")
        await write.write(content_pb2.WriteContentRequest(ref="big", action=COMMIT, data=data))
        digest = (await write.read()).digest
        assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
        read = client("Content.Read", content_pb2.ReadContentRequest(digest=digest))
        assert b"".join([part.data async for part in read]) == data
        await client("Content.Delete", content_pb2.DeleteContentRequest(digest=digest))

        spec = AnyMessage(type_url="spec", value=bytes(MESSAGE_LIMIT - 1024))
        container = containers_pb2.Container(id="big", spec=spec)
        container.runtime.name = "r"
        await client("Containers.Create", containers_pb2.CreateContainerRequest(container=container))
        got = await client("Containers.Get", containers_pb2.GetContainerRequest(id="big"))
        assert len(got.container.spec.value) == MESSAGE_LIMIT - 1024
        await client("Containers.Delete", containers_pb2.DeleteContainerRequest(id="big"))

        too_large = content_pb2.WriteContentRequest(ref="too-big", action=COMMIT, data=bytes(MESSAGE_LIMIT + 1))
        write = client("Content.Write")
        with contextlib.suppress(aio.AioRpcError):
            await write.write(too_large)
        assert await write.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not (await client("Content.ListStatuses", content_pb2.ListStatusesRequest())).statuses

    run(daemon, namespace, test)


def test_who_does_not_wait_for_a_collection_harms_nobody(daemon: Orlopd, namespace: str) -> None:
    async def test(client: Client) -> None:
        for index in range(50):
            await client("Leases.Create", leases_pb2.CreateRequest(id=f"l{index}"))
        calls = [
            asyncio.ensure_future(client("Leases.Delete", leases_pb2.DeleteRequest(id=f"l{index}", sync=True)))
            for index in range(50)
        ]
        for call in calls[::2]:
            call.cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [one for one in answers[1::2] if isinstance(one, BaseException)] == []
        await client("Leases.Create", leases_pb2.CreateRequest(id="last"))
        await client("Leases.Delete", leases_pb2.DeleteRequest(id="last", sync=True))

    run(daemon, namespace, test)


async def _answers(call: Any, codes: list[grpc.StatusCode]) -> AsyncIterator[Any]:
    """A stream's answers to its end, and then its status."""
    with contextlib.suppress(aio.AioRpcError):
        async for answer in call:
            yield answer
    codes.append(await call.code())
