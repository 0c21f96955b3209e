"""Events: what may be published and forwarded, and what a subscriber with filters gets."""

from typing import Any, Final

from google.protobuf.message import Message

from orlop.api.events import container_pb2, image_pb2, namespace_pb2, snapshot_pb2, task_pb2
from tests.interop.api.steps import Program, Step, call, subscribed

ANY: Final = {"type_url": "containerd.events.ContainerCreate", "value": b"\n\x03one\x12\x01i"}
UNKNOWN: Final = {"type_url": "example.org/unknown", "value": b"{}"}
TOPICS: Final = (
    "",
    "/",
    "x",
    "x/y",
    "/x",
    "/x/y",
    "/x/",
    "//x",
    "/x//y",
    "/a b",
    "/ä",
    "/UPPER/lower.dots_and-dashes",
    "/-x",
    "/" + "x" * 76,
    "/" + "x" * 77,
    "/x\n",
)


def _forward(**fields: Any) -> Step:
    return call("Events.Forward", envelope=fields)


CREATED: Final = container_pb2.ContainerCreate(id="web", image="img", runtime={"name": "runc"})
UPDATED: Final = container_pb2.ContainerUpdate(id="web", labels={"a": "1", "b.c": "2"}, snapshot_key="k")
EXITED: Final = task_pb2.TaskExit(container_id="web", id="e1", pid=7, exit_status=3)
IMAGE: Final = image_pb2.ImageCreate(name="img", labels={"a": "1"})
NAMED: Final = namespace_pb2.NamespaceCreate(name="n", labels={"a": "1"})
SNAPSHOT: Final = snapshot_pb2.SnapshotCommit(key="k", name="n")


def _event(topic: str, event: Message, type_url: str = "") -> dict[str, Any]:
    name = type_url or event.DESCRIPTOR.full_name
    return {"topic": topic, "event": {"type_url": name, "value": event.SerializeToString()}}


PUBLISHED: Final = (
    _event("/containers/create", CREATED),
    _event("/containers/update", UPDATED),
    _event("/tasks/exit", EXITED),
    _event("/images/create", IMAGE, "containerd.services.images.v1.ImageCreate"),
    _event("/namespaces/create", NAMED),
    _event("/snapshot/commit", SNAPSHOT),
    _event("/tasks/exit", EXITED, "type.googleapis.com/containerd.events.TaskExit"),
    {"topic": "/foreign/event", "event": UNKNOWN},
    {"topic": "/broken/event", "event": {"type_url": "containerd.events.TaskExit", "value": b"\xff"}},
)
FILTERS: Final = (
    "namespace=={ns}",
    "namespace==none",
    "namespace!=none",
    "namespace",
    'topic=="/tasks/exit"',
    "topic~=|/tasks/.+|",
    'topic~="^/(containers|images)/"',
    "topic!=none",
    "event",
    "event.id==web",
    "event.id",
    "event.container_id==web",
    "event.pid==7",
    "event.exit_status==3",
    "event.image==img",
    "event.runtime.name==runc",
    "event.runtime",
    "event.labels.a==1",
    "event.labels.b.c==2",
    'event.labels."b.c"==2',
    "event.labels",
    "event.name==img",
    "event.name==n",
    "event.snapshot_key==k",
    "event.key==k",
    "event.nonsense",
    "event.nonsense!=x",
    "type_url==x",
    "timestamp",
    "nonsense==1",
    'topic=="/containers/create",event.id==web',
    'topic=="/containers/create",event.id==other',
)
STAMP: Final = {"seconds": 1_700_000_000, "nanos": 5}

PROGRAMS: Final = [
    Program("events: all of them", [subscribed(publishes=PUBLISHED)]),
    Program("events: two filters", [subscribed('topic=="/images/create"', "event.id==web", publishes=PUBLISHED)]),
    *(Program(f"events: filter {text.format(ns='here')}", [subscribed(text, publishes=PUBLISHED)]) for text in FILTERS),
    Program("events: topics", [call("Events.Publish", topic=topic, event=ANY) for topic in TOPICS]),
    Program(
        "events: forwarded topics",
        [_forward(topic=topic, namespace="{ns}", timestamp=STAMP, event=ANY) for topic in TOPICS],
    ),
    Program(
        "events: what is missing",
        [
            call("Events.Publish", topic="/x", event={}),
            call("Events.Publish", topic="/x", event=UNKNOWN),
            call("Events.Publish", topic="/x", event=ANY, ns=""),
            call("Events.Publish", topic="/x", event=ANY, ns="a b"),
            call("Events.Publish", topic="", event=ANY, ns=""),
            _forward(topic="/x", timestamp=STAMP, event=ANY),
            _forward(topic="/x", namespace="{ns}", event=ANY),
            _forward(topic="/x", namespace="a b", timestamp=STAMP, event=ANY),
            _forward(topic="/x", namespace="{other}", timestamp=STAMP, event=UNKNOWN),
            _forward(topic="/x", namespace="{ns}", timestamp={}, event=ANY),
        ],
    ),
    Program(
        "events: forwarding needs no header",
        [
            call(
                "Events.Forward", ns="", envelope={"topic": "/x", "namespace": "{ns}", "timestamp": STAMP, "event": ANY}
            )
        ],
    ),
    Program(
        "events: subscriptions that cannot be",
        [
            call("Events.Subscribe", filters=["topic="]),
            call("Events.Subscribe", filters=["topic==/x", "=="]),
        ],
    ),
]
