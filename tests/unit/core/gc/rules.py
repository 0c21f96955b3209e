"""The rules of collection, read naively: what must be left of a small world. Slow, and short enough to be believed."""

from dataclasses import dataclass, field
from typing import Any

PAST, FUTURE = "2001-02-03T04:05:06Z", "2999-01-01T00:00:00Z"


@dataclass
class Plan:
    """A world to be made: names are small numbers, so that references often hit."""

    content: dict = field(default_factory=dict)  # (ns, digest) -> labels
    images: dict = field(default_factory=dict)  # (ns, name) -> (digest, labels)
    snapshots: dict = field(default_factory=dict)  # (ns, snapshotter, name) -> (parent or None, labels)
    containers: dict = field(default_factory=dict)  # (ns, id) -> (snapshotter, key, labels)
    leases: dict = field(default_factory=dict)  # (ns, id) -> (resources, labels)
    ingests: dict = field(default_factory=dict)  # (ns, ref) -> (held without a lease: it is open or was lately, claim)


def labelled(labels):
    """(wanted direction, what, its key) of each label, by the letter of the documentation."""
    for key, value in labels.items():
        for direction in ("ref", "bref"):
            for what in ("content", "image", "container"):
                start = f"containerd.io/gc.{direction}.{what}"
                if key == start or key.startswith((start + ".", start + "/")):
                    yield direction, what, value
            start = f"containerd.io/gc.{direction}.snapshot."
            if key.startswith(start):
                yield direction, "snapshot", key[len(start) :].split("/")[0] + "/" + value


def naive(plan):
    """What must be left: ask every object, again and again, whether something held refers to it."""
    objects: dict[Any, Any] = {}  # (ns, what, key) -> (labels, natural references)
    for (ns, digest), labels in plan.content.items():
        objects[ns, "content", digest] = (labels, [])
    for (ns, name), (digest, labels) in plan.images.items():
        objects[ns, "image", name] = (labels, [("content", digest)])
    for (ns, snapshotter, name), (parent, labels) in plan.snapshots.items():
        below = [] if parent is None else [("snapshot", f"{snapshotter}/{parent}")]
        objects[ns, "snapshot", f"{snapshotter}/{name}"] = (labels, below)
    for (ns, id_), (snapshotter, key, labels) in plan.containers.items():
        objects[ns, "container", id_] = (labels, [("snapshot", f"{snapshotter}/{key}")])
    for (ns, ref), (_, claim) in plan.ingests.items():
        objects[ns, "ingest", ref] = ({}, [("content", claim)] if claim else [])
    held: set[Any] = {(ns, "ingest", ref) for (ns, ref), (kept, _) in plan.ingests.items() if kept}
    thinly: set[Any] = set()
    for (ns, what, key), (labels, _) in objects.items():
        root = what in {"content", "snapshot"} and "containerd.io/gc.root" in labels
        if root or what == "container" or (what == "image" and labels.get("containerd.io/gc.expire") != PAST):
            held.add((ns, what, key))
    live = {key: lease for key, lease in plan.leases.items() if lease[1].get("containerd.io/gc.expire") != PAST}
    for (ns, _), (leased, labels) in live.items():
        for kind, key in leased:
            what = {"content": "content", "images": "image", "ingests": "ingest"}.get(kind, "snapshot")
            full = key if what != "snapshot" else kind.split("/")[1] + "/" + key
            (thinly if "containerd.io/gc.flat" in labels else held).add((ns, what, full))
    grown = True
    while grown:
        before = len(held), len(thinly)
        for (ns, what, key), (labels, natural) in objects.items():
            if (ns, what, key) in held:
                held |= {(ns, *other) for other in natural}
                held |= {(ns, other, name) for direction, other, name in labelled(labels) if direction == "ref"}
            if (ns, what, key) in thinly:
                thinly |= {(ns, *other) for other in natural}
            for direction, other, name in labelled(labels):
                if direction == "bref" and (ns, other, name) in held:
                    held.add((ns, what, key))
        grown = before != (len(held), len(thinly))
    left = {
        f"{ns} {what} {key}" for ns, what, key in objects if (ns, what, key) in held | thinly and what != "container"
    }
    return left | {f"{ns} lease {id_}" for ns, id_ in live}
