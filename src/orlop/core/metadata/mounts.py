"""The rows of activations of mounts.

A row is written before anything is mounted and completed afterwards, so that what a crash leaves is found: rows that
are not complete, and directories (named after a row's number, which never comes again) without a row. Rows outlive a
boot, unlike mounts; `orlop.core.mount.manager` compares the two at the start.

Source: containerd's core/mount/manager (buckets.go), which keeps them in a database of its own.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from orlop.base import fieldmask
from orlop.base import filters as filter_language
from orlop.base import labels as label_rules
from orlop.base.errdefs import AlreadyExistsError, NotFoundError
from orlop.base.quoting import quote
from orlop.core.metadata.database import Database, Transaction
from orlop.core.metadata.rows import PAGE_SIZE, check_key, decode_map, encode_map
from orlop.core.mount import Mount
from orlop.core.mount.activation import Activation, ActiveMount

_BY_NAME: Final = "SELECT * FROM mounts WHERE namespace = ? AND name = ?"
_PAGE: Final = (
    "SELECT * FROM mounts WHERE namespace = ? AND name > ? AND completed_at IS NOT NULL ORDER BY name LIMIT ?"
)
_ACTIVE: Final = msgspec.json.Decoder(list[ActiveMount])
_SYSTEM: Final = msgspec.json.Decoder(list[Mount])


class Entry(NamedTuple):
    """A row as the manager needs it when it starts; `activation` is None if it was never completed."""

    number: int
    namespace: str
    name: str
    activation: Activation | None


class MountStore:
    """The activations of all namespaces."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def get(self, namespace: str, name: str) -> Activation:
        """A completed activation. Raises NotFoundError."""
        row = self._db.one(_BY_NAME, (namespace, name))
        if row is None or row["completed_at"] is None:
            raise _absent(name)
        return _activation(row)

    def exists(self, namespace: str, name: str) -> bool:
        """Whether there is a row of that name, completed or not."""
        return self._db.one("SELECT 1 FROM mounts WHERE namespace = ? AND name = ?", (namespace, name)) is not None

    def pages(self, namespace: str, filters: Sequence[str] = ()) -> Iterator[Sequence[Activation]]:
        """Completed activations in the order of their names, in parts; fields are `name` and `labels.<key>`.

        Raises:
            InvalidArgumentError: a filter cannot be parsed; at once, not when iterating.
        """
        return self._pages(namespace, filter_language.parse_all(filters))

    def _pages(self, namespace: str, matches: filter_language.Filter) -> Iterator[Sequence[Activation]]:
        after = ""
        while True:
            rows = self._db.all(_PAGE, (namespace, after, PAGE_SIZE))
            found = (_activation(row) for row in rows)
            yield [one for one in found if matches.always or matches(_adapt(one))]
            if len(rows) < PAGE_SIZE:
                return
            after = rows[-1]["name"]

    def entries(self) -> Sequence[Entry]:
        """Every row of every namespace."""
        return [
            Entry(
                number=row["number"],
                namespace=row["namespace"],
                name=row["name"],
                activation=None if row["completed_at"] is None else _activation(row),
            )
            for row in self._db.all("SELECT * FROM mounts ORDER BY number")
        ]

    def begin(
        self,
        tx: Transaction,
        namespace: str,
        name: str,
        labels: Mapping[str, str],
        *,
        lease: str = "",
        owner_uid: int | None = None,
    ) -> tuple[int, int | None]:
        """Make the row of an activation that is about to be performed.

        Returns:
            Its number, and that of a row which was never completed and had to go; its directory must go too.

        Raises:
            AlreadyExistsError: there is an activation of that name.
            InvalidArgumentError: name or labels are not valid.
        """
        check_key(name, "mount name")
        label_rules.validate_all(labels)
        found = tx.one(_BY_NAME, (namespace, name))
        stale = None
        if found is not None:
            if found["completed_at"] is not None:
                raise AlreadyExistsError(f"mount {quote(name)}")
            stale = int(found["number"])
            self.remove(tx, stale)
        number = tx.execute(
            "INSERT INTO mounts (namespace, name, lease, owner_uid, created_at, updated_at, used_at, labels)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (namespace, name, lease, owner_uid, tx.now, tx.now, tx.now, encode_map(labels)),
        ).lastrowid
        assert number is not None
        return number, stale

    def complete(
        self, tx: Transaction, number: int, active: Sequence[ActiveMount], system: Sequence[Mount]
    ) -> Activation:
        """Say what an activation came to.

        Raises:
            NotFoundError: its row has gone.
        """
        changed = tx.execute(
            "UPDATE mounts SET active = ?, system = ?, completed_at = ?, updated_at = ? WHERE number = ?",
            (
                msgspec.json.encode(list(active)).decode(),
                msgspec.json.encode(list(system)).decode(),
                tx.now,
                tx.now,
                number,
            ),
        ).rowcount
        row = tx.one("SELECT * FROM mounts WHERE number = ?", (number,))
        if not changed or row is None:
            raise NotFoundError(f"mount {number}")
        tx.mutated()
        return _activation(row)

    def update(
        self, tx: Transaction, namespace: str, name: str, labels: Mapping[str, str], paths: Sequence[str]
    ) -> Activation:
        """Take over the labels that `paths` name, or all of them.

        Raises:
            NotFoundError
            InvalidArgumentError: a path names something else, or a label is not valid.
        """
        row = tx.one(_BY_NAME, (namespace, name))
        if row is None or row["completed_at"] is None:
            raise _absent(name)
        label_rules.validate_all(labels)
        merged = decode_map(row["labels"])
        what = f"mount {quote(name)}"
        for path in fieldmask.parse(paths or ("labels",), fields=("labels",), maps=("labels",), what=what):
            merged = fieldmask.merge(merged, labels, path.key)
        tx.execute(
            "UPDATE mounts SET labels = ?, updated_at = ? WHERE number = ?",
            (encode_map(merged), tx.now, row["number"]),
        )
        tx.mutated()
        updated = tx.one(_BY_NAME, (namespace, name))
        assert updated is not None
        return _activation(updated)

    def take(self, tx: Transaction, namespace: str, name: str) -> int:
        """Remove an activation's row and return its number. Raises NotFoundError."""
        row = tx.one(_BY_NAME, (namespace, name))
        if row is None:
            raise NotFoundError(f"missing mount {quote(name)} bucket")
        self.remove(tx, row["number"])
        return int(row["number"])

    def remove(self, tx: Transaction, number: int) -> None:
        """Remove the row of that number, if it is there."""
        tx.execute("DELETE FROM mounts WHERE number = ?", (number,))


def _absent(name: str) -> NotFoundError:
    return NotFoundError(f"mount {quote(name)} not found")


def _activation(row: sqlite3.Row) -> Activation:
    return Activation(
        name=row["name"],
        active=_ACTIVE.decode(row["active"]),
        system=_SYSTEM.decode(row["system"]),
        labels=decode_map(row["labels"]),
    )


def _adapt(one: Activation) -> filter_language.Adaptor:
    return filter_language.adapt({"name": one.name, "labels": one.labels})
