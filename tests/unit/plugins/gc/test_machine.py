"""Collection as a state machine: clients make, hold, refer and let go in any order; what is left is what the rules say.

Content, snapshots, images, containers and leases are the real stores over one database; the rules are those of
`tests/unit/core/gc/rules.py`. What a client holds by a lease never goes, and what goes takes its bytes along.
"""

import dataclasses
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from orlop.base.errdefs import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OrlopError,
)
from orlop.core.containers import Container, Runtime
from orlop.core.gc import Collector
from orlop.core.images import Image, Target
from orlop.core.leases import Resource
from orlop.core.metadata.containers import ContainerStore
from orlop.core.metadata.images import ImageStore
from orlop.core.metadata.leases import LeaseStore
from orlop.oci.digest import Digest
from orlop.plugins.content.local import LocalStore
from orlop.testing.fake_snapshotter import FakeSnapshotter
from orlop.testing.snapshots import NAME, Bench
from tests.unit.core.gc.rules import FUTURE, PAST, Plan, naive
from tests.unit.plugins.content.blocking import Blocking

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
BLOBS = {str(Digest.of(data)): data for data in (b"one", b"two", b"three")}
KEYS = ("k1", "k2", "k3")

spaces = st.sampled_from(("a", "b"))
digests = st.sampled_from(tuple(BLOBS))
keys = st.sampled_from(KEYS)
leases = st.sampled_from(("", "", "l1", "l2"))
label = st.one_of(
    st.just(("containerd.io/gc.root", "x")),
    st.tuples(st.sampled_from(("", ".0")).map("containerd.io/gc.ref.content{}".format), digests),
    st.tuples(st.just(f"containerd.io/gc.ref.snapshot.{NAME}"), keys),
    st.tuples(st.just(f"containerd.io/gc.bref.snapshot.{NAME}/x"), keys),
    st.tuples(st.just("containerd.io/gc.bref.content"), digests),
    st.tuples(st.just("containerd.io/gc.bref.container.x"), keys),
)
label_maps = st.lists(label, max_size=2).map(dict)
expiry = st.sampled_from(({}, {}, {"containerd.io/gc.expire": PAST}, {"containerd.io/gc.expire": FUTURE}))
flat = st.sampled_from(({}, {"containerd.io/gc.flat": "x"}))


