"""The collector: what each rule keeps and lets go, and that it agrees with a naive reading of the rules."""

import json
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.core.gc import Collector, Graph, Kind, Node, mark
from orlop.core.metadata import Transaction, schema
from orlop.core.snapshots import rows
from orlop.core.snapshots.origin import Origin
from tests.unit.core.gc.rules import FUTURE, PAST, Plan, naive

HOUR = 3_600_000_000_000


class World:
    """Rows in a database in memory, with removers that only remove rows."""

    def __init__(self):
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        self.connection.row_factory = sqlite3.Row
        for script in schema.MIGRATIONS:
            self.connection.executescript(script)
        self.tx = Transaction(self.connection)
        self.open = set()
        self.deleted_images = []
        self.snapshot_order = []

    # what the collector asks for

    def remove_record(self, tx, namespace, digest):
        tx.execute("DELETE FROM content WHERE namespace = ? AND digest = ?", (namespace, digest))
        return 1

    def remove_ingest(self, tx, namespace, ref):
        tx.execute("DELETE FROM ingests WHERE namespace = ? AND ref = ?", (namespace, ref))

    def is_open(self, namespace, ref):
        return (namespace, ref) in self.open

    def delete(self, tx, number):
        tx.mutated(deletion=True)
        tx.execute("DELETE FROM snapshots WHERE number = ?", (number,))
        self.snapshot_order.append(number)

    def collect(self, snapshotters=("overlayfs", "btrfs"), limit=None):
        tx = Transaction(self.connection)
        collector = Collector(
            self,
            dict.fromkeys(snapshotters, self),
            image_deleted=lambda _tx, namespace, name: self.deleted_images.append((namespace, name)),
        )
        stats = collector.collect(tx, limit)
        assert (tx.mutations, tx.deletions) == (0, 0), "a collection must not ask for the next one"
        return stats

    # rows

    def row(self, table, **values):
        self.tx.ensure_namespace(values["namespace"])
        values["labels"] = json.dumps(values.get("labels") or {})
        values |= dict.fromkeys(("created_at", "updated_at", "used_at"), self.tx.now)
        names = ", ".join(values)
        self.tx.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(values))})", [*values.values()])

    def content(self, namespace, digest, **labels):
        self.tx.execute("INSERT INTO blobs VALUES (?, 1, 0, 0) ON CONFLICT DO NOTHING", (digest,))
        self.row("content", namespace=namespace, digest=digest, labels=labels.get("labels"))

    def image(self, namespace, name, digest, labels=None):
        self.row("images", namespace=namespace, name=name, media_type="m", digest=digest, target_size=1, labels=labels)

    def container(self, namespace, id_, snapshotter="", key="", labels=None):
        self.row(
            "containers",
            namespace=namespace,
            id=id_,
            image="",
            runtime_name="r",
            snapshotter=snapshotter,
            snapshot_key=key,
            labels=labels,
        )

    def snapshot(self, namespace, name, parent=None, snapshotter="overlayfs", labels=None):
        self.row(
            "snapshots",
            namespace=namespace,
            snapshotter=snapshotter,
            name=name,
            kind=3,
            labels=labels,
            parent=None if parent is None else self.number(namespace, parent, snapshotter),
        )

    def unpacked(self, namespace, name, digest, synced_at=None):
        self.snapshot(namespace, name)
        origin = Origin(media_type="m", digest=digest, size_bytes=1, diff_id=digest)
        statement = "UPDATE snapshots SET origin = ?, synced_at = ? WHERE namespace = ? AND name = ?"
        self.tx.execute(statement, (origin.encode(), synced_at, namespace, name))

    def number(self, namespace, name, snapshotter="overlayfs"):
        statement = "SELECT number FROM snapshots WHERE namespace = ? AND snapshotter = ? AND name = ?"
        row = self.tx.one(statement, (namespace, snapshotter, name))
        assert row is not None
        return row[0]

    def lease(self, namespace, id_, *resources, labels=None):
        self.row("leases", namespace=namespace, id=id_, labels=labels)
        for kind, resource in resources:
            self.tx.execute("INSERT INTO lease_resources VALUES (?, ?, ?, ?)", (namespace, id_, kind, resource))

    def ingest(self, namespace, ref, expected="", labels=None):
        self.row("ingests", namespace=namespace, ref=ref, key=f"{namespace}/{ref}", expected=expected, labels=labels)

    def sandbox(self, namespace, id_, labels=None):
        self.row("sandboxes", namespace=namespace, id=id_, runtime_name="r", labels=labels)

    def left(self):
        """What is there, as words."""
        return {
            *(f"{row[0]} content {row[1]}" for row in self.tx.execute("SELECT namespace, digest FROM content")),
            *(f"{row[0]} image {row[1]}" for row in self.tx.execute("SELECT namespace, name FROM images")),
            *(f"{row[0]} lease {row[1]}" for row in self.tx.execute("SELECT namespace, id FROM leases")),
            *(f"{row[0]} ingest {row[1]}" for row in self.tx.execute("SELECT namespace, ref FROM ingests")),
            *(
                f"{row[0]} snapshot {row[1]}/{row[2]}"
                for row in self.tx.execute("SELECT namespace, snapshotter, name FROM snapshots")
            ),
        }


