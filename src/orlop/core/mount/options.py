"""Mount options: words of fstab(5) sorted into what mount(2) calls flags, propagation and data.

The words and their meaning are containerd's (core/mount/mount_linux.go), whose snapshots and clients hand them to us.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from orlop.base.errdefs import InvalidArgumentError
from orlop.core.mount import Mount
from orlop.linux import mount as mnt

_SET: Final = {
    "async": (False, mnt.MS_SYNCHRONOUS),
    "atime": (False, mnt.MS_NOATIME),
    "bind": (True, mnt.MS_BIND),
    "defaults": (False, 0),
    "dev": (False, mnt.MS_NODEV),
    "diratime": (False, mnt.MS_NODIRATIME),
    "dirsync": (True, mnt.MS_DIRSYNC),
    "exec": (False, mnt.MS_NOEXEC),
    "lazytime": (True, mnt.MS_LAZYTIME),
    "mand": (True, mnt.MS_MANDLOCK),
    "noatime": (True, mnt.MS_NOATIME),
    "nodev": (True, mnt.MS_NODEV),
    "nodiratime": (True, mnt.MS_NODIRATIME),
    "noexec": (True, mnt.MS_NOEXEC),
    "nomand": (False, mnt.MS_MANDLOCK),
    "norelatime": (False, mnt.MS_RELATIME),
    "nostrictatime": (False, mnt.MS_STRICTATIME),
    "nosuid": (True, mnt.MS_NOSUID),
    "nosymfollow": (True, mnt.MS_NOSYMFOLLOW),
    "rbind": (True, mnt.MS_BIND | mnt.MS_REC),
    "relatime": (True, mnt.MS_RELATIME),
    "remount": (True, mnt.MS_REMOUNT),
    "ro": (True, mnt.MS_RDONLY),
    "rw": (False, mnt.MS_RDONLY),
    "strictatime": (True, mnt.MS_STRICTATIME),
    "suid": (False, mnt.MS_NOSUID),
    "sync": (True, mnt.MS_SYNCHRONOUS),
}
_PROPAGATION: Final = {
    "private": mnt.MS_PRIVATE,
    "rprivate": mnt.MS_PRIVATE | mnt.MS_REC,
    "rshared": mnt.MS_SHARED | mnt.MS_REC,
    "rslave": mnt.MS_SLAVE | mnt.MS_REC,
    "runbindable": mnt.MS_UNBINDABLE | mnt.MS_REC,
    "shared": mnt.MS_SHARED,
    "slave": mnt.MS_SLAVE,
    "unbindable": mnt.MS_UNBINDABLE,
}


@dataclass(frozen=True, slots=True)
class IDMap:
    """One range of a user namespace's mapping: `size` ids from `inside` on are `outside` and following on the host."""

    inside: int
    outside: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """Options, sorted.

    Attributes:
        flags: MS_* without propagation.
        propagation: MS_SHARED and its like (with MS_REC), or 0.
        data: what only the file system understands, in order.
        uid_maps, gid_maps: the id mapping asked for; empty for none.
        loop: the source is a file, to be mounted as a block device.
    """

    flags: int = 0
    propagation: int = 0
    data: tuple[str, ...] = ()
    uid_maps: tuple[IDMap, ...] = ()
    gid_maps: tuple[IDMap, ...] = ()
    loop: bool = False


def parse(options: Iterable[str]) -> Parsed:
    """Sort mount options; of words that contradict each other the last one holds.

    Raises:
        InvalidArgumentError: an id mapping is malformed or has one half.
    """
    flags = propagation = 0
    loop = False
    data: list[str] = []
    maps: dict[str, tuple[IDMap, ...]] = {}
    for option in options:
        if option in _SET:
            on, bits = _SET[option]
            flags = flags | bits if on else flags & ~bits
        elif option in _PROPAGATION:
            propagation = _PROPAGATION[option]
        elif option.startswith(("uidmap=", "gidmap=")):
            key, _, value = option.partition("=")
            maps[key] = _parse_maps(option, value)
        elif option == "loop":
            loop = True
        elif option:
            data.append(option)
    if len(maps) == 1:
        raise InvalidArgumentError(f"mount option {next(iter(maps))}= without its other half")
    return Parsed(
        flags=flags,
        propagation=propagation,
        data=tuple(data),
        uid_maps=maps.get("uidmap", ()),
        gid_maps=maps.get("gidmap", ()),
        loop=loop,
    )


def value(options: Iterable[str], key: str) -> str | None:
    """The value of the last `key=value` among the options."""
    found = None
    for option in options:
        if option.startswith(f"{key}="):
            found = option[len(key) + 1 :]
    return found


def split_layers(lowerdir: str) -> list[str]:
    """The paths of overlayfs's `lowerdir=`, top first, with its escapes (`\\:`) undone."""
    if "\\" not in lowerdir:
        return lowerdir.split(":")
    layers, current, characters = [], "", iter(lowerdir)
    for character in characters:
        if character == "\\":
            current += next(characters, "")
        elif character == ":":
            layers.append(current)
            current = ""
        else:
            current += character
    return [*layers, current]


def join_layers(layers: Iterable[str]) -> str:
    """The opposite of `split_layers`."""
    return ":".join(layer.replace("\\", "\\\\").replace(":", "\\:") for layer in layers)


def readonly(mounts: Sequence[Mount]) -> list[Mount]:
    """The same view, so that nothing can be written: an overlay's upper directory becomes its top lower one.

    Source: readonlyMounts in containerd's core/mount/temp.go.
    """
    return [_readonly_overlay(mount) if mount.type == "overlay" else _add_ro(mount) for mount in mounts]


def without_volatile(mounts: Sequence[Mount]) -> list[Mount]:
    """The mounts without overlayfs's `volatile`, which forbids to mount a directory a second time."""
    return [
        replace(mount, options=tuple(option for option in mount.options if option != "volatile"))
        if mount.type == "overlay"
        else mount
        for mount in mounts
    ]


def _add_ro(mount: Mount) -> Mount:
    kept = tuple(option for option in mount.options if option not in ("rw", "ro"))
    return replace(mount, options=(*kept, "ro"))


def _readonly_overlay(mount: Mount) -> Mount:
    upper, lower = value(mount.options, "upperdir"), value(mount.options, "lowerdir")
    if upper is None or lower is None:
        return mount
    kept = [
        option
        for option in mount.options
        if not option.startswith(("upperdir=", "lowerdir=", "workdir=")) and option != "volatile"
    ]
    stacked = f"{join_layers([upper])}:{lower}"
    return replace(mount, options=(*kept, f"lowerdir={stacked}"))


def _parse_maps(option: str, text: str) -> tuple[IDMap, ...]:
    """`inside:outside:size`, several joined by commas (containerd's own spelling)."""
    ranges = []
    for part in text.split(","):
        try:
            inside, outside, size = (int(number) for number in part.split(":"))
        except ValueError:
            raise InvalidArgumentError(f"mount option {option!r}: not inside:outside:size") from None
        if min(inside, outside) < 0 or size < 1 or max(inside, outside) + size > 1 << 32:
            raise InvalidArgumentError(f"mount option {option!r}: out of range")
        ranges.append(IDMap(inside, outside, size))
    return tuple(ranges)
