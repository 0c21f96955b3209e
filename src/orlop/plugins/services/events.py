"""The Events services: the one of gRPC clients, and the one that shims forward to over ttrpc."""

from collections.abc import AsyncIterator
from typing import Any, Final

from google.protobuf.empty_pb2 import Empty

from orlop.api.services.events.v1 import events_pb2
from orlop.api.services.ttrpc.events.v1 import events_pb2 as ttrpc_events_pb2
from orlop.api.types.event_pb2 import Envelope
from orlop.base import namespaces
from orlop.base.errdefs import OrlopError
from orlop.base.rpc import Call, Service, bind
from orlop.core.events import Exchange
from orlop.core.kinds import EVENT, GRPC, TTRPC
from orlop.core.plugin import Context, Registration


class Events:
    """containerd.services.events.v1.Events, and with `forward` also containerd.services.events.ttrpc.v1.Events."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def publish(self, call: Call, request: events_pb2.PublishRequest) -> Empty:
        try:
            namespace = namespaces.validate(call.namespace)
        except OrlopError as error:
            raise type(error)(f"failed publishing event: {error.text}") from None
        self._exchange.publish_any(namespace, request.topic, request.event)
        return Empty()

    def forward(self, _call: Call, request: Any) -> Empty:
        # Any: the two services' requests differ in name only.
        self._exchange.forward(request.envelope)
        return Empty()

    async def subscribe(self, call: Call, request: events_pb2.SubscribeRequest) -> AsyncIterator[Envelope]:
        with self._exchange.subscribe(request.filters, namespace=call.bound) as subscription:
            async for envelope in subscription:
                yield envelope


def _exchange(context: Context) -> Exchange:
    exchange = Exchange()
    context.on_close(exchange.close)
    return exchange


def _init(context: Context) -> Service:
    return bind(events_pb2.DESCRIPTOR.services_by_name["Events"], Events(context.get(EVENT)))


def _init_ttrpc(context: Context) -> Service:
    return bind(ttrpc_events_pb2.DESCRIPTOR.services_by_name["Events"], Events(context.get(EVENT)))


REGISTRATIONS: Final = (
    Registration(kind=EVENT, id="exchange", init=_exchange),
    Registration(kind=GRPC, id="events", requires=(EVENT,), init=_init),
    Registration(kind=TTRPC, id="events", requires=(EVENT,), init=_init_ttrpc),
)