@pytest.fixture
def world():
    made = World()
    yield made
    made.connection.close()


def test_marking_reaches_what_can_be_reached_and_nothing_else():
    node = lambda key, flat=False: Node(Kind.CONTENT, "n", key, flat)  # noqa: E731
    edges = {node("a"): [node("b"), node("a")], node("b"): [node("c")], node("d"): [node("a")]}
    assert mark([node("a"), node("x", True)], lambda n: edges.get(n, [])) == {node(key) for key in "abcx"}
    assert mark([node("b", True), node("b")], lambda n: edges.get(n, [])) == {node("b"), node("c")}


def test_a_part_goes_at_a_time_and_what_cannot_go_takes_no_place_in_it(world):
    world.snapshot("a", "other", snapshotter="not loaded")
    for number in range(5):
        world.snapshot("a", f"s{number}", f"s{number - 1}" if number else None)
        world.content("a", f"d{number}")
    counts = [sum(world.collect(limit=3).removed.values()) for _ in range(5)]
    assert counts == [3, 3, 3, 1, 0]
    assert world.left() == {"a snapshot not loaded/other"}
    assert world.snapshot_order == sorted(world.snapshot_order, reverse=True)


def test_what_nothing_refers_to_goes(world):
    world.content("a", "d1")
    world.snapshot("a", "s1")
    world.snapshot("a", "s2", "s1")
    stats = world.collect()
    assert world.left() == set()
    assert stats.removed == {Kind.CONTENT: 1, Kind.SNAPSHOT: 2}
    assert stats.freed_bytes == 1
    assert world.snapshot_order == [2, 1]


def test_a_snapshot_put_on_a_younger_parent_goes_before_it(world):
    """Layers unpacked at the same time get their parents at commit."""
    world.snapshot("a", "child")
    world.snapshot("a", "parent")
    world.tx.execute("UPDATE snapshots SET parent = 2 WHERE number = 1")
    world.collect()
    assert world.snapshot_order == [1, 2]


def test_an_image_holds_its_target_and_what_labels_refer_to_from_there(world):
    world.image("a", "i", "index")
    world.content("a", "index", labels={"containerd.io/gc.ref.content.m.0": "manifest"})
    world.content(
        "a", "manifest", labels={"containerd.io/gc.ref.content.config": "c", "containerd.io/gc.ref.content/l": "l"}
    )
    world.content("a", "c", labels={"containerd.io/gc.ref.snapshot.overlayfs": "top"})
    world.content("a", "l")
    world.content("a", "not-a-label-of-ours", labels={"containerd.io/gc.ref.contentx": "l"})
    world.snapshot("a", "base")
    world.snapshot("a", "top", "base")
    world.content("b", "manifest")
    before = world.left()
    world.collect()
    assert before - world.left() == {"a content not-a-label-of-ours", "b content manifest"}


