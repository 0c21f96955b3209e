"""What the model does not show: leases of what exists, events, labels, remote snapshots, failures and cancellation."""

import asyncio
import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orlop.base import errdefs
from orlop.base.labels import SNAPSHOT_REF
from orlop.core.metadata import Transaction
from orlop.core.snapshots import Kind, Usage
from orlop.testing.fake_snapshotter import FakeSnapshotter
from orlop.testing.snapshots import NAME, NAMESPACE, Bench, code


@pytest.fixture(params=[True, False], ids=["quick", "slow"])
def fake(request: pytest.FixtureRequest) -> FakeSnapshotter:
    return FakeSnapshotter(quick=request.param)


def _lease(bench: Bench, name: str) -> None:
    def write(tx: Transaction) -> None:
        tx.ensure_namespace(NAMESPACE)
        tx.execute(
            "INSERT INTO leases (namespace, id, created_at, updated_at, used_at) VALUES (?, ?, 0, 0, 0)",
            (NAMESPACE, name),
        )

    bench.db.write_sync(write)


def _held(bench: Bench) -> set[tuple[str, str, str]]:
    rows = bench.db.all("SELECT lease, type, id FROM lease_resources")
    return {(row["lease"], row["type"], row["id"]) for row in rows}


def test_events(tmp_path: Path, fake: FakeSnapshotter) -> None:
    with Bench(tmp_path, lambda _root: fake) as bench:
        bench.prepare("a")
        bench.commit("c", "a")
        bench.view("v", "c")
        bench.prepare("b", "c")
        bench.remove("b")
        code(lambda: bench.prepare("c"))
        code(lambda: bench.remove("c"))
        told = [(namespace, topic, str(event).replace("\n", " ").strip()) for namespace, topic, event in bench.events]
    ours = f'snapshotter: "{NAME}"'
    assert told == [
        (NAMESPACE, "/snapshot/prepare", f'key: "a" {ours}'),
        (NAMESPACE, "/snapshot/commit", f'key: "a" name: "c" {ours}'),
        (NAMESPACE, "/snapshot/prepare", f'key: "b" parent: "c" {ours}'),
        (NAMESPACE, "/snapshot/remove", f'key: "b" {ours}'),
    ]


def test_leases(tmp_path: Path, fake: FakeSnapshotter) -> None:
    kind = f"snapshots/{NAME}"
    with Bench(tmp_path, lambda _root: fake) as bench:
        _lease(bench, "one")
        _lease(bench, "two")
        bench.prepare("a", lease="one")
        assert _held(bench) == {("one", kind, "a")}
        assert code(lambda: bench.prepare("a", lease="two")) is errdefs.AlreadyExistsError
        assert _held(bench) == {("one", kind, "a"), ("two", kind, "a")}, "who finds it there goes on with it"
        bench.commit("c", "a", lease="one")
        assert _held(bench) == {("one", kind, "c"), ("two", kind, "a")}
        bench.prepare("b", "c")
        assert code(lambda: bench.commit("c", "b", lease="two")) is errdefs.AlreadyExistsError
        assert ("two", kind, "c") in _held(bench)
        assert code(lambda: bench.prepare("x", lease="nowhere")) is errdefs.NotFoundError
        assert code(lambda: bench.commit("x", "b", lease="nowhere")) is errdefs.NotFoundError
        assert bench.names() == ["b", "c"]
        bench.cleanup()
        assert len(fake.held) == 2, "what could not be recorded is not kept"
        bench.remove("b")
        bench.remove("c", lease="one")
        assert _held(bench) == {("two", kind, "a"), ("two", kind, "c")}


def test_only_snapshot_labels_are_told(tmp_path: Path, fake: FakeSnapshotter) -> None:
    with Bench(tmp_path, lambda _root: fake) as bench:
        mounts = bench.prepare("a", labels={"containerd.io/snapshot/x": "1", "containerd.io/gc.root": "1", "y": "2"})
        assert mounts[0].options == ("ACTIVE", "containerd.io/snapshot/x")


