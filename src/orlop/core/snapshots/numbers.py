"""Numbers for snapshots: taken from memory, unique in the daemon, never used twice.

A path with a number in it may live on in a bundle or a client's notes after the snapshot has gone; it must not come to
mean another one. So beside the largest number in use, which goes down on removal, table `facts` has a mark that all
numbers given out so far lie below. It is moved on by the transaction that first uses a number beyond it, a thousand at
a time.
"""

import itertools
from typing import Final

from orlop.core.metadata import Database, Transaction

STEP: Final = 1000
_FACT: Final = "snapshots/next-number"


class Numbers:
    """Gives out numbers; safe to use from any thread."""

    def __init__(self, db: Database, *, at_least: int = 0) -> None:
        """Args: at_least: the largest number that was found on disk, with or without a row."""
        mark = db.one("SELECT value FROM facts WHERE key = ?", (_FACT,))
        largest = db.one("SELECT max(number) AS number FROM snapshots")
        self._mark = int(mark["value"]) if mark else 1
        used = (largest["number"] or 0) if largest else 0
        self._next = itertools.count(max(self._mark, used + 1, at_least + 1))

    def take(self) -> int:
        """A number that nobody has had."""
        return next(self._next)

    def keep(self, tx: Transaction, number: int) -> None:
        """Let the transaction that uses `number` remember that it has been given out."""
        if number < self._mark:
            return
        mark = number + STEP
        tx.execute(
            "INSERT INTO facts (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (_FACT, str(mark)),
        )
        tx.after_commit(lambda: self._move(mark))

    def _move(self, mark: int) -> None:
        self._mark = max(self._mark, mark)
