"""Mounts as data: snapshotters produce them, clients and the supervisor perform them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One mount, in the words of mount(2); nothing is mounted by making one.

    Attributes:
        type: file system type, such as `overlay`, or `bind`.
        source: device, directory or pseudo source.
        target: path below the root that the mounts are performed on, empty for the root itself.
        options: as in fstab(5); flags and data mixed, in order.

    Source: types.Mount in containerd's api/types/mount.proto.
    """

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()
