"""Facts about the root directory that meta.db belongs to."""

import uuid

from orlop.core.metadata.database import Database, Transaction


def server_uuid(db: Database) -> str:
    """The uuid of this root directory, made at its first use. Blocks then."""
    row = db.one("SELECT value FROM facts WHERE key = 'uuid'")
    if row is not None:
        return str(row["value"])

    def remember(tx: Transaction) -> str:
        tx.execute("INSERT INTO facts (key, value) VALUES ('uuid', ?) ON CONFLICT DO NOTHING", (str(uuid.uuid4()),))
        found = tx.one("SELECT value FROM facts WHERE key = 'uuid'")
        assert found is not None
        return str(found["value"])

    return db.write_sync(remember)
