"""Facts about the root directory that meta.db belongs to."""

import uuid

from orlop.core.metadata.database import Database, Transaction


def server_uuid(db: Database) -> str:
    """The uuid of this root directory, made at its first use. Blocks then."""
    row = db.one("SELECT value FROM facts WHERE key = 'uuid'")
    if row is not None:
        return str(row["value"])
    fresh = str(uuid.uuid4())

    def remember(tx: Transaction) -> None:
        tx.execute("INSERT INTO facts (key, value) VALUES ('uuid', ?)", (fresh,))

    db.write_sync(remember)
    return fresh
