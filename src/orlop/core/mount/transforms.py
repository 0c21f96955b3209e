"""Transforms: what a mount's type begins with, such as `format/mkdir/overlay`, done before it is mounted.

    format/   actions in its texts: `orlop.core.mount.templates`
    mkdir/    options X-containerd.mkdir.path=PATH[:MODE[:UID:GID]] make directories
    mkfs/     options X-containerd.mkfs.{size,fs,uuid}=… make its source: a file with a file system in it

What they make lies beneath the roots that a manager is given, and what is there already is taken as it is.

Source: containerd's core/mount/manager/{mkdir,mkfs}.go.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from orlop.base.errdefs import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnimplementedError,
    UnknownError,
)
from orlop.base.quoting import quote
from orlop.core.mount import Mount
from orlop.core.mount.activation import ActiveMount
from orlop.core.mount.perform import as_error
from orlop.core.mount.plans import Step
from orlop.core.mount.roots import Place, place
from orlop.core.mount.templates import format_mount

_MKDIR: Final = "X-containerd.mkdir."
_MKFS: Final = "X-containerd.mkfs."
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp])?(?:i?b)?", re.IGNORECASE | re.ASCII)
_MKFS_TIMEOUT_S: Final = 300.0
_ID: Final = re.compile(r"[0-9A-Za-z-]{1,36}", re.ASCII)


def apply(step: Step, active: Sequence[ActiveMount], roots: Sequence[str]) -> Mount:
    """The mount of a step with its transforms done, and what they make made.

    Raises:
        InvalidArgumentError: an option or an action is none.
        UnimplementedError: a path is beneath no root, or what is there would have to be changed.
        FailedPreconditionError: what is there is of another kind; a program is not installed.
        UnknownError: a program failed; its output is quoted.
    """
    mount = step.mount
    for transform in step.transforms:
        mount = replace(mount, type=mount.type.partition("/")[2])
        match transform:
            case "format":
                mount = format_mount(mount, active)
            case "mkdir":
                mount = _mkdir(mount, roots)
            case "mkfs":
                mount = _mkfs(mount, roots)
    return mount


# ---- mkdir


@dataclass(frozen=True, slots=True, kw_only=True)
class _Directory:
    place: Place
    mode: int
    owner: tuple[int, int]


def _mkdir(mount: Mount, roots: Sequence[str]) -> Mount:
    wanted = [_directory(option, roots) for option in mount.options if option.startswith(_MKDIR)]
    for directory in wanted:
        try:
            _make_directory(directory)
        except OSError as error:
            raise as_error(f"failed to create directory {quote(directory.place.path)}", error) from error
    return replace(mount, options=tuple(option for option in mount.options if not option.startswith(_MKDIR)))


def _directory(option: str, roots: Sequence[str]) -> _Directory:
    path, *rest = option.removeprefix(f"{_MKDIR}path=").split(":", 3)
    if not option.startswith(f"{_MKDIR}path=") or len(rest) == 2:
        raise InvalidArgumentError(f"invalid mkdir option {quote(option)}")
    mode, uid, gid = 0o700, os.getuid(), os.getgid()
    if len(rest) == 3:
        gid, uid = _number(rest[2], "gid"), _number(rest[1], "uid")
    if rest:
        if not re.fullmatch(r"[0-7]{1,11}", rest[0], re.ASCII) or int(rest[0], 8) & ~0o777:
            raise InvalidArgumentError(f"invalid mode {rest[0]}")
        mode = int(rest[0], 8)
    return _Directory(place=place(roots, path, what="mkdir"), mode=mode, owner=(uid, gid))


def _number(text: str, what: str) -> int:
    if not re.fullmatch(r"\d{1,10}", text, re.ASCII) or int(text) >= (1 << 32) - 1:
        raise InvalidArgumentError(f"invalid {what} {quote(text)}")
    return int(text)


def _make_directory(wanted: _Directory) -> None:
    fd = wanted.place.open(os.O_PATH)
    if fd is None:
        with wanted.place.parent() as (parent_fd, name):
            _make_under(parent_fd, name, wanted)
        return
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    if not stat.S_ISDIR(found.st_mode):
        raise FailedPreconditionError(f"mkdir target {quote(wanted.place.path)} exists and is not a directory")
    if found.st_mode & 0o777 != wanted.mode:
        raise UnimplementedError("chmod not supported yet for mkdir handler")


def _make_under(parent_fd: int, name: str, wanted: _Directory) -> None:
    try:
        os.mkdir(name, wanted.mode, dir_fd=parent_fd)
    except FileExistsError:
        _make_directory(wanted)  # somebody else made it meanwhile
        return
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    try:
        os.fchown(fd, *wanted.owner)
        os.fchmod(fd, wanted.mode)  # the umask may have taken from it
    finally:
        os.close(fd)


# ---- mkfs


@dataclass(frozen=True, slots=True, kw_only=True)
class _FileSystem:
    size: int
    kind: str
    uuid: str


def _mkfs(mount: Mount, roots: Sequence[str]) -> Mount:
    source = place(roots, mount.source, what="mkfs")
    wanted = _file_system([option[len(_MKFS) :] for option in mount.options if option.startswith(_MKFS)])
    try:
        _make_image(source, wanted)
    except OSError as error:
        raise as_error(f"failed to create file {quote(mount.source)}", error) from error
    return replace(mount, options=tuple(option for option in mount.options if not option.startswith(_MKFS)))


def _file_system(options: Sequence[str]) -> _FileSystem:
    size, kind, uuid = 0, "ext4", ""
    for option in options:
        key, _, value = option.partition("=")
        match key:
            case "size":
                size = _bytes(value)
            case "fs":
                kind = value
            case "uuid":
                uuid = value
            case _:
                raise InvalidArgumentError(f"unknown mount option {key}")
    if not size:
        raise InvalidArgumentError("mkfs requires mkfs.size option")
    if kind not in ("ext2", "ext3", "ext4", "xfs"):
        raise InvalidArgumentError(f"unsupported filesystem {quote(kind)}")
    if uuid and not _ID.fullmatch(uuid):
        raise InvalidArgumentError(f"bad option uuid: {quote(uuid)}")
    return _FileSystem(size=size, kind=kind, uuid=uuid)


def _bytes(text: str) -> int:
    """A size as go-units' RAMInBytes reads it: `64MiB`, `64m`, `1.5 GB` and `1024`, all binary."""
    found = _SIZE.fullmatch(text)
    if found is None or len(text) > 32:
        raise InvalidArgumentError(f"bad option size: invalid size: {quote(text)}")
    power = " kmgtp".index((found[2] or " ").lower())
    size = int(float(found[1]) * 1024**power)
    if size >= 1 << 63:
        raise InvalidArgumentError(f"bad option size: invalid size: {quote(text)}")
    return size