def test_long_labels_and_names_are_refused(tmp_path: Path, fake: FakeSnapshotter) -> None:
    with Bench(tmp_path, lambda _root: fake) as bench:
        bench.prepare("a")
        long = {"key": "x" * 100_000}
        calls: list[Callable[[], object]] = [
            lambda: bench.prepare("b", labels=long),
            lambda: bench.view("b", labels=long),
            lambda: bench.commit("b", "a", labels=long),
            lambda: bench.update("a", long),
            lambda: bench.prepare(""),
            lambda: bench.commit("", "a"),
            lambda: bench.update("", {}),
            lambda: bench.prepare("x" * 40_000),
        ]
        for call in calls:
            with pytest.raises(errdefs.InvalidArgumentError):
                call()
        assert bench.names() == ["a"]
        assert len(fake.held) == 1


def test_a_remote_snapshot_need_not_be_unpacked(tmp_path: Path, fake: FakeSnapshotter) -> None:
    """Prepare answers AlreadyExists when the target of `containerd.io/snapshot.ref` is there (remote snapshotters)."""
    fake.remote.add("chain-id")
    with Bench(tmp_path, lambda _root: fake) as bench:
        _lease(bench, "one")
        labels = {SNAPSHOT_REF: "chain-id", "containerd.io/snapshot/remote": "x"}
        for _again in range(2):
            with pytest.raises(errdefs.AlreadyExistsError, match='target snapshot "chain-id"'):
                bench.prepare("extract-1", labels=labels, lease="one")
        info = bench.stat("chain-id")
        assert (info.kind, info.labels) == (Kind.COMMITTED, labels)
        assert bench.names() == ["chain-id"]
        assert _held(bench) == {("one", f"snapshots/{NAME}", "chain-id")}
        assert bench.prepare("container", "chain-id")
        assert code(lambda: bench.prepare("y", labels={SNAPSHOT_REF: "container"})) is errdefs.AlreadyExistsError
        bench.prepare("other", labels={SNAPSHOT_REF: "not here"})


@pytest.mark.parametrize(
    ("error", "cls"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), errdefs.ResourceExhaustedError),
        (OSError(errno.EIO, "Input/output error", "/x"), errdefs.InternalError),
        (errdefs.UnavailableError("not now"), errdefs.UnavailableError),
    ],
)
def test_a_failing_snapshotter(
    tmp_path: Path, fake: FakeSnapshotter, error: Exception, cls: type[errdefs.OrlopError]
) -> None:
    with Bench(tmp_path, lambda _root: fake) as bench:
        bench.prepare("a")
        for method, call in (
            ("prepare", lambda: bench.prepare("b")),
            ("commit", lambda: bench.commit("c", "a")),
            ("sync", lambda: bench.commit("c", "a")),
            ("usage", lambda: bench.commit("c", "a")),
            ("usage", lambda: bench.usage("a")),
        ):
            fake.failing[method] = error
            with pytest.raises(cls) as caught:
                call()
            if isinstance(error, OSError):
                assert 'snapshot "' in str(caught.value)
                assert str(error.strerror).lower().removesuffix(" on device") in str(caught.value)
                assert "on the file system at /" in str(caught.value)
        assert bench.names() == ["a"]
        assert bench.stat("a").kind == Kind.ACTIVE
        bench.cleanup()
        assert len(fake.held) == 1


def test_commit_syncs_before_the_row(tmp_path: Path, fake: FakeSnapshotter) -> None:
    with Bench(tmp_path, lambda _root: fake) as bench:
        bench.prepare("a")
        bench.prepare("extract-1")
        fake.calls.clear()
        bench.commit("c", "a")
        bench.commit("d", "extract-1")
        assert fake.calls == ["commit", "sync", "usage"] * 2
        assert bench.usage("c") == Usage(bench.number("c"), 0)
        row = bench.db.one("SELECT synced_at FROM snapshots WHERE name = 'c'")
        assert row is not None
        assert row["synced_at"] > 0


