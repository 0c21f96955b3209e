"""Performing mounts: in order, undone in reverse, each failure named by mount, target and phase.

All of it is synchronous and imports little, because the supervisor uses it. Who mounts in a daemon does so in a worker
thread; mounts made here propagate as the file system they are made in does.
"""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from orlop.base import errdefs
from orlop.core.mount import Mount, options
from orlop.linux import mount as mnt
from orlop.linux import namespaces
from orlop.linux.openat2 import openat2

TEMPORARY: Final = "orlop-mount-"
temporary: Final[set[str]] = set()
"""Where this process has mounted something for a moment."""

_PAGE_SIZE: Final = os.sysconf("SC_PAGE_SIZE")
# Of a bind mount the kernel ignores these until it is remounted.
_ATTRIBUTES: Final = {
    mnt.MS_RDONLY: mnt.MOUNT_ATTR_RDONLY,
    mnt.MS_NOSUID: mnt.MOUNT_ATTR_NOSUID,
    mnt.MS_NODEV: mnt.MOUNT_ATTR_NODEV,
    mnt.MS_NOEXEC: mnt.MOUNT_ATTR_NOEXEC,
    mnt.MS_NOSYMFOLLOW: mnt.MOUNT_ATTR_NOSYMFOLLOW,
    mnt.MS_NODIRATIME: mnt.MOUNT_ATTR_NODIRATIME,
}
_ERRORS: Final[dict[int, type[errdefs.OrlopError]]] = {
    errno.ENOENT: errdefs.NotFoundError,
    errno.EPERM: errdefs.PermissionDeniedError,
    errno.EACCES: errdefs.PermissionDeniedError,
    errno.EINVAL: errdefs.InvalidArgumentError,
    errno.ENODEV: errdefs.FailedPreconditionError,
    errno.EBUSY: errdefs.FailedPreconditionError,
    errno.ELOOP: errdefs.InvalidArgumentError,
    errno.ENOTDIR: errdefs.InvalidArgumentError,
    errno.ENOSPC: errdefs.ResourceExhaustedError,
    errno.ENOMEM: errdefs.ResourceExhaustedError,
}


def mount_all(mounts: Sequence[Mount], target: str) -> None:
    """Perform `mounts` on `target`, in order; when one fails, those before it are undone.

    A mount's own `target` is looked up below `target` as if that were the root, so no link leads out of it.

    Raises:
        OrlopError: of the class that the kernel's errno stands for; the text names the mount, its target and the phase.
    """
    done: list[str] = []
    try:
        for mount in mounts:
            done.append(_perform(mount, target))
    except BaseException as error:
        for path in reversed(done):
            try:
                unmount(path, detach=True)
            except errdefs.OrlopError as second:
                error.add_note(f"while undoing: {second}")
        raise


def unmount(target: str, *, detach: bool = False, patience_s: float = 0.0) -> None:
    """Detach the topmost mount at `target`; no mount there, or no such path, is success.

    Args:
        detach: out of sight at once, gone when no longer in use (MNT_DETACH).
        patience_s: how long to try again while it is busy.

    Raises:
        OrlopError: FailedPreconditionError if it is busy.
    """
    _unmount_one(target, detach=detach, patience_s=patience_s)


def unmount_all(target: str, *, detach: bool = False, patience_s: float = 0.0) -> None:
    """Detach every mount at `target`, however many lie on each other; nothing there is success.

    Raises:
        OrlopError: FailedPreconditionError if one is busy.
    """
    while _unmount_one(target, detach=detach, patience_s=patience_s):
        pass


def unmount_mounts(mounts: Sequence[Mount], target: str, *, detach: bool = False) -> None:
    """The opposite of `mount_all`: every mount at the targets of `mounts`, last first."""
    for mount in reversed(mounts):
        with _target(mount, target) as path:
            real = os.readlink(path) if mount.target else path
        unmount_all(real, detach=detach)


@contextlib.contextmanager
def temp_mount(mounts: Sequence[Mount], directory: str | None = None) -> Iterator[str]:
    """The mounts on a new directory below `directory`, unmounted and removed on leaving; no mounts give it empty.

    What was left in use inside is detached and goes with its last user. The directory is removed by rmdir(2) only, so
    that nothing behind a mount that stayed can be deleted.
    """
    import tempfile  # late: it brings random, shutil and the compressors, which the supervisor does without

    with contextlib.ExitStack() as undo:
        path = os.path.realpath(tempfile.mkdtemp(prefix=TEMPORARY, dir=directory))
        temporary.add(path)
        undo.callback(temporary.discard, path)
        undo.callback(os.rmdir, path)
        undo.callback(unmount_all, path, detach=True)
        mount_all(mounts, path)
        yield path


