"""Whether the last daemon on this database stopped cleanly: a fact that is there while one runs.

The next one checks what was being written then, if it did not; see `orlop.core.fsck.running`.
"""

import logging
from typing import Final

from orlop.base.errdefs import OrlopError
from orlop.core.metadata.database import Database, Transaction

log: Final = logging.getLogger(__name__)

_FACT: Final = "daemon/running-since"


def begin(db: Database) -> bool:
    """Note that a daemon runs; returns whether the last one did not stop cleanly."""
    found = db.one("SELECT 1 FROM facts WHERE key = ?", (_FACT,)) is not None

    def write(tx: Transaction) -> None:
        tx.frees = True  # a daemon starts on a full disk, too
        tx.execute(
            "INSERT INTO facts (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (_FACT, str(tx.now)),
        )

    try:
        db.write_sync(write)
    except OrlopError as error:
        log.warning("cannot note that a daemon runs", extra={"error": str(error)})
    return found


def end(db: Database) -> None:
    """Note that it stops cleanly; the last thing that is written."""

    def write(tx: Transaction) -> None:
        tx.frees = True
        tx.execute("DELETE FROM facts WHERE key = ?", (_FACT,))

    try:
        db.write_sync(write)
    except OrlopError as error:
        log.warning("cannot note that the daemon stops; the next one checks", extra={"error": str(error)})
