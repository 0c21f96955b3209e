"""Id-mapped mounts: host ids are seen as the ids of a user namespace (Linux 5.12; layers of an overlay 5.19).

A mapping is carried by a user namespace. One is made by a small child process that enters it and waits; its maps are
written from outside, a descriptor of the namespace is taken, and the child ends.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Final

from orlop.base.errdefs import UnimplementedError
from orlop.core.mount import Mount, options
from orlop.core.mount.options import IDMap, Parsed
from orlop.linux import mount as mnt

_CHILD: Final = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x10000000):
    os.write(1, os.strerror(ctypes.get_errno()).encode())
else:
    os.write(1, b"ok")
    os.close(1)
    os.read(0, 1)
"""


def attach(mount: Mount, parsed: Parsed, path: str) -> None:
    """Mount with the mapping in `parsed`: an overlay's lower layers are mapped, other mounts as a whole.

    An overlay's upper directory is not mapped; who made the snapshot has given it to the mapped root.

    Raises:
        UnimplementedError: the file system or the kernel cannot do it.
        OSError: from the mount itself.
    """
    with user_namespace(parsed.uid_maps, parsed.gid_maps) as userns_fd:
        if mount.type == "overlay":
            _attach_overlay(mount, parsed, path, userns_fd)
        elif mount.type == "bind" or parsed.flags & mnt.MS_BIND:
            attach_mapped(mount.source, path, userns_fd, recursive=bool(parsed.flags & mnt.MS_REC))
        else:
            mnt.mount(mount.source, path, mount.type, parsed.flags, ",".join(parsed.data))
            try:
                attach_mapped(path, path, userns_fd, recursive=False)
            except BaseException:
                mnt.umount2(path, mnt.MNT_DETACH)
                raise


@contextlib.contextmanager
def user_namespace(uid_maps: Sequence[IDMap], gid_maps: Sequence[IDMap]) -> Iterator[int]:
    """A descriptor of a new user namespace with these maps; the namespace lives as long as someone uses it.

    Raises:
        UnimplementedError: the host does not give user namespaces.
        OSError: EINVAL or EPERM if the kernel refuses the maps.
    """
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={},
        close_fds=True,
    )
    with child:
        assert child.stdout is not None
        said = child.stdout.read(256)  # ends when the child closes its end
        if said != b"ok":
            raise UnimplementedError(f"id mapping: make a user namespace: {said.decode(errors='replace')}")
        _write_map(f"/proc/{child.pid}/uid_map", uid_maps)
        _write_map(f"/proc/{child.pid}/gid_map", gid_maps)
        userns_fd = os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield userns_fd
    finally:
        os.close(userns_fd)


def _write_map(path: str, ranges: Sequence[IDMap]) -> None:
    lines = "".join(f"{part.inside} {part.outside} {part.size}\n" for part in ranges)
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, lines.encode())  # the kernel takes a map in one write only
    finally:
        os.close(file)


def attach_mapped(source: str, path: str, userns_fd: int, *, recursive: bool) -> None:
    """Attach a copy of what is at `source` at `path`, mapped.

    Raises:
        UnimplementedError: the file system or the kernel cannot do it.
    """
    tree = mnt.open_tree(source, mnt.OPEN_TREE_CLONE | (mnt.AT_RECURSIVE if recursive else 0))
    try:
        try:
            mnt.mount_setattr(
                "",
                dir_fd=tree,
                flags=mnt.AT_EMPTY_PATH | (mnt.AT_RECURSIVE if recursive else 0),
                attr_set=mnt.MOUNT_ATTR_IDMAP,
                userns_fd=userns_fd,
            )
        except OSError as error:
            raise UnimplementedError(
                f"id mapping of {source!r}: the kernel or its file system cannot: {error.strerror}"
            ) from error
        mnt.move_mount(tree, path)
    finally:
        os.close(tree)


def _attach_overlay(mount: Mount, parsed: Parsed, path: str, userns_fd: int) -> None:
    """Map the layers' common parent once, at a private place, and stack the layers seen through it."""
    from orlop.core.mount.perform import mount_overlay

    layers = options.split_layers(options.value(parsed.data, "lowerdir") or "")
    parent = os.path.commonpath([os.path.dirname(layer) for layer in layers])
    with contextlib.ExitStack() as undo:
        scratch = tempfile.mkdtemp(prefix="orlop-idmap-")
        undo.callback(os.rmdir, scratch)
        attach_mapped(parent, scratch, userns_fd, recursive=False)
        # The overlay keeps its own reference to the mapped layers; this mount is only their name.
        undo.callback(mnt.umount2, scratch, mnt.MNT_DETACH)
        mapped = [os.path.join(scratch, os.path.relpath(layer, parent)) for layer in layers]
        data = [option for option in parsed.data if not option.startswith("lowerdir=")]
        lower = f"lowerdir={options.join_layers(mapped)}"
        mount_overlay(mount.source, path, Parsed(flags=parsed.flags, data=(*data, lower)))
