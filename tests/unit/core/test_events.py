"""The exchange: filters, order, slow subscribers, validation."""

import asyncio
import threading

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from orlop.api.events import container_pb2, task_pb2
from orlop.api.types.event_pb2 import Envelope
from orlop.base.errdefs import InvalidArgumentError, ResourceExhaustedError
from orlop.core.events import Exchange, exchange, pack


def subscribed(filters, publish, count):
    async def run():
        bus = Exchange()
        with bus.subscribe(filters) as subscription:
            publish(bus)
            return [await anext(subscription) for _ in range(count)]

    return asyncio.run(asyncio.wait_for(run(), 10))


def test_events_of_one_thread_arrive_in_order_with_time_and_type():
    def publish(bus):
        def many():
            for number in range(100):
                bus.publish("ns", "/tasks/start", task_pb2.TaskStart(container_id="c", pid=number))

        thread = threading.Thread(target=many)
        thread.start()
        thread.join()

    envelopes = subscribed([], publish, 100)
    assert [task_pb2.TaskStart.FromString(e.event.value).pid for e in envelopes] == list(range(100))
    assert envelopes[0].event.type_url == "containerd.events.TaskStart"
    assert envelopes[0].timestamp.ToNanoseconds() > 0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('topic=="/tasks/exit"', ["exit"]),
        ("namespace==other", ["other"]),
        ("event.container_id==web", ["exit"]),
        ("topic~=/containers/", ["create", "other"]),
        ("event.runtime.name==runc", ["create"]),
    ],
)
def test_filters_see_envelope_and_event(text, wanted):
    create = container_pb2.ContainerCreate(id="create", image="i")
    create.runtime.name = "runc"
    events = [
        ("ns", "/containers/create", create),
        ("ns", "/tasks/exit", task_pb2.TaskExit(container_id="web", id="exit")),
        ("other", "/containers/create", container_pb2.ContainerCreate(id="other")),
    ]
    envelopes = subscribed([text], lambda bus: [bus.publish(*event) for event in events], len(wanted))
    names = [e.event.value for e in envelopes]
    expected = [event.SerializeToString() for _, _, event in events if getattr(event, "id", "") in wanted]
    assert names == expected


def test_a_subscriber_that_lags_is_told_and_slows_nobody(monkeypatch):
    monkeypatch.setattr(exchange, "BACKLOG_LIMIT", 10)

    async def run():
        bus = Exchange()
        with bus.subscribe() as slow, bus.subscribe() as quick:
            for _ in range(11):
                bus.publish("ns", "/x/y", task_pb2.TaskStart())
                await anext(quick)
            with pytest.raises(ResourceExhaustedError, match="10 events behind"):
                await anext(slow)

    asyncio.run(run())


def test_an_event_that_cannot_be_decoded_has_no_fields_and_stops_nobody():
    async def run():
        bus = Exchange()
        filtered, all_of_them = bus.subscribe(["event.id==x"]), bus.subscribe()
        with filtered, all_of_them:
            broken = AnyMessage(type_url="containerd.events.TaskExit", value=b"\xff")
            bus.publish_any("ns", "/x/y", broken)
            bus.publish("ns", "/x/y", task_pb2.TaskExit(id="x"))
            assert (await anext(all_of_them)).event == broken
            assert task_pb2.TaskExit.FromString((await anext(filtered)).event.value).id == "x"

    asyncio.run(asyncio.wait_for(run(), 10))


def test_closing_the_exchange_ends_its_subscriptions():
    async def run():
        bus = Exchange()
        with bus.subscribe() as subscription:
            waiting = asyncio.ensure_future(anext(subscription, None))
            await asyncio.sleep(0)
            bus.close()
            return await waiting

    assert asyncio.run(asyncio.wait_for(run(), 10)) is None


@pytest.mark.parametrize("topic", ["", "x", "/", "/a//b", "/a/b!", "/a/"])
def test_bad_topics_are_refused(topic):
    async def run():
        with pytest.raises(InvalidArgumentError, match="topic"):
            Exchange().publish_any("ns", topic, pack(task_pb2.TaskStart()))

    asyncio.run(run())


def test_a_forwarded_envelope_needs_namespace_and_time():
    async def run():
        bus = Exchange()
        with pytest.raises(InvalidArgumentError):
            bus.forward(Envelope(topic="/a/b", namespace=""))
        with pytest.raises(InvalidArgumentError, match="timestamp"):
            bus.forward(Envelope(topic="/a/b", namespace="ns"))

    asyncio.run(run())