def unmount_below(directory: str, *, patience_s: float = 0.0) -> None:
    """Detach every mount at and below `directory`, the last one first; nothing there is success.

    Raises:
        OrlopError: FailedPreconditionError if one is busy; those before it are detached.
    """
    for path in reversed(mounts_below(directory)):
        unmount(path, patience_s=patience_s)


def mounts_below(directory: str) -> list[str]:
    """Where something is mounted at and below `directory`, in the order of mounting; once for each mount."""
    inside = os.path.realpath(directory).rstrip("/") + "/"
    return [entry.mount_point for entry in mnt.mountinfo() if f"{entry.mount_point}/".startswith(inside)]


def is_mounted(target: str) -> bool:
    """Whether a mount is attached at `target`, by /proc/self/mountinfo."""
    real = os.path.realpath(target)
    return any(entry.mount_point == real for entry in mnt.mountinfo())


def _perform(mount: Mount, root: str) -> str:
    """Perform one mount, wholly or not at all; returns where."""
    try:
        with _target(mount, root) as path:
            parsed = options.parse(mount.options)
            if mount.type.startswith(("fuse.", "fuse3.")):
                raise errdefs.UnimplementedError("needs a helper program")
            real = os.readlink(path) if mount.target else path
            _attach(mount, parsed, path)
            try:
                # Looked up again: `path` stands for what is now below the new mount.
                _adjust(parsed, real)
            except BaseException:
                mnt.umount2(real, mnt.MNT_DETACH)
                raise
            return real
    except errdefs.OrlopError as error:
        raise type(error)(f"{_name(mount, root)}: {error.text}") from error
    except OSError as error:
        raise as_error(_name(mount, root), error) from error


def as_error(text: str, error: OSError) -> errdefs.OrlopError:
    """An error of ours for the kernel's: the class by errno, the text `text` and the kernel's words."""
    cls = _ERRORS.get(error.errno or 0, errdefs.InternalError)
    return cls(f"{text}: {error.strerror}")


def _name(mount: Mount, root: str) -> str:
    below = f" (at {mount.target!r} below it)" if mount.target else ""
    source = f" of {mount.source!r}" if mount.source not in ("", mount.type) else ""
    return f"mount {mount.type or 'change'}{source} on {root!r}{below}"


@contextlib.contextmanager
def _target(mount: Mount, root: str) -> Iterator[str]:
    """The path to mount on; below a root it is a descriptor's, so that nobody can swap a link in meanwhile."""
    if not mount.target:
        yield root
        return
    with contextlib.ExitStack() as undo:
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        undo.callback(os.close, root_fd)
        target_fd = openat2(mount.target, os.O_PATH, dir_fd=root_fd)
        undo.callback(os.close, target_fd)
        yield f"/proc/self/fd/{target_fd}"


def _attach(mount: Mount, parsed: options.Parsed, path: str) -> None:
    if parsed.loop:
        from orlop.core.mount import loop

        with loop.attached(mount.source, readonly=bool(parsed.flags & mnt.MS_RDONLY)) as device:
            # Mounted, the device goes with the mount.
            _attach(replace(mount, source=device.path), replace(parsed, loop=False), path)
    elif parsed.uid_maps:
        from orlop.core.mount import idmap

        idmap.attach(mount, parsed, path)
    elif not parsed.flags & mnt.MS_REMOUNT and not parsed.data and not mount.type and not parsed.flags & mnt.MS_BIND:
        return  # only a change of propagation
    elif mount.type == "overlay":
        mount_overlay(mount.source, path, parsed)
    else:
        mnt.mount(mount.source, path, "" if mount.type == "bind" else mount.type, parsed.flags, ",".join(parsed.data))


def _adjust(parsed: options.Parsed, path: str) -> None:
    """What takes a second call: propagation, and the attributes of a bind mount."""
    if parsed.propagation:
        mnt.mount("", path, "", parsed.propagation)
    if parsed.flags & mnt.MS_BIND and not parsed.flags & mnt.MS_REMOUNT:
        wanted = [flag for flag in _ATTRIBUTES if parsed.flags & flag]
        if wanted:
            _set_attributes(path, wanted)


