"""Marking: which nodes can be reached from the roots."""

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """What a node stands for."""

    # Nodes are hashed a million times; that of an enum is written in Python, that of a number is not.
    __hash__ = int.__hash__

    CONTENT = 1
    SNAPSHOT = 2
    CONTAINER = 3
    IMAGE = 4
    LEASE = 5
    INGEST = 6
    MOUNT = 7


class Node(NamedTuple):
    """A thing by kind, namespace and key; a snapshot's key is `<snapshotter>/<name>`.

    A *flat* node is held without what its labels refer to: so do leases labelled `containerd.io/gc.flat`.
    """

    kind: Kind
    namespace: str
    key: str
    flat: bool = False


def mark(roots: Iterable[Node], references: Callable[[Node], Iterable[Node]]) -> set[Node]:
    """Every node that can be reached, none of them flat.

    Tri-colour: white is what was not seen, grey what waits on the stack, black what is in `seen` and not on the stack.
    A node that is reached both ways, flat and not, is followed both ways.
    """
    grey = list(roots)
    seen = set(grey)
    while grey:
        for node in references(grey.pop()):
            if node not in seen:
                seen.add(node)
                grey.append(node)
    return {node._replace(flat=False) if node.flat else node for node in seen}
