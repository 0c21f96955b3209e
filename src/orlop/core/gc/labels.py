"""What the labels `containerd.io/gc.*` of an object mean to the collector."""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Final, NamedTuple

from orlop.base import durations
from orlop.base.errdefs import InvalidArgumentError
from orlop.base.labels import (
    GC_BREF_CONTAINER,
    GC_BREF_CONTENT,
    GC_BREF_IMAGE,
    GC_BREF_SNAPSHOT,
    GC_EXPIRE,
    GC_REF_CONTENT,
    GC_REF_SNAPSHOT,
    GC_ROOT,
)
from orlop.core.gc.mark import Kind, Node

PREFIX: Final = "containerd.io/gc."
GC_REF_IMAGE: Final = "containerd.io/gc.ref.image"
GC_REF_MOUNT: Final = "containerd.io/gc.ref.mount"

GC_COND_SNAPSHOT: Final = "containerd.io/gc.cond.snapshot"
GC_COND_USED_AT: Final = "containerd.io/gc.cond.value-usedat"

_CONDITION: Final = re.compile(r"usedat([<>])(?!=)(.*)", re.DOTALL)

# Labels that name one object: the key itself, or with a suffix after `.` or `/`.
_PLAIN: Final = (
    (GC_REF_CONTENT, Kind.CONTENT, False),
    (GC_REF_IMAGE, Kind.IMAGE, False),
    (GC_REF_MOUNT, Kind.MOUNT, False),
    (GC_BREF_CONTAINER, Kind.CONTAINER, True),
    (GC_BREF_CONTENT, Kind.CONTENT, True),
    (GC_BREF_IMAGE, Kind.IMAGE, True),
)
# Labels whose key goes on with the snapshotter's name, and after `/` with anything.
_SNAPSHOTS: Final = ((GC_REF_SNAPSHOT + ".", False), (GC_BREF_SNAPSHOT + ".", True))


class Reference(NamedTuple):
    """An object that a label names; `back` if it is that object which refers to the label's owner."""

    node: Node
    back: bool


class Condition(NamedTuple):
    """A reference to a snapshot that holds while that snapshot was used less than `age` ago, or `over` that."""

    node: Node
    over: bool
    age: int

    def holds(self, used_at: int, now: int) -> bool:
        """Whether the reference is one; all in nanoseconds."""
        return now - used_at > self.age if self.over else now - used_at < self.age


def references(namespace: str, labels: Mapping[str, str]) -> Iterator[Reference]:
    """The objects that an object's labels name, all in its own namespace."""
    for key, value in labels.items():
        if key.startswith(PREFIX):
            meaning = _meaning(key)
            if meaning is not None:
                kind, prefix, back = meaning
                yield Reference(Node(kind, namespace, prefix + value), back)


@lru_cache(maxsize=4096)
def _meaning(key: str) -> tuple[Kind, str, bool] | None:
    """What a label's key says: the kind of what is named, what stands before its name, and whether it is named back."""
    for name, kind, back in _PLAIN:
        if key.startswith(name) and (len(key) == len(name) or key[len(name)] in "./"):
            return kind, "", back
    for name, back in _SNAPSHOTS:
        if key.startswith(name):
            return Kind.SNAPSHOT, key[len(name) :].partition("/")[0] + "/", back
    return None


def is_root(labels: Mapping[str, str]) -> bool:
    """Whether a label says that the object is a root; containerd looks at the key's beginning only."""
    return any(key.startswith(GC_ROOT) for key in labels)


def conditions(namespace: str, labels: Mapping[str, str]) -> Iterator[Condition]:
    """The references to snapshots that hold under a condition, each of which is enough.

    A label says `usedat<24h,usedat>1000h|<name>`; its key goes on with the snapshotter, and after `/` with anything.
    What cannot be read, an unknown condition or a comparison other than `<` and `>` says nothing, as in containerd.
    """
    for key, value in labels.items():
        if not key.startswith(GC_COND_SNAPSHOT):
            continue
        snapshotter = key.removeprefix(GC_COND_SNAPSHOT).lstrip("./").partition("/")[0]
        alternatives, bar, name = value.partition("|")
        for alternative in alternatives.split(",") if bar else ():
            said = _CONDITION.fullmatch(alternative)
            if said is None:
                continue
            try:
                age = durations.parse(said[2])
            except InvalidArgumentError:
                continue
            yield Condition(Node(Kind.SNAPSHOT, namespace, f"{snapshotter}/{name}"), said[1] == ">", age)


def uses(labels: Mapping[str, str]) -> Iterator[int]:
    """When a snapshot was used, for `conditions`: nanoseconds since the epoch."""
    for key, value in labels.items():
        if key.startswith(GC_COND_USED_AT) and (at := _moment(value)) is not None:
            yield at


def expiry(labels: Mapping[str, str]) -> int | None:
    """When an object expires, in nanoseconds since the epoch; None if never or if the label cannot be read."""
    text = labels.get(GC_EXPIRE)
    return None if text is None else _moment(text)


def _moment(text: str) -> int | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int(moment.timestamp() * 1_000_000_000) if moment.tzinfo is not None else None
