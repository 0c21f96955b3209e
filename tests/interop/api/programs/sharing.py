"""Content under the `isolated` policy: a namespace has what it has written, or what a shareable one lends."""

from typing import Final

from tests.interop.api.steps import COMMIT, DIGEST, HELLO, STAT, WRITE, Program, Step, blob, call, digest, write

SHAREABLE: Final = "containerd.io/namespace.shareable"


def _other(value: str) -> Step:
    return call("Namespaces.Create", namespace={"name": "{other}", "labels": {SHAREABLE: value}}, ns="{other}")


PROGRAMS: Final = [
    Program(
        "isolated: naming a digest is not enough",
        [
            blob(HELLO, ns="{other}"),
            call("Content.Info", digest=DIGEST),
            call("Content.Read", digest=DIGEST),
            write("ref", {"action": STAT, "expected": DIGEST, "total": 5}),
            call("Content.Status", ref="ref"),
            write("ref", {"action": COMMIT, "expected": DIGEST, "total": 5}),
            write("ref", {"action": COMMIT, "data": HELLO, "expected": DIGEST, "total": 5}),
            call("Content.Read", digest=DIGEST),
            write("again", {"action": STAT, "expected": DIGEST}),
        ],
        isolated=True,
    ),
    Program(
        "isolated: bytes are shown piece by piece",
        [
            blob(HELLO, ns="{other}"),
            write("ref", {"action": STAT, "expected": DIGEST}, {"action": WRITE, "data": b"hel"}),
            write("ref", {"action": STAT, "expected": DIGEST}),
            write("ref", {"action": COMMIT, "data": b"lo", "offset": 3, "expected": DIGEST}),
            call("Content.Info", digest=DIGEST),
        ],
        isolated=True,
    ),
    Program(
        "isolated: a record that goes leaves the other one",
        [
            blob(HELLO),
            blob(HELLO, ns="{other}"),
            call("Content.Delete", digest=DIGEST, ns="{other}"),
            call("Content.Read", digest=DIGEST),
            call("Content.Info", digest=DIGEST, ns="{other}"),
        ],
        isolated=True,
    ),
    *(
        Program(
            f"isolated: lent by a namespace that is labelled {value!r}",
            [
                _other(value),
                blob(HELLO, ns="{other}"),
                call("Content.Info", digest=DIGEST),
                write("ref", {"action": STAT, "expected": DIGEST}),
                write("ref", {"action": COMMIT, "expected": DIGEST, "offset": 5}),
                call("Content.Info", digest=DIGEST),
            ],
            isolated=True,
            since=(1, 7),
        )
        for value in ("true", "True", "1", "false", "")
    ),
    Program(
        "isolated: a shareable namespace lends only what it has",
        [
            _other("true"),
            blob(HELLO, ns="{third}"),
            blob(b"lent", ns="{other}"),
            write("a", {"action": STAT, "expected": DIGEST}),
            write("b", {"action": STAT, "expected": digest(b"lent")}),
            write("c", {"action": STAT, "expected": digest(b"lent")}, ns="{third}"),
            call("Content.Abort", ref="b"),
            call("Content.Abort", ref="c", ns="{third}"),
        ],
        isolated=True,
        since=(1, 7),
    ),
]