def _make_image(source: Place, wanted: _FileSystem) -> None:
    """Make the file, unless it is there. It gets its name with the file system in it: a crash leaves none or all."""
    fd = source.open(os.O_PATH)
    if fd is not None:
        try:
            regular = stat.S_ISREG(os.fstat(fd).st_mode)
        finally:
            os.close(fd)
        if not regular:
            raise FailedPreconditionError(
                f"mkfs backing file {quote(source.path)} exists and is not a regular file",
            )
        return
    with source.parent() as (parent_fd, name), _nameless(parent_fd, name) as (image_fd, link):
        os.ftruncate(image_fd, wanted.size)
        _format(image_fd, wanted, source.path)
        with contextlib.suppress(FileExistsError):  # another activation made it meanwhile: as good
            link()


@contextlib.contextmanager
def _nameless(parent_fd: int, name: str) -> "Iterator[tuple[int, _Link]]":
    """A new file that goes if it is not linked; on file systems without O_TMPFILE under a name of its own."""
    scratch = ""
    try:
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o640, dir_fd=parent_fd)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            raise
        scratch = f".{name[:200]}.{secrets.token_hex(4)}"
        fd = os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o640, dir_fd=parent_fd)
    try:
        yield fd, _Link(fd, parent_fd, name)
    finally:
        os.close(fd)
        if scratch:
            os.unlink(scratch, dir_fd=parent_fd)


@dataclass(frozen=True, slots=True)
class _Link:
    """Gives a file its name; raises FileExistsError if something has that."""

    fd: int
    parent_fd: int
    name: str

    def __call__(self) -> None:
        os.link(f"/proc/self/fd/{self.fd}", self.name, dst_dir_fd=self.parent_fd, follow_symlinks=True)


def _format(image_fd: int, wanted: _FileSystem, path: str) -> None:
    program = shutil.which(f"mkfs.{wanted.kind}", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if program is None:
        raise FailedPreconditionError(
            f"failed format {quote(path)}: mkfs.{wanted.kind} is not on PATH", hint="install e2fsprogs or xfsprogs"
        )
    argv = [program, "-q"]
    if wanted.uuid:
        argv += ["-m", f"uuid={wanted.uuid}"] if wanted.kind == "xfs" else ["-U", wanted.uuid]
    # The descriptor, not the path: nobody can put another file in its place.
    try:
        done = subprocess.run(
            [*argv, f"/proc/self/fd/{image_fd}"],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(image_fd,),
            timeout=_MKFS_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise DeadlineExceededError(f"failed format {quote(path)}: mkfs.{wanted.kind} took too long") from None
    if done.returncode:
        words = done.stdout.decode(errors="replace").strip()[-1000:]
        raise UnknownError(
            f"failed format {quote(path)}: mkfs.{wanted.kind} failed: {words}: exit status {done.returncode}"
        )
