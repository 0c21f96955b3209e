"""Ids of a snapshot's layers mapped by its labels: what containers in a user namespace ask for."""

from collections.abc import Mapping
from typing import Final

from orlop.base.errdefs import InvalidArgumentError
from orlop.core.mount.options import parse
from orlop.core.snapshots import GID_MAPPING, UID_MAPPING

REMAP_IDS: Final = "remap-ids"
ONLY_REMAP_IDS: Final = "only-remap-ids"


def map_options(labels: Mapping[str, str]) -> tuple[str, ...]:
    """The mount options that the labels stand for; none if there are none."""
    pairs = (("uidmap", labels.get(UID_MAPPING)), ("gidmap", labels.get(GID_MAPPING)))
    return tuple(f"{key}={value}" for key, value in pairs if value)


def mapped_root(name: str, maps: tuple[str, ...]) -> tuple[int, int]:
    """What root of the mapping is on the host: uid and gid.

    Raises:
        InvalidArgumentError: the mapping is malformed or has no root; the text names the snapshotter.
    """
    parsed = parse(maps)
    roots = [[part.outside for part in ranges if part.inside == 0] for ranges in (parsed.uid_maps, parsed.gid_maps)]
    if not all(roots):
        raise InvalidArgumentError(f"snapshotter {name}: id mapping {','.join(maps)} does not map root")
    return roots[0][0], roots[1][0]
