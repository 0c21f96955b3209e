"""The trash: one rename under the writer's lock, undone with its transaction, whatever happens in between."""

import os
import subprocess
import sys
import textwrap
import threading

import pytest

from orlop.core.metadata import Database
from orlop.core.metadata.trash import Trash


@pytest.fixture
def db(tmp_path):
    with Database(tmp_path / "meta.db") as database:
        yield database


def wait_until_empty(trash, db):
    """Let the thread finish what it was woken for."""
    while db.all("SELECT 1 FROM trash"):
        trash.empty()


def victim(root, name="content/blobs/sha256/abc"):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("bytes")
    return path


def test_what_is_taken_has_gone_at_once_and_is_unlinked_later(tmp_path, db):
    with Trash(tmp_path, db) as trash:
        file, tree = victim(tmp_path), victim(tmp_path, "snapshots/overlayfs/1/fs/a/b").parents[2]
        assert db.write_sync(lambda tx: trash.take(tx, file) and trash.take(tx, tree))
        assert not file.exists()
        assert not tree.exists()
        wait_until_empty(trash, db)
        assert os.listdir(trash.directory) == []
        assert db.write_sync(lambda tx: trash.take(tx, file)) is False


def test_a_lost_transaction_puts_it_back(tmp_path, db):
    with Trash(tmp_path, db) as trash:
        file = victim(tmp_path)

        def fail(tx):
            trash.take(tx, file)
            assert not file.exists()
            raise KeyError("changed my mind")

        with pytest.raises(KeyError):
            db.write_sync(fail)
        assert file.read_text() == "bytes"
        assert db.all("SELECT * FROM trash") == []


def test_a_lost_batch_puts_everything_back_in_reverse(tmp_path, db):
    with Trash(tmp_path, db) as trash:
        file = victim(tmp_path)
        gate, entered = threading.Event(), threading.Event()

        def hold(_tx):
            entered.set()
            assert gate.wait(10)

        def take(tx):
            trash.take(tx, file)
            victim(tmp_path).write_text("new")  # somebody makes the same thing again, in the same batch
            trash.take(tx, file)

        def break_the_disk(tx):
            tx.execute("PRAGMA max_page_count=1")
            tx.execute("CREATE TABLE big (x)")
            for _ in range(1000):
                tx.execute("INSERT INTO big VALUES (zeroblob(10000))")

        errors = []

        def submit(fn):
            try:
                db.write_sync(fn)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=submit, args=(fn,)) for fn in (hold, take, break_the_disk)]
        for thread in threads:
            thread.start()
            if thread is threads[0]:
                assert entered.wait(10)
        gate.set()
        for thread in threads:
            thread.join()
        assert errors, "the batch was lost"
        if len(errors) > 1:  # the two came into one batch
            assert file.read_text() == "bytes"


@pytest.mark.parametrize("committed", [False, True])
def test_a_death_around_the_commit_loses_nothing(tmp_path, committed):
    """Killed before the COMMIT, the file is back at the next start; killed after it, it is unlinked."""
    file = victim(tmp_path)
    script = f"""
        import os
        from pathlib import Path
        from orlop.core.metadata import Database
        from orlop.core.metadata.trash import Trash
        root = Path({str(tmp_path)!r})
        with Database(root / "meta.db") as db:
            trash = Trash(root, db)
            trash.directory.mkdir()
            def take(tx):
                trash.take(tx, Path({str(file)!r}))
                if {committed}:
                    tx.after_commit(lambda: os._exit(7))
                else:
                    os._exit(7)
            db.write_sync(take)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False).returncode == 7
    assert not file.exists()
    with Database(tmp_path / "meta.db") as db, Trash(tmp_path, db) as trash:
        wait_until_empty(trash, db)
        assert file.exists() is not committed
        assert os.listdir(trash.directory) == []


def test_what_was_made_again_meanwhile_is_not_overwritten_at_recovery(tmp_path, db):
    with Trash(tmp_path, db) as trash:
        pass
    file = victim(tmp_path)
    os.rename(file, trash.directory / "5~content%2Fblobs%2Fsha256%2Fabc")
    victim(tmp_path).write_text("new")
    with Trash(tmp_path, db) as trash:
        wait_until_empty(trash, db)
        assert file.read_text() == "new"
        assert os.listdir(trash.directory) == []


def test_names_that_are_not_ours_are_only_thrown_away(tmp_path, db):
    directory = tmp_path / "root" / "trash"
    directory.mkdir(parents=True)
    for name in ("lost+found", "5~..%2Fescaped", "x~y"):
        (directory / name).write_text("x")
    with Trash(tmp_path / "root", db) as trash:
        wait_until_empty(trash, db)
        assert os.listdir(directory) == []
        assert not (tmp_path / "escaped").exists()


def test_another_file_system_keeps_its_trash_beside(tmp_path, db, monkeypatch):
    real = os.rename

    def rename(source, target):
        if str(target).startswith(str(tmp_path / "trash")):
            raise OSError(18, "Invalid cross-device link")
        real(source, target)

    with Trash(tmp_path, db) as trash:
        monkeypatch.setattr(os, "rename", rename)
        file = victim(tmp_path, "snapshots/overlayfs/7")
        assert db.write_sync(lambda tx: trash.take(tx, file))
        assert not file.exists()
        wait_until_empty(trash, db)
        assert os.listdir(file.parent) == []
        monkeypatch.setattr(os, "rename", real)
        real(victim(tmp_path, "snapshots/overlayfs/8"), file.parent / ".trash-9~8")
        trash.add_neighbour(file.parent)
        assert (file.parent / "8").read_text() == "bytes"


def test_what_cannot_be_unlinked_stays_recorded(tmp_path, db, monkeypatch, caplog):
    with Trash(tmp_path, db) as trash:
        file = victim(tmp_path)
        monkeypatch.setattr(os, "unlink", lambda path: (_ for _ in ()).throw(OSError(16, "busy", str(path))))
        db.write_sync(lambda tx: trash.take(tx, file))
        trash.empty()
        assert len(db.all("SELECT * FROM trash")) == 1
    monkeypatch.undo()
    assert "cannot unlink yet" in caplog.text
    with Trash(tmp_path, db) as trash:
        wait_until_empty(trash, db)


def test_what_could_not_be_unlinked_is_tried_again(tmp_path, db, monkeypatch):
    """It stayed until something else was thrown away, or the next start."""
    monkeypatch.setattr("orlop.core.metadata.trash.RETRY_S", 0.01)
    failures = iter([OSError(5, "Input/output error")] * 3)
    real = os.unlink

    def unlink(path, **more):
        for failure in failures:
            raise failure
        real(path, **more)

    with Trash(tmp_path, db) as trash:
        file = victim(tmp_path)
        monkeypatch.setattr(os, "unlink", unlink)
        db.write_sync(lambda tx: trash.take(tx, file))
        wait_until_empty(trash, db)
    assert next(failures, None) is None


def test_a_tree_deeper_than_a_path_goes_and_what_comes_after_it_too(tmp_path, db):
    """Python's own removal recurses; the entry stayed, and with it all that were thrown away later."""
    with Trash(tmp_path, db) as trash:
        deep, file = tmp_path / "deep", victim(tmp_path)
        deep.mkdir()
        fd = os.open(deep, os.O_RDONLY)
        for _ in range(2500):
            os.mkdir("directory", dir_fd=fd)
            inner = os.open("directory", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
        os.close(fd)
        assert db.write_sync(lambda tx: trash.take(tx, deep) and trash.take(tx, file))
        wait_until_empty(trash, db)
        assert os.listdir(trash.directory) == []