def test_an_unpackers_commit_is_not_synced_at_once(tmp_path: Path, fake: FakeSnapshotter) -> None:
    with Bench(tmp_path, lambda _root: fake) as bench:
        for key in ("extract-1", "mine"):
            bench.prepare(key)
            bench.store.note_usage(NAMESPACE, key, Usage(5, 6))
        bench.store.note_usage(NAMESPACE, "nowhere", Usage(5, 6))
        fake.calls.clear()
        bench.commit("c", "extract-1")
        assert fake.calls == ["commit"]
        assert bench.usage("c") == Usage(5, 6)
        bench.commit("d", "mine")
        assert fake.calls == ["commit", "commit", "sync", "usage"], "others may have written to it"
        unsynced = "SELECT name FROM snapshots WHERE synced_at IS NULL"
        assert [row["name"] for row in bench.db.all(unsynced)] == ["c"]
    assert fake.calls[-1] == "sync", "a clean stop leaves nothing unsynced"


def test_cancelled_while_it_is_made(tmp_path: Path) -> None:
    """A client that goes away while a slow snapshotter copies leaves neither row nor bytes."""
    fake = FakeSnapshotter(quick=False)
    fake.gate = threading.Event()

    async def cancel(bench: Bench) -> None:
        task = asyncio.ensure_future(bench.store.prepare(NAMESPACE, "a"))
        await asyncio.get_running_loop().run_in_executor(None, fake.entered.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert bench.store.making
        assert fake.gate is not None
        fake.gate.set()
        async with asyncio.timeout(30):
            while bench.store.making:  # noqa: ASYNC110 - a store that is closed meanwhile leaves it to the next sweep
                await asyncio.sleep(0.005)

    with Bench(tmp_path, lambda _root: fake) as bench:
        bench.run(cancel(bench))
        assert bench.names() == []
    assert fake.held == {}
    assert bench.store.making == set()


def test_parent_replaced_while_it_is_copied(tmp_path: Path) -> None:
    fake = FakeSnapshotter(quick=False)

    async def replace(bench: Bench) -> Any:
        fake.gate = threading.Event()
        task = asyncio.ensure_future(bench.store.prepare(NAMESPACE, "a", "base"))
        await asyncio.get_running_loop().run_in_executor(None, fake.entered.wait, 30)
        gate, fake.gate = fake.gate, None
        await bench.store.remove(NAMESPACE, "base")
        await bench.store.prepare(NAMESPACE, "k")
        await bench.store.commit(NAMESPACE, "base", "k")
        gate.set()
        return await asyncio.gather(task, return_exceptions=True)

    with Bench(tmp_path, lambda _root: fake) as bench:
        bench.prepare("k")
        bench.commit("base", "k")
        fake.calls.clear()
        number = bench.number("base")
        fake.keeps = True  # the copy goes on from what is in the trash
        (got,) = bench.run(replace(bench))
        assert isinstance(got, errdefs.AbortedError)
        assert bench.number("base") != number
        assert bench.names() == ["base"]


def test_parent_removed_while_it_is_copied(tmp_path: Path) -> None:
    """That is what is said, not which of its files was not found."""
    fake = FakeSnapshotter(quick=False)

    async def remove(bench: Bench) -> Any:
        fake.gate = threading.Event()
        task = asyncio.ensure_future(bench.store.prepare(NAMESPACE, "a", "base"))
        await asyncio.get_running_loop().run_in_executor(None, fake.entered.wait, 30)
        await bench.store.remove(NAMESPACE, "base")
        fake.gate.set()
        return await asyncio.gather(task, return_exceptions=True)

    with Bench(tmp_path, lambda _root: fake) as bench:
        bench.prepare("k")
        bench.commit("base", "k")
        (got,) = bench.run(remove(bench))
        assert isinstance(got, errdefs.NotFoundError)
        assert "parent snapshot base does not exist" in str(got)
        assert bench.names() == []


def test_two_commits_of_one_key(tmp_path: Path, fake: FakeSnapshotter) -> None:
    async def both(bench: Bench) -> list[Any]:
        calls = [bench.store.commit(NAMESPACE, name, "a") for name in ("one", "two")]
        return await asyncio.gather(*calls, return_exceptions=True)

    with Bench(tmp_path, lambda _root: fake) as bench:
        bench.prepare("a")
        results = bench.run(both(bench))
        assert sorted(type(result).__name__ for result in results) == ["NoneType", "NotFoundError"]
        assert len(bench.names()) == 1


def test_lists_read_page_by_page(tmp_path: Path) -> None:
    fake = FakeSnapshotter()
    with Bench(tmp_path, lambda _root: fake) as bench:
        names = [f"n{index:03}" for index in range(230)]
        for name in names:
            bench.prepare(name)
        walk = bench.store.walk(NAMESPACE)
        assert next(walk).name == "n000"
        bench.remove("n229")
        bench.prepare("n0005")
        assert [info.name for info in walk] == names[1:-1]


def test_unknown_snapshotter(tmp_path: Path) -> None:
    with Bench(tmp_path, lambda _root: FakeSnapshotter()) as bench:
        for name, words in (("", "snapshotter argument missing"), ("zfs", "snapshotter not loaded: zfs")):
            with pytest.raises(errdefs.InvalidArgumentError, match=words):
                bench.stores.named(name)


def test_what_could_not_be_removed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer's mount stayed until the next start, when its disk had failed once."""
    monkeypatch.setattr("orlop.core.snapshots.removal.RETRY_S", 0.01)
    gone = threading.Event()

    class Failing(FakeSnapshotter):
        failures = 3

        def remove(self, number: int) -> None:
            if self.failures:
                self.failures -= 1
                raise OSError(errno.EIO, "Input/output error")
            super().remove(number)
            gone.set()

    failing = Failing()
    with Bench(tmp_path, lambda _root: failing) as bench:
        bench.prepare("a")
        bench.remove("a")
        assert gone.wait(30)
        assert failing.held == {}


def test_one_timer_waits_for_all_that_could_not_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orlop.core.snapshots.removal.RETRY_S", 1000.0)
    monkeypatch.setattr("orlop.core.snapshots.removal.RETRY_MAX_S", 1000.0)

    class Failing(FakeSnapshotter):
        def remove(self, number: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

    with Bench(tmp_path, lambda _root: Failing()) as bench:
        for name in ("a", "b", "c"):
            bench.prepare(name)
            bench.remove(name)
        bench.store._executor.submit(lambda: None).result(30)
        timers = [one for one in threading.enumerate() if isinstance(one, threading.Timer)]
        for one in timers:
            one.cancel()
            one.join()
        assert len(timers) == 1


def test_snapshots_are_removed_one_after_the_other(tmp_path: Path) -> None:
    """A snapshotter elsewhere refuses a parent whose child is still there."""

    class Slow(FakeSnapshotter):
        def __init__(self) -> None:
            super().__init__()
            self.begun: list[int] = []
            self.going_on = threading.Event()

        def remove(self, number: int) -> None:
            self.begun.append(number)
            assert self.going_on.wait(30)
            super().remove(number)

    slow = Slow()
    with Bench(tmp_path, lambda _root: slow) as bench:
        bench.prepare("a")
        bench.commit("below", "a")
        bench.prepare("above", "below")
        numbers = [bench.number("above"), bench.number("below")]
        bench.remove("above")
        bench.remove("below")
        bench.store._executor.submit(lambda: None).result(30)  # what was asked for before has begun, if it can
        assert slow.begun == numbers[:1]
        slow.going_on.set()
    assert slow.begun == numbers
    assert slow.held == {}
