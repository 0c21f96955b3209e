"""Whether two trees are the same files: for a layer as it is beside the same layer unpacked anew.

What the kernel or the moment of unpacking decides is not compared: times of directories and of whiteouts, and the
marks that overlayfs sets for itself.
"""

import errno
import io
import os
import stat
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

_CHUNK: Final = 1 << 20
_OWN_MARKS: Final = ("origin", "impure", "nlink", "upper", "uuid", "protattr")
_PASSED_OVER: Final = frozenset(
    [f"{prefix}.overlay.{mark}" for prefix in ("trusted", "user") for mark in _OWN_MARKS] + ["security.selinux"]
)


def difference(actual: str, wanted: str, go_on: Callable[[], object]) -> str | None:
    """What is first found in `actual` that is not as in `wanted`, in words that name the path; None for nothing.

    Args:
        go_on: called now and then; what it raises ends the comparison.

    Raises:
        OSError: a tree is too deep for paths, or something cannot be read in `wanted`.
    """
    pending = [""]
    while pending:
        path = pending.pop()
        go_on()
        try:
            words, below = _compare(actual + path, wanted + path, go_on)
        except _Unreadable as error:
            words, below = str(error), []
        if words:
            return f"{path.lstrip('/') or '.'}: {words}"
        pending += [f"{path}/{name}" for name in reversed(below)]
    return None


class _Unreadable(Exception):
    """Something of the actual tree is there and cannot be read."""


def _compare(actual: str, wanted: str, go_on: Callable[[], object]) -> tuple[str, list[str]]:
    """What differs between two entries, and the names in them if both are directories."""
    right = os.lstat(wanted)
    try:
        left = os.lstat(actual)
    except FileNotFoundError:
        return "is missing", []
    except OSError as error:
        raise _unreadable(error) from error
    words = _attributes(left, right)
    if words:
        return words, []
    if _reading(lambda: _xattrs(actual)) != _xattrs(wanted):
        return "has other extended attributes", []
    if stat.S_ISLNK(right.st_mode):
        return "" if os.readlink(actual) == os.readlink(wanted) else "points elsewhere", []
    if stat.S_ISREG(right.st_mode):
        return "" if _same_content(actual, wanted, go_on) else "has other content", []
    if not stat.S_ISDIR(right.st_mode):
        return "", []
    mine, names = _reading(lambda: set(os.listdir(actual))), set(os.listdir(wanted))
    if mine != names:
        missing, more = sorted(names - mine), sorted(mine - names)
        return f"{missing[0]!r} is missing" if missing else f"{more[0]!r} does not belong there", []
    return "", sorted(names)


def _attributes(left: os.stat_result, right: os.stat_result) -> str:
    kind = stat.S_IFMT(right.st_mode)
    if stat.S_IFMT(left.st_mode) != kind:
        return "is of another type"
    if left.st_mode != right.st_mode:
        return f"has mode {stat.S_IMODE(left.st_mode):04o}, not {stat.S_IMODE(right.st_mode):04o}"
    if (left.st_uid, left.st_gid) != (right.st_uid, right.st_gid):
        return f"belongs to {left.st_uid}:{left.st_gid}, not {right.st_uid}:{right.st_gid}"
    if kind in (stat.S_IFCHR, stat.S_IFBLK) and left.st_rdev != right.st_rdev:
        return "is another device"
    if kind == stat.S_IFREG and left.st_size != right.st_size:
        return f"has {left.st_size} bytes, not {right.st_size}"
    if kind in (stat.S_IFREG, stat.S_IFLNK) and left.st_mtime_ns != right.st_mtime_ns:
        return "has another time of modification"
    if kind == stat.S_IFREG and left.st_nlink != right.st_nlink:
        return f"has {left.st_nlink} names, not {right.st_nlink}"
    return ""


def _xattrs(path: str) -> dict[str, bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return {}
        raise
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names if name not in _PASSED_OVER}


def _same_content(actual: str, wanted: str, go_on: Callable[[], object]) -> bool:
    with open(wanted, "rb", buffering=0, opener=_opener) as right, _opened(actual) as left:
        while True:
            go_on()
            expected = right.read(_CHUNK)
            if _reading(lambda: left.read(_CHUNK)) != expected:
                return False
            if not expected:
                return True


def _opened(path: str) -> io.FileIO:
    return _reading(lambda: io.FileIO(path, opener=_opener))


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def _reading(read: Callable[[], T]) -> T:
    try:
        return read()
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> Exception:
    if error.errno in (errno.EIO, errno.ENOENT, errno.EUCLEAN, errno.EBADMSG, errno.ELOOP):
        return _Unreadable(f"cannot be read: {error.strerror}")
    return error