def test_a_container_holds_its_snapshot_with_all_parents_and_its_labels(world):
    world.container("a", "web", "overlayfs", "rw", labels={"containerd.io/gc.ref.content": "checkpoint"})
    world.content("a", "checkpoint")
    for name, parent in (("l1", None), ("l2", "l1"), ("rw", "l2"), ("other", "l2")):
        world.snapshot("a", name, parent)
    world.snapshot("a", "rw", snapshotter="btrfs")
    world.snapshot("b", "rw")
    world.collect()
    assert world.left() == {f"a snapshot overlayfs/{name}" for name in ("l1", "l2", "rw")} | {"a content checkpoint"}


def test_the_label_root_holds_content_and_snapshots_with_what_they_refer_to(world):
    world.content("a", "d1", labels={"containerd.io/gc.root": "x", "containerd.io/gc.ref.content.0": "d2"})
    world.content("a", "d2")
    world.snapshot("a", "s1")
    world.snapshot("a", "s2", "s1", labels={"containerd.io/gc.root.other": "x"})
    before = world.left()
    world.collect()
    assert world.left() == before


def test_back_references_hold_the_child_while_the_parent_is_held(world):
    world.image("a", "i", "target")
    world.container("a", "web")
    world.snapshot("a", "s", labels={"containerd.io/gc.root": "x"})
    for digest, label, value in (
        ("d1", "containerd.io/gc.bref.image", "i"),
        ("d2", "containerd.io/gc.bref.container.x", "web"),
        ("d3", "containerd.io/gc.bref.content", "d1"),
        ("d4", "containerd.io/gc.bref.snapshot.overlayfs/x", "s"),
        ("d5", "containerd.io/gc.bref.image", "absent"),
        ("d6", "containerd.io/gc.bref.snapshot.btrfs", "s"),
    ):
        world.content("a", digest, labels={label: value})
    world.collect()
    assert {name for name in world.left() if "content" in name} == {f"a content d{at}" for at in (1, 2, 3, 4)}


def test_leases_hold_until_they_expire(world):
    resources = [("content", "d1"), ("snapshots/overlayfs", "s2"), ("images", "i"), ("ingests", "r")]
    world.lease("a", "live", *resources, labels={"containerd.io/gc.expire": FUTURE})
    world.lease("b", "dead", *resources, labels={"containerd.io/gc.expire": PAST})
    world.lease("c", "odd", *resources, labels={"containerd.io/gc.expire": "tomorrow"})
    for namespace in "abc":
        world.content(namespace, "d1", labels={"containerd.io/gc.ref.content": "d2"})
        world.content(namespace, "d2")
        world.content(namespace, "d3")
        world.snapshot(namespace, "s1")
        world.snapshot(namespace, "s2", "s1")
        world.image(namespace, "i", "d3", labels={"containerd.io/gc.expire": PAST})
        world.ingest(namespace, "r")
    before = world.left()
    stats = world.collect()
    assert {name for name in before if name[0] != "b"} == world.left()
    assert world.deleted_images == [("b", "i")]
    assert stats.next_expiry == 32472144000 * 1_000_000_000


def test_a_flat_lease_holds_no_labels(world):
    resources = [("content", "d1"), ("snapshots/overlayfs", "s2"), ("images", "i")]
    world.lease("a", "flat", *resources, labels={"containerd.io/gc.flat": "x"})
    world.content("a", "d1", labels={"containerd.io/gc.ref.content": "d2"})
    world.content("a", "d2")
    world.content("a", "d3", labels={"containerd.io/gc.ref.content": "d2"})
    world.snapshot("a", "s1", labels={"containerd.io/gc.ref.content": "d2"})
    world.snapshot("a", "s2", "s1", labels={"containerd.io/gc.ref.content": "d2"})
    world.image("a", "i", "d3", labels={"containerd.io/gc.expire": PAST, "containerd.io/gc.ref.content": "d2"})
    before = world.left()
    world.collect()
    assert before - world.left() == {"a content d2"}


