"""Confinement of workers: what a hostile archive or tree meets.

Two processes share one private mount namespace whose root is a small tmpfs with nothing in it but the tree to be
written and, read-only, the layers below it; or the trees to be compared, read-only. Mount, network, IPC, UTS and PID
namespaces are their own. Both start as one that is trusted and never sees a byte of archive or file; it forks the one
that does, which gives up everything but a few capabilities, the listed system calls and its own descriptors.
"""

import contextlib
import errno
import os
import resource
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from orlop.core.mount import Mount, options, perform
from orlop.linux import capabilities, namespaces, prctl, seccomp
from orlop.linux import mount as mnt
from orlop.linux.capabilities import Cap

_SPARE_DIRECTORIES: Final = ("/sys", "/dev", "/run", "/tmp", "/mnt", "/proc")
UNPACKING: Final = (Cap.CHOWN, Cap.DAC_OVERRIDE, Cap.FOWNER, Cap.FSETID, Cap.MKNOD, Cap.SETFCAP)
"""Capabilities of who writes a tree."""

READING: Final = (Cap.DAC_READ_SEARCH,)
"""Capabilities of who reads one."""

_MEMORY: Final = 4 << 30
_OPEN_FILES: Final = 65536
_NAMESPACES: Final = (
    namespaces.CLONE_NEWNS | namespaces.CLONE_NEWNET | namespaces.CLONE_NEWIPC | namespaces.CLONE_NEWUTS
)
# What a worker may call: name, number on x86_64, number on aarch64 (asm-generic/unistd.h); -1 where there is none.
_CALLS: Final = (
    ("brk", 12, 214),
    ("clock_gettime", 228, 113),
    ("clock_nanosleep", 230, 115),
    ("close", 3, 57),
    ("close_range", 436, 436),
    ("copy_file_range", 326, 285),
    ("dup", 32, 23),
    ("exit", 60, 93),
    ("exit_group", 231, 94),
    ("fchdir", 81, 50),
    ("fchmod", 91, 52),
    ("fchmodat", 268, 53),
    ("fchmodat2", 452, 452),
    ("fchown", 93, 55),
    ("fchownat", 260, 54),
    ("fcntl", 72, 25),
    ("fgetxattr", 193, 10),
    ("flistxattr", 196, 13),
    ("fsetxattr", 190, 7),
    ("fstat", 5, 80),
    ("fstatfs", 138, 44),
    ("ftruncate", 77, 46),
    ("futex", 202, 98),
    ("getdents64", 217, 61),
    ("getpid", 39, 172),
    ("getrandom", 318, 278),
    ("gettid", 186, 178),
    ("linkat", 265, 37),
    ("lseek", 8, 62),
    ("lsetxattr", 189, 6),
    ("madvise", 28, 233),
    ("mkdirat", 258, 34),
    ("mknodat", 259, 33),
    ("mmap", 9, 222),
    ("mprotect", 10, 226),
    ("mremap", 25, 216),
    ("munmap", 11, 215),
    ("newfstatat", 262, 79),
    ("openat", 257, 56),
    ("pread64", 17, 67),
    ("read", 0, 63),
    ("readlinkat", 267, 78),
    ("restart_syscall", 219, 128),
    ("rseq", 334, 293),
    ("rt_sigaction", 13, 134),
    ("rt_sigprocmask", 14, 135),
    ("rt_sigreturn", 15, 139),
    ("sched_yield", 24, 124),
    ("sendfile", 40, 71),
    ("set_robust_list", 273, 99),
    ("sigaltstack", 131, 132),
    ("statx", 332, 291),
    ("symlinkat", 266, 36),
    ("unlinkat", 263, 35),
    ("utimensat", 280, 88),
    ("write", 1, 64),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a confined process sees.

    Attributes:
        root_fd: the tree to be written.
        lower_fd: the merged layers below it, or -1.
        isolated: whether Linux namespaces could be had; without them the tree is only chroot-ed into, or not even that.
        parent_group: the file system gives the directory's group to what is made (mount option grpid).
    """

    root_fd: int
    lower_fd: int
    isolated: bool
    parent_group: bool


def enter(mounts: Sequence[Mount], lower: Sequence[Mount], directory: str | None) -> View:
    """Shut the calling process, which must be alone in itself, into a root with only these.

    Args:
        mounts: performed to give the tree to be written; unless
        directory: is given, which is then that tree.
        lower: performed to give the merged lower layers; empty for none.

    Raises:
        OSError, OrlopError: a Linux namespace or a mount was refused.
    """
    try:
        namespaces.unshare(_NAMESPACES)
    except PermissionError:
        if directory is None or lower:
            raise
        return _without_namespaces(directory)
    mnt.mount("", "/", "", mnt.MS_REC | mnt.MS_PRIVATE)
    spare = _spare_directory([directory or "", *_sources([*mounts, *lower])])
    # Taken before something is mounted over it:
    tree_fd = mnt.open_tree(directory) if directory is not None else -1
    parent_group = _parent_group(directory) if directory is not None else True
    _private_root(spare, ("tree", "lower"))
    if directory is not None:
        mnt.move_mount(tree_fd, f"{spare}/tree")
        os.close(tree_fd)
        harden(f"{spare}/tree")
    else:
        perform.mount_all(mounts, f"{spare}/tree")
    if lower:
        perform.mount_all(lower, f"{spare}/lower")
    _pivot(spare)
    _separate_processes()
    return View(
        root_fd=os.open("/tree", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC),
        lower_fd=os.open("/lower", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if lower else -1,
        isolated=True,
        parent_group=parent_group,
    )


def enter_trees(trees: Mapping[str, Sequence[Mount]]) -> dict[str, int]:
    """Shut the calling process, which must be alone in itself, into a root with only these trees, read-only.

    Returns:
        A descriptor of each tree's root; -1 for one without mounts, which is empty.

    Raises:
        OSError, OrlopError: a Linux namespace or a mount was refused.
    """
    try:
        namespaces.unshare(_NAMESPACES)
    except PermissionError:
        return {name: _bound_directory(mounts) for name, mounts in trees.items()}
    mnt.mount("", "/", "", mnt.MS_REC | mnt.MS_PRIVATE)
    spare = _spare_directory(_sources([mount for mounts in trees.values() for mount in mounts]))
    _private_root(spare, trees)
    for name, mounts in trees.items():
        if mounts:
            perform.mount_all(options.readonly(mounts), f"{spare}/{name}")
            harden(f"{spare}/{name}")
    _pivot(spare)
    _separate_processes()
    return {
        name: os.open(f"/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if mounts else -1
        for name, mounts in trees.items()
    }


def harden(path: str) -> None:
    """Forbid what a worker never needs of the mount at `path`: programs, set-uid, and the kernel following links."""
    attributes = mnt.MOUNT_ATTR_NOSUID | mnt.MOUNT_ATTR_NODEV | mnt.MOUNT_ATTR_NOEXEC
    try:
        mnt.mount_setattr(path, attr_set=attributes | mnt.MOUNT_ATTR_NOSYMFOLLOW)
    except OSError:  # before Linux 5.14; the walk by descriptors is what protects, this is a second wall
        with contextlib.suppress(OSError):
            mnt.mount_setattr(path, attr_set=attributes)


def confine(keep: Iterable[int], allowed: Iterable[Cap], name: str) -> None:
    """Give up all that a worker does not need; before it starts threads. `lock` follows when it has them.

    Args:
        keep: descriptors that stay open beside 0, 1 and 2, which lead to /dev/null.
        allowed: the capabilities that it keeps.
        name: what the process is called.
    """
    prctl.set_name(name)
    for fd in (1, 2):
        os.dup2(0, fd)
    close_others(keep)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    capabilities.limit_to(allowed)
    prctl.set_no_new_privs()
    prctl.set_dumpable(False)


def lock() -> None:
    """Allow this process, all threads of it, the listed system calls only; others fail with EPERM."""
    if not seccomp.supported():
        return
    column = 1 if os.uname().machine == "x86_64" else 2
    numbers = [int(call[column]) for call in _CALLS]
    seccomp.install(seccomp.build_filter(numbers, seccomp.SECCOMP_RET_ERRNO | errno.EPERM))


def raise_open_files() -> int:
    """Let this process open as many files as it may, and say how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def _without_namespaces(directory: str) -> View:
    """In an unprivileged container: the walk by descriptors still keeps the archive inside, chroot is a second wall."""
    root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with contextlib.suppress(PermissionError):
        os.chroot(directory)
        os.chdir("/")
    return View(root_fd=root_fd, lower_fd=-1, isolated=False, parent_group=True)


def _bound_directory(mounts: Sequence[Mount]) -> int:
    """In an unprivileged container: what is one directory anyway can be read, in a walk that follows no link."""
    if not mounts:
        return -1
    if len(mounts) > 1 or mounts[0].type != "bind" or mounts[0].target:
        raise PermissionError(errno.EPERM, "mounting needs a mount namespace, which this host refuses")
    return os.open(mounts[0].source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _sources(mounts: Iterable[Mount]) -> list[str]:
    return [path for mount in mounts for path in _paths(mount)]


def _paths(mount: Mount) -> list[str]:
    return [mount.source, *(path for option in mount.options for path in option.partition("=")[2].split(":"))]


def _spare_directory(sources: Sequence[str]) -> str:
    """A directory to mount over in this namespace, which hides none of `sources`."""
    for directory in _SPARE_DIRECTORIES:
        if os.path.isdir(directory) and not any(source.startswith(f"{directory}/") for source in sources):
            return directory
    raise FileNotFoundError("no directory to put a private root on")


def _private_root(path: str, names: Iterable[str]) -> None:
    """Mount a small root at `path`, with these empty directories."""
    with contextlib.ExitStack() as undo:
        fs_fd = mnt.fsopen("tmpfs")
        undo.callback(os.close, fs_fd)
        mnt.fsconfig_string(fs_fd, "mode", "0700")
        mnt.fsconfig_string(fs_fd, "size", "64k")
        mnt.fsconfig_create(fs_fd)
        root_fd = mnt.fsmount(fs_fd, mnt.MOUNT_ATTR_NOSUID | mnt.MOUNT_ATTR_NODEV | mnt.MOUNT_ATTR_NOEXEC)
        undo.callback(os.close, root_fd)
        mnt.move_mount(root_fd, path)
    for name in names:
        os.mkdir(f"{path}/{name}", 0o700)


def _pivot(path: str) -> None:
    """Make the mount at `path` the root and drop the old one with all below it."""
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(path)
        mnt.pivot_root(".", ".")  # the old root lies on the new one now
        os.fchdir(old)
        mnt.umount2(".", mnt.MNT_DETACH)
        os.chdir("/")
    finally:
        os.close(old)
    mnt.mount_setattr("/", attr_set=mnt.MOUNT_ATTR_RDONLY)


def _separate_processes() -> None:
    """Let what is forked from now on see no other process.

    Only once everything is mounted: an id-mapped mount takes a child, and with the first of them a namespace ends.
    """
    namespaces.unshare(namespaces.CLONE_NEWPID)


def _parent_group(directory: str) -> bool:
    """Whether the file system under `directory` is mounted with grpid."""
    found = ""
    longest = -1
    for entry in mnt.mountinfo():
        point = entry.mount_point.rstrip("/")
        if len(point) >= longest and (directory == point or directory.startswith(f"{point}/")):
            longest, found = len(point), entry.super_options
    return any(option in ("grpid", "bsdgroups") for option in found.split(","))


def close_others(keep: Iterable[int]) -> None:
    """Close all descriptors beyond 2 but these."""
    first = 3
    for fd in sorted(keep):
        if fd >= first:
            os.closerange(first, fd)
            first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
