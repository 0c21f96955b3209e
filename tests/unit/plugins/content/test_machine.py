"""The content store as a state machine: whatever is done in whatever order, it agrees with a model in memory."""

import asyncio
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from orlop.base.errdefs import AlreadyExistsError, FailedPreconditionError, NotFoundError, UnavailableError
from orlop.core.content.remote import RemoteBlobs
from orlop.core.content.store import ContentStore
from orlop.core.metadata import Database
from orlop.core.metadata.trash import Trash
from orlop.oci.digest import Digest
from orlop.plugins.content.local import LocalStore
from tests.unit.plugins.content.blocking import Blocking

refs = st.sampled_from(["r0", "r1"])
spaces = st.sampled_from(["a", "b"])
chunks = st.sampled_from([b"", b"x", b"yy", b"z" * 70_000])


class Contents(RuleBasedStateMachine):
    digests = Bundle("digests")

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="orlop-machine-"))
        self.ingests = {}  # (namespace, ref) -> bytes, or a digest while it only claims a blob
        self.writers = {}
        self.blobs = {}  # digest -> bytes, as long as anybody has a right to it
        self.records = set()
        self.start()

    def start(self):
        self.db = Database(self.root / "meta.db").__enter__()
        self.trash = Trash(self.root, self.db).__enter__()
        self.store = Blocking(LocalStore(self.root / "content", self.db, self.trash))

    def stop(self):
        self.store.close()
        self.trash.__exit__()
        self.db.__exit__()

    def teardown(self):
        for writer in self.writers.values():
            writer.close_sync()
        self.stop()
        shutil.rmtree(self.root)

    @rule()
    def restart(self):
        """As after a kill: open writers are gone, what they wrote is there."""
        self.drop_writers()
        self.writers.clear()
        self.stop()
        self.start()
        self.sweep()

    def drop_writers(self):
        for writer in self.writers.values():
            writer._ingest.files._close()

    def sweep(self):
        assert self.store.sweep().missing == ()

    def run(self, work):
        return asyncio.run(work)

    @rule(target=digests, data=chunks, more=chunks)
    def digest(self, data, more):
        return Digest.of(data + more)

    @rule(namespace=spaces, ref=refs, expected=st.one_of(st.just(""), digests))
    def open(self, namespace, ref, expected):
        key = namespace, ref
        if key in self.writers:
            with pytest.raises(UnavailableError):
                self.store.writer_sync(namespace, ref, expected=expected)
            return
        if (namespace, expected) in self.records:
            with pytest.raises(AlreadyExistsError):
                self.store.writer_sync(namespace, ref, expected=expected)
            return
        self.writers[key] = writer = self.store.writer_sync(namespace, ref, expected=expected)
        self.forget()
        if not isinstance(self.ingests.get(key, ""), bytes):  # no bytes of its own yet: a claim, a new one, or nothing
            self.ingests[key] = expected if expected in self.blobs else b""
        assert writer.status().offset == len(self.content_of(key))

    def content_of(self, key):
        held = self.ingests[key]
        return held if isinstance(held, bytes) else self.blobs[held]

    @rule(key=st.tuples(spaces, refs), data=chunks)
    def write(self, key, data):
        if key in self.writers:
            self.writers[key].write_sync(data)
            if data:
                self.ingests[key] = self.content_of(key) + data
            assert self.writers[key].status().offset == len(self.content_of(key))
            assert self.writers[key].digest() == Digest.of(self.content_of(key))

    @rule(key=st.tuples(spaces, refs))
    def truncate(self, key):
        if key in self.writers:
            self.writers[key].truncate_sync()
            self.ingests[key] = b""

    @rule(key=st.tuples(spaces, refs))
    def close(self, key):
        if key in self.writers:
            self.writers.pop(key).close_sync()

    @rule(key=st.tuples(spaces, refs), wrong=st.booleans())
    def commit(self, key, wrong):
        if key not in self.writers:
            return
        writer, data = self.writers.pop(key), self.content_of(key)
        digest = Digest.of(data)
        if wrong:
            with pytest.raises(FailedPreconditionError):
                writer.commit_sync(expected=Digest.of(data + b"!"))
            return
        del self.ingests[key]
        if (key[0], digest) in self.records:
            with pytest.raises(AlreadyExistsError):
                writer.commit_sync(size=len(data), expected=digest)
        else:
            assert writer.commit_sync(size=len(data), expected=digest).digest == digest
        self.blobs[digest] = data
        self.records.add((key[0], digest))
        self.forget()

    @rule(key=st.tuples(spaces, refs))
    def abort(self, key):
        if key in self.writers:
            return
        if key not in self.ingests:
            with pytest.raises(NotFoundError):
                self.db.write_sync(lambda tx: self.store.remove_ingest(tx, *key))
            return
        self.db.write_sync(lambda tx: self.store.remove_ingest(tx, *key))
        del self.ingests[key]
        self.forget()

    @rule(namespace=spaces, digest=digests)
    def delete(self, namespace, digest):
        if (namespace, digest) not in self.records:
            with pytest.raises(NotFoundError):
                self.db.write_sync(lambda tx: self.store.remove_record(tx, namespace, digest))
            return
        self.db.write_sync(lambda tx: self.store.remove_record(tx, namespace, digest))
        self.records.discard((namespace, digest))
        self.forget()

    def forget(self):
        """Blobs without a record go, unless an ingest claims them still (in its row: until it is committed)."""
        rows = self.db.all("SELECT expected FROM ingests WHERE expected != ''")
        needed = {digest for _, digest in self.records} | {row["expected"] for row in rows}
        for digest in set(self.blobs) - needed:
            del self.blobs[digest]

    @invariant()
    def rows_and_bytes_are_those_of_the_model(self):
        rows = {(row["namespace"], row["digest"]) for row in self.db.all("SELECT namespace, digest FROM content")}
        assert rows == self.records
        assert self.lying_there() == set(self.blobs)
        for namespace, digest in self.records:
            reader = self.store.open(namespace, digest)
            assert self.run(reader.read_at(0, reader.size + 1)) == self.blobs[digest]
            reader.close()
        refs = {(row["namespace"], row["ref"]) for row in self.db.all("SELECT namespace, ref FROM ingests")}
        assert refs == set(self.ingests)

    def lying_there(self):
        return {f"sha256:{path.name}" for path in (self.store.root / "blobs" / "sha256").glob("*")}