def _set_attributes(path: str, flags: Sequence[int]) -> None:
    try:
        mnt.mount_setattr(path, attr_set=sum(_ATTRIBUTES[flag] for flag in flags))
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        mnt.mount("", path, "", sum(flags) | mnt.MS_BIND | mnt.MS_REMOUNT)


def mount_overlay(source: str, path: str, parsed: options.Parsed) -> None:
    """Mount an overlay however long its list of layers is.

    A page of options goes to mount(2) as it is. A longer `lowerdir` is given relative to the layers' common parent,
    from a thread whose working directory that is (containerd starts a process for it). What is still too long, or lies
    too far apart, is added layer by layer with fsconfig(2), from Linux 6.5 on.

    Raises:
        OSError: E2BIG where none of these can carry the options.
    """
    data = ",".join(parsed.data)
    if len(os.fsencode(data)) < _PAGE_SIZE:
        mnt.mount(source, path, "overlay", parsed.flags, data)
        return
    layers = options.split_layers(options.value(parsed.data, "lowerdir") or "")
    rest = [option for option in parsed.data if not option.startswith("lowerdir=")]
    parent = os.path.commonpath([os.path.dirname(layer) for layer in layers])
    relative = options.join_layers(os.path.relpath(layer, parent) for layer in layers)
    short = ",".join([*rest, f"lowerdir={relative}"])
    if len(os.fsencode(short)) < _PAGE_SIZE:
        target = os.path.abspath(path)
        _in_directory(parent, lambda: mnt.mount(source, target, "overlay", parsed.flags, short))
    else:
        _mount_layer_by_layer(path, parsed.flags, layers, rest)


def _mount_layer_by_layer(path: str, flags: int, layers: Sequence[str], rest: Sequence[str]) -> None:
    with contextlib.ExitStack() as undo:
        fs_fd = mnt.fsopen("overlay")
        undo.callback(os.close, fs_fd)
        try:
            for layer in layers:
                _add_layer(fs_fd, layer)
            for option in rest:
                key, equals, value = option.partition("=")
                if equals:
                    mnt.fsconfig_string(fs_fd, key, value)
                else:
                    mnt.fsconfig_flag(fs_fd, key)
            if flags & mnt.MS_RDONLY:
                mnt.fsconfig_flag(fs_fd, "ro")
            mnt.fsconfig_create(fs_fd)
        except OSError as error:
            words = mnt.fs_messages(fs_fd) or "needs lowerdir+ (Linux 6.5) for so many layers"
            raise OSError(error.errno, f"{error.strerror} ({words})") from None
        attributes = sum(bit for flag, bit in _ATTRIBUTES.items() if flags & flag)
        mount_fd = mnt.fsmount(fs_fd, attributes)
        undo.callback(os.close, mount_fd)
        mnt.move_mount(mount_fd, path)


def _add_layer(fs_fd: int, layer: str) -> None:
    if len(os.fsencode(layer)) < 256:
        mnt.fsconfig_string(fs_fd, "lowerdir+", layer)
        return
    layer_fd = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mnt.fsconfig_fd(fs_fd, "lowerdir+", layer_fd)
    finally:
        os.close(layer_fd)


def _in_directory(directory: str, action: Callable[[], None]) -> None:
    """Run `action` in a thread of its own, the only one whose working directory is `directory`.

    The thread takes a copy of the file system state (CLONE_FS, no Linux namespace) and ends with it; nobody else sees
    its chdir.
    """
    failures: list[BaseException] = []

    def run() -> None:
        try:
            namespaces.unshare(namespaces.CLONE_FS)
            os.chdir(directory)
            action()
        except BaseException as error:  # handed to the caller's thread
            failures.append(error)

    thread = threading.Thread(target=run, name="orlop-mount")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _unmount_one(target: str, *, detach: bool, patience_s: float) -> bool:
    """Whether there was a mount."""
    flags = mnt.UMOUNT_NOFOLLOW | (mnt.MNT_DETACH if detach else 0)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            mnt.umount2(target, flags)
            return True
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return False
            if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                raise as_error(f"unmount {target!r}", error) from error
            time.sleep(0.02)  # busy: its last user is just ending; the kernel has nothing to wait on