def test_an_expired_image_stays_while_something_refers_to_it(world):
    world.image("a", "old", "d1", labels={"containerd.io/gc.expire": PAST})
    world.image("a", "older", "d2", labels={"containerd.io/gc.expire": PAST})
    world.image("a", "new", "d3", labels={"containerd.io/gc.expire": FUTURE, "containerd.io/gc.ref.image.x": "old"})
    for digest in ("d1", "d2", "d3"):
        world.content("a", digest)
    world.collect()
    assert world.left() == {"a image old", "a image new", "a content d1", "a content d3"}
    assert world.deleted_images == [("a", "older")]


def test_ingests_stay_by_date_by_lease_or_while_they_are_written(world):
    world.ingest("a", "dated", labels={"containerd.io/gc.expire": FUTURE})
    world.ingest("a", "late", labels={"containerd.io/gc.expire": PAST})
    world.ingest("a", "bare")
    world.ingest("a", "written")
    world.ingest("a", "leased", expected="d1")
    world.content("a", "d1")
    world.lease("a", "l", ("ingests", "leased"))
    world.open.add(("a", "written"))
    world.collect()
    assert world.left() == {"a lease l", "a content d1", *(f"a ingest {ref}" for ref in ("dated", "written", "leased"))}


def test_a_sandbox_holds_what_its_labels_refer_to(world):
    world.sandbox("a", "pod", labels={"containerd.io/gc.ref.snapshot.overlayfs": "s"})
    world.snapshot("a", "s")
    world.snapshot("a", "t")
    world.collect()
    assert world.left() == {"a snapshot overlayfs/s"}


def test_snapshots_of_a_snapshotter_that_is_not_loaded_stay(world):
    world.snapshot("a", "s1", snapshotter="zfs")
    world.snapshot("a", "s2", "s1", snapshotter="zfs")
    stats = world.collect()
    assert len(world.left()) == 2
    assert stats.removed == {}


USED, USED_AT = "containerd.io/gc.cond.value-usedat", "2025-01-01T00:00:00Z"
COND = "containerd.io/gc.cond.snapshot."
LONG, SHORT = "2000000h", "1h"  # the test runs after USED_AT, and less than two centuries after


# What each keeps is from conditional references in core/metadata/gc.go of containerd 2.3.
@pytest.mark.parametrize(
    ("key", "value", "used", "kept"),
    [
        (COND + "overlayfs", f"usedat<{LONG}|s", {USED: USED_AT}, True),
        (COND + "overlayfs", f"usedat<{SHORT}|s", {USED: USED_AT}, False),
        (COND + "overlayfs", f"usedat>{SHORT}|s", {USED: USED_AT}, True),
        (COND + "overlayfs", f"usedat>{LONG}|s", {USED: USED_AT}, False),
        (COND + "overlayfs/any", f"usedat<{LONG}|s", {USED: USED_AT}, True),
        ("containerd.io/gc.cond.snapshot/overlayfs", f"usedat<{LONG}|s", {USED: USED_AT}, True),
        (COND + "btrfs", f"usedat<{LONG}|s", {USED: USED_AT}, False),
        (COND + "overlayfs", f"usedat<{SHORT},usedat<{LONG}|s", {USED: USED_AT}, True),
        (COND + "overlayfs", f"else=1,usedat,usedat<{LONG}|s", {USED: USED_AT}, True),
        (COND + "overlayfs", f"usedat<{LONG}|s", {USED + ".a": PAST, USED + ".b": USED_AT}, True),
        (COND + "overlayfs", f"usedat<{LONG}|s", {}, False),
        (COND + "overlayfs", f"usedat<{LONG}|s", {USED: "yesterday"}, False),
        (COND + "overlayfs", f"usedat<={LONG}|s", {USED: USED_AT}, False),
        (COND + "overlayfs", f"usedat=={LONG}|s", {USED: USED_AT}, False),
        (COND + "overlayfs", f"usedat!={LONG}|s", {USED: USED_AT}, False),
        (COND + "overlayfs", f" usedat<{LONG}|s", {USED: USED_AT}, False),
        (COND + "overlayfs", "usedat<1d|s", {USED: USED_AT}, False),
        (COND + "overlayfs", f"usedat<{LONG}s", {USED: USED_AT}, False),
    ],
)
@pytest.mark.parametrize("owner", ["image", "content"])
def test_a_conditional_reference_holds_while_its_condition_does(world, owner, key, value, used, kept):
    labels = {key: value}
    world.image("a", "i", "d1", labels=labels if owner == "image" else None)
    world.content("a", "d1", labels=labels if owner == "content" else None)
    world.snapshot("a", "base")
    world.snapshot("a", "s", "base", labels=used)
    world.snapshot("b", "s", labels=used)  # another namespace's is not meant
    world.collect()
    snapshots = {"a snapshot overlayfs/base", "a snapshot overlayfs/s"} if kept else set()
    assert world.left() == {"a image i", "a content d1"} | snapshots


