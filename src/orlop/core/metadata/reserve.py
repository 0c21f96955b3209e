"""Space kept free for deletions: a file beside the database whose blocks are given up when the disk is full.

To delete takes space first: the transaction goes to the write-ahead log. On a full file system nothing could be deleted
any more, and so it would stay full. Whoever frees something may use the reserve; once there is room it is filled again.
"""

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Final

from orlop.base import failpoints

log: Final = logging.getLogger(__name__)

NAME: Final = "reserve"
SIZE_BYTES: Final = 4 << 20
"""A deletion writes some pages of 4 KiB; a collection as many as the rows that it removes have."""

_RETRY_S: Final = 0.1


class Reserve:
    """The file `path`; used by one thread at a time."""

    def __init__(self, path: Path, size_bytes: int = SIZE_BYTES) -> None:
        self.path = path
        self._size = size_bytes
        self._whole = False
        self._next_try = 0.0

    def fill(self) -> None:
        """Take the space if it is not taken, and another try is due; does without where there is none."""
        now = time.monotonic()
        if self._whole or now < self._next_try:
            return
        self._next_try = now + _RETRY_S
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:  # full of inodes, read-only or failing: the next try may do
            return
        try:
            if os.fstat(fd).st_blocks * 512 < self._size:
                os.posix_fallocate(fd, 0, self._size)
                failpoints.reach("metadata.reserve.filled")
            self._whole = True
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)  # half of it would be a lie, and somebody may need the space
        finally:
            os.close(fd)

    def spend(self) -> bool:
        """Give the space up, for what must be written now; False if there was none."""
        self._whole = False
        self._next_try = time.monotonic() + _RETRY_S
        try:
            had = os.stat(self.path).st_blocks > 0
            os.truncate(self.path, 0)
            failpoints.reach("metadata.reserve.spent")
        except OSError:
            return False
        if had:
            log.warning("file system is full: the reserve is used to delete", extra={"path": str(self.path)})
        return had
