"""Rows and bytes after crashes and losses of power."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from orlop.base import errdefs
from orlop.core.metadata import Transaction
from orlop.core.snapshots import Kind, Snapshot, Usage, upkeep
from orlop.core.snapshots.directories import Directories
from orlop.core.snapshots.numbers import STEP, Numbers
from orlop.plugins.snapshots.native import Native
from orlop.plugins.snapshots.overlayfs import Overlayfs
from orlop.testing.fake_snapshotter import FakeSnapshotter
from orlop.testing.snapshots import NAME, NAMESPACE, Bench


def _unpacked(bench: Bench, name: str, parent: str = "") -> None:
    """A snapshot as an unpacker makes it, committed and not synced."""
    key = f"extract-{name}"
    bench.prepare(key, parent)
    bench.store.note_usage(NAMESPACE, key, Usage(1, 1))
    bench.commit(name, key)


def _set_boot(bench: Bench, boot: str) -> None:
    def write(tx: Transaction) -> None:
        tx.execute("UPDATE facts SET value = ? WHERE key = ?", (boot, f"snapshots/{NAME}/boot-id"))

    bench.db.write_sync(write)


class NeverSyncs(FakeSnapshotter):
    """As if power went before any sync came to its end."""

    def sync(self, numbers: object) -> None:
        raise RuntimeError("the daemon is killed, or the power is gone")


def test_unsynced_after_a_boot_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fake = NeverSyncs()
    with Bench(tmp_path, lambda _root: fake) as bench:
        _unpacked(bench, "one")
        _unpacked(bench, "two", "one")
        bench.prepare("container", "two")
        _set_boot(bench, "the boot before")
    with Bench(tmp_path, lambda _root: fake) as bench:
        assert "may be incomplete" in caplog.text
        assert [row["name"] for row in upkeep.lost_snapshots(bench.db, bench.store)] == ["one", "two"]
        for call in (
            lambda: bench.prepare("x", "two"),
            lambda: bench.view("x", "one"),
            lambda: bench.mounts("container"),
            lambda: bench.commit("three", "container"),
        ):
            with pytest.raises(errdefs.DataLossError, match=r'"(one|two)" may be incomplete .*unpack its image'):
                call()
        assert bench.stat("two").kind == Kind.COMMITTED, "the record stays, and says that it was there"
        assert bench.names("parent==one") == ["two"]
        bench.prepare("unrelated")
        for key in ("container", "two", "one"):
            bench.remove(key)
        _unpacked(bench, "one")
        assert bench.prepare("x", "one")


def test_unsynced_in_the_same_boot_is_kept(tmp_path: Path) -> None:
    """The kill of a daemon takes nothing out of the page cache."""
    fake = NeverSyncs()
    with Bench(tmp_path, lambda _root: fake) as bench:
        _unpacked(bench, "one")
    with Bench(tmp_path, lambda _root: FakeSnapshotter()) as bench:
        assert upkeep.lost_snapshots(bench.db, bench.store) == []
        assert upkeep.flush(bench.db, bench.store) == 1
        assert upkeep.flush(bench.db, bench.store) == 0


def test_what_could_not_be_synced_is_refused(tmp_path: Path) -> None:
    """The kernel tells of it once; a second sync that succeeds must not make it whole."""
    fake = NeverSyncs()
    with Bench(tmp_path, lambda _root: fake) as bench:
        _unpacked(bench, "one")
    failing = FakeSnapshotter()
    failing.failing["sync"] = OSError(errno.EIO, "Input/output error")
    with Bench(tmp_path, lambda _root: failing) as bench:
        with pytest.raises(OSError, match="Input/output error"):
            upkeep.flush(bench.db, bench.store)
        failing.failing.clear()
        assert upkeep.flush(bench.db, bench.store) == 0
        with pytest.raises(errdefs.DataLossError, match='"one" may be incomplete'):
            bench.prepare("x", "one")
        bench.remove("one")
        _unpacked(bench, "one")
        bench.prepare("x", "one")


def test_synced_survives_a_boot(tmp_path: Path) -> None:
    fake = FakeSnapshotter()
    with Bench(tmp_path, lambda _root: fake) as bench:
        _unpacked(bench, "unpacked")
        bench.prepare("a", "unpacked")
        bench.commit("own", "a")
        _set_boot(bench, "the boot before")
    with Bench(tmp_path, lambda _root: fake) as bench:
        bench.prepare("x", "own")
        assert upkeep.lost_snapshots(bench.db, bench.store) == []


def test_rows_without_a_directory(tmp_path: Path) -> None:
    with Bench(tmp_path, Overlayfs) as bench:
        for name in ("one", "two"):
            bench.prepare(f"{name}-key")
            bench.commit(name, f"{name}-key")
        bench.prepare("active", "two")
        bench.view("view", "two")
        directory = bench.snapshotter.home(1)
        assert directory is not None
        for name in ("one", "active", "view"):
            shutil.rmtree(directory.parent / str(bench.number(name)))
        swept = upkeep.sweep(bench.db, bench.store)
        assert swept.made_again == (bench.number("active"), bench.number("view"))
        assert swept.missing == (bench.number("one"),)
        assert upkeep.sweep(bench.db, bench.store).made_again == ()
        assert sorted(os.listdir(directory.parent / str(bench.number("active")))) == ["fs", "work"]
        with pytest.raises(errdefs.DataLossError):
            bench.prepare("x", "one")
        assert bench.prepare("x", "two")


def test_a_slow_snapshotters_missing_directory_is_refused(tmp_path: Path) -> None:
    with Bench(tmp_path, Native) as bench:
        bench.prepare("active")
        home = bench.snapshotter.home(bench.number("active"))
        assert home is not None
        shutil.rmtree(home)
        assert upkeep.sweep(bench.db, bench.store).missing == (bench.number("active"),)


def test_what_is_being_made_is_not_swept(tmp_path: Path) -> None:
    fake = FakeSnapshotter(quick=False)
    with Bench(tmp_path, lambda _root: fake) as bench:
        fake.prepare(Snapshot(number=70, kind=Kind.ACTIVE))
        bench.store.making.add(70)
        assert upkeep.sweep(bench.db, bench.store).thrown_away == ()
        bench.store.making.discard(70)
        assert upkeep.sweep(bench.db, bench.store).thrown_away == (70,)
        assert fake.held == {}


def test_other_entries_are_left_alone(tmp_path: Path) -> None:
    with Bench(tmp_path, Overlayfs) as bench:
        bench.prepare("active")
        home = bench.snapshotter.home(bench.number("active"))
        assert home is not None
        for name in ("lost+found", "٣", ".trash-1~5"):
            (home.parent / name).mkdir()
        assert upkeep.sweep(bench.db, bench.store) == upkeep.Swept()
        assert (home.parent / "lost+found").is_dir()


def test_a_lost_transaction_leaves_no_directory(tmp_path: Path) -> None:
    """The directory is made inside the transaction; when that is lost, it goes."""
    with Bench(tmp_path, Overlayfs) as bench:
        bench.prepare("other")
        before = sorted(bench.snapshotter.numbers())
        with pytest.raises(errdefs.NotFoundError, match="lease"):
            bench.prepare("a", lease="nowhere")
        assert sorted(bench.snapshotter.numbers()) == before


def test_a_lost_removal_keeps_the_directory(tmp_path: Path) -> None:
    with Bench(tmp_path, Overlayfs) as bench:
        mounts = bench.prepare("a")
        number = bench.number("a")

        def write(tx: Transaction) -> None:
            bench.store.delete(tx, number)
            assert not Path(mounts[0].source).exists()
            raise errdefs.AbortedError("the collector thought better of it")

        with pytest.raises(errdefs.AbortedError):
            bench.db.write_sync(write)
        assert bench.mounts("a") == mounts
        assert Path(mounts[0].source).is_dir()


def test_numbers_lie_beyond_all_that_were_given_out(tmp_path: Path) -> None:
    with Bench(tmp_path, lambda _root: FakeSnapshotter()) as bench:
        assert Numbers(bench.db, at_least=5000).take() == 5001
        first = Numbers(bench.db).take()
        bench.prepare("a")
        bench.remove("a")
        assert Numbers(bench.db).take() >= first + STEP


def test_what_a_trial_has_left_is_removed(tmp_path):
    """Its daemon was killed while it tried what the kernel can."""
    directories = Directories(tmp_path / "root")
    directories.create_root()
    directories.make(1, work=True)
    (directories.root / ".probe-1" / "upper").mkdir(parents=True)
    (directories.root / ".probe-2").touch()
    directories.remove_scratch(".probe-")
    assert os.listdir(directories.root) == ["1"]