def test_a_snapshot_with_a_bar_in_its_name(world):
    world.content("a", "d", labels={"containerd.io/gc.root": "x", COND + "overlayfs": f"usedat>{SHORT}|s|t"})
    world.snapshot("a", "s|t", labels={USED: USED_AT})
    world.collect()
    assert "a snapshot overlayfs/s|t" in world.left()


def test_conditional_references_of_what_is_not_held_hold_nothing(world):
    labels = {COND + "overlayfs": f"usedat>{SHORT}|s"}
    world.content("a", "d", labels=labels)
    world.image("a", "i", "d", labels={"containerd.io/gc.expire": PAST, **labels})
    world.snapshot("a", "s", labels={USED: USED_AT})
    world.container("a", "web", labels=labels)  # containers have none
    world.lease("a", "l", labels=labels)
    assert world.collect().next_expiry is None
    assert world.left() == {"a lease l"}


def test_the_collector_is_told_when_a_condition_ends(world):
    world.image("a", "i", "d", labels={COND + "overlayfs": f"usedat<{LONG}|s"})
    world.snapshot("a", "s", labels={USED: USED_AT})
    assert world.collect().next_expiry == (1735689600 + 2_000_000 * 3600) * 1_000_000_000


# -- against a naive reading of the rules ---------------------------------------------------------------------------


names = st.sampled_from(["0", "1", "2"])
spaces = st.sampled_from(["a", "b"])
snapshotters = st.sampled_from(["overlayfs", "btrfs"])
label = st.one_of(
    st.tuples(st.just("containerd.io/gc.root"), st.just("x")),
    st.tuples(st.sampled_from(["", ".0", "/0", "bad"]).map("containerd.io/gc.ref.content{}".format), names),
    st.tuples(st.sampled_from(["", ".0"]).map("containerd.io/gc.ref.image{}".format), names),
    st.tuples(snapshotters.map("containerd.io/gc.ref.snapshot.{}".format), names),
    st.tuples(snapshotters.map("containerd.io/gc.bref.snapshot.{}/x".format), names),
    st.tuples(st.sampled_from(["content", "image", "container"]).map("containerd.io/gc.bref.{}".format), names),
    st.tuples(st.just("plain"), st.just("x")),
)
label_maps = st.lists(label, max_size=2).map(dict)
expiring = st.sampled_from([{}, {"containerd.io/gc.expire": PAST}, {"containerd.io/gc.expire": FUTURE}])
flat = st.sampled_from([{}, {"containerd.io/gc.flat": "x"}])
resources = st.one_of(
    st.tuples(st.just("content"), names),
    st.tuples(st.just("images"), names),
    st.tuples(snapshotters.map("snapshots/{}".format), names),
)


