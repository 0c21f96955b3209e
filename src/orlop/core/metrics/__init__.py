"""What monitoring systems are told of a container: cgroup metrics under containerd's Prometheus names.

    container_memory_usage_bytes{container_id="web", namespace="default"} 2.1e+06

`Sample` is data; how it is exposed is the server's. The names lie in `cgroup1` and `cgroup2`, as tables from the fields
of the messages that shims answer with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import Message

PREFIX: Final = "container"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric: its name, what it says, and the labels that it has beside container and namespace.

    Attributes:
        path: from the message to the value, or to the repeated message or numbers that give one value each.
        value: where `path` repeats messages, the field of each that is the value.
        labels: label names; where `path` repeats messages, also the fields that hold them unless `fields` says else.
        fields: the fields for `labels`, in their order.
    """

    name: str
    help: str
    path: Sequence[str]
    value: str = ""
    labels: Sequence[str] = ()
    fields: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a family, with the values of its labels."""

    family: Family
    value: float
    labels: Sequence[str] = ()


def named(name: str, unit: str) -> str:
    """The full name: `container_<name>_<unit>`."""
    return f"{PREFIX}_{name}_{unit}"


def samples(families: Sequence[Family], message: Message) -> Iterator[Sample]:
    """The values of `message`; a part that it does not have gives none."""
    for family in families:
        found = _follow(message, family.path)
        if found is None:
            continue
        if not family.labels:
            yield Sample(family, float(found))
            continue
        for number, item in enumerate(found):
            if family.value:
                fields = family.fields or family.labels
                yield Sample(family, float(getattr(item, family.value)), [str(getattr(item, one)) for one in fields])
            else:
                yield Sample(family, float(item), [str(number)])


def _follow(message: Message, path: Sequence[str]) -> Any:
    """What lies at `path`, or None if a message on the way is not set. Any: a number or a repeated field."""
    current: Any = message
    for name in path[:-1]:
        if not current.HasField(name):
            return None
        current = getattr(current, name)
    return getattr(current, path[-1])
