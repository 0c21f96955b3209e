"""All metadata of all namespaces: one SQLite database, and the stores that read and write its tables."""

from orlop.core.metadata.database import Database, Transaction

__all__ = ["Database", "Transaction"]