class Collection(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="orlop-gc-", dir=MEMORY))
        self.snapshotter = FakeSnapshotter()
        self.plan = Plan()
        self.active = set()  # (ns, NAME, key) of snapshots that are not committed
        self.writers = {}
        self.start()

    def start(self):
        self.bench = Bench(self.directory, lambda _root: self.snapshotter).__enter__()
        self.db = self.bench.db
        self.content = Blocking(LocalStore(self.bench.root / "content", self.db, self.bench.trash))
        self.leases, self.images = LeaseStore(self.db), ImageStore(self.db)
        self.containers = ContainerStore(self.db)

    def stop(self):
        for writer in self.writers.values():
            writer.close_sync()
        self.writers.clear()
        self.content.close()
        self.bench.__exit__(None, None, None)

    def teardown(self):
        self.stop()
        shutil.rmtree(self.directory)

    def write(self, fn):
        """The class of the error that a transaction ended with, or None."""
        try:
            self.db.write_sync(fn)
        except OrlopError as error:
            return next(cls for cls in type(error).__mro__ if cls.__module__ == OrlopError.__module__)
        return None

    def held_by(self, ns, lease, kind, key):
        """A call with a lease: the lease holds the thing from then on. False if there is no such lease."""
        if not lease:
            return True
        if (ns, lease) not in self.plan.leases:
            return False
        self.plan.leases[ns, lease][0].append((kind, key))
        return True

    # -- leases -----------------------------------------------------------------------------------------------------

    @rule(ns=spaces, lease=st.sampled_from(("l1", "l2")), expiry=expiry, flat=flat)
    def make_lease(self, ns, lease, expiry, flat):
        got = self.write(lambda tx: self.leases.create(tx, ns, lease, {**expiry, **flat}))
        if (ns, lease) in self.plan.leases:
            assert got is AlreadyExistsError
        else:
            assert got is None
            self.plan.leases[ns, lease] = ([], {**expiry, **flat})

    @rule(ns=spaces, lease=st.sampled_from(("l1", "l2")))
    def drop_lease(self, ns, lease):
        got = self.write(lambda tx: self.leases.delete(tx, ns, lease))
        assert got is (None if self.plan.leases.pop((ns, lease), None) else NotFoundError)

    @rule(ns=spaces, lease=st.sampled_from(("l1", "l2")), digest=digests, key=keys, what=st.integers(0, 2))
    def hold(self, ns, lease, digest, key, what):
        kind, name = (("content", digest), (f"snapshots/{NAME}", key), ("images", key))[what]
        got = self.write(lambda tx: self.leases.add_resource(tx, ns, lease, Resource(type=kind, id=name)))
        if (ns, lease) in self.plan.leases:
            assert got is None
            self.plan.leases[ns, lease][0].append((kind, name))
        else:
            assert got is NotFoundError

    @rule(ns=spaces, lease=st.sampled_from(("l1", "l2")), digest=digests)
    def let_go(self, ns, lease, digest):
        resource = Resource(type="content", id=digest)
        got = self.write(lambda tx: self.leases.delete_resource(tx, ns, lease, resource))
        if (ns, lease) in self.plan.leases:
            self.forget(ns, lease, "content", digest)
            assert got is None
        else:
            assert got is NotFoundError

    def forget(self, ns, lease, kind, key):
        if (ns, lease) in self.plan.leases:
            held, labels = self.plan.leases[ns, lease]
            self.plan.leases[ns, lease] = ([one for one in held if one != (kind, key)], labels)

    # -- content ----------------------------------------------------------------------------------------------------

    @rule(ns=spaces, digest=digests, lease=leases, claim=st.booleans())
    def begin(self, ns, digest, lease, claim):
        ref = f"ref-{digest}"
        if (ns, ref) in self.writers:
            return
        expected = digest if claim else ""
        try:
            writer = self.content.writer_sync(ns, ref, expected=expected, lease=lease)
        except NotFoundError:
            assert lease
            assert (ns, lease) not in self.plan.leases
            return
        except AlreadyExistsError:
            assert (ns, digest) in self.plan.content
            assert self.held_by(ns, lease, "content", digest)
            return
        self.writers[ns, ref] = writer
        assert self.held_by(ns, lease, "ingests", ref)
        claimed = digest if writer.shared is not None else ""
        # one that no lease holds is kept for a day; that of an earlier opening counts on
        kept = not lease or self.plan.ingests.get((ns, ref), (False, ""))[0]
        self.plan.ingests[ns, ref] = (kept, claimed)

    @rule(ns=spaces, digest=digests, lease=leases, labels=label_maps)
    def finish(self, ns, digest, lease, labels):
        ref = f"ref-{digest}"
        writer = self.writers.pop((ns, ref), None)
        if writer is None:
            return
        if writer.shared is None:
            writer.truncate_sync()
            writer.write_sync(BLOBS[digest])
        held_by = writer._lease
        try:
            writer.commit_sync(expected=digest, labels=labels)
        except AlreadyExistsError:
            assert (ns, digest) in self.plan.content
        except NotFoundError:
            assert held_by
            assert (ns, held_by) not in self.plan.leases
            writer.close_sync()
            return
        else:
            self.plan.content[ns, digest] = labels
        del self.plan.ingests[ns, ref]
        self.forget(ns, held_by, "ingests", ref)
        assert self.held_by(ns, held_by, "content", digest)

    @rule(ns=spaces, digest=digests)
    def interrupt(self, ns, digest):
        writer = self.writers.pop((ns, f"ref-{digest}"), None)
        if writer is not None:
            writer.close_sync()

    @rule(ns=spaces, digest=digests, lease=leases)
    def delete_content(self, ns, digest, lease):
        got = code(lambda: self.bench.run(self.content.delete(ns, digest, lease=lease)))
        if self.plan.content.pop((ns, digest), None) is None:
            assert got is NotFoundError
        else:
            assert got is None
            self.forget(ns, lease, "content", digest)

    @rule(ns=spaces, digest=digests, labels=label_maps)
    def relabel(self, ns, digest, labels):
        if (ns, digest) in self.plan.content:
            self.bench.run(self.content.update(ns, digest, labels))
            self.plan.content[ns, digest] = labels

    # -- images and containers --------------------------------------------------------------------------------------

    @rule(ns=spaces, name=keys, digest=digests, labels=label_maps, expiry=expiry, lease=leases)
    def make_image(self, ns, name, digest, labels, expiry, lease):
        both = {**labels, **expiry}
        image = Image(name=name, target=Target(media_type="m", digest=digest, size=1), labels=both)
        got = self.write(lambda tx: self.images.create(tx, ns, image, lease=lease))
        if expiry and lease and (ns, lease) not in self.plan.leases:
            assert got is NotFoundError
        elif (ns, name) in self.plan.images:
            assert got is AlreadyExistsError
        else:
            assert got is None
            self.plan.images[ns, name] = (digest, both)
            if expiry:
                self.held_by(ns, lease, "images", name)

    @rule(ns=spaces, name=keys)
    def delete_image(self, ns, name):
        got = self.write(lambda tx: self.images.delete(tx, ns, name))
        assert got is (None if self.plan.images.pop((ns, name), None) else NotFoundError)

    @rule(ns=spaces, name=keys, key=keys, labels=label_maps)
    def make_container(self, ns, name, key, labels):
        container = Container(
            id=name, runtime=Runtime(name="r"), spec=b"", snapshotter=NAME, snapshot_key=key, labels=labels
        )
        got = self.write(lambda tx: self.containers.create(tx, ns, container))
        if (ns, name) in self.plan.containers:
            assert got is AlreadyExistsError
        else:
            assert got is None
            self.plan.containers[ns, name] = (NAME, key, labels)

    @rule(ns=spaces, name=keys)
    def delete_container(self, ns, name):
        got = self.write(lambda tx: self.containers.delete(tx, ns, name))
        assert got is (None if self.plan.containers.pop((ns, name), None) else NotFoundError)

    # -- snapshots --------------------------------------------------------------------------------------------------

    @rule(ns=spaces, key=keys, parent=st.sampled_from(("", *KEYS)), lease=leases, labels=label_maps)
    def prepare(self, ns, key, parent, lease, labels):
        got = code(lambda: self.bench.prepare(key, parent, namespace=ns, lease=lease, labels=labels))
        snapshots, missing = self.plan.snapshots, bool(lease) and (ns, lease) not in self.plan.leases
        if (ns, NAME, key) in snapshots:
            assert got is (NotFoundError if missing else AlreadyExistsError)
            self.held_by(ns, lease, f"snapshots/{NAME}", key)
        elif parent and (ns, NAME, parent) not in snapshots:
            assert got is NotFoundError
        elif parent and (ns, NAME, parent) in self.active:
            assert got is InvalidArgumentError
        elif missing:
            assert got is NotFoundError
        else:
            assert got is None
            snapshots[ns, NAME, key] = (parent or None, labels)
            self.active.add((ns, NAME, key))
            self.held_by(ns, lease, f"snapshots/{NAME}", key)

    @rule(ns=spaces, key=keys, name=keys, lease=leases, labels=label_maps)
    def commit(self, ns, key, name, lease, labels):
        if (ns, NAME, key) not in self.active or (ns, NAME, name) in self.plan.snapshots:
            return
        got = code(lambda: self.bench.commit(name, key, namespace=ns, lease=lease, labels=labels))
        if lease and (ns, lease) not in self.plan.leases:
            assert got is NotFoundError
            return
        assert got is None
        parent, _ = self.plan.snapshots.pop((ns, NAME, key))
        self.active.discard((ns, NAME, key))
        self.plan.snapshots[ns, NAME, name] = (parent, labels)
        self.held_by(ns, lease, f"snapshots/{NAME}", name)
        self.forget(ns, lease, f"snapshots/{NAME}", key)

    @rule(ns=spaces, key=keys)
    def remove(self, ns, key):
        got = code(lambda: self.bench.remove(key, namespace=ns))
        if (ns, NAME, key) not in self.plan.snapshots:
            assert got is NotFoundError
        elif any(one[0] == ns and parent == key for one, (parent, _) in self.plan.snapshots.items()):
            assert got is FailedPreconditionError
        else:
            assert got is None
            del self.plan.snapshots[ns, NAME, key]
            self.active.discard((ns, NAME, key))

    # -- collection and restart -------------------------------------------------------------------------------------

    @rule()
    def collect(self):
        collector = Collector(self.content, {NAME: self.bench.store})
        ingests = {key: (kept or key in self.writers, claim) for key, (kept, claim) in self.plan.ingests.items()}
        left = naive(dataclasses.replace(self.plan, ingests=ingests))
        self.db.write_sync(collector.collect)
        assert self.rows() == left
        self.prune(left)
        self.settle()

    def prune(self, left):
        plan = self.plan
        plan.content = {key: one for key, one in plan.content.items() if f"{key[0]} content {key[1]}" in left}
        plan.images = {key: one for key, one in plan.images.items() if f"{key[0]} image {key[1]}" in left}
        plan.leases = {key: one for key, one in plan.leases.items() if f"{key[0]} lease {key[1]}" in left}
        plan.ingests = {key: one for key, one in plan.ingests.items() if f"{key[0]} ingest {key[1]}" in left}
        plan.snapshots = {
            key: one for key, one in plan.snapshots.items() if f"{key[0]} snapshot {key[1]}/{key[2]}" in left
        }
        self.active &= set(plan.snapshots)

    @precondition(lambda self: self.plan.content or self.plan.snapshots)
    @rule()
    def restart(self):
        self.stop()
        self.start()
        self.content.sweep()

    def rows(self):
        def read(queries):
            found = {f"{row[0]} content {row[1]}" for row in queries.execute("SELECT namespace, digest FROM content")}
            for table, word, key in (
                ("images", "image", "name"),
                ("leases", "lease", "id"),
                ("ingests", "ingest", "ref"),
            ):
                found |= {
                    f"{row[0]} {word} {row[1]}" for row in queries.execute(f"SELECT namespace, {key} FROM {table}")
                }
            rows = queries.execute("SELECT namespace, snapshotter, name FROM snapshots")
            return found | {f"{row[0]} snapshot {row[1]}/{row[2]}" for row in rows}

        return self.db.read(read)

    def settle(self):
        """Bytes are there for what is left, and for nothing else."""
        files = {f"sha256:{path.name}" for path in (self.content.root / "blobs" / "sha256").glob("*")}
        claimed = {claim for _, claim in self.plan.ingests.values() if claim}
        assert files == {digest for _, digest in self.plan.content} | claimed
        self.bench.cleanup()
        numbers = {self.bench.number(key, namespace=ns) for ns, _, key in self.plan.snapshots}
        assert set(self.snapshotter.held) == numbers

    @invariant()
    def what_is_there_is_what_was_made(self):
        plan = self.plan
        made = {f"{ns} content {digest}" for ns, digest in plan.content}
        made |= {f"{ns} image {name}" for ns, name in plan.images}
        made |= {f"{ns} lease {id_}" for ns, id_ in plan.leases}
        made |= {f"{ns} ingest {ref}" for ns, ref in plan.ingests}
        made |= {f"{ns} snapshot {snapshotter}/{key}" for ns, snapshotter, key in plan.snapshots}
        assert self.rows() == made


def code(call):
    """The class of the error of a call, or None."""
    try:
        call()
    except OrlopError as error:
        return next(cls for cls in type(error).__mro__ if cls.__module__ == OrlopError.__module__)
    return None


def test_collection_agrees_with_the_rules_whatever_clients_do():
    run_state_machine_as_test(Collection, settings=settings(max_examples=80, stateful_step_count=50, deadline=None))
