"""Whether the last daemon on this database stopped cleanly: a fact that is there while one runs.

The next one checks what was being written then, if it did not; see `orlop.core.fsck.running`.
"""

import logging
import time
from collections.abc import Sequence
from typing import Final

from orlop.base.errdefs import OrlopError
from orlop.core.metadata.database import Database, Transaction

log: Final = logging.getLogger(__name__)

_FACT: Final = "daemon/running-since"


def begin(db: Database) -> bool:
    """Note that a daemon runs; returns whether the last one did not stop cleanly.

    On a full disk neither this nor `end` takes the space that is kept for deletions: then the next start checks once
    too often, or not at all.
    """
    if db.one("SELECT 1 FROM facts WHERE key = ?", (_FACT,)) is not None:
        return True
    _write(db, "INSERT INTO facts (key, value) VALUES (?, ?)", (_FACT, str(time.time_ns())))
    return False


def end(db: Database) -> None:
    """Note that it stops cleanly; the last thing that is written."""
    _write(db, "DELETE FROM facts WHERE key = ?", (_FACT,))


def _write(db: Database, statement: str, parameters: Sequence[str]) -> None:
    def write(tx: Transaction) -> None:
        tx.execute(statement, parameters)

    try:
        db.write_sync(write)
    except OrlopError as error:
        log.warning("cannot note whether a daemon runs", extra={"error": str(error)})
