"""The directories in which transforms may make files: what a request names lies beneath one of them, or is refused.

Links are followed as long as they stay beneath (openat2(2), RESOLVE_BENEATH), so no path and no rename leads outside.
"""

import contextlib
import errno
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from orlop.base.errdefs import FailedPreconditionError, UnimplementedError
from orlop.linux import openat2 as beneath

_RETRIES: Final = 32


@dataclass(frozen=True, slots=True)
class Place:
    """A path beneath a root: the root, and the rest of the path; empty for the root itself."""

    root: str
    rest: str

    @property
    def path(self) -> str:
        return os.path.join(self.root, self.rest) if self.rest else self.root

    def open(self, flags: int) -> int | None:
        """Open it; None if it is not there.

        Raises:
            FailedPreconditionError: it leads out of the root.
            OSError: as open(2).
        """
        return _open(self.root, self.rest, flags)

    @contextlib.contextmanager
    def parent(self) -> Iterator[tuple[int, str]]:
        """A descriptor of the directory that it lies in, and its name there.

        Raises:
            FailedPreconditionError: the directory is not there or leads out of the root.
        """
        directory, _, name = self.rest.rpartition("/")
        fd = _open(self.root, directory, os.O_PATH | os.O_DIRECTORY)
        if fd is None:
            raise FailedPreconditionError(f"{self.path}: its directory does not exist")
        try:
            yield fd, name
        finally:
            os.close(fd)


def place(roots: Sequence[str], path: str, *, what: str) -> Place:
    """Where `path` lies beneath the deepest of the roots.

    Raises:
        UnimplementedError: beneath none; `what` says for which transform.
    """
    fitting = [root for root in roots if path == root or path.startswith(f"{root}/")]
    if not fitting:
        raise UnimplementedError(f'no root "{path}" configured for {what}')
    root = max(fitting, key=len)
    return Place(root, posixpath.normpath(f"/{path[len(root) :]}").lstrip("/"))


def _open(root: str, rest: str, flags: int) -> int | None:
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for _ in range(_RETRIES):
            try:
                return beneath.openat2(rest or ".", flags, dir_fd=root_fd, resolve=beneath.RESOLVE_BENEATH)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return None
                if error.errno == errno.EXDEV:
                    raise FailedPreconditionError(f"{os.path.join(root, rest)}: path escapes from parent") from None
                if error.errno != errno.EAGAIN:
                    raise
        raise FailedPreconditionError(f"{os.path.join(root, rest)}: changes while it is looked up")
    finally:
        os.close(root_fd)
