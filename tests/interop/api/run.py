"""Runs programs against a daemon and tells what a client saw: answers, events and what is left, in words.

What differs from run to run (times, directories, the names of namespaces) is replaced by words.
"""

import contextlib
import importlib
import pkgutil
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import grpc
from google.protobuf import message_factory
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

import orlop.api.events
from orlop.api.services.content.v1 import content_pb2
from orlop.api.services.events.v1 import events_pb2
from orlop.api.services.snapshots.v1 import snapshots_pb2
from orlop.api.types.event_pb2 import Envelope
from tests.interop.api import steps
from tests.interop.api.steps import Program, Step

TIMEOUT_S: Final = 30.0
SENTINEL: Final = "/the/end"
READY: Final = "/ready/"
TOPICS_SINCE: Final = {"/content/create": (2, 0)}
"""Events that not every release of containerd tells of."""
COLLECTED: Final = ("/snapshot/remove", (1, 7))
"""The event of a snapshot that is collected, and since when it is told of."""
FIELDS_SINCE: Final = {
    f"containerd.events.Snapshot{name}.snapshotter": (1, 7) for name in ("Prepare", "Commit", "Remove")
}
"""Fields of events that not every release of containerd fills in."""
SNAPSHOTTERS: Final = ("native", "overlayfs")
# Events are opened by their type's name: the modules that define them must have been imported.
for _module in pkgutil.iter_modules(orlop.api.events.__path__, "orlop.api.events."):
    importlib.import_module(_module.name)

ZERO_TIME_S: Final = -62135596800
"""What Go's zero time is in seconds since the epoch."""

WORDS: Final = (
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| ?\+0000 UTC| ?[+-]\d\d:\d\d)?( m=\+[\d.]+)?", "TIME"),
    (r"locked for [\d.µnm]+s", "locked for T"),
    (r"ROOT/io\.containerd\.snapshotter\.v1\.(\w+)/snapshots/\d+", r"ROOT/\1/N"),
    (r"ROOT/snapshots/native/\d+/fs", "ROOT/native/N"),
    (r"ROOT/snapshots/(\w+)/\d+", r"ROOT/\1/N"),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one step gave."""

    code: str
    text: str = ""
    messages: list[Any] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For a person, and for the comparison."""
        shown = [self.code if not self.text else f"{self.code}: {self.text}"]
        for message in self.messages:
            shown += _lines(message, "  ")
        return shown


