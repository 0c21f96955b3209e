"""What a disk answers, in words: which error of ours an `OSError` is, and which file system it speaks of.

A full or failing disk is the administrator's to mend, who knows file systems by their mount points, not by the path of
a number below our root.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Final

from orlop.base import errdefs
from orlop.linux.mount import mountinfo

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""No room for bytes or inodes, of the file system or of who writes."""

_BROKEN: Final = frozenset({errno.EIO, errno.EROFS, errno.EUCLEAN, errno.EREMOTEIO, errno.ENOTCONN, errno.ESTALE})


def mount_point(path: str | os.PathLike[str]) -> str:
    """Where the file system is mounted that holds `path`, or would hold it: links are followed, it need not exist."""
    real = os.path.realpath(path)
    best = "/"
    try:
        for entry in mountinfo():
            at = entry.mount_point
            if len(at) >= len(best) and (real == at or real.startswith(at.rstrip("/") + "/")):
                best = at
    except OSError:  # no /proc: then the least that is true
        return "/"
    return best


def free_bytes(path: str | os.PathLike[str]) -> int:
    """What root may still write to the file system that holds `path`, or would hold it. Raises OSError."""
    real = os.path.realpath(path)
    while not os.path.lexists(real):
        real = os.path.dirname(real)
    found = os.statvfs(real)
    return found.f_bfree * found.f_frsize


def is_disks(error: OSError) -> bool:
    """Whether a full or failing disk is the reason."""
    return error.errno in FULL | _BROKEN


def failure(what: str, path: str | os.PathLike[str] | None, error: OSError) -> errdefs.OrlopError:
    """`error` in words: what was being done, and if the disk is the reason, where the file system is mounted.

    Args:
        path: what is on that file system, where it is known.
    """
    if not is_disks(error):
        return errdefs.InternalError(f"{what}: {error}")
    reason = "no space left" if error.errno == errno.ENOSPC else (error.strerror or str(error)).lower()
    where = "" if path is None else f" on the file system at {mount_point(path)}"
    return (errdefs.ResourceExhaustedError if error.errno in FULL else errdefs.InternalError)(
        f"{what}: {reason}{where}"
    )


@contextlib.contextmanager
def in_words(what: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise an `OSError` of the block as `failure`."""
    try:
        yield
    except OSError as error:
        raise failure(what, path, error) from error
