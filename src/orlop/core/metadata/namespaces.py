"""The rows of namespaces.

A namespace is made by hand or as a side effect of use. It can be deleted when nothing that users own is left in it;
its leases, which then hold nothing, and its unfinished ingests go with it.

Source: containerd's core/metadata/namespaces.go.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from orlop.base import identifiers as rules
from orlop.base import labels as label_rules
from orlop.base.errdefs import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from orlop.base.quoting import quote
from orlop.core.metadata import quotas
from orlop.core.metadata.database import Database, Transaction
from orlop.core.metadata.rows import decode_map, encode_map

# What keeps a namespace, with the word that the refusal uses.
_CONTENTS: Final = (("images", "images"), ("content", "blobs"), ("containers", "containers"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A namespace with its labels."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


class NamespaceStore:
    """All namespaces."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def exists(self, name: str) -> bool:
        """Whether the namespace is there."""
        return self._db.one("SELECT 1 FROM namespaces WHERE name = ?", (name,)) is not None

    def get(self, name: str) -> Namespace:
        """A namespace; one that does not exist yet looks like one without labels, since use would make it."""
        row = self._db.one("SELECT labels FROM namespaces WHERE name = ?", (name,))
        return Namespace(name=name, labels={} if row is None else decode_map(row["labels"]))

    def list(self) -> Sequence[Namespace]:
        """All namespaces in the order of their names."""
        rows = self._db.all("SELECT name, labels FROM namespaces ORDER BY name")
        return [Namespace(name=row["name"], labels=decode_map(row["labels"])) for row in rows]

    def create(
        self, tx: Transaction, name: str, labels: Mapping[str, str], *, owner_uid: int | None = None
    ) -> Namespace:
        """Make a namespace.

        Raises:
            AlreadyExistsError, InvalidArgumentError
        """
        rules.validate(name)
        _validate(labels)
        if tx.one("SELECT 1 FROM namespaces WHERE name = ?", (name,)) is not None:
            raise AlreadyExistsError(f"namespace {quote(name)}")
        tx.execute(
            "INSERT INTO namespaces (name, owner_uid, created_at, updated_at, used_at, labels)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (name, owner_uid, tx.now, tx.now, tx.now, encode_map(labels)),
        )
        tx.mutated()
        return Namespace(name=name, labels=labels)

    def update(
        self, tx: Transaction, name: str, labels: Mapping[str, str], keys: tuple[str, ...] | None = None
    ) -> Namespace:
        """Set the labels `keys` (those without a value are removed), or replace all; makes the namespace if need be.

        Raises:
            InvalidArgumentError: a name or label is not valid.
        """
        rules.validate(name)
        tx.ensure_namespace(name)
        row = tx.one("SELECT labels FROM namespaces WHERE name = ?", (name,))
        merged = {} if row is None or keys is None else decode_map(row["labels"])
        for key in labels if keys is None else keys:
            value = labels.get(key, "")
            if key or value:
                _validate({key: value})
            merged[key] = value
        merged = {key: value for key, value in merged.items() if value}
        tx.execute(
            "UPDATE namespaces SET labels = ?, updated_at = ? WHERE name = ?", (encode_map(merged), tx.now, name)
        )
        tx.mutated()
        return Namespace(name=name, labels=merged)

    def leftovers(self, source: Database | Transaction, name: str) -> Sequence[str]:
        """What keeps the namespace from being deleted, in containerd's words."""
        found = [word for table, word in _CONTENTS if _any(source, table, name)]
        found += [
            f"snapshots on {quote(snapshotter)} snapshotter"
            for snapshotter in _column(
                source, "SELECT DISTINCT snapshotter FROM snapshots WHERE namespace = ? ORDER BY snapshotter", name
            )
        ]
        if _any(source, "sandboxes", name):
            found.append("sandboxes")
        return found

    def ingests(self, source: Database | Transaction, name: str) -> Sequence[str]:
        """Refs of the unfinished ingests, which must go before the namespace can."""
        return _column(source, "SELECT ref FROM ingests WHERE namespace = ? ORDER BY ref", name)

    def delete(self, tx: Transaction, name: str) -> None:
        """Remove a namespace and its leases; its ingests have been removed by the caller, in the same transaction.

        Raises:
            FailedPreconditionError: something is left in it; the text names the kinds.
            NotFoundError
        """
        tx.frees = True
        left = self.leftovers(tx, name)
        if left:
            raise FailedPreconditionError(
                f"namespace {quote(name)} must be empty, but it still has {', '.join(left)}",
            )
        tx.execute("DELETE FROM leases WHERE namespace = ?", (name,))
        if not tx.execute("DELETE FROM namespaces WHERE name = ?", (name,)).rowcount:
            raise NotFoundError(f"namespace {quote(name)}")
        tx.mutated()


def _validate(labels: Mapping[str, str]) -> None:
    try:
        label_rules.validate_all(labels)
        quotas.validate(labels)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"namespace.Labels: {error.text}") from None


def _any(source: Database | Transaction, table: str, name: str) -> bool:
    return source.one(f"SELECT 1 FROM {table} WHERE namespace = ? LIMIT 1", (name,)) is not None


def _column(source: Database | Transaction, statement: str, *parameters: Any) -> list[str]:
    if isinstance(source, Database):
        rows = source.all(statement, parameters)
    else:
        rows = source.execute(statement, parameters).fetchall()
    return [row[0] for row in rows]
