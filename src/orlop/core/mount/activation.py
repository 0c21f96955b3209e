"""Activations: mounts that somebody performs beforehand, so that what is left is plain for whoever mounts the root.

    mounts of a snapshotter        the manager performs           is left to the system
    loop             /img          device at <target>/2
    format/ext4      {{mount 0}}   ext4 at <target>/1
    format/overlay   lower={{…}}                                  overlay lowerdir=<target>/1

A mount's type may begin with *transforms* (`format/mkdir/overlay`), which rewrite it from the mounts before it; a
*handler* performs a type that mount(2) does not know.

Source: containerd's core/mount/manager.go.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orlop.core.mount import Mount


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveMount:
    """A mount that was performed, as it was after its transforms.

    Attributes:
        mount_point: where; a link to the device where a handler makes one.
        mounted_at: nanoseconds since the epoch, UTC.
        data: what a handler wants to remember.
    """

    mount: Mount
    mount_point: str
    mounted_at: int
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """What an activation came to.

    Attributes:
        active: what was performed, in order.
        system: what is left to mount; never empty.
    """

    name: str
    active: Sequence[ActiveMount] = ()
    system: Sequence[Mount] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


class Handler(Protocol):
    """Performs the mounts of one type. Called in a worker thread; a plug-in of kind MOUNT_HANDLER under its type."""

    def mount(self, mount: Mount, target: str, active: Sequence[ActiveMount], /) -> ActiveMount:
        """Perform `mount` at `target`, which does not exist yet, wholly or not at all.

        Args:
            active: what was performed before it.

        Raises:
            OrlopError
        """
        ...

    def unmount(self, target: str, /) -> None:
        """Undo what `mount` did at `target`; nothing there, or half of it, is success.

        Raises:
            OrlopError: FailedPreconditionError if it is in use.
        """
        ...

    def is_active(self, active: ActiveMount, /) -> bool:
        """Whether it is still as `mount` left it."""
        ...
