"""What is done to one object costs the same however many others there are, counted in steps of SQLite's machine."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orlop.core.containers import Container, Runtime
from orlop.core.images import Image, Target
from orlop.core.leases import Resource
from orlop.core.metadata import Database, Transaction
from orlop.core.metadata import content as blobs
from orlop.core.metadata.containers import ContainerStore
from orlop.core.metadata.images import ImageStore
from orlop.core.metadata.leases import LeaseStore, hold
from orlop.core.snapshots import Kind, Snapshot, rows
from orlop.core.snapshots.ledger import Commit, Creation, Ledger, Ready

FEW, MANY = 10, 1500
NS = "default"
LEDGER = Ledger("overlayfs")


class Store:
    """A database with so many objects of every kind."""

    def __init__(self, db: Database, count: int) -> None:
        self.db = db
        self.containers = ContainerStore(db)
        self.images = ImageStore(db)
        self.leases = LeaseStore(db)
        self.count = count
        db.write_sync(self._fill)

    def _fill(self, tx: Transaction) -> None:
        for number in range(self.count):
            self.make(tx, f"other-{number:05}", number + 1000, digest(number + 1000))

    def make(self, tx: Transaction, name: str, number: int, blob: str) -> None:
        """One object of each kind."""
        container = Container(id=name, runtime=Runtime(name="r"), spec=b"s" * 4096, labels={"a": "b"})
        self.containers.create(tx, NS, container)
        target = Target(media_type="m", digest=blob, size=1, annotations={})
        self.images.create(tx, NS, Image(name=name, target=target))
        self.leases.create(tx, NS, name, {})
        blobs.insert(tx, NS, blob, 1, {}, owner_uid=0)
        hold(tx, NS, name, "content", blob)
        blobs.open_ingest(tx, NS, name, key=name, expected="", total=0, owner_uid=0, held=False)
        creation = Creation(kind=Kind.ACTIVE, namespace=NS, key=name)
        snapshot, error = LEDGER.creatable(tx, creation, number)
        assert error is None
        LEDGER.insert(tx, creation, snapshot, was_there=False)

    def steps(self, work: Callable[[Any], object]) -> int:
        """Steps of a write, or of a read if `work` says so by its name."""
        taken = 0

        def step() -> int:
            nonlocal taken
            taken += 1
            return 0

        def counted(connection: sqlite3.Connection, argument: Any) -> None:
            connection.set_progress_handler(step, 1)
            try:
                work(argument)
            finally:
                connection.set_progress_handler(None, 1)

        if work.__name__.startswith("read"):
            self.db.read(lambda connection: counted(connection, self.db))
        else:
            self.db.write_sync(lambda tx: counted(tx._connection, tx))
        return taken


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[list[Store]]:
    few, many = tmp_path / "few.db", tmp_path / "many.db"
    with Database(few) as first, Database(many) as second:
        yield [Store(first, FEW), Store(second, MANY)]


def works(store: Store) -> list[Callable[[Any], object]]:
    """One object's life; every step is a piece of work of its own."""
    blob = digest(1)
    label = {"x": "y"}

    def make_all(tx: Transaction) -> None:
        store.make(tx, "mine", 5, blob)

    def label_container(tx: Transaction) -> None:
        store.containers.update(tx, NS, Container(id="mine", labels=label), ["labels.x"])

    def label_image(tx: Transaction) -> None:
        target = Target(media_type="m", digest=blob, size=1, annotations={})
        store.images.update(tx, NS, Image(name="mine", labels=label, target=target), ["labels.x"])

    def label_blob(tx: Transaction) -> None:
        blobs.update(tx, NS, blob, label, ["labels.x"])

    def hold_blob(tx: Transaction) -> None:
        store.leases.add_resource(tx, NS, "mine", Resource(type="content", id=digest(2)))

    def read_container(_db: Database) -> None:
        store.containers.get(NS, "mine")

    def read_image(_db: Database) -> None:
        store.images.get(NS, "mine")

    def read_blob(db: Database) -> None:
        blobs.get(db, NS, blob)

    def read_snapshot(db: Database) -> None:
        db.read(lambda queries: rows.get(queries, NS, "overlayfs", "mine"))

    def read_ingest(db: Database) -> None:
        blobs.find_ingest(db, NS, "mine")

    def read_lease(_db: Database) -> None:
        store.leases.list_resources(NS, "mine")

    def read_what_is_restarted(_db: Database) -> None:
        assert store.containers.restarted() == []

    def commit_snapshot(tx: Transaction) -> None:
        snapshot = Snapshot(number=5, parents=(), kind=Kind.ACTIVE)
        assert (
            LEDGER.commit(tx, Commit(namespace=NS, name="done", key="mine", ready=Ready(snapshot, None, None))) is None
        )

    def prepare_on_it(tx: Transaction) -> None:
        creation = Creation(kind=Kind.ACTIVE, namespace=NS, key="child", parent="done")
        snapshot, error = LEDGER.creatable(tx, creation, 6)
        assert error is None
        LEDGER.insert(tx, creation, snapshot, was_there=False)

    def delete_snapshots(tx: Transaction) -> None:
        LEDGER.delete(tx, 6)
        LEDGER.delete(tx, 5)

    def delete_the_rest(tx: Transaction) -> None:
        store.containers.delete(tx, NS, "mine")
        store.images.delete(tx, NS, "mine")
        store.leases.delete(tx, NS, "mine")
        blobs.delete_ingest(tx, NS, "mine")
        blobs.delete(tx, NS, blob)

    return [
        make_all,
        label_container,
        label_image,
        label_blob,
        hold_blob,
        read_container,
        read_image,
        read_blob,
        read_snapshot,
        read_ingest,
        read_lease,
        read_what_is_restarted,
        commit_snapshot,
        prepare_on_it,
        delete_snapshots,
        delete_the_rest,
    ]


def test_no_piece_of_work_on_one_object_grows_with_the_others(stores):
    few, many = ({work.__name__: store.steps(work) for work in works(store)} for store in stores)
    assert few == many
    assert all(few.values())
