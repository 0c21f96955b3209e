"""The rules of table `snapshots`: what may be made, mounted and committed, and how the rows change.

Knows no snapshotter and touches no file. What is checked before the work on disk is checked again in the transaction
that writes the row, by the same function, because others may have come in between.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from orlop.base import errdefs
from orlop.base import labels as labelling
from orlop.core.metadata import Transaction, leases
from orlop.core.metadata.rows import decode_map, encode_map
from orlop.core.snapshots import Kind, Snapshot, Usage, events, inherited, layer_rows, rows
from orlop.core.snapshots.origin import Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """What `prepare` and `view` are asked for."""

    kind: Kind
    namespace: str
    key: str
    parent: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    lease: str = ""
    owner_uid: int | None = None

    @property
    def target(self) -> str:
        """The name under which a remote snapshotter may have the content already."""
        return self.labels.get(labelling.SNAPSHOT_REF, "")


@dataclass(frozen=True, slots=True)
class Ready:
    """An active snapshot that can be committed.

    Attributes:
        snapshot: with the parents that it will have.
        parent: the number of the row of the nearest.
        layer: number of the layer that it consists of, if it does.
    """

    snapshot: Snapshot
    parent: int | None
    layer: int | None

    @property
    def identity(self) -> tuple[object, ...]:
        """What must not change while it is committed."""
        return self.snapshot.number, self.snapshot.parents, self.parent, self.layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What `commit` is asked for, and what has been found out for it.

    Attributes:
        ready: what is to be committed; None if the name is taken.
        synced: whether its files are on disk; of a layer's its row knows.
        origin: what it was unpacked from, if it was and is no layer's.
    """

    namespace: str
    name: str
    key: str
    parent: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    lease: str = ""
    ready: Ready | None = None
    usage: Usage = field(default_factory=Usage)
    synced: bool = True
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Ledger:
    """The rows of one snapshotter.

    Attributes:
        name: the snapshotter's.
        can_rebase: whether a parent may be chosen at commit.
    """

    name: str
    can_rebase: bool = False

    def creatable(
        self, queries: rows.Queries, creation: Creation, number: int
    ) -> tuple[Snapshot, errdefs.AlreadyExistsError | None]:
        """The snapshot to make, and an error if its key or target exists.

        Raises:
            NotFoundError, InvalidArgumentError, DataLossError: see `Store.prepare`.
        """
        error = None
        parents: tuple[int, ...] = ()
        if creation.target and rows.find(queries, creation.namespace, self.name, creation.target):
            error = errdefs.AlreadyExistsError(f'target snapshot "{creation.target}"')
        elif rows.find(queries, creation.namespace, self.name, creation.key):
            error = errdefs.AlreadyExistsError(f'snapshot "{creation.key}"')
        elif creation.parent:
            row = rows.find(queries, creation.namespace, self.name, creation.parent)
            if row is None:
                raise errdefs.NotFoundError(f"parent snapshot {creation.parent} does not exist")
            if row["kind"] != Kind.COMMITTED:
                raise errdefs.InvalidArgumentError(f'parent "{creation.parent}" is not committed snapshot')
            parents = rows.chain(queries, row["number"])
        labels = inherited(creation.labels)
        return Snapshot(number=number, parents=parents, kind=creation.kind, labels=labels), error

    def hold_existing(self, tx: Transaction, creation: Creation) -> None:
        """Add what stood in a creation's way to its lease: the client goes on with it."""
        found = creation.target and rows.find(tx, creation.namespace, self.name, creation.target)
        self.hold(tx, creation.namespace, creation.lease, creation.target if found else creation.key)

    def insert(self, tx: Transaction, creation: Creation, snapshot: Snapshot, *, was_there: bool) -> None:
        """Write the row of a new snapshot.

        Args:
            was_there: the snapshotter has it committed already, under the creation's target.
        """
        name = creation.target if was_there else creation.key
        below = rows.find(tx, creation.namespace, self.name, creation.parent) if creation.parent else None
        parent = below["number"] if below is not None else None
        tx.ensure_namespace(creation.namespace)
        self.hold(tx, creation.namespace, creation.lease, name)
        tx.execute(
            "INSERT INTO snapshots (number, namespace, snapshotter, name, parent, kind, synced_at, owner_uid,"
            " created_at, updated_at, used_at, labels) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                snapshot.number,
                creation.namespace,
                self.name,
                name,
                parent,
                Kind.COMMITTED if was_there else creation.kind,
                tx.now if was_there else None,
                creation.owner_uid,
                tx.now,
                tx.now,
                tx.now,
                encode_map(creation.labels),
            ),
        )
        if parent is not None:
            tx.execute("UPDATE snapshots SET used_at = ? WHERE number = ?", (tx.now, parent))
        tx.mutated()
        if creation.kind == Kind.ACTIVE and not was_there:
            events.prepared(tx, creation.namespace, self.name, creation.key, creation.parent)

    def mountable(self, queries: rows.Queries, namespace: str, key: str) -> Snapshot:
        """The active snapshot or view of that key.

        Raises:
            NotFoundError, FailedPreconditionError, DataLossError: see `Store.mounts`.
        """
        row = rows.get(queries, namespace, self.name, key)
        if row["kind"] == Kind.COMMITTED:
            raise errdefs.FailedPreconditionError(f"requested snapshot {key} not active nor view")
        rows.require_whole(row)
        parents = rows.chain(queries, row["parent"])
        if row["layer"] is not None:
            # What is written to it before it is committed lies above; see `Store.commit`.
            parents = (layer_rows.get(queries, row["layer"], key)["number"], *parents)
        return as_snapshot(row, parents)

    def committable(self, queries: rows.Queries, commit: Commit) -> Ready | None:
        """The active snapshot; None if the name is taken.

        Raises:
            NotFoundError, FailedPreconditionError, …: see `Store.commit`.
        """
        if rows.find(queries, commit.namespace, self.name, commit.name):
            return None
        row = rows.get(queries, commit.namespace, self.name, commit.key)
        if row["kind"] != Kind.ACTIVE:
            raise errdefs.FailedPreconditionError(f'snapshot "{commit.key}" is not active')
        rows.require_whole(row)
        number = row["parent"]
        if commit.parent and commit.parent != row["parent_name"]:
            number = self._new_parent(queries, commit, row["parent"])
        return Ready(as_snapshot(row, rows.chain(queries, number)), number, row["layer"])

    def commit(self, tx: Transaction, commit: Commit) -> errdefs.AlreadyExistsError | None:
        """Turn an active snapshot's row into a committed one's; an error that is returned is to be raised."""
        now = self.committable(tx, commit)
        if now is None:
            self.hold(tx, commit.namespace, commit.lease, commit.name)
            return errdefs.AlreadyExistsError(f'snapshot "{commit.name}"')
        if commit.ready is None or now.identity != commit.ready.identity:
            raise errdefs.AbortedError(f'snapshot "{commit.key}": changed while it was committed')
        synced_at = tx.now if commit.synced else None
        if now.layer is not None:
            synced_at = layer_rows.get(tx, now.layer, commit.key)["synced_at"]
        tx.execute(
            "UPDATE snapshots SET name = ?, kind = ?, parent = ?, labels = ?, size_bytes = ?, inodes = ?,"
            " synced_at = ?, origin = ?, created_at = ?, updated_at = ?, used_at = ? WHERE number = ?",
            (
                commit.name,
                Kind.COMMITTED,
                now.parent,
                encode_map(commit.labels),
                commit.usage.size,
                commit.usage.inodes,
                synced_at,
                None if commit.origin is None else commit.origin.encode(),
                tx.now,
                tx.now,
                tx.now,
                now.snapshot.number,
            ),
        )
        tx.quotas.added_bytes(tx, commit.namespace, commit.usage.size)
        self.hold(tx, commit.namespace, commit.lease, commit.name)
        self.release(tx, commit.namespace, commit.lease, commit.key)
        tx.mutated()
        events.committed(tx, commit.namespace, self.name, commit.key, commit.name)
        return None

    def delete(self, tx: Transaction, number: int) -> list[int]:
        """Delete the row of a snapshot without children, and return the numbers whose bytes nobody has any more.

        Raises:
            NotFoundError: no snapshot of this snapshotter has the number.
            sqlite3.IntegrityError: it has children.
        """
        row = tx.one(
            "SELECT namespace, name, layer FROM snapshots WHERE number = ? AND snapshotter = ?", (number, self.name)
        )
        if row is None:
            raise errdefs.NotFoundError(f"snapshot number {number} does not exist")
        tx.execute("DELETE FROM snapshots WHERE number = ?", (number,))
        tx.mutated(deletion=True)
        events.removed(tx, row["namespace"], self.name, row["name"])
        return [number, row["layer"]] if layer_rows.release(tx, row["layer"]) else [number]

    def relabel(self, tx: Transaction, number: int, labels: Mapping[str, str]) -> None:
        """Replace a snapshot's labels."""
        tx.execute(
            "UPDATE snapshots SET labels = ?, updated_at = ?, used_at = ? WHERE number = ?",
            (encode_map(labels), tx.now, tx.now, number),
        )
        tx.mutated()

    def hold(self, tx: Transaction, namespace: str, lease: str, name: str) -> None:
        """Add a snapshot to the caller's lease, if it has one.

        Raises:
            NotFoundError: the lease does not exist.
        """
        leases.hold(tx, namespace, lease, f"{leases.SNAPSHOTS}/{self.name}", name)

    def release(self, tx: Transaction, namespace: str, lease: str, name: str) -> None:
        """Take a snapshot off the caller's lease; others that hold the name go on holding it."""
        leases.release(tx, namespace, lease, f"{leases.SNAPSHOTS}/{self.name}", name)

    def _new_parent(self, queries: rows.Queries, commit: Commit, current: int | None) -> int:
        if current is not None:
            raise errdefs.InvalidArgumentError(f'cannot change parent of active snapshot "{commit.key}" on commit')
        row = rows.find(queries, commit.namespace, self.name, commit.parent)
        if row is None:
            raise errdefs.NotFoundError(f"parent snapshot {commit.parent} does not exist")
        if row["kind"] != Kind.COMMITTED:
            raise errdefs.FailedPreconditionError(f'parent "{commit.parent}" is not committed')
        if not self.can_rebase:
            raise errdefs.UnimplementedError(f'snapshotter {self.name}: choice of a parent at commit of "{commit.key}"')
        number: int = row["number"]
        return number


def as_snapshot(row: rows.Row, parents: tuple[int, ...]) -> Snapshot:
    """A row as the snapshotter sees it."""
    labels = inherited(decode_map(row["labels"]))
    return Snapshot(number=row["number"], parents=parents, kind=Kind(row["kind"]), labels=labels)
