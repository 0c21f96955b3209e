"""The exchange: every event of the daemon passes here once and goes to all subscribers whose filters match.

Per object, events arrive in the order of their commits: the metadata writer publishes after each COMMIT in commit
order, shims forward theirs one after the other, and both queues end in the event loop's. A subscriber that does not
keep up loses its subscription, with an error that says so, and slows nobody.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Self

from google.protobuf import descriptor_pool
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from orlop.api.types.event_pb2 import Envelope
from orlop.base import filters, identifiers
from orlop.base.errdefs import InvalidArgumentError, ResourceExhaustedError
from orlop.base.quoting import quote

# Events that a subscriber may lag behind; at about 500 bytes each, a stuck subscriber holds a few MB.
BACKLOG_LIMIT: Final = 16384
# Of a topic that is none, an error shows as many characters.
SHOWN_TOPIC: Final = 256
_POOL: Final = descriptor_pool.Default()  # type: ignore[no-untyped-call]


def pack(message: Message) -> AnyMessage:
    """Wrap an event with containerd's type URL: the message's full name without a host (typeurl's MarshalAny)."""
    return AnyMessage(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


class Subscription:
    """An async iterator of envelopes; leaving its context ends it.

    Raises while iterating:
        ResourceExhaustedError: the subscriber fell more than `BACKLOG_LIMIT` events behind.
    """

    def __init__(self, exchange: "Exchange", match: Callable[[Envelope], bool]) -> None:
        self._exchange = exchange
        self._match = match
        self._backlog: deque[Envelope] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._overrun = False
        self._closed = False

    def __enter__(self) -> Self:
        self._exchange.add(self)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the subscription; an iterator that waits ends too."""
        self._closed = True
        self._exchange.remove(self)
        self._wake()

    def offer(self, envelope: Envelope) -> None:
        """Take an event if it matches; never blocks."""
        if self._overrun or not self._match(envelope):
            return
        if len(self._backlog) >= BACKLOG_LIMIT:
            self._overrun = True
            self._backlog.clear()
        else:
            self._backlog.append(envelope)
        self._wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Envelope:
        while not self._backlog:
            if self._overrun:
                raise ResourceExhaustedError(f"event subscription: fell {BACKLOG_LIMIT} events behind")
            if self._closed:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._backlog.popleft()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Exchange:
    """Takes events from any thread and hands them to subscribers on the event loop that made it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._subscriptions: set[Subscription] = set()
        self._pending: deque[Envelope] = deque()
        self._draining = False

    def publish(self, namespace: str, topic: str, event: Message) -> None:
        """Publish an event of this daemon, from any thread. Namespace and topic are the caller's own, and so valid."""
        if not self._subscriptions:
            return  # who subscribes later has no right to it
        envelope = Envelope(namespace=namespace, topic=topic, event=pack(event))
        envelope.timestamp.FromNanoseconds(time.time_ns())
        self._hand_over(envelope)

    def publish_any(self, namespace: str, topic: str, event: AnyMessage) -> None:
        """Publish a client's event.

        Raises:
            InvalidArgumentError: the topic or the namespace is not valid.
        """
        timestamp = Timestamp()
        timestamp.FromNanoseconds(time.time_ns())
        self.forward(Envelope(timestamp=timestamp, namespace=namespace, topic=topic, event=event))

    def forward(self, envelope: Envelope) -> None:
        """Publish an envelope made elsewhere, such as by a shim.

        Raises:
            InvalidArgumentError: topic, namespace or timestamp is missing or not valid.
        """
        try:
            identifiers.validate(envelope.namespace)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"event envelope has invalid namespace: {error.text}") from None
        _validate_topic(envelope.topic)
        if not envelope.HasField("timestamp"):
            raise InvalidArgumentError("timestamp must be set on forwarded event")
        self._hand_over(envelope)

    def subscribe(self, filter_texts: Sequence[str] = (), *, namespace: str = "") -> Subscription:
        """A subscription to what any of the filters matches; to all without filters. Only to `namespace`'s if given.

        Fields: `namespace`, `topic`, and `event.<field>` of the events that this program knows.

        Raises:
            InvalidArgumentError: a filter cannot be parsed.
        """
        if not filter_texts:
            return Subscription(self, lambda envelope: namespace in ("", envelope.namespace))
        matches = filters.parse_all(filter_texts)
        return Subscription(
            self,
            lambda envelope: namespace in ("", envelope.namespace) and matches(lambda path: _field(envelope, path)),
        )

    def close(self) -> None:
        """End all subscriptions, so that open streams end when the daemon stops."""
        for subscription in list(self._subscriptions):
            subscription.close()

    def add(self, subscription: Subscription) -> None:
        """Called by `Subscription` on entering."""
        self._subscriptions.add(subscription)

    def remove(self, subscription: Subscription) -> None:
        """Called by `Subscription` on leaving."""
        self._subscriptions.discard(subscription)

    def _hand_over(self, envelope: Envelope) -> None:
        """To the event loop, which is woken once for all that have come by then."""
        self._pending.append(envelope)
        if not self._draining:
            self._draining = True
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._draining = False  # first: what is added from now on either wakes the loop anew or is seen below
        while self._pending:
            self._deliver(self._pending.popleft())

    def _deliver(self, envelope: Envelope) -> None:
        for subscription in tuple(self._subscriptions):
            subscription.offer(envelope)


def _validate_topic(topic: str) -> None:
    shown = f"envelope topic {quote(topic[:SHOWN_TOPIC])}"
    if not topic:
        raise InvalidArgumentError(f"{shown}: must not be empty")
    if not topic.startswith("/"):
        raise InvalidArgumentError(f"{shown}: must start with '/'")
    if topic == "/":
        raise InvalidArgumentError(f"{shown}: must have at least one component")
    for component in topic[1:].split("/"):
        try:
            identifiers.validate(component)
        except InvalidArgumentError as error:
            failed = f"failed validation on component {quote(component[:SHOWN_TOPIC])}"
            raise InvalidArgumentError(f"{shown}: {failed}: {error.text}") from None


def _field(envelope: Envelope, path: Sequence[str]) -> str | None:
    match path:
        case ["namespace"]:
            return envelope.namespace or None
        case ["topic"]:
            return envelope.topic or None
        case ["event", *rest]:
            return _event_field(envelope.event, rest)
    return None


def _event_field(event: AnyMessage, path: Sequence[str]) -> str | None:
    from google.protobuf.message_factory import GetMessageClass

    try:
        descriptor = _POOL.FindMessageTypeByName(event.type_url.rpartition("/")[2])
    except KeyError:
        return None
    try:
        # Any: the class depends on the event's type URL.
        value: Any = GetMessageClass(descriptor).FromString(event.value)
    except DecodeError:  # a client's own event: it has no fields, and nobody else's delivery must suffer
        return None
    for index, name in enumerate(path):
        if name == "labels" and "labels" in value.DESCRIPTOR.fields_by_name:
            label: str | None = dict(value.labels).get(".".join(path[index + 1 :]))
            return label
        if name not in value.DESCRIPTOR.fields_by_name:
            return None
        value = getattr(value, name)
        if not isinstance(value, Message):
            return value if isinstance(value, str) and index == len(path) - 1 else None
    return None
