"""Events: what may be published and forwarded, and what a subscriber with filters gets."""

from typing import Any, Final

from tests.interop.api.steps import Program, Step, call

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


STAMP: Final = {"seconds": 1_700_000_000, "nanos": 5}

PROGRAMS: Final = [
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
