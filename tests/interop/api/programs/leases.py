"""Leases: what they are made with, what they hold."""

from typing import Final

from tests.interop.api.steps import DIGEST, HELLO, NONE, Program, Step, blob, call

RESOURCES: Final = (
    ("content", DIGEST),
    ("content", NONE),
    ("content", "nonsense"),
    ("content", "sha256:12"),
    ("content", ""),
    ("content/x", DIGEST),
    ("ingests", "ref"),
    ("ingests", ""),
    ("ingests/x", "ref"),
    ("images", "example.org/x:1"),
    ("images/x", "y"),
    ("snapshots", "key"),
    ("snapshots/native", "key"),
    ("snapshots/native", ""),
    ("snapshots/none", "key"),
    ("snapshots/", "key"),
    ("snapshots/native/x", "key"),
    ("containers", "c"),
    ("nonsense", "x"),
    ("", "x"),
    ("", ""),
)


def _resources(method: str) -> list[Step]:
    return [call(method, id="one", resource={"type": kind, "id": key}) for kind, key in RESOURCES]


PROGRAMS: Final = [
    Program(
        "leases: a life",
        [
            call("Leases.List"),
            call("Leases.Create", id="one", labels={"a": "1", "e": ""}),
            call("Leases.Create", id="one"),
            call("Leases.Create", id="one", ns="{other}"),
            call("Leases.List"),
            call("Leases.ListResources", id="one"),
            call("Leases.Delete", id="one"),
            call("Leases.Delete", id="one"),
            call("Leases.List"),
        ],
    ),
    Program(
        "leases: what is missing",
        [
            call("Leases.Delete"),
            call("Leases.Delete", id="none"),
            call("Leases.Delete", id="none", sync=True),
            call("Leases.ListResources"),
            call("Leases.ListResources", id="none"),
            call("Leases.AddResource", id="none", resource={"type": "content", "id": DIGEST}),
            call("Leases.AddResource", id="none", resource={"type": "nonsense", "id": DIGEST}),
            call("Leases.DeleteResource", id="none", resource={"type": "content", "id": DIGEST}),
        ],
    ),
    Program(
        "leases: no message at all",
        [call("Leases.AddResource"), call("Leases.DeleteResource")],
        until=(1, 6),
    ),
    Program(
        "leases: namespaces that are none",
        [
            call("Leases.List", ns=""),
            call("Leases.Create", ns="", id="x"),
            call("Leases.Delete", ns="", id="x"),
            call("Leases.AddResource", ns="", id="x", resource={"type": "ingests", "id": "x"}),
            call("Leases.DeleteResource", ns="", id="x", resource={"type": "ingests", "id": "x"}),
            call("Leases.ListResources", ns="", id="x"),
            call("Leases.Create", ns="a b", id="x"),
        ],
    ),
    Program(
        "leases: ids and labels",
        [
            call("Leases.Create", id=" "),
            call("Leases.Create", id="a/b"),
            call("Leases.Create", id="x" * 300),
            call("Leases.Create", id="big", labels={"k": "v" * 4096}),
            call("Leases.Create", id="fits", labels={"k": "v" * 4095}),
            call("Leases.Create", id="nokey", labels={"": "v"}),
            call("Leases.Create", id="expires", labels={"containerd.io/gc.expire": "nonsense"}),
            call("Leases.List"),
        ],
    ),
    Program("leases: resources that are added", [call("Leases.Create", id="one"), *_resources("Leases.AddResource")]),
    Program(
        "leases: resources that are taken off",
        [
            call("Leases.Create", id="one"),
            *_resources("Leases.DeleteResource"),
            call("Leases.AddResource", id="one", resource={"type": "ingests", "id": "r"}),
            call("Leases.AddResource", id="one", resource={"type": "ingests", "id": "r"}),
            call("Leases.ListResources", id="one"),
            call("Leases.DeleteResource", id="one", resource={"type": "ingests", "id": "r"}),
            call("Leases.DeleteResource", id="one", resource={"type": "ingests", "id": "r"}),
            call("Leases.ListResources", id="one"),
        ],
    ),
    Program(
        "leases: order of resources",
        [
            call("Leases.Create", id="one"),
            *(
                call("Leases.AddResource", id="one", resource={"type": kind, "id": key})
                for kind, key in (
                    ("snapshots/overlayfs", "b"),
                    ("snapshots/overlayfs", "a"),
                    ("snapshots/native", "z"),
                    ("ingests", "i2"),
                    ("ingests", "i1"),
                    ("content", NONE),
                    ("content", DIGEST),
                )
            ),
            call("Leases.ListResources", id="one"),
        ],
    ),
    Program(
        "leases: a call's lease",
        [
            blob(HELLO, lease="none"),
            call("Leases.Create", id="one"),
            blob(HELLO, lease="one"),
            blob(HELLO, lease="one", note="again"),
            call("Leases.ListResources", id="one"),
            call("Content.Delete", digest=DIGEST, lease="one"),
            call("Leases.ListResources", id="one"),
            blob(b"other", lease="one"),
            call("Content.Delete", digest=NONE, lease="one"),
        ],
    ),
    Program(
        "leases: order",
        [*(call("Leases.Create", id=one) for one in ("b", "a", "B", "10", "9")), call("Leases.List")],
    ),
]
