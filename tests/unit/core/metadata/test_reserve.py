"""The space that is kept for deletions, and who may use it."""

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from orlop.base.errdefs import ResourceExhaustedError, UnavailableError
from orlop.core.metadata import Database, Transaction
from orlop.core.metadata.reserve import Reserve


class Disk:
    """Stands between the database and SQLite: a COMMIT fails while there is no space, or while the disk fails."""

    def __init__(self, connection: sqlite3.Connection, reserve: Path) -> None:
        self._connection, self._reserve = connection, reserve
        self.failing = ""

    def execute(self, statement: str, parameters: Any = ()) -> sqlite3.Cursor:
        if statement == "COMMIT" and self.failing and (self.failing != "SQLITE_FULL" or self._reserve.stat().st_size):
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorname = self.failing
            raise error
        return self._connection.execute(statement, parameters)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def disks(monkeypatch: pytest.MonkeyPatch) -> list[Disk]:
    made: list[Disk] = []
    real = Database._open_migrated

    def opened(self: Database) -> Disk:
        made.append(Disk(real(self), self.path.with_name("meta.db.reserve")))
        return made[-1]

    monkeypatch.setattr(Database, "_open_migrated", opened)
    return made


def add(tx: Transaction) -> None:
    tx.ensure_namespace("added")


def remove(tx: Transaction) -> None:
    tx.execute("DELETE FROM namespaces WHERE name = 'here'")
    tx.mutated(deletion=True)


def test_a_deletion_uses_the_reserve_and_nothing_else_does(tmp_path: Path, disks: list[Disk]) -> None:
    with Database(tmp_path / "meta.db") as db:
        db.write_sync(lambda tx: tx.ensure_namespace("here"))
        [disk] = disks
        disk.failing = "SQLITE_FULL"
        with pytest.raises(ResourceExhaustedError, match="commit: no space left on the file system at /"):
            db.write_sync(add)
        assert disk._reserve.stat().st_size, "who adds has not used it"
        db.write_sync(remove)
        assert [row["name"] for row in db.all("SELECT name FROM namespaces")] == []
        disk.failing = ""
        db.write_sync(add)


def test_of_a_batch_those_that_free_are_written(tmp_path: Path, disks: list[Disk]) -> None:
    """Each is told its own outcome; what was taken back is done once."""
    hold, taken_back = threading.Event(), []
    with Database(tmp_path / "meta.db") as db:
        db.write_sync(lambda tx: tx.ensure_namespace("here"))
        [disk] = disks
        first = db.submit(lambda _tx: hold.wait(10))

        def hooked(tx: Transaction) -> None:
            tx.on_rollback(lambda: taken_back.append(1))
            add(tx)

        adding, removing, broken = db.submit(hooked), db.submit(remove), db.submit(lambda _tx: 1 / 0)
        disk.failing = "SQLITE_FULL"
        first.add_done_callback(lambda _done: None)
        hold.set()
        with pytest.raises(ResourceExhaustedError):
            adding.result(10)
        removing.result(10)
        with pytest.raises(ZeroDivisionError):
            broken.result(10)
        assert taken_back == [1]
        assert db.all("SELECT name FROM namespaces") == []


def test_an_error_of_the_disk_is_told_and_the_next_write_tries_anew(tmp_path: Path, disks: list[Disk]) -> None:
    with Database(tmp_path / "meta.db") as db:
        [disk] = disks
        disk.failing = "SQLITE_IOERR_FSYNC"
        with pytest.raises(UnavailableError, match=r"disk I/O error \(SQLITE_IOERR_FSYNC\) on the file system at /"):
            db.write_sync(remove)
        disk.failing = ""
        db.write_sync(add)
        assert len(db.all("SELECT name FROM namespaces")) == 1


def test_the_reserve_is_real_space_given_up_and_taken_again(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve", 64 << 10)
    reserve.fill()
    assert reserve.path.stat().st_blocks * 512 >= 64 << 10
    assert reserve.spend()
    assert reserve.path.stat().st_blocks == 0
    assert not reserve.spend()
    reserve._next_try = 0
    reserve.fill()
    assert reserve.path.stat().st_blocks * 512 >= 64 << 10
