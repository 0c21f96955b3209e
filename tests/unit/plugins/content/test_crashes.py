"""The content store when things go wrong in between: death at any point, lost transactions, full disks, races."""

import asyncio
import contextlib
import errno
import os
import random
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from orlop.base.errdefs import (
    AbortedError,
    AlreadyExistsError,
    DataLossError,
    InternalError,
    NotFoundError,
    OrlopError,
    ResourceExhaustedError,
    UnavailableError,
)
from orlop.core.content import writer
from orlop.core.gc import Collector
from orlop.core.metadata import Database
from orlop.core.metadata.trash import Trash
from orlop.oci.digest import Digest
from orlop.plugins.content.local import LocalStore
from orlop.plugins.content.local import ingest as ingest_module
from tests.unit.plugins.content.blocking import Blocking

HERE = Path(__file__).parents[4]


@contextlib.contextmanager
def opened(root):
    with Database(root / "meta.db") as db, Trash(root, db) as trash:
        store = Blocking(LocalStore(root / "content", db, trash))
        try:
            yield store
        finally:
            store.close()


def put(store, data, *, namespace="a", ref="r"):
    made = store.writer_sync(namespace, ref, total=len(data))
    made.write_sync(data[made.status().offset :])
    return made.commit_sync(expected=Digest.of(data)).digest


def read(store, digest, *, namespace="a"):
    with contextlib.closing(store.open(namespace, digest)) as reader:
        return reader.pread(0, reader.size)


def settle(store):
    """Let what is in the trash go."""
    while store.db.all("SELECT 1 FROM trash"):
        store.trash.empty()


def files(root):
    """Blobs and ingests that lie on disk."""
    content = root / "content"
    return sorted(str(path.relative_to(content)) for path in content.rglob("*") if path.is_file())


def consistent(store):
    """Rows and bytes belong together, one by one."""
    digests = {row["digest"] for row in store.db.all("SELECT digest FROM blobs")}
    needed = {row["digest"] for row in store.db.all("SELECT digest FROM content")}
    claimed = {row["expected"] for row in store.db.all("SELECT expected FROM ingests WHERE expected != ''")}
    assert digests == needed | claimed
    blobs, ingests = store.root / "blobs" / "sha256", store.root / "ingest"
    assert {f"sha256:{path.name}" for path in blobs.glob("*")} == digests
    for digest in digests:
        assert Digest.of(store.blob_path(digest).read_bytes()) == digest
    keys = {row["key"] for row in store.db.all("SELECT key FROM ingests")}
    assert {path.name for path in ingests.glob("*")} <= keys
    for digest in needed:
        payers = [row for row in store.db.all("SELECT size_bytes FROM content WHERE digest = ?", (digest,)) if row[0]]
        size = store.db.one("SELECT size_bytes FROM blobs WHERE digest = ?", (digest,))[0]
        assert len(payers) == bool(size), "exactly one namespace pays"


def die(root, setup, *, code=7):
    """Run `setup` in a process of its own that kills itself in it."""
    script = f"""
        import os
        from pathlib import Path
        from orlop.core.metadata import Database
        from orlop.core.metadata.trash import Trash
        from orlop.core.content.writer import ContentWriter
        from orlop.plugins.content.local import LocalStore, ingest, writing
        from orlop.plugins.content.local.blobs import LocalBlobs
        from tests.unit.plugins.content.blocking import Blocking
        root = Path({str(root)!r})
        with Database(root / "meta.db") as db, Trash(root, db) as trash:
            store = Blocking(LocalStore(root / "content", db, trash))
            die = lambda *_args, **_kw: os._exit({code})
    """
    program = textwrap.dedent(script) + textwrap.indent(textwrap.dedent(setup), " " * 4)
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=HERE)
    assert result.returncode == code, result.stderr


WRITE = """
    w = store.writer_sync("a", "r", total=4)
    w.write_sync(b"da")
    w.write_sync(b"ta")
"""


@pytest.mark.parametrize(
    ("point", "stays"),
    [
        ("ingest.Ingest.open = die", 0),
        ("ingest.Ingest.sync = die", 4),
        ("os.rename = die", 4),
        ("writing.sync_directory = die", 0),
        ("LocalBlobs.end_commit = die", 0),
        ("ContentWriter._finish = die", None),
        ("ingest.Ingest.remove = die", None),
    ],
)
def test_death_during_a_write_leaves_an_ingest_or_content(tmp_path, point, stays):
    (tmp_path / "content").mkdir()
    die(tmp_path, f"{point}\n{textwrap.dedent(WRITE)}\nw.commit_sync()")
    digest = Digest.of(b"data")
    with opened(tmp_path) as store:
        swept = store.sweep()
        assert swept.missing == ()
        settle(store)
        if stays is None:
            assert store.find("a", digest).size == 4
        else:
            assert store.find("a", digest) is None
            assert asyncio.run(store.status("a", "r")).offset == stays
            assert put(store, b"data") == digest
        settle(store)
        assert files(tmp_path) == [f"blobs/sha256/{digest.hex}"]
        consistent(store)


