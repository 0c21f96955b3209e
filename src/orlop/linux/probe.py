"""Does this kernel do that? Answered by trying, never by version.

Mounts are tried through fsopen(2) and fsmount(2) and attached nowhere, so a probe leaves no trace in the mount table
and needs no undoing when it dies. Where it takes a file or a directory, that is what may be left (`SCRATCH`). The floor
is Linux 5.6 (openat2, pidfd_getfd). Verdicts about the host are remembered; those about a directory are not.
"""

import contextlib
import errno
import functools
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

from orlop.linux import mount as mnt
from orlop.linux.openat2 import openat2

SCRATCH: Final = ".probe-"
"""What names begin with of files and directories that are made to try something; who is killed meanwhile leaves one."""

CgroupMode = Literal["v1", "v2", "hybrid", "none"]


class Verdict(NamedTuple):
    """Yes or no, and for no the reason in words for a log line or a plug-in's status; truthy when yes."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


@functools.cache
def mount_allowed() -> Verdict:
    """Whether this process may mount at all (CAP_SYS_ADMIN here, and no sandbox that forbids it)."""
    try:
        with _mounted("tmpfs", ()):
            return Verdict(True)
    except OSError as error:
        return _no("mount a tmpfs", error)


@functools.cache
def unshare_allowed(flags: int) -> Verdict:
    """Whether a child process may get the Linux namespaces in `flags`; tried in a child, since it cannot be undone."""
    code = f"import ctypes,os;c=ctypes.CDLL(None,use_errno=True);os._exit(c.unshare({flags}) and ctypes.get_errno())"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={},
        timeout=30,
    )
    if done.returncode == 0:
        return Verdict(True)
    return Verdict(False, f"cannot unshare {flags:#x}: {os.strerror(done.returncode)}")


@functools.cache
def openat2_supported() -> Verdict:
    """Whether openat2(2) with RESOLVE_IN_ROOT works."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(openat2(".", os.O_PATH, dir_fd=root))
    except OSError as error:
        return _no("open inside a root", error)
    finally:
        os.close(root)
    return Verdict(True)


def overlay_supported(directory: str, options: Iterable[str] = ()) -> Verdict:
    """Whether overlayfs works with its layers on the file system of `directory`, under extra `options`.

    Tries what snapshots need: two lower layers, an upper that takes something new, and the removal of a lower file (a
    whiteout).
    """
    try:
        with _overlay(directory, options) as root_fd:
            os.mkdir("made", dir_fd=root_fd)
            os.unlink("lower-file", dir_fd=root_fd)
    except OSError as error:
        return _no(f"use overlayfs on {directory}", error)
    return Verdict(True)


def overlay_userxattr(directory: str) -> Verdict:
    """Whether overlayfs takes `userxattr` (Linux 5.11), which unprivileged mounts need."""
    return overlay_supported(directory, ("userxattr",))


def overlay_index_off(directory: str) -> bool:
    """Whether `index=off` is known; if so it must be given, or a lower directory reused by two mounts is refused."""
    return bool(overlay_supported(directory, ("index=off",)))


def overlay_lowerdir_plus(directory: str) -> bool:
    """Whether fsconfig(2) takes layers one by one as `lowerdir+` (Linux 6.5), beyond the page of mount(2)."""
    try:
        with _overlay(directory, (), separately=True):
            return True
    except OSError:
        return False


def native_whiteouts(directory: str) -> Verdict:
    """Whether character device 0:0 can be made in `directory`, which is overlayfs's whiteout."""
    try:
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=directory) as scratch:
            os.mknod(os.path.join(scratch, "whiteout"), stat.S_IFCHR | 0o000, os.makedev(0, 0))
    except OSError as error:
        return _no(f"make a whiteout in {directory}", error)
    return Verdict(True)


def trusted_xattrs(directory: str) -> Verdict:
    """Whether trusted.* attributes can be set on files of `directory`."""
    return _xattr(directory, "trusted.orlop.probe")


def user_xattrs(directory: str) -> Verdict:
    """Whether user.* attributes can be set on files of `directory`."""
    return _xattr(directory, "user.orlop.probe")


def cgroup_mode(mountinfo: str = "/proc/self/mountinfo") -> CgroupMode:
    """How cgroups are mounted here: `v2` alone, `v1` alone, `hybrid` (v1 controllers and a v2 tree), or not at all."""
    kinds = {entry.fs_type for entry in mnt.mountinfo(mountinfo) if entry.fs_type in ("cgroup", "cgroup2")}
    if kinds == {"cgroup", "cgroup2"}:
        return "hybrid"
    if not kinds:
        return "none"
    return "v2" if kinds == {"cgroup2"} else "v1"


@contextlib.contextmanager
def _mounted(fstype: str, options: Iterable[str]) -> Iterator[int]:
    """A descriptor of an unattached mount; errors carry the kernel's own words."""
    with contextlib.ExitStack() as undo:
        fs_fd = mnt.fsopen(fstype)
        undo.callback(os.close, fs_fd)
        try:
            for option in options:
                key, equals, value = option.partition("=")
                if equals:
                    mnt.fsconfig_string(fs_fd, key, value)
                else:
                    mnt.fsconfig_flag(fs_fd, key)
            mnt.fsconfig_create(fs_fd)
        except OSError as error:
            words = mnt.fs_messages(fs_fd)
            raise OSError(error.errno, f"{error.strerror} ({words})" if words else error.strerror) from None
        root_fd = mnt.fsmount(fs_fd)
        undo.callback(os.close, root_fd)
        yield root_fd


@contextlib.contextmanager
def _overlay(directory: str, options: Iterable[str], *, separately: bool = False) -> Iterator[int]:
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=directory) as scratch:
        layers = [os.path.join(scratch, name) for name in ("l1", "l2", "u", "w")]
        for path in layers:
            os.mkdir(path)
        with open(os.path.join(scratch, "l1", "lower-file"), "wb"):
            pass
        first, second, upper, work = layers
        lower = [f"lowerdir+={first}", f"lowerdir+={second}"] if separately else [f"lowerdir={first}:{second}"]
        with _mounted("overlay", [*lower, f"upperdir={upper}", f"workdir={work}", *options]) as root_fd:
            yield root_fd
        # overlayfs leaves work/work without permissions; root removes it all the same


def _xattr(directory: str, name: str) -> Verdict:
    try:
        with tempfile.NamedTemporaryFile(prefix=SCRATCH, dir=directory) as file:
            os.setxattr(file.fileno(), name, b"y")
    except OSError as error:
        return _no(f"set {name} in {directory}", error)
    return Verdict(True)


def _no(what: str, error: OSError) -> Verdict:
    hint = " (not permitted here: an unprivileged container?)" if error.errno == errno.EPERM else ""
    return Verdict(False, f"cannot {what}: {error.strerror}{hint}")
