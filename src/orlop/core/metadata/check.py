"""The check of meta.db: the file is whole, and no row refers to one that is not there.

database-corrupt    SQLite's own check finds pages or indexes that are wrong
database-dangling   a row that refers to none
"""

from collections.abc import Iterator
from typing import Final

from orlop.core.fsck import Finding
from orlop.core.fsck.checks import Order
from orlop.core.metadata.database import Database

_MENDS: Final = "a copy of the database that is whole; see sqlite3's .recover"
_LIMIT: Final = 100


class DatabaseCheck:
    """See `orlop.core.fsck.Check`."""

    what = "metadata"

    def __init__(self, db: Database) -> None:
        self._db = db

    def run(self, order: Order) -> Iterator[Finding]:
        pragma = "quick_check" if order.quick or order.after_stop else "integrity_check"
        for (words,) in self._db.all(f"PRAGMA {pragma}({_LIMIT})"):
            if words != "ok":
                yield Finding(kind="database-corrupt", object=str(self._db.path), wrong=words, mends=_MENDS)
        for table, number, parent, _key in self._db.all("PRAGMA foreign_key_check"):
            yield Finding(
                kind="database-dangling",
                object=str(self._db.path),
                wrong=f"row {number} of table {table} refers to a row of table {parent} that is not there",
                mends=_MENDS,
            )
