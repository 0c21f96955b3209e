"""Leases: what holds things that nothing else refers to yet, and the rows of what they hold.

A lease's resources have a type: `content`, `ingests`, `images` or `snapshots/<snapshotter>`. What a call with a lease
makes is added to it, within the same transaction.

Source: containerd's core/metadata/leases.go.
"""

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Final

from orlop.base import filters as filter_language
from orlop.base.errdefs import AlreadyExistsError, InvalidArgumentError, NotFoundError, UnimplementedError
from orlop.base.quoting import quote
from orlop.core.leases import Lease, Resource
from orlop.core.metadata.database import Database, Transaction
from orlop.core.metadata.rows import check_key, decode_map, encode_map
from orlop.oci.digest import Digest, InvalidDigestError

CONTENT: Final = "content"
INGESTS: Final = "ingests"
IMAGES: Final = "images"
SNAPSHOTS: Final = "snapshots"


class LeaseStore:
    """The leases of all namespaces."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def list(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Lease]:
        """Leases in the order of their ids; fields are `id` and `labels.<key>`."""
        matches = filter_language.parse_all(filters)
        rows = self._db.all("SELECT id, created_at, labels FROM leases WHERE namespace = ? ORDER BY id", (namespace,))
        leases = (_lease(row) for row in rows)
        return [lease for lease in leases if matches(_adapt(lease))]

    def create(
        self, tx: Transaction, namespace: str, lease_id: str, labels: Mapping[str, str], *, owner_uid: int | None = None
    ) -> Lease:
        """Make a lease.

        Raises:
            AlreadyExistsError, InvalidArgumentError
        """
        check_key(lease_id, "lease id")
        if "" in labels:
            raise InvalidArgumentError(f"lease {quote(lease_id)}: label without a key")
        tx.ensure_namespace(namespace)
        try:
            tx.execute(
                "INSERT INTO leases (namespace, id, owner_uid, created_at, updated_at, used_at, labels)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (namespace, lease_id, owner_uid, tx.now, tx.now, tx.now, encode_map(labels)),
            )
        except sqlite3.IntegrityError:
            raise AlreadyExistsError(f"lease {quote(lease_id)}") from None
        tx.mutated()
        return Lease(id=lease_id, created_at=tx.now, labels={key: value for key, value in labels.items() if value})

    def delete(self, tx: Transaction, namespace: str, lease_id: str) -> None:
        """Let go of what the lease holds. Raises NotFoundError."""
        found = tx.execute("DELETE FROM leases WHERE namespace = ? AND id = ?", (namespace, lease_id)).rowcount
        if not found:
            raise NotFoundError(f"lease {quote(lease_id)}")
        tx.mutated(deletion=True)

    def add_resource(self, tx: Transaction, namespace: str, lease_id: str, resource: Resource) -> None:
        """Hold a resource, which need not exist yet.

        Raises:
            NotFoundError: there is no such lease.
            InvalidArgumentError, UnimplementedError: the resource's type or id is none.
        """
        _require(tx, namespace, lease_id)
        _check(resource)
        check_key(resource.id, "resource id")
        _insert(tx, namespace, lease_id, resource.type, resource.id)
        tx.mutated()

    def delete_resource(self, tx: Transaction, namespace: str, lease_id: str, resource: Resource) -> None:
        """Let go of a resource; one that is not held is fine. Errors as `add_resource`."""
        _require(tx, namespace, lease_id)
        _check(resource)
        release(tx, namespace, lease_id, resource.type, resource.id)
        tx.mutated(deletion=True)

    def list_resources(self, namespace: str, lease_id: str) -> Sequence[Resource]:
        """What the lease holds, by type and id. Raises NotFoundError."""

        def read(connection: sqlite3.Connection) -> Sequence[Resource]:
            _require(connection, namespace, lease_id)
            rows = connection.execute(
                "SELECT type, id FROM lease_resources WHERE namespace = ? AND lease = ? ORDER BY type, id",
                (namespace, lease_id),
            )
            return [Resource(type=row["type"], id=row["id"]) for row in rows]

        return self._db.read(read)


def hold(tx: Transaction, namespace: str, lease: str, kind: str, resource: str) -> bool:
    """Add what a call has made to the call's lease; returns whether there is one.

    Raises:
        NotFoundError: the call names a lease that does not exist.
    """
    if not lease:
        return False
    if tx.one("SELECT 1 FROM leases WHERE namespace = ? AND id = ?", (namespace, lease)) is None:
        raise NotFoundError("lease does not exist")
    _insert(tx, namespace, lease, kind, resource)
    return True


def release(tx: Transaction, namespace: str, lease: str, kind: str, resource: str) -> None:
    """Take what a call has removed out of the call's lease, if it has one."""
    if lease:
        tx.execute(
            "DELETE FROM lease_resources WHERE namespace = ? AND lease = ? AND type = ? AND id = ?",
            (namespace, lease, kind, resource),
        )


def _insert(tx: Transaction, namespace: str, lease: str, kind: str, resource: str) -> None:
    tx.execute(
        "INSERT INTO lease_resources (namespace, lease, type, id) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (namespace, lease, kind, resource),
    )


def _require(source: Transaction | sqlite3.Connection, namespace: str, lease_id: str) -> None:
    found = source.execute("SELECT 1 FROM leases WHERE namespace = ? AND id = ?", (namespace, lease_id)).fetchone()
    if found is None:
        raise NotFoundError(f"lease {quote(lease_id)}")


def _check(resource: Resource) -> None:
    kind, *rest = resource.type.split("/")
    if kind in {CONTENT, INGESTS, IMAGES}:
        if rest:
            raise InvalidArgumentError(f"invalid resource type {resource.type}")
        if kind == CONTENT:
            try:
                Digest.parse(resource.id)
            except InvalidDigestError as error:
                raise InvalidArgumentError(f"invalid content resource id {resource.id}: {error.reason}") from None
    elif kind == SNAPSHOTS:
        if len(rest) != 1 or not rest[0]:
            raise InvalidArgumentError(f"invalid snapshot resource type {resource.type}")
    else:
        raise UnimplementedError(f"resource type {resource.type} not supported yet")


def _lease(row: sqlite3.Row) -> Lease:
    return Lease(id=row["id"], created_at=row["created_at"], labels=decode_map(row["labels"]))


def _adapt(lease: Lease) -> filter_language.Adaptor:
    return filter_language.adapt({"id": lease.id, "labels": lease.labels})
