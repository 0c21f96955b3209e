"""Which of a list of mounts a manager performs, and which it leaves to the system.

Everything up to the last mount that has a handler, and everything before the last one that has a transform, is the
manager's; transforms in front of the first mount that is left are done too.

Source: planActivation in containerd's core/mount/manager.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from orlop.core.mount import Mount

log: Final = logging.getLogger(__name__)

TRANSFORMS: Final = frozenset({"format", "mkdir", "mkfs"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One mount of the list: its transforms, the outermost first, and its type without them."""

    mount: Mount
    transforms: tuple[str, ...]
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is performed, and what is left of which the first may have transforms."""

    performed: Sequence[Step]
    left: Sequence[Step]


def make(
    mounts: Sequence[Mount], *, handled: Collection[str], temporary: bool = False, claimed: Collection[str] = ()
) -> Plan | None:
    """The plan for these mounts; None if nothing of them needs a manager.

    Args:
        handled: types that have a handler.
        temporary: everything shall be performed.
        claimed: types and transforms that the caller takes on itself.
    """
    steps = [_step(mount) for mount in mounts]
    first_left = -1
    for position, step in enumerate(steps):
        if step.transforms and step.mount.type not in claimed and not _claimed_all(step.transforms, claimed):
            first_left = position
        if temporary or (step.type in handled and step.type not in claimed):
            first_left = position + 1
    if first_left < 0:
        return None
    return Plan(performed=steps[:first_left], left=steps[first_left:])


def _claimed_all(transforms: Sequence[str], claimed: Collection[str]) -> bool:
    """Whether the caller does each of these transforms."""
    return all(transform in claimed for transform in transforms)


def _step(mount: Mount) -> Step:
    transforms, kind = [], mount.type
    while "/" in kind:
        prefix, _, rest = kind.partition("/")
        if prefix not in TRANSFORMS:
            log.warning("unknown transform of a mount", extra={"type": mount.type})
            break
        transforms.append(prefix)
        kind = rest
    return Step(mount=mount, transforms=tuple(transforms), type=kind)
