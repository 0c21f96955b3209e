"""The files of an image for a container in a user namespace: their owners moved to the ids that it maps.

Either the snapshotter does it, asked by labels (overlayfs by id-mapped mounts), or the files of the image's topmost
snapshot are changed once, in a snapshot named `<chain id>-<uid>-<gid>` that all containers with that mapping share.

Source: WithUserNSRemappedSnapshot and WithUserNSRemapperLabels in containerd's client/snapshotter_opts_unix.go.
"""

import contextlib
import os
import stat
import struct
from collections.abc import Sequence
from typing import Final

from orlop.base.errdefs import AlreadyExistsError, InvalidArgumentError, NotFoundError, OrlopError
from orlop.client.session import Session
from orlop.client.snapshots import Snapshots
from orlop.core.mount import Mount

LABEL_UID: Final = "containerd.io/snapshot/uidmapping"
LABEL_GID: Final = "containerd.io/snapshot/gidmapping"

IdMaps = Sequence[tuple[int, int, int]]

_CAPABILITY: Final = "security.capability"
_REVISION_MASK: Final = 0xFF000000
_REVISION_2: Final = 0x02000000
_REVISION_3: Final = 0x03000000


def labels(uid_maps: IdMaps, gid_maps: IdMaps) -> dict[str, str]:
    """What asks a snapshotter to shift ids: `container:host:size,…` for users and for groups."""

    def text(maps: IdMaps) -> str:
        return ",".join(":".join(str(number) for number in one) for one in maps)

    return {LABEL_UID: text(uid_maps), LABEL_GID: text(gid_maps)}


async def remapped_parent(
    session: Session, snapshots: Snapshots, parent: str, uid_maps: IdMaps, gid_maps: IdMaps
) -> str:
    """The committed snapshot with `parent`'s files under the mapped ids, made if there is none yet; its name.

    Raises:
        InvalidArgumentError: the maps do not map root, or not the owner of some file.
    """
    name = f"{parent}-{_mapped(0, uid_maps, 'root')}-{_mapped(0, gid_maps, 'root')}"
    try:
        await snapshots.stat(name)
    except NotFoundError:
        pass
    else:
        return name
    key = f"{name}-remap-{os.urandom(4).hex()}"
    mounts = await snapshots.prepare(key, parent)
    try:
        await session.blocking(_shift_below, mounts, uid_maps, gid_maps)
        with contextlib.suppress(AlreadyExistsError):  # someone else has made the same meanwhile
            await snapshots.commit(name, key)
            key = ""
    finally:
        if key:
            with contextlib.suppress(OrlopError):  # the first error tells
                await snapshots.remove(key)
    return name


def _shift_below(mounts: Sequence[Mount], uid_maps: IdMaps, gid_maps: IdMaps) -> None:
    from orlop.core.mount.perform import temp_mount

    with temp_mount(mounts) as root:
        shift = _Shift(uid_maps, gid_maps)
        for directory, directories, files, fd in os.fwalk(os.fsencode(root), follow_symlinks=False):
            where = os.fsdecode(directory)
            shift(b".", fd, where)
            # A link to a directory is listed among the directories, and is not walked into.
            links = [name for name in directories if _is_link(name, fd)]
            for name in (*files, *links):
                shift(name, fd, f"{where}/{os.fsdecode(name)}")


class _Shift:
    def __init__(self, uid_maps: IdMaps, gid_maps: IdMaps) -> None:
        self._uid_maps = uid_maps
        self._gid_maps = gid_maps
        # Of files with several names: the owner before. A file system that copies on write may have torn the names
        # apart, so that each must be looked at, and none be moved twice.
        self._moved: dict[tuple[int, int], tuple[int, int]] = {}

    def __call__(self, name: bytes, fd: int, shown: str) -> None:
        """Give a file to the mapped ids."""
        before = os.stat(name, dir_fd=fd, follow_symlinks=False)
        owner = (before.st_uid, before.st_gid)
        has_names = before.st_nlink > 1 and not stat.S_ISDIR(before.st_mode)
        if has_names and self._moved.setdefault((before.st_dev, before.st_ino), owner) != owner:
            return
        uid, gid = _mapped(owner[0], self._uid_maps, shown), _mapped(owner[1], self._gid_maps, shown)
        capabilities = _capabilities(name, fd) if stat.S_ISREG(before.st_mode) else None
        os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)
        if before.st_mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISLNK(before.st_mode):
            os.chmod(name, stat.S_IMODE(before.st_mode), dir_fd=fd)  # chown(2) has taken these bits away
        if capabilities is not None:
            _set_capabilities(name, fd, capabilities, _mapped(0, self._uid_maps, shown))


def _is_link(name: bytes, fd: int) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)


def _capabilities(name: bytes, fd: int) -> bytes | None:
    with contextlib.suppress(OSError):
        return os.getxattr(_path(name, fd), _CAPABILITY, follow_symlinks=False)
    return None


def _set_capabilities(name: bytes, fd: int, value: bytes, root: int) -> None:
    """Capabilities that chown(2) has taken away, valid for the namespace whose root is `root`: capabilities(7)."""
    (magic,) = struct.unpack_from("<I", value)
    if magic & _REVISION_MASK == _REVISION_2:
        value = struct.pack("<I", _REVISION_3 | magic & ~_REVISION_MASK) + value[4:] + struct.pack("<I", root)
    elif magic & _REVISION_MASK == _REVISION_3:
        value = value[:-4] + struct.pack("<I", root)
    os.setxattr(_path(name, fd), _CAPABILITY, value, follow_symlinks=False)


def _path(name: bytes, fd: int) -> bytes:
    # There is no getxattrat(2) before Linux 6.13.
    return b"/proc/self/fd/%d/%s" % (fd, name)


def _mapped(number: int, maps: IdMaps, shown: str) -> int:
    for container, host, size in maps:
        if container <= number < container + size:
            return host + number - container
    raise InvalidArgumentError(f"id {number} of {shown} is not mapped")
