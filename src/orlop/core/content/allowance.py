"""What ingests take of their namespace's quota of bytes before they are content.

An open ingest counts for what its writer announced, or for what was written if that is more; one that nobody has open
for what is on disk of it. So what cannot be committed in the end is refused when it is announced, or where it grows
past what is left. All judging is done in transactions, by the one thread that runs them: two writers cannot both have
the last bytes.

A writer that announced nothing gets some bytes in advance, so as not to ask for each message; every judgement takes
back what was not used of them.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from orlop.core.metadata import Database, Transaction
from orlop.core.metadata import content as rows
from orlop.core.metadata.quotas import BYTES

STEP_BYTES: Final = 8 << 20
"""What a writer that grows gets in advance, where there is as much."""

Ref = tuple[str, str]
"""Namespace and ref."""


@dataclass(slots=True)
class _Grant:
    """Bytes that an open ingest takes, and how far it may grow without asking."""

    taken: int
    granted: int


class Allowances:
    """The bytes of open ingests, from any thread.

    Args:
        on_disk: size of an ingest's data by its key.
    """

    def __init__(self, db: Database, on_disk: Callable[[str], int]) -> None:
        self._db = db
        self._on_disk = on_disk
        self._grants: dict[Ref, _Grant] = {}
        self._lock = threading.Lock()
        db.quotas.unfinished = self._unfinished

    def open(self, tx: Transaction, row: rows.IngestRow, announced: int) -> None:
        """Count an ingest that is opened by this transaction; `forget` it when it is closed, or was not opened.

        Raises:
            ResourceExhaustedError: what is announced is more than is left.
        """
        there = self._on_disk(row.key)
        taken = max(announced, there)
        with self._lock:
            self._grants[row.namespace, row.ref] = _Grant(taken, taken)
        tx.quotas.added_bytes(tx, row.namespace, taken - there)

    def forget(self, ref: Ref) -> None:
        """The ref's writer is closed."""
        with self._lock:
            self._grants.pop(ref, None)

    def shrink(self, ref: Ref, announced: int) -> None:
        """The ingest is empty again."""
        with self._lock:
            if (grant := self._grants.get(ref)) is not None:
                grant.taken = grant.granted = announced

    def covers(self, ref: Ref, end: int) -> bool:
        """Whether the ingest may grow to `end` bytes at once; if not, `grow` it in a transaction before."""
        if self._take(ref, end):
            return True
        if self._db.quotas.limit(self._db, ref[0], BYTES):
            return False
        with self._lock:
            if (grant := self._grants.get(ref)) is not None:
                grant.taken, grant.granted = max(grant.taken, end), end + STEP_BYTES
        return True

    def grow(self, tx: Transaction, ref: Ref, end: int) -> None:
        """Let the ingest grow to `end` bytes.

        Raises:
            ResourceExhaustedError: that is more than is left.
        """
        with self._lock:
            grant = self._grants.get(ref)
            if grant is None:
                return  # closed meanwhile, as its writer will say
            before, grant.taken = grant.taken, max(grant.taken, end)
            more = grant.taken - before
        try:
            tx.quotas.added_bytes(tx, ref[0], more)
        except BaseException:
            with self._lock:
                grant.taken = grant.granted = before
            raise
        found = tx.quotas.bytes_in_use(tx, ref[0])
        ahead = STEP_BYTES if found is None else min(max(found[0] - found[1], 0), STEP_BYTES)
        with self._lock:
            grant.granted = grant.taken + ahead

    def _take(self, ref: Ref, end: int) -> bool:
        with self._lock:
            grant = self._grants.get(ref)
            if grant is None:
                return True
            if end > grant.granted:
                return False
            grant.taken = max(grant.taken, end)
            return True

    def _unfinished(self, tx: Transaction, namespace: str) -> int:
        """Bytes of the namespace's ingests; nobody has any in advance afterwards."""
        total = 0
        for ref, key in tx.execute("SELECT ref, key FROM ingests WHERE namespace = ?", (namespace,)).fetchall():
            with self._lock:
                grant = self._grants.get((namespace, ref))
                if grant is not None:
                    grant.granted = grant.taken
                    total += grant.taken
                    continue
            total += self._on_disk(key)
        return total
