"""The database: durability order, savepoints, group commit, refusal of newer schemas."""

import asyncio
import sqlite3
import threading

import pytest

from orlop.base.errdefs import AlreadyExistsError, FailedPreconditionError, UnavailableError
from orlop.core.metadata import Database, schema
from orlop.core.metadata.containers import ContainerStore
from orlop.core.snapshots import rows


def add(name):
    def write(tx):
        tx.ensure_namespace(name)
        tx.publish(name, "/namespaces/create", name)
        return name

    return write


@pytest.fixture
def events():
    return []


@pytest.fixture
def db(tmp_path, events):
    with Database(tmp_path / "meta.db", publisher=lambda *event: events.append(event)) as database:
        yield database


def names(db):
    return [row["name"] for row in db.all("SELECT name FROM namespaces ORDER BY name")]


def test_a_finished_write_is_seen_by_readers_and_told_to_the_publisher(db, events):
    assert db.write_sync(add("one")) == "one"
    assert names(db) == ["one"]
    assert events == [("one", "/namespaces/create", "one")]


def test_a_failing_write_leaves_the_others_of_its_batch(db, events):
    gate, entered = threading.Event(), threading.Event()

    def hold(tx):
        entered.set()
        assert gate.wait(10)

    def refuse(tx):
        add("bad")(tx)
        raise AlreadyExistsError("bad")

    async def together():
        first = asyncio.ensure_future(db.write(hold))
        await asyncio.to_thread(entered.wait, 10)
        later = [asyncio.ensure_future(db.write(fn)) for fn in (add("a"), refuse, add("b"))]
        await asyncio.sleep(0)
        gate.set()
        await first
        return await asyncio.gather(*later, return_exceptions=True)

    a, error, b = asyncio.run(together())
    assert (a, b) == ("a", "b")
    assert isinstance(error, AlreadyExistsError)
    assert names(db) == ["a", "b"]
    assert [event[0] for event in events] == ["a", "b"]


def test_a_broken_constraint_is_the_callers_own(db):
    def orphan(tx):
        tx.execute(
            "INSERT INTO images (namespace, name, media_type, digest, target_size, created_at, updated_at, used_at)"
            " VALUES ('none', 'x', '', '', 0, 0, 0, 0)"
        )

    with pytest.raises(sqlite3.IntegrityError):
        db.write_sync(orphan)
    assert db.write_sync(add("fine")) == "fine"


def test_a_cancelled_caller_that_still_waits_writes_nothing(db):
    gate, entered = threading.Event(), threading.Event()

    def hold(tx):
        entered.set()
        assert gate.wait(10)

    async def cancel():
        first = asyncio.ensure_future(db.write(hold))
        await asyncio.to_thread(entered.wait, 10)
        waiting = asyncio.ensure_future(db.write(add("late")))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        gate.set()
        await first

    asyncio.run(cancel())
    db.write_sync(add("after"))
    assert names(db) == ["after"]


def test_what_was_written_is_there_after_reopening(tmp_path):
    path = tmp_path / "meta.db"
    with Database(path) as db:
        db.write_sync(add("kept"))
    with Database(path) as db:
        assert names(db) == ["kept"]
    with pytest.raises(UnavailableError, match="closed"):
        db.write_sync(add("x"))


def test_a_newer_schema_is_refused_by_naming_both_versions(tmp_path):
    path = tmp_path / "meta.db"
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version={schema.VERSION + 5}")
    connection.close()
    with pytest.raises(FailedPreconditionError, match=rf"schema {schema.VERSION + 5}, .* up to {schema.VERSION}"):
        Database(path).__enter__()


def test_no_database_is_a_clear_error(tmp_path):
    path = tmp_path / "meta.db"
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(UnavailableError, match=r"meta\.db"):
        Database(path).__enter__()


def test_every_table_of_users_has_owner_size_and_times(db):
    wanted = {"owner_uid", "size_bytes", "created_at", "updated_at", "used_at", "labels"}
    for table in ("namespaces", "images", "containers", "sandboxes", "content", "ingests", "snapshots", "leases"):
        columns = {row["name"] for row in db.all(f"SELECT name FROM pragma_table_info('{table}')")}
        assert wanted <= columns, table


def test_the_second_schema_gets_indexes_and_keeps_what_it_has(tmp_path):
    connection = sqlite3.connect(tmp_path / "meta.db")
    for script in schema.MIGRATIONS[:2]:
        connection.executescript(script)
    connection.execute("PRAGMA user_version=2")
    times = (1, 1, 1)
    connection.execute("INSERT INTO namespaces (name, created_at, updated_at, used_at) VALUES ('default', 1, 1, 1)")
    for name, labels in (("plain", "{}"), ("kept", '{"containerd.io/restart.status":"running"}')):
        connection.execute(
            "INSERT INTO containers (namespace, id, image, runtime_name, snapshotter, snapshot_key, created_at,"
            " updated_at, used_at, labels) VALUES ('default', ?, '', 'r', '', '', ?, ?, ?, ?)",
            (name, *times, labels),
        )
    connection.commit()
    connection.close()
    with Database(tmp_path / "meta.db") as db:
        store = ContainerStore(db)
        assert [(namespace, one.id) for namespace, one in store.restarted()] == [("default", "kept")]
        assert [one.id for one in store.list("default")] == ["kept", "plain"]
        plan = db.all(f"EXPLAIN QUERY PLAN SELECT * FROM containers WHERE {schema.RESTARTED} ORDER BY namespace, id")
        assert "USING INDEX containers_restarted" in plan[0]["detail"]


def test_the_third_schema_gets_layers_and_its_snapshots_have_their_own_bytes(tmp_path):
    connection = sqlite3.connect(tmp_path / "meta.db")
    for script in schema.MIGRATIONS[:3]:
        connection.executescript(script)
    connection.execute("PRAGMA user_version=3")
    connection.execute("INSERT INTO namespaces (name, created_at, updated_at, used_at) VALUES ('default', 1, 1, 1)")
    for number, name, parent in ((7, "lower", None), (9, "upper", 7)):
        connection.execute(
            "INSERT INTO snapshots (number, namespace, snapshotter, name, parent, kind, synced_at, created_at,"
            " updated_at, used_at) VALUES (?, 'default', 'overlayfs', ?, ?, 3, 1, 1, 1, 1)",
            (number, name, parent),
        )
    connection.commit()
    connection.close()
    with Database(tmp_path / "meta.db") as db:
        assert db.read(lambda queries: rows.chain(queries, 9)) == (9, 7)
        row = db.read(lambda queries: rows.get(queries, "default", "overlayfs", "upper"))
        assert (row["layer"], rows.bytes_of(row)) == (None, 9)


def test_the_fourth_schema_gets_origins_and_keeps_its_snapshots(tmp_path):
    connection = sqlite3.connect(tmp_path / "meta.db")
    for script in schema.MIGRATIONS[:4]:
        connection.executescript(script)
    connection.execute("PRAGMA user_version=4")
    connection.execute("INSERT INTO namespaces (name, created_at, updated_at, used_at) VALUES ('default', 1, 1, 1)")
    connection.execute(
        "INSERT INTO snapshots (number, namespace, snapshotter, name, kind, created_at, updated_at, used_at)"
        " VALUES (7, 'default', 'overlayfs', 'layer', 3, 1, 1, 1)"
    )
    connection.commit()
    connection.close()
    with Database(tmp_path / "meta.db") as db:
        (row,) = db.all("SELECT number, name, origin FROM snapshots")
        assert tuple(row) == (7, "layer", None)
