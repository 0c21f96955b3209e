"""Says no to what cannot fit before it is sent.

Who opens a writer tells how much will come. What one lease brings (a pull has a lease, and opens a writer for each
layer) is counted together; what others announce is not, for they may announce anything. Nothing is set aside: what fits
now may still meet a full disk.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from orlop.base.errdefs import ResourceExhaustedError
from orlop.base.quoting import quote
from orlop.core.mount import disk

SMALL_BYTES: Final = 64 << 10
"""What is no larger is not asked about: the write itself says as much."""

Ref = tuple[str, str]
"""Namespace and ref."""


class Room:
    """The announcements of open writers below `root`, from any thread.

    Args:
        written: how much of a ref's ingest is on disk.
    """

    def __init__(self, root: Path, written: Callable[[Ref], int]) -> None:
        self._root = root
        self._written = written
        self._announced: dict[Ref, tuple[str, int]] = {}
        self._lock = threading.Lock()

    def announce(self, ref: Ref, lease: str, total: int) -> None:
        """Say that the ref's ingest will have `total` bytes; `forget` it when the writer is closed.

        Raises:
            ResourceExhaustedError: together with what else comes for the lease they are more than root may still write.
        """
        if total <= SMALL_BYTES:
            return
        with self._lock:
            self._announced[ref] = (lease, total)
            refs = [ref]
            if lease:
                refs = [one for one, (its, _) in self._announced.items() if its == lease and one[0] == ref[0]]
            totals = {one: self._announced[one][1] for one in refs}
        wanted = sum(max(size - self._written(one), 0) for one, size in totals.items())
        free = disk.free_bytes(self._root)
        if wanted > free:
            self.forget(ref)
            raise ResourceExhaustedError(
                f"ingest {quote('/'.join(ref))}: open: {wanted} bytes are to come: no space left on the file system at "
                f"{disk.mount_point(self._root)}, of which {free} are free"
            )

    def forget(self, ref: Ref) -> None:
        """The ref's writer is closed, or was never opened."""
        with self._lock:
            self._announced.pop(ref, None)