@pytest.mark.parametrize("point", ["db.write_sync(lambda tx: (store.remove_record(tx, 'a', d), die()))"])
def test_death_before_a_deletion_is_durable_keeps_the_blob(tmp_path, point):
    with opened(tmp_path) as store:
        digest = put(store, b"data")
    die(tmp_path, f"d = {str(digest)!r}\n{point}")
    assert files(tmp_path) == []
    with opened(tmp_path) as store:
        assert read(store, digest) == b"data"
        assert store.sweep().missing == ()
        consistent(store)


def test_an_ingest_of_another_boot_counts_as_far_as_it_was_synced(tmp_path, monkeypatch):
    data = bytes(range(256))
    with opened(tmp_path) as store:
        made = store.writer_sync("a", "r", total=256)
        made.write_sync(data[:100])
        made.close_sync()
        made = store.writer_sync("a", "r", total=256)
        made.write_sync(data[100:200])
        made._ingest.files._close()  # the power goes: nothing is synced or noted any more
    monkeypatch.setattr(ingest_module, "boot_id", lambda: "another boot")
    with opened(tmp_path) as store:
        assert asyncio.run(store.status("a", "r")).offset == 100, "nobody is told of bytes that do not count"
        made = store.writer_sync("a", "r", total=256)
        assert made.status().offset == 100
        assert made.digest() == Digest.of(data[:100])
        made.write_sync(data[100:])
        assert made.commit_sync().digest == Digest.of(data)
        consistent(store)


@pytest.mark.parametrize("step", ["close", "truncate"])
def test_what_an_ingest_says_of_its_bytes_is_on_disk_first(tmp_path, monkeypatch, step):
    """Of a closed writer's bytes, before it is closed; of bytes that are given up, before others take their place."""
    synced = []
    real = os.fsync

    def fsync(fd):
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        synced.append((path.name, path.read_text() if path.is_file() else ""))
        real(fd)

    with opened(tmp_path) as store:
        made = store.writer_sync("a", "r", total=256)
        made.write_sync(b"x" * 100)
        if step == "truncate":
            made.close_sync()
            made = store.writer_sync("a", "r", total=256)
        monkeypatch.setattr(os, "fsync", fsync)
        made.close_sync() if step == "close" else made.truncate_sync()
        monkeypatch.undo()
        (key,) = os.listdir(store.blobs.directory / "ingest")
        count = 100 if step == "close" else 0
        assert synced[-2:] == [("synced.new", f"{ingest_module.boot_id()} {count}\n"), (key, "")]
        assert [name for name, _ in synced[:-2]] == (["data"] if step == "close" else [])
        made.close_sync()