@st.composite
def plans(draw):
    plan = Plan()
    plan.content = draw(st.dictionaries(st.tuples(spaces, names), label_maps, max_size=6))
    plan.images = draw(
        st.dictionaries(
            st.tuples(spaces, names), st.tuples(names, st.builds(dict.__or__, label_maps, expiring)), max_size=4
        )
    )
    for key in draw(st.lists(st.tuples(spaces, snapshotters, names), max_size=6, unique=True)):
        older = [other[2] for other in plan.snapshots if other[:2] == key[:2]]
        plan.snapshots[key] = (draw(st.sampled_from([None, *older])), draw(label_maps))
    plan.containers = draw(
        st.dictionaries(st.tuples(spaces, names), st.tuples(snapshotters, names, label_maps), max_size=2)
    )
    plan.leases = draw(
        st.dictionaries(
            st.tuples(spaces, names),
            st.tuples(st.lists(resources, max_size=3, unique=True), st.builds(dict.__or__, expiring, flat)),
            max_size=2,
        )
    )
    return plan


def make(plan):
    world = World()
    for (ns, digest), labels in plan.content.items():
        world.content(ns, digest, labels=labels)
    for (ns, name), (digest, labels) in plan.images.items():
        world.image(ns, name, digest, labels)
    for (ns, snapshotter, name), (parent, labels) in plan.snapshots.items():
        world.snapshot(ns, name, parent, snapshotter, labels)
    for (ns, id_), (snapshotter, key, labels) in plan.containers.items():
        world.container(ns, id_, snapshotter, key, labels)
    for (ns, id_), (held, labels) in plan.leases.items():
        world.lease(ns, id_, *held, labels=labels)
    return world


@given(plans())
@settings(max_examples=150, deadline=None)
def test_the_collector_agrees_with_a_naive_reading(plan):
    world = make(plan)
    try:
        world.collect()
        assert world.left() == naive(plan)
        world.collect()
        assert world.left() == naive(plan), "a second collection finds nothing more"
        graph = Graph.load(Transaction(world.connection))
        assert set(graph.collectible) <= mark(graph.roots, graph.references)
    finally:
        world.connection.close()


@pytest.mark.parametrize(("synced_at", "stays", "waits"), [(None, 1, 1), (rows.LOST, 1, 0), (5, 0, 0)])
def test_a_blob_stays_while_a_snapshot_may_have_to_be_made_of_it_again(world, synced_at, stays, waits):
    """Only for a snapshot that stays itself, and of its own namespace."""
    world.content("n", "layer")
    world.content("n", "of-garbage")
    world.content("other", "layer")
    world.unpacked("n", "kept", "layer", synced_at)
    world.unpacked("n", "garbage", "of-garbage", synced_at)
    world.container("n", "c", "overlayfs", "kept")
    stats = world.collect()
    assert world.left() == {"n snapshot overlayfs/kept"} | ({"n content layer"} if stays else set())
    assert stats.waiting == waits


def test_a_blob_stays_while_a_layer_may_have_to_be_made_of_it_again(world):
    """For each namespace that has a snapshot of it, as long as that is not on disk."""
    world.content("n", "blob")
    world.content("other", "blob")
    world.snapshot("n", "kept")
    world.container("n", "c", "overlayfs", "kept")
    world.tx.execute(
        "INSERT INTO layers (number, snapshotter, below, digest, media_type, diff_id, tar_bytes, size_bytes, inodes,"
        " created_at) VALUES (77, 'overlayfs', '', 'blob', 'm', 'd', 1, 1, 1, 1)"
    )
    world.tx.execute("UPDATE snapshots SET layer = 77")
    assert world.collect().waiting == 1
    assert world.left() == {"n snapshot overlayfs/kept", "n content blob"}
    world.tx.execute("UPDATE layers SET synced_at = 5")
    world.tx.execute("UPDATE snapshots SET synced_at = 5")
    assert world.collect().waiting == 0
    assert world.left() == {"n snapshot overlayfs/kept"}
