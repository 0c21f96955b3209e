"""The content store as a state machine: whatever is done in whatever order, it agrees with a model in memory."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from orlop.base.errdefs import AlreadyExistsError, FailedPreconditionError, NotFoundError, UnavailableError
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
        for writer in self.writers.values():
            writer._ingest.files._close()
        self.writers.clear()
        self.stop()
        self.start()
        swept = self.store.sweep()
        assert swept.missing == ()

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
        on_disk = {f"sha256:{path.name}" for path in (self.store.root / "blobs" / "sha256").glob("*")}
        assert on_disk == set(self.blobs)
        for namespace, digest in self.records:
            reader = self.store.open(namespace, digest)
            assert reader.pread(0, reader.size + 1) == self.blobs[digest]
            reader.close()
        refs = {(row["namespace"], row["ref"]) for row in self.db.all("SELECT namespace, ref FROM ingests")}
        assert refs == set(self.ingests)


def test_the_store_agrees_with_a_model():
    run_state_machine_as_test(Contents, settings=settings(max_examples=25, stateful_step_count=25, deadline=None))
