"""Collection: what holds what, over the wire."""

from collections.abc import Sequence
from typing import Final

from tests.interop.api.steps import (
    DIGEST,
    HELLO,
    WRITE,
    Program,
    Step,
    blob,
    call,
    container,
    digest,
    gc,
    image,
    mask,
    write,
)

A, B, C = b"gc-a", b"gc-b", b"gc-c"
REF: Final = "containerd.io/gc.ref."
BREF: Final = "containerd.io/gc.bref."
EXPIRE: Final = "containerd.io/gc.expire"
PAST, FUTURE = "2001-02-03T04:05:06Z", "2999-01-01T00:00:00Z"
FLAT: Final = {"containerd.io/gc.flat": "2020-01-01T00:00:00Z"}
ROOT: Final = {"containerd.io/gc.root": "2020-01-01T00:00:00Z"}


def _snapshots(lease: str = "hold", labels: dict[str, str] | None = None) -> list[Step]:
    """`one` ← `two` ← active `three`."""
    return [
        call("Snapshots.Prepare", snapshotter="native", key="m1", lease=lease),
        call("Snapshots.Commit", snapshotter="native", key="m1", name="one", lease=lease),
        call("Snapshots.Prepare", snapshotter="native", key="m2", parent="one", lease=lease),
        call("Snapshots.Commit", snapshotter="native", key="m2", name="two", lease=lease, labels=labels or {}),
        call("Snapshots.Prepare", snapshotter="native", key="three", parent="two", lease=lease),
    ]


def _hold(labels: dict[str, str] | None = None) -> Step:
    return call("Leases.Create", id="hold", labels=labels or {})


def _let_go() -> Step:
    return call("Leases.Delete", id="hold", sync=True)


def _blobs(*pairs: tuple[bytes, dict[str, str]]) -> list[Step]:
    return [blob(data, labels=labels, lease="hold") for data, labels in pairs]


def _left(content: Sequence[bytes] = (), **kinds: Sequence[str]) -> dict[str, list[str]]:
    """What a program expects to be left in its namespace; the others are empty."""
    found = {**kinds, **({"content": sorted(map(digest, content))} if content else {})}
    lines = []
    for kind in ("images", "content", "native"):
        if kind in found:
            lines += [f"    {kind}:", *(f"      - {name!r}" for name in found[kind])]
    return {"left": ["", *(["  NS:", *lines] if lines else ["  NS: {}"]), "  OTHER: {}", "  THIRD: {}"]}


SOURCE: Final = "core/metadata/gc.go of containerd 2.x: scanRoots, references, sendLabelRefs"

