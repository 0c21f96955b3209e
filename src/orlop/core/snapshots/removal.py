"""The way out of a snapshotter: how the bytes of numbers go whose rows have gone.

Their directory is renamed into the trash by the transaction that deletes the row. What else the snapshotter has of them
(mounts, subvolumes, another daemon's snapshots) is removed afterwards in the executor, one after the other.
"""

import contextlib
import functools
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final

from orlop.base import failpoints
from orlop.core.metadata import Transaction
from orlop.core.metadata.trash import Trash
from orlop.core.snapshots import Snapshotter
from orlop.core.snapshots.failures import in_words

log: Final = logging.getLogger(__name__)

RETRY_S: Final = 1.0
RETRY_MAX_S: Final = 300.0
"""After how long what could not be removed is tried again: at first, and when that goes on."""


class Removal:
    """Removes from one snapshotter.

    Args:
        name: the snapshotter's id.
        forget: told each number that goes.
    """

    def __init__(
        self,
        name: str,
        snapshotter: Snapshotter,
        *,
        trash: Trash,
        executor: Executor,
        forget: Callable[[int], object],
    ) -> None:
        self._name = name
        self._snapshotter = snapshotter
        self._trash = trash
        self._executor = executor
        self._forget = forget
        self._frees = type(snapshotter).remove is not Snapshotter.remove
        self._going: set[int] = set()
        self._doomed: deque[int] = deque()
        self._failed: list[int] = []
        self._waiting = False  # to try those again
        self._pause_s = RETRY_S
        self._lock = threading.Lock()

    def is_going(self, number: int) -> bool:
        """Whether a number has no row any more, and is not gone yet."""
        return number in self._going

    def throw_away(self, tx: Transaction, number: int) -> bool:
        """Rename the directory of a number without a row into the trash as part of `tx`; False if there is none."""
        home = self._snapshotter.home(number)
        return home is not None and self._trash.take(tx, home)

    def let_all_go(self, tx: Transaction, numbers: Sequence[int]) -> None:
        """Remove the bytes of numbers that have no row any more, or need them no more, as part of `tx` and after it.

        Raises:
            FailedPreconditionError: a directory is in use as a mount point.
        """
        for number in numbers:
            self._going.add(number)
            tx.on_rollback(functools.partial(self._going.discard, number))
            tx.after_commit(functools.partial(self.let_go, number))
            with in_words(f"snapshot number {number}: remove"):
                self.throw_away(tx, number)

    def let_go(self, number: int) -> None:
        """Have the snapshotter remove what it has beside the directory, some time soon."""
        self._forget(number)
        if not self._frees:
            self._going.discard(number)
            return
        self._going.add(number)
        self._doomed.append(number)
        with contextlib.suppress(RuntimeError):  # the executor has been shut down; the next sweep finds it
            self._executor.submit(self._drain)

    def finish(self) -> None:
        """Remove what waits for it, in order: a parent must not come before its child. Blocks until that is done."""
        with self._lock:
            self._doomed.extendleft(reversed(self._failed))
            self._failed.clear()
        self._drain()

    def _drain(self) -> None:
        with self._lock:
            while self._doomed:
                self._remove(self._doomed.popleft())
            if not self._failed:
                self._pause_s = RETRY_S
            elif not self._waiting:
                self._waiting = True
                timer = threading.Timer(self._pause_s, self._again)
                timer.daemon = True  # after a stop the next start's sweep finds it
                timer.start()
                self._pause_s = min(2 * self._pause_s, RETRY_MAX_S)

    def _again(self) -> None:
        self._waiting = False
        with contextlib.suppress(RuntimeError):
            self._executor.submit(self.finish)

    def _remove(self, number: int) -> None:
        try:
            self._snapshotter.remove(number)
            failpoints.reach("snapshots.remove.freed")
        except Exception:
            # The row is gone; it is tried again after a while, in a cleanup, or by the sweep after the next start.
            log.exception("snapshotter failed to remove", extra={"snapshotter": self._name, "number": number})
            self._failed.append(number)
        else:
            self._going.discard(number)