class Peer:
    """A daemon that programs are run against; a context manager.

    Args:
        places: directories of the daemon and the words that stand for them.
        version: release of containerd that answers are compared for.
        repeats: at the end of a Content.Write, it sends its last answer again, as containerd does.
    """

    def __init__(
        self, address: Path, places: Mapping[str, str], version: tuple[int, int], *, repeats: bool = False
    ) -> None:
        self._repeats = repeats
        self._version = version
        self._ignored = {topic for topic, since in TOPICS_SINCE.items() if version < since}
        self._channel = grpc.insecure_channel(
            f"unix:{address}",
            options=[("grpc.max_receive_message_length", 32 << 20), ("grpc.max_send_message_length", 32 << 20)],
        )
        self._places = places
        self._events: queue.Queue[Envelope] = queue.Queue()
        self._stash: list[Envelope] = []
        self._subscription: Any = None
        self._thread = threading.Thread(target=self._collect, daemon=True)

    def __enter__(self) -> Self:
        subscribe = self._channel.unary_stream(
            "/containerd.services.events.v1.Events/Subscribe",
            request_serializer=events_pb2.SubscribeRequest.SerializeToString,
            response_deserializer=Envelope.FromString,
        )
        self._subscription = subscribe(events_pb2.SubscribeRequest())
        self._thread.start()
        # A subscription begins some time after its call: ask until it tells of a question.
        while True:
            self._publish("ready")
            with contextlib.suppress(queue.Empty):
                self._events.get(timeout=0.05)
                return self

    def __exit__(self, *_exc: object) -> None:
        self._subscription.cancel()
        self._thread.join()
        self._channel.close()

    def _collect(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            for envelope in self._subscription:
                self._events.put(envelope)

    def _publish(self, namespace: str) -> None:
        self._unary("Events.Publish", {"topic": SENTINEL, "event": {"type_url": "end"}}, _headers(namespace, ""))

    def run(self, program: Program, namespace: str) -> dict[str, Answer]:
        """The answers by label (numbered where one comes twice), and what follows: `events`, `left`."""
        places = _places(namespace)
        streams: dict[str, _Stream] = {}
        answers: dict[str, Answer] = {}
        for step in program.steps:
            label, number = step.label, 1
            while label in answers:
                number += 1
                label = f"{step.label} #{number}"
            answers[label] = self._normalised(self._step(step, places, streams), places)
        for stream in streams.values():
            stream.call.cancel()
        answers["left"] = self._normalised(Answer("", "", self._left(places)), places)
        told = list(self._told(places))
        if program.collects:
            told = self._collected(told)
        answers["events"] = self._normalised(Answer("", "", told), places)
        return answers

    # -- steps ------------------------------------------------------------------------------------------------------

    def _step(self, step: Step, places: Mapping[str, str], streams: dict[str, "_Stream"]) -> Answer:
        headers = _headers(step.namespace.format(**places), step.lease)
        requests = [steps.message(step.method, _filled(request, places)) for request in step.requests]
        if step.stream:
            if step.opens:
                streams[step.stream] = _Stream(self._multi(step.method), headers)
            answer = streams[step.stream].step(requests, ends=step.ends)
            if self._repeats and step.ends and answer.messages:
                answer.messages.pop()
            return answer
        if step.publishes:
            return self._subscribed(step, places, headers)
        return self._guard(lambda: self._send(step, requests, headers), step)

    def _subscribed(self, step: Step, places: Mapping[str, str], headers: Any) -> Answer:
        """Subscribe, publish, and tell what came."""
        filters = list(_filled(step.requests[0]["filters"], places))
        request = steps.message(step.method, {"filters": [*filters, f"topic~=^{READY}"] if filters else []})
        envelopes: queue.Queue[Envelope] = queue.Queue()
        stream = self._multi(step.method)(request, metadata=headers, timeout=TIMEOUT_S)

        refusals: list[Answer] = []

        def read() -> None:
            try:
                for envelope in stream:
                    envelopes.put(envelope)
            except grpc.RpcError as error:
                refusals.append(Answer(error.code().name, error.details() or ""))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            while envelopes.empty():  # a subscription begins some time after its call
                if refusals:
                    return refusals[0]
                self._unary("Events.Publish", {"topic": f"{READY}begin", "event": {"type_url": "x"}}, headers)
                time.sleep(0.001)
            for publish in step.publishes:
                self._unary("Events.Publish", _filled(publish, places), headers)
            self._unary("Events.Publish", {"topic": f"{READY}end", "event": {"type_url": "x"}}, headers)
            found = []
            while (envelope := envelopes.get(timeout=TIMEOUT_S)).topic != f"{READY}end":
                if envelope.namespace in places.values() and not envelope.topic.startswith(READY):
                    found.append(plain(envelope))
            return Answer("OK", "", found)
        finally:
            stream.cancel()
            reader.join()

    def _send(self, step: Step, requests: list[Message], headers: Any) -> Iterator[Message]:
        rpc = _rpc(step.method)
        multi = self._multi(step.method)
        if rpc.client_streaming:
            answers = multi(iter(requests), metadata=headers, timeout=TIMEOUT_S)
        else:
            answers = multi(requests[0], metadata=headers, timeout=TIMEOUT_S)
        if rpc.server_streaming:
            yield from answers
        else:
            yield answers

    def _guard(self, send: Callable[[], Iterator[Message]], step: Step) -> Answer:
        messages: list[Any] = []
        try:
            for message in send():
                messages.append(plain(message, sort=step.sort))
        except grpc.RpcError as error:
            return Answer(error.code().name, "" if step.only_code else error.details() or "", messages)
        if self._repeats and step.method == "Content.Write" and messages:
            messages.pop()
        return Answer("OK", "", messages)

    def _multi(self, method: str) -> Any:
        rpc = _rpc(method)
        kind = f"{'stream' if rpc.client_streaming else 'unary'}_{'stream' if rpc.server_streaming else 'unary'}"
        return getattr(self._channel, kind)(
            f"/{rpc.containing_service.full_name}/{rpc.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(rpc.output_type).FromString,
        )

    def _unary(self, method: str, request: dict[str, Any], headers: Any) -> Any:
        return self._multi(method)(steps.message(method, request), metadata=headers, timeout=TIMEOUT_S)

    # -- afterwards -------------------------------------------------------------------------------------------------

    def _left(self, places: Mapping[str, str]) -> list[Any]:
        found = []
        for namespace in places.values():
            headers = _headers(namespace, "")
            here: dict[str, Any] = {
                "containers": [one.id for one in self._unary("Containers.List", {}, headers).containers],
                "images": [one.name for one in self._unary("Images.List", {}, headers).images],
                "content": sorted(
                    info.digest
                    for part in self._multi("Content.List")(content_pb2.ListContentRequest(), metadata=headers)
                    for info in part.info
                ),
                "ingests": sorted(
                    f"{one.ref} {one.offset}" for one in self._unary("Content.ListStatuses", {}, headers).statuses
                ),
            }
            leases = self._unary("Leases.List", {}, headers).leases
            for lease in leases:
                held = self._unary("Leases.ListResources", {"id": lease.id}, headers).resources
                here[f"lease {lease.id}"] = sorted(f"{one.type} {one.id}" for one in held)
            for name in SNAPSHOTTERS:
                listing = self._multi("Snapshots.List")(
                    snapshots_pb2.ListSnapshotsRequest(snapshotter=name), metadata=headers
                )
                here[name] = sorted(
                    f"{snapshots_pb2.Kind.Name(info.kind)} {info.name} on {info.parent!r}"
                    for part in listing
                    for info in part.info
                )
            found.append(
                {namespace: {name: value for name, value in here.items() if value or name.startswith("lease")}}
            )
        return found

    def tidy(self, namespace: str) -> None:
        """Remove what a program has left: content is shared between namespaces, and so the next one would see it."""
        for here in _places(namespace).values():
            headers = _headers(here, "")
            for one in self._unary("Containers.List", {}, headers).containers:
                self._unary("Containers.Delete", {"id": one.id}, headers)
            for one in self._unary("Images.List", {}, headers).images:
                self._unary("Images.Delete", {"name": one.name}, headers)
            for one in self._unary("Leases.List", {}, headers).leases:
                self._unary("Leases.Delete", {"id": one.id}, headers)
            for one in self._unary("Content.ListStatuses", {}, headers).statuses:
                self._unary("Content.Abort", {"ref": one.ref}, headers)
            for part in self._multi("Content.List")(content_pb2.ListContentRequest(), metadata=headers):
                for info in part.info:
                    self._unary("Content.Delete", {"digest": info.digest}, headers)
        for step in steps.gc():
            self._unary(step.method, step.requests[0], _headers("tidy", ""))

    def _told(self, places: Mapping[str, str]) -> Iterator[Any]:
        """The program's events, in their order."""
        self._publish(places["ns"])
        while True:
            envelope = self._events.get(timeout=TIMEOUT_S)
            if envelope.namespace not in places.values():
                continue
            if envelope.topic == SENTINEL:
                return
            if envelope.topic not in self._ignored and not envelope.topic.startswith(READY):
                yield self._without_new_fields(plain(envelope))

    def _collected(self, told: list[Any]) -> list[Any]:
        """Snapshots that are collected at once: containerd tells of them in its database's order, we from the top of
        each stack down."""
        topic, since = COLLECTED
        rest = [envelope for envelope in told if envelope["topic"] != topic]
        removed = [envelope for envelope in told if envelope["topic"] == topic]
        return rest + (sorted(removed, key=str) if self._version >= since else [])

    def _without_new_fields(self, envelope: dict[str, Any]) -> dict[str, Any]:
        for name, event in envelope.get("event", {}).items():
            for new in {key for key in event if self._version < FIELDS_SINCE.get(f"{name}.{key}", (0, 0))}:
                del event[new]
        return envelope

    def _normalised(self, answer: Answer, places: Mapping[str, str]) -> Answer:
        return Answer(answer.code, self._words(answer.text, places), self._deep(answer.messages, places))

    def _deep(self, value: Any, places: Mapping[str, str]) -> Any:
        if isinstance(value, str):
            return self._words(value, places)
        if isinstance(value, list):
            return [self._deep(item, places) for item in value]
        if isinstance(value, dict):
            return {self._words(key, places): self._deep(item, places) for key, item in value.items()}
        return value

    def _words(self, text: str, places: Mapping[str, str]) -> str:
        for name in ("other", "third", "ns"):  # the shortest last: the others begin with it
            text = text.replace(places[name], name.upper())
        for path, word in self._places.items():
            text = text.replace(path, word)
        for pattern, word in WORDS:
            text = re.sub(pattern, word, text)
        # containerd says an error's class once for each layer that wraps it; Go's errdefs strips them all.
        return re.sub(r"(: [a-z ]+)\1+$", r"\1", text)


class _Stream:
    """A stream that lives over several steps."""

    def __init__(self, multi: Any, headers: Any) -> None:
        self._requests: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self.call = multi(iter(self._requests.get, None), metadata=headers, timeout=TIMEOUT_S)

    def step(self, requests: list[Message], *, ends: bool) -> Answer:
        """Send, and wait for one answer, or for the end."""
        for request in requests:
            self._requests.put(request)
        if ends:
            self._requests.put(None)
        messages: list[Any] = []
        try:
            for message in self.call:
                messages.append(plain(message))
                if not ends:
                    break
        except grpc.RpcError as error:
            return Answer(error.code().name, error.details() or "", messages)
        return Answer("OK", "", messages)


def compare(theirs: Mapping[str, Answer], ours: Mapping[str, Answer]) -> Iterator[tuple[str, bool, str]]:
    """What differs: the label, whether only the text does, and both for a person."""
    for label, answer in theirs.items():
        other = ours[label]
        if answer == other:
            continue
        only_text = (answer.code, answer.messages) == (other.code, other.messages)
        shown = [f"- {line}" for line in answer.lines()] + [f"+ {line}" for line in other.lines()]
        yield label, only_text, "\n".join(shown)


def plain(message: Message, *, sort: bool = False) -> Any:
    """A message as nested dicts of its fields that are set; times as the word TIME, `Any`s opened if they can be."""
    if message.DESCRIPTOR.full_name == "google.protobuf.Timestamp":
        seconds = message.seconds  # type: ignore[attr-defined]
        return "TIME" if seconds > 10**9 else f"TIME {seconds}"
    if isinstance(message, AnyMessage):
        return _opened(message)
    shown = {}
    for found, value in message.ListFields():
        # containerd 1.6 sends Go's zero time where later releases send nothing.
        if found.message_type is not None and getattr(value, "seconds", None) == ZERO_TIME_S:
            continue
        shown[found.name] = _field(found, value, sort=sort)
    return shown


def _field(found: FieldDescriptor, value: Any, *, sort: bool) -> Any:
    if found.message_type is not None and found.message_type.GetOptions().map_entry:
        return {str(key): plain(value[key]) if isinstance(value[key], Message) else value[key] for key in sorted(value)}
    if found.is_repeated:
        items = [plain(item) if isinstance(item, Message) else item for item in value]
        return sorted(items, key=str) if sort else items
    if isinstance(value, Message):
        return plain(value)
    if found.enum_type is not None:
        known = found.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    return value.hex() if isinstance(value, bytes) and len(value) > 64 else value


def _opened(message: AnyMessage) -> Any:
    from google.protobuf import descriptor_pool

    with contextlib.suppress(KeyError, DecodeError):
        pool = descriptor_pool.Default()
        descriptor = pool.FindMessageTypeByName(message.type_url.rpartition("/")[2])
        return {message.type_url: plain(message_factory.GetMessageClass(descriptor).FromString(message.value))}
    return {message.type_url: message.value}


def _places(namespace: str) -> dict[str, str]:
    return {"ns": namespace, "other": f"{namespace}-other", "third": f"{namespace}-third"}


def _rpc(method: str) -> Any:
    service, _, name = method.partition(".")
    return steps.SERVICES[service].methods_by_name[name]


def _headers(namespace: str, lease: str) -> list[tuple[str, str]]:
    found = [("containerd-namespace", namespace)] if namespace else []
    return [*found, ("containerd-lease", lease)] if lease else found


def _filled(value: Any, places: Mapping[str, str]) -> Any:
    """The request with the places in its texts filled in."""
    if isinstance(value, str):
        for name, text in places.items():
            value = value.replace("{" + name + "}", text)
        return value
    if isinstance(value, list | tuple):
        return [_filled(item, places) for item in value]
    if isinstance(value, dict):
        return {_filled(key, places): _filled(item, places) for key, item in value.items()}
    return value


def _lines(value: Any, indent: str) -> list[str]:
    if isinstance(value, dict) and value:
        shown = []
        for key, item in value.items():
            if isinstance(item, dict | list) and item:
                shown += [f"{indent}{key}:", *_lines(item, indent + "  ")]
            else:
                shown.append(f"{indent}{key}: {item!r}")
        return shown
    if isinstance(value, list) and value:
        return [line for item in value for line in _lines(item, indent + "- ")]
    return [f"{indent}{value!r}"]