def test_a_sync_that_failed_counts_for_nothing_after_a_boot_either(tmp_path, monkeypatch):
    with opened(tmp_path) as store:
        made = store.writer_sync("a", "r", total=256)
        made.write_sync(b"x" * 100)
        made.close_sync()
        made = store.writer_sync("a", "r", total=256)
        made.write_sync(b"y" * 100)
        monkeypatch.setattr(os, "fsync", lambda _fd: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
        with pytest.raises(OrlopError):
            made.close_sync()
        monkeypatch.undo()
    monkeypatch.setattr(ingest_module, "boot_id", lambda: "another boot")
    with opened(tmp_path) as store:
        assert asyncio.run(store.status("a", "r")).offset == 0


def test_an_ingest_survives_a_killed_daemon_wholly(tmp_path):
    die(tmp_path, WRITE + "\n    die()")
    with opened(tmp_path) as store:
        made = store.writer_sync("a", "r", total=4)
        assert made.status().offset == 4
        assert made.commit_sync().digest == Digest.of(b"data")
        consistent(store)


def test_what_has_no_row_is_swept_and_what_has_no_bytes_is_told(tmp_path, caplog):
    with opened(tmp_path) as store:
        kept, lost = put(store, b"kept"), put(store, b"lost")
        orphan = store.blob_path(Digest.of(b"orphan"))
        orphan.write_bytes(b"orphan")
        foreign = store.root / "blobs" / "sha256" / "README"
        foreign.write_text("mine")
        stray = store.blobs.ingest_path("feed")
        stray.mkdir()
        (stray / "data").write_bytes(b"x")
        store.blob_path(lost).unlink()
        swept = store.sweep()
        assert swept.blobs == (Digest.of(b"orphan"),)
        assert swept.ingests == ("feed",)
        assert swept.missing == (lost,)
        assert swept.unknown == (foreign,)
        settle(store)
        assert files(tmp_path) == sorted([f"blobs/sha256/{kept.hex}", "blobs/sha256/README"])
        with pytest.raises(DataLossError):
            store.open("a", lost)
        assert put(store, b"lost", namespace="b") == lost, "whoever brings the bytes heals the record"
        assert read(store, lost) == b"lost"
        foreign.unlink()
        consistent(store)


def test_a_lost_transaction_leaves_the_ingest_as_it_was(tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise ResourceExhaustedError("no space left for rows")

    with opened(tmp_path) as store:
        made = store.writer_sync("a", "r", total=4)
        made.write_sync(b"data")
        monkeypatch.setattr(f"{writer.__name__}.rows.insert", fail)
        with pytest.raises(ResourceExhaustedError):
            made.commit_sync()
        monkeypatch.undo()
        assert asyncio.run(store.status("a", "r")).offset == 4
        assert [name for name in files(tmp_path) if name.startswith("blobs")] == []
        made = store.writer_sync("a", "r", total=4)
        assert made.commit_sync().digest == Digest.of(b"data")
        consistent(store)


def test_a_lost_transaction_does_not_take_the_blob_of_others(tmp_path, monkeypatch):
    with opened(tmp_path) as store:
        digest = put(store, b"data", namespace="b")
        made = store.writer_sync("a", "r")
        made.write_sync(b"data")
        monkeypatch.setattr(f"{writer.__name__}.rows.insert", lambda *_a, **_o: (_ for _ in ()).throw(KeyError("lost")))
        with pytest.raises(KeyError):
            made.commit_sync()
        monkeypatch.undo()
        assert read(store, digest, namespace="b") == b"data"
        consistent(store)


def test_a_full_disk_names_itself_and_leaves_what_was_written(tmp_path, monkeypatch):
    real = os.pwrite

    def full(fd, data, at):
        if at >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data[:4], at)

    with opened(tmp_path) as store:
        made = store.writer_sync("a", "layer")
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(
            ResourceExhaustedError, match=r"ingest a/layer: write at 0: no space left on the file system"
        ):
            made.write_sync(b"12345678")
        monkeypatch.undo()
        assert (made.status().offset, made.digest()) == (0, Digest.of(b""))
        made.write_sync(b"1234")
        assert made.commit_sync().digest == Digest.of(b"1234")
        consistent(store)


def test_bytes_whose_sync_failed_do_not_count(tmp_path, monkeypatch):
    """The kernel tells of a lost page once: a second fsync succeeds, and must not make a blob of what was lost."""
    with opened(tmp_path) as store:
        made = store.writer_sync("a", "layer")
        made.write_sync(b"data")
        _fail_once(monkeypatch, lambda fd: os.readlink(f"/proc/self/fd/{fd}").endswith("/data"))
        with pytest.raises(InternalError, match=r"ingest a/layer: sync: input/output error on the file system at /"):
            made.commit_sync()
        assert asyncio.run(store.status("a", "layer")).offset == 0
        made = store.writer_sync("a", "layer")
        assert made.status().offset == 0
        made.write_sync(b"data")
        assert made.commit_sync().digest == Digest.of(b"data")
        consistent(store)


def test_a_blob_whose_name_was_not_synced_is_an_ingest_again(tmp_path, monkeypatch):
    with opened(tmp_path) as store:
        made = store.writer_sync("a", "layer")
        made.write_sync(b"data")
        _fail_once(monkeypatch, lambda fd: os.readlink(f"/proc/self/fd/{fd}").endswith("/sha256"))
        with pytest.raises(InternalError, match=r"ingest a/layer: commit: input/output error on the file system at /"):
            made.commit_sync()
        assert [name for name in files(tmp_path) if name.startswith("blobs/sha256/")] == []
        made = store.writer_sync("a", "layer")
        assert made.status().offset == 4
        assert made.commit_sync().digest == Digest.of(b"data")
        consistent(store)


def _fail_once(monkeypatch, matches):
    """The next fsync(2) of a descriptor that matches fails, and none after it, as with a page that was lost."""
    real, left = os.fsync, [1]

    def fsync(fd):
        if left and matches(fd):
            left.pop()
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)