class ContentsElsewhere(Contents):
    """The same over bytes in another store. It survives our restarts, and has an event loop for all."""

    def __init__(self):
        self.runner = asyncio.Runner()
        self.far_root = Path(tempfile.mkdtemp(prefix="orlop-machine-"))
        self.far_db = Database(self.far_root / "meta.db").__enter__()
        self.far_trash = Trash(self.far_root, self.far_db).__enter__()
        self.far = LocalStore(self.far_root / "content", self.far_db, self.far_trash)
        super().__init__()

    def run(self, work):
        return self.runner.run(work)

    def start(self):
        self.db = Database(self.root / "meta.db").__enter__()
        self.remote = RemoteBlobs(self.far, self.db, namespace="here")
        self.run(self.remote.__aenter__())
        self.store = Blocking(ContentStore(self.db, self.remote), self.run)

    def stop(self):
        self.run(self.remote.__aexit__())
        self.db.__exit__()

    def teardown(self):
        super().teardown()
        self.far.close()
        self.far_trash.__exit__()
        self.far_db.__exit__()
        self.runner.close()
        shutil.rmtree(self.far_root)

    def drop_writers(self):
        """Our death ends the streams, and the other side closes its writers."""
        for writer in self.writers.values():
            if writer._ingest._writer is not None:
                self.run(writer._ingest._writer.close())

    def sweep(self):
        self.store.sweep()

    def lying_there(self):
        self.run(self.settled())
        return {row["digest"] for row in self.far_db.all("SELECT digest FROM content")}

    def busy(self):
        remote = self.remote
        return remote._doomed or remote._aborted or remote._removing or remote._sweeping

    async def settled(self):
        async with asyncio.timeout(30):
            await asyncio.sleep(0)
            while self.busy():  # noqa: ASYNC110 - what it looks at tells nobody
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("machine", [Contents, ContentsElsewhere])
def test_the_store_agrees_with_a_model(machine):
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=25, deadline=None))
