"""Events: what has happened in the daemon, as it happens."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from orlop.api.services.events.v1 import events_pb2 as pb
from orlop.api.types import event_pb2
from orlop.client.channel import Rpc
from orlop.client.session import Session
from orlop.client.stamps import to_datetime

_SERVICE = "containerd.services.events.v1.Events"
SUBSCRIBE = Rpc(_SERVICE, "Subscribe", pb.SubscribeRequest, event_pb2.Envelope)
PUBLISH = Rpc(_SERVICE, "Publish", pb.PublishRequest, Empty)

_MODULES = ("task", "container", "image", "snapshot", "content", "namespace", "sandbox")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An envelope: when and where something happened, and what.

    Attributes:
        topic: such as `/tasks/exit`.
        type_url: name of the event's message, such as `containerd.events.TaskExit`.
        message: the decoded event, None where its type is not known here.
        value: the event's encoded bytes.
    """

    timestamp: datetime
    nanoseconds: int
    namespace: str
    topic: str
    type_url: str
    message: Message | None
    value: bytes


async def subscribe(session: Session, filters: Sequence[str] = ()) -> AsyncIterator[Event]:
    """Yield events from now on, of all namespaces, that match one of the filters (all without filters).

    A subscriber that reads too slowly is cut off by the daemon with an error rather than slowing others.
    """
    async for envelope in session.receive(SUBSCRIBE, pb.SubscribeRequest(filters=list(filters))):
        yield Event(
            timestamp=to_datetime(envelope.timestamp),
            nanoseconds=envelope.timestamp.nanos,
            namespace=envelope.namespace,
            topic=envelope.topic,
            type_url=envelope.event.type_url,
            message=decode(envelope.event),
            value=envelope.event.value,
        )


async def publish(session: Session, topic: str, event: Message) -> None:
    """Publish an event of one's own."""
    await session.call(PUBLISH, pb.PublishRequest(topic=topic, event=pack(event)))


def pack(message: Message) -> PackedAny:
    """An Any as containerd packs one: its type URL is the bare message name."""
    return PackedAny(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def decode(packed: PackedAny) -> Message | None:
    """The message in an Any whose type URL names one of containerd's events (older spellings too), else None."""
    import importlib

    name = packed.type_url.rsplit("/", 1)[-1].rsplit(".", 1)[-1]
    for module_name in _MODULES:
        module = importlib.import_module(f"orlop.api.events.{module_name}_pb2")
        cls = getattr(module, name, None)
        if cls is not None:
            decoded: Message = cls.FromString(packed.value)
            return decoded
    return None