PROGRAMS: Final = [
    Program("gc: what nobody holds goes", [_hold(), *_blobs((A, {})), *_snapshots(), *gc(), _let_go()]),
    Program("gc: roots by label", [_hold(), *_blobs((A, ROOT), (B, {})), *_snapshots(labels=ROOT), _let_go()]),
    Program(
        "gc: roots by a label that only begins so",
        [_hold(), *_blobs((A, {"containerd.io/gc.rootless": "x"}), (B, {"containerd.io/gc.root": ""})), _let_go()],
    ),
    Program(
        "gc: a container holds its snapshot",
        [
            _hold(),
            *_snapshots(),
            call("Containers.Create", container=container("c", snapshotter="native", snapshot_key="three")),
            _let_go(),
            call("Containers.Delete", id="c"),
            *gc(),
        ],
    ),
    Program(
        "gc: a container's labels",
        [
            _hold(),
            *_blobs((A, {}), (B, {})),
            *_snapshots(),
            call(
                "Containers.Create",
                container=container("c", labels={f"{REF}content": digest(A), f"{REF}snapshot.native": "two"}),
            ),
            _let_go(),
        ],
    ),
    Program(
        "gc: an image holds its target and what that refers to",
        [
            _hold(),
            *_blobs((A, {f"{REF}content.0": digest(B), f"{REF}content.m/x": digest(C)}), (B, {}), (C, {}), (HELLO, {})),
            call("Images.Create", image=image("i", digest=digest(A), size=4)),
            _let_go(),
            call("Images.Delete", name="i", sync=True),
        ],
    ),
    Program(
        "gc: labels that name nothing",
        [
            _hold(),
            *_blobs(
                (A, {**ROOT, f"{REF}content": "nonsense", f"{REF}contentx": digest(B), f"{REF}snapshot": "one"}),
                (B, {}),
            ),
            *_snapshots(),
            _let_go(),
        ],
    ),
    Program(
        "gc: content refers to snapshots, snapshots to content",
        [
            _hold(),
            *_blobs((A, {**ROOT, f"{REF}snapshot.native": "two"}), (B, {})),
            *_snapshots(labels={f"{REF}content.x": digest(B)}),
            _let_go(),
        ],
    ),
    Program(
        "gc: snapshots refer to snapshots of another snapshotter",
        [
            _hold(),
            *_blobs((A, {**ROOT, f"{REF}snapshot.native": "two"})),
            *_snapshots(labels={f"{REF}snapshot.overlayfs/1": "x", f"{REF}snapshot.overlayfs/2": "none"}),
            call("Snapshots.Prepare", snapshotter="overlayfs", key="x", lease="hold"),
            call("Snapshots.Prepare", snapshotter="overlayfs", key="y", lease="hold"),
            _let_go(),
        ],
    ),
    Program(
        "gc: a lease holds what labels refer to",
        [
            _hold(),
            *_blobs((A, {f"{REF}content": digest(B)})),
            call("Leases.Create", id="only-b"),
            blob(B, lease="only-b"),
            call("Leases.Delete", id="only-b", sync=True),
        ],
    ),
    Program(
        "gc: a flat lease does not",
        [
            _hold(FLAT),
            *_blobs((A, {f"{REF}content": digest(B)})),
            call("Leases.Create", id="only-b"),
            blob(B, lease="only-b"),
            call("Leases.Delete", id="only-b", sync=True),
        ],
    ),
    Program(
        "gc: a flat lease holds the snapshots below",
        [
            call("Leases.Create", id="making"),
            *_snapshots(lease="making"),
            _hold(FLAT),
            call("Leases.AddResource", id="hold", resource={"type": "snapshots/native", "id": "three"}),
            call("Leases.Delete", id="making", sync=True),
        ],
    ),
    Program(
        "gc: leases expire",
        [
            _hold({EXPIRE: PAST}),
            *_blobs((A, {})),
            call("Leases.Create", id="later", labels={EXPIRE: FUTURE}),
            blob(B, lease="later"),
            call("Leases.Create", id="unreadable", labels={EXPIRE: "nonsense"}),
            blob(C, lease="unreadable"),
            *gc(),
        ],
    ),
    Program(
        "gc: images expire",
        [
            _hold(),
            *_blobs((A, {}), (B, {})),
            call("Images.Create", image=image("past", digest=digest(A), size=4, labels={EXPIRE: PAST})),
            call("Images.Create", image=image("future", digest=digest(B), size=4, labels={EXPIRE: FUTURE})),
            _let_go(),
        ],
        since=(2, 0),
        source=SOURCE,
        expects=_left(images=["future"], content=[B]),
    ),
    Program(
        "gc: a lease holds an image that has expired",
        [
            _hold(),
            call("Images.Create", image=image("past", labels={EXPIRE: PAST}), lease="hold"),
            *gc(),
            _let_go(),
        ],
        since=(2, 0),
        source=SOURCE,
        expects=_left(),
    ),
    Program(
        "gc: content refers to images",
        [
            _hold(),
            *_blobs((A, {**ROOT, f"{REF}image.x": "i"})),
            call("Images.Create", image=image("i", labels={EXPIRE: PAST})),
            _let_go(),
        ],
        since=(2, 0),
        source=SOURCE,
        expects=_left(images=["i"], content=[A]),
    ),
    Program(
        "gc: back references",
        [
            _hold(),
            *_blobs(
                (A, ROOT),
                (B, {f"{BREF}content.x": digest(A)}),
                (C, {f"{BREF}content": digest(HELLO)}),
            ),
            *_snapshots(labels={f"{BREF}content": digest(A)}),
            _let_go(),
        ],
        since=(2, 0),
        source=SOURCE,
        expects=_left(content=[A, B], native=["COMMITTED one on ''", "COMMITTED two on 'one'"]),
    ),
    Program(
        "gc: back references to containers, images and snapshots",
        [
            _hold(),
            *_snapshots(),
            *_blobs(
                (A, {f"{BREF}container": "c"}),
                (B, {f"{BREF}image.1": "i"}),
                (C, {f"{BREF}snapshot.native": "three"}),
            ),
            call("Containers.Create", container=container("c", snapshotter="native", snapshot_key="three")),
            call("Images.Create", image=image("i", digest=DIGEST)),
            _let_go(),
            call("Containers.Delete", id="c"),
            call("Images.Delete", name="i", sync=True),
        ],
        since=(2, 0),
        source=SOURCE,
        expects=_left(),
    ),
    Program(
        "gc: ingests",
        [
            write("free", {"action": WRITE, "data": b"x"}),
            _hold(),
            write("held", {"action": WRITE, "data": b"x"}, lease="hold"),
            *gc(),
            _let_go(),
        ],
    ),
    Program(
        "gc: an ingest that claims a blob",
        [
            _hold(),
            call("Leases.Create", id="hold", ns="{other}"),
            blob(A, ns="{other}", lease="hold"),
            write("claim", {"action": 0, "expected": digest(A)}, lease="hold"),
            call("Leases.Delete", id="hold", ns="{other}", sync=True),
            write("claim", {"action": 2, "expected": digest(A), "offset": 4}, lease="hold"),
            call("Content.Read", digest=digest(A)),
        ],
    ),
    Program(
        "gc: content of two namespaces",
        [
            _hold(),
            call("Leases.Create", id="hold", ns="{other}"),
            blob(A, lease="hold"),
            blob(A, ns="{other}", lease="hold"),
            _let_go(),
            call("Content.Info", digest=digest(A)),
            call("Content.Read", digest=digest(A), ns="{other}"),
        ],
    ),
    Program(
        "gc: references stay in their namespace",
        [
            _hold(),
            call("Leases.Create", id="hold", ns="{other}"),
            *_blobs((A, {**ROOT, f"{REF}content": digest(B)})),
            blob(B, ns="{other}", lease="hold"),
            call("Leases.Delete", id="hold", ns="{other}", sync=True),
        ],
    ),
    Program(
        "gc: a label that is taken away",
        [
            _hold(),
            *_blobs((A, ROOT)),
            _let_go(),
            call("Content.Update", info={"digest": digest(A)}, update_mask=mask("labels")),
            *gc(),
        ],
    ),
    Program(
        "gc: a resource that is taken off",
        [
            _hold(),
            *_blobs((A, {})),
            call("Leases.DeleteResource", id="hold", resource={"type": "content", "id": digest(A)}),
            *gc(),
        ],
    ),
    Program(
        "gc: a resource that was there before the lease",
        [
            call("Leases.Create", id="making"),
            blob(A, lease="making"),
            _hold(),
            call("Leases.AddResource", id="hold", resource={"type": "content", "id": digest(A)}),
            call("Leases.Delete", id="making", sync=True),
        ],
    ),
    Program(
        "gc: circles",
        [
            _hold(),
            *_blobs((A, {f"{REF}content": digest(B)}), (B, {f"{REF}content": digest(A)})),
            _let_go(),
        ],
    ),
]
