"""The store against a small model: any sequence of calls gives the answers that the rules on one page give."""

import functools
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orlop.base import errdefs
from orlop.core.metadata import Transaction
from orlop.core.snapshots import Kind
from orlop.testing.fake_snapshotter import FakeSnapshotter
from orlop.testing.snapshots import Bench, code

# Hundreds of transactions, each synced: a file system in memory makes that cheap.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
NAMESPACES = ("a", "b")
NAMES = ("n1", "n2", "n3", "n4", "n5")
LEASES = ("", "lease", "gone")


@dataclass
class Entry:
    kind: Kind
    parent: str = ""
    labels: dict[str, str] = field(default_factory=dict)


class StoreMachine(RuleBasedStateMachine):
    quick = True

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="orlop-model-", dir=MEMORY))
        self.snapshotter = FakeSnapshotter(quick=self.quick)
        self.bench = Bench(self.directory, lambda _root: self.snapshotter)
        self.bench.__enter__()
        self.model: dict[tuple[str, str], Entry] = {}
        self.held: set[tuple[str, str]] = set()
        for namespace in NAMESPACES:
            self.bench.db.write_sync(functools.partial(_make_lease, namespace))

    def teardown(self) -> None:
        self.bench.__exit__(None, None, None)
        shutil.rmtree(self.directory)

    namespaces = st.sampled_from(NAMESPACES)
    names = st.sampled_from(NAMES)

    @rule(
        namespace=namespaces,
        key=names,
        parent=st.one_of(st.just(""), names),
        view=st.booleans(),
        lease=st.sampled_from(LEASES),
        labels=st.dictionaries(st.sampled_from(("x", "y")), st.sampled_from(("", "1"))),
    )
    def create(self, namespace: str, key: str, parent: str, view: bool, lease: str, labels: dict[str, str]) -> None:
        call = self.bench.view if view else self.bench.prepare
        got = code(lambda: call(key, parent, namespace=namespace, lease=lease, labels=labels))
        below = self.model.get((namespace, parent))
        if (namespace, key) in self.model:
            expected: Any = errdefs.NotFoundError if lease == "gone" else errdefs.AlreadyExistsError
        elif parent and below is None:
            expected = errdefs.NotFoundError
        elif below is not None and below.kind != Kind.COMMITTED:
            expected = errdefs.InvalidArgumentError
        elif lease == "gone":
            expected = errdefs.NotFoundError
        else:
            expected = None
            kind = Kind.VIEW if view else Kind.ACTIVE
            kept = {name: value for name, value in labels.items() if value}
            self.model[namespace, key] = Entry(kind, parent, kept)
        assert got is expected
        if lease == "lease" and got in (None, errdefs.AlreadyExistsError):
            self.held.add((namespace, key))

    @rule(namespace=namespaces, name=names, key=names, parent=st.one_of(st.just(""), names))
    def commit(self, namespace: str, name: str, key: str, parent: str) -> None:
        got = code(lambda: self.bench.commit(name, key, namespace=namespace, parent=parent, labels={"l": name}))
        entry, below = self.model.get((namespace, key)), self.model.get((namespace, parent))
        expected: Any = None
        if (namespace, name) in self.model:
            expected = errdefs.AlreadyExistsError
        elif entry is None:
            expected = errdefs.NotFoundError
        elif entry.kind != Kind.ACTIVE:
            expected = errdefs.FailedPreconditionError
        elif parent and parent != entry.parent:
            if entry.parent:
                expected = errdefs.InvalidArgumentError
            elif below is None:
                expected = errdefs.NotFoundError
            elif below.kind != Kind.COMMITTED:
                expected = errdefs.FailedPreconditionError
        assert got is expected
        if expected is None:
            assert entry is not None
            del self.model[namespace, key]
            self.model[namespace, name] = Entry(Kind.COMMITTED, parent or entry.parent, {"l": name})

    @rule(namespace=namespaces, key=names, lease=st.sampled_from(LEASES))
    def remove(self, namespace: str, key: str, lease: str) -> None:
        got = code(lambda: self.bench.remove(key, namespace=namespace, lease=lease))
        if (namespace, key) not in self.model:
            assert got is errdefs.NotFoundError
        elif any(space == namespace and one.parent == key for (space, _), one in self.model.items()):
            assert got is errdefs.FailedPreconditionError
        else:
            assert got is None
            del self.model[namespace, key]
            if lease == "lease":
                self.held.discard((namespace, key))

    @rule(namespace=namespaces, name=names, labels=st.dictionaries(st.sampled_from(("x", "y")), st.just("2")))
    def update(self, namespace: str, name: str, labels: dict[str, str]) -> None:
        got = code(lambda: self.bench.update(name, labels, "labels.x", namespace=namespace))
        entry = self.model.get((namespace, name))
        assert got is (errdefs.NotFoundError if entry is None else None)
        if entry is not None:
            entry.labels.pop("x", None)
            if "x" in labels:
                entry.labels["x"] = labels["x"]

    @rule(namespace=namespaces, key=names)
    def mounts(self, namespace: str, key: str) -> None:
        entry = self.model.get((namespace, key))
        call = lambda: self.bench.mounts(key, namespace=namespace)  # noqa: E731
        if entry is None:
            assert code(call) is errdefs.NotFoundError
        elif entry.kind == Kind.COMMITTED:
            assert code(call) is errdefs.FailedPreconditionError
        else:
            chain = []
            name = key
            while name:
                chain.append(self.bench.number(name, namespace=namespace))
                name = self.model[namespace, name].parent
            assert call()[0].source == ":".join(map(str, chain))

    @precondition(lambda self: self.model)
    @rule()
    def restart(self) -> None:
        self.bench.__exit__(None, None, None)
        self.bench = Bench(self.directory, lambda _root: self.snapshotter)
        self.bench.__enter__()

    @rule()
    def cleanup(self) -> None:
        while self.bench.store.making:  # what got no row is being taken back in the executor
            self.bench.cleanup()
        self.bench.cleanup()
        numbers = {self.bench.number(name, namespace=namespace) for namespace, name in self.model}
        assert set(self.snapshotter.held) == numbers

    @invariant()
    def lists_are_the_model(self) -> None:
        for namespace in NAMESPACES:
            listed = {
                info.name: Entry(info.kind, info.parent, dict(info.labels)) for info in self.bench.store.walk(namespace)
            }
            assert listed == {name: entry for (space, name), entry in self.model.items() if space == namespace}

    @invariant()
    def leases_hold_what_was_added(self) -> None:
        rows = self.bench.db.all("SELECT namespace, type, id FROM lease_resources")
        assert {row["type"] for row in rows} <= {f"snapshots/{self.bench.store.name}"}
        assert {(row["namespace"], row["id"]) for row in rows} == self.held


class SlowStoreMachine(StoreMachine):
    quick = False


def _make_lease(namespace: str, tx: Transaction) -> None:
    tx.ensure_namespace(namespace)
    tx.execute(
        "INSERT INTO leases (namespace, id, created_at, updated_at, used_at) VALUES (?, 'lease', 0, 0, 0)", (namespace,)
    )


_SETTINGS = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestQuickSnapshotter = StoreMachine.TestCase
TestQuickSnapshotter.settings = _SETTINGS
TestSlowSnapshotter = SlowStoreMachine.TestCase
TestSlowSnapshotter.settings = _SETTINGS