def test_an_aborted_writer_fails_from_then_on(tmp_path):
    async def main():
        with opened(tmp_path) as store:
            made = await store.writer("a", "r")
            await made.write(b"some")
            await store.abort("a", "r")
            with pytest.raises(AbortedError):
                await made.write(b"more")
            with pytest.raises(UnavailableError, match=r"^ref r locked for .*s \(since .*\): unavailable$"):
                await store.writer("a", "r")
            with pytest.raises(AbortedError):
                await made.commit()
            made = await store.writer("a", "r")
            assert made.status().offset == 0
            await made.close()
            settle(store)
            consistent(store)

    asyncio.run(main())


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_cancelled_commit_is_done_or_not_begun(tmp_path, monkeypatch, step):
    """Whoever goes away during a commit leaves no half of it, whichever step he goes away in."""

    async def main():
        with opened(tmp_path) as store:
            made = await store.writer("a", "r")
            await made.write(b"data")
            steps = []

            def counted(real):
                def call(work):
                    steps.append(work)
                    if len(steps) == step:
                        committing.cancel()
                    return real(work)

                return call

            monkeypatch.setattr(store.blobs, "run", counted(store.blobs.run))
            monkeypatch.setattr(store.db, "write", counted(store.db.write))
            committing = asyncio.create_task(made.commit())
            if step == 0:
                committing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await committing
            monkeypatch.undo()
            await made.close()
            assert (store.find("a", Digest.of(b"data")) is None) is (step == 0)
            if step == 0:
                assert (await store.status("a", "r")).offset == 4
            settle(store)
            consistent(store)

    asyncio.run(main())


def test_big_writes_do_not_hold_the_event_loop(tmp_path):
    """While megabytes are hashed and written, other tasks run between: the work is done in a thread."""

    async def main():
        threads = set()
        with opened(tmp_path) as store:
            made = await store.writer("a", "r")
            files = made._ingest.files
            real = files.write
            files.write = lambda data: (threads.add(threading.current_thread().name), real(data))[1]
            await made.write(b"small")
            assert threads == {"MainThread"}
            await made.write(bytes(1 << 20))
            assert any(name.startswith("orlop-content") for name in threads)
            await made.close()

    asyncio.run(main())


def test_writers_deleters_and_the_collector_at_once_never_part_rows_and_bytes(tmp_path):
    """Few digests, several namespaces, everything at the same time."""
    blobs = [b"blob %d" % at for at in range(4)]
    failures = []

    def churn(store, seed):
        dice = random.Random(seed)
        collector = Collector(store, {})
        for turn in range(25):
            namespace, data = dice.choice("ab"), dice.choice(blobs)
            digest = Digest.of(data)
            try:
                match dice.randrange(5):
                    case 0 | 1:
                        made = store.writer_sync(namespace, f"r{seed}-{turn}", expected=digest if turn % 2 else "")
                        made.write_sync(data[made.status().offset :])
                        made.commit_sync(expected=digest)
                    case 2:
                        store.db.write_sync(lambda tx, n=namespace, d=digest: store.remove_record(tx, n, d))
                    case 3:
                        store.db.write_sync(collector.collect)
                    case 4:
                        reader = store.open(namespace, digest)
                        assert reader.pread(0, 100) == data
                        reader.close()
            except (AlreadyExistsError, NotFoundError):
                continue
            except BaseException as error:
                failures.append(error)
                return

    with opened(tmp_path) as store:
        put(store, blobs[0])
        threads = [threading.Thread(target=churn, args=(store, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        settle(store)
        consistent(store)


def test_errors_are_of_our_tree(tmp_path):
    with opened(tmp_path) as store:
        for call in (lambda: store.open("a", Digest.of(b"x")), lambda: store.writer_sync("a", "x" * 40000)):
            with pytest.raises(OrlopError):
                call()


def test_a_record_deleted_as_soon_as_it_is_made_takes_its_blob_along(tmp_path):
    """Between a commit's transaction and its caller's waking up, somebody deletes the record."""
    with opened(tmp_path) as store:
        made = store.writer_sync("a", "r")
        made.write_sync(b"data")
        real = store.db.write

        async def write(fn):
            result = await real(fn)
            store.db.write = real
            await real(lambda tx: store.remove_record(tx, "a", Digest.of(b"data")))
            return result

        store.db.write = write
        made.commit_sync()
        settle(store)
        assert files(tmp_path) == []
        consistent(store)


def test_an_abort_while_the_writer_is_closed_is_no_failure_of_the_close(tmp_path, monkeypatch):
    with opened(tmp_path) as store:
        made = store.writer_sync("a", "r")
        made.write_sync(b"data")
        real = ingest_module.Ingest.sync

        def sync(self):
            real(self)
            store.db.write_sync(lambda tx: store.remove_ingest(tx, "a", "r"))

        monkeypatch.setattr(ingest_module.Ingest, "sync", sync)
        made.close_sync()
        settle(store)
        assert files(tmp_path) == []
        consistent(store)
