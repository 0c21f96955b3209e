"""Snapshots that were not on disk when the machine stopped are made again before they are handed out."""

import asyncio
import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orlop.base import errdefs
from orlop.core.diff import Applied, LayerBlob
from orlop.core.metadata import Transaction
from orlop.core.mount import Mount
from orlop.core.snapshots import Kind, Snapshotter, Usage, rows, upkeep
from orlop.core.snapshots.layer_rows import Filled
from orlop.core.snapshots.origin import Origin
from orlop.core.snapshots.rebuilding import REPLACED
from orlop.core.snapshots.recovery import Recovery
from orlop.plugins.snapshots.native import Native
from orlop.plugins.snapshots.overlayfs import Overlayfs
from orlop.testing.snapshots import NAME, NAMESPACE, Bench


class Powerless:
    """A bench whose snapshots do not reach the disk, boot by boot; layers are files named after themselves."""

    def __init__(self, directory: Path, make: Any = Overlayfs) -> None:
        self.directory = directory
        self._make = make
        self.gone: set[str] = set()
        self.other: set[str] = set()
        self.applied: list[str] = []
        self.gate: asyncio.Event | None = None
        self.entered = asyncio.Event()
        self._boots = 0

    @contextlib.contextmanager
    def boot(self, *, syncs: bool = False) -> Iterator[Bench]:
        """The machine from now until its power goes."""
        self._boots += 1

        def make(root: Path) -> Snapshotter:
            snapshotter: Snapshotter = self._make(root)
            if not syncs:
                snapshotter.sync = self._lose  # type: ignore[method-assign, assignment]
            return snapshotter

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(upkeep, "boot_id", lambda: f"boot {self._boots}")
            with Bench(self.directory, make) as bench:
                yield bench

    @contextlib.contextmanager
    def recovering(self, bench: Bench) -> Iterator[Recovery]:
        recovery = Recovery(bench.db, bench.stores, self.apply)
        bench.run(_started(recovery))
        try:
            yield recovery
        finally:
            bench.run(recovery.close())

    def unpack(self, bench: Bench, name: str, parent: str = "") -> None:
        """A committed snapshot out of the layer of its name, as an unpacker makes it."""
        key = f"extract-{name}"
        mounts = bench.prepare(key, parent)
        _write(mounts, name)
        origin = Origin(media_type="layer", digest=name, size_bytes=1, diff_id=f"diff {name}")
        bench.store.note_applied(bench.number(key), Usage(7, 1), origin)
        bench.commit(name, key, labels={"of": name})

    async def apply(self, namespace: str, layer: LayerBlob, mounts: list[Mount]) -> Applied:
        assert namespace == NAMESPACE
        self.entered.set()
        if self.gate is not None:
            await self.gate.wait()
        if layer.digest in self.gone:
            raise errdefs.NotFoundError(f"content {layer.digest}")
        self.applied.append(layer.digest)
        _write(mounts, layer.digest)
        return Applied(digest="other" if layer.digest in self.other else f"diff {layer.digest}", size=1)

    def _lose(self, _numbers: object) -> None:
        raise RuntimeError("the power goes before anything is synced")


def _write(mounts: list[Mount], name: str) -> None:
    directory = next((o.removeprefix("upperdir=") for o in mounts[-1].options if o.startswith("upperdir=")), None)
    Path(directory or mounts[-1].source, name).write_text(name)


def _row(bench: Bench, name: str) -> rows.Row:
    row = bench.db.one("SELECT * FROM snapshots WHERE name = ?", (name,))
    assert row is not None
    return row


def _spoil(bench: Bench, name: str) -> None:
    """What a file system leaves of a file that was not synced."""
    home = bench.snapshotter.home(bench.number(name))
    assert home is not None
    (home / "fs" / name).write_bytes(b"")


@pytest.fixture
def machine(tmp_path: Path) -> Powerless:
    return Powerless(tmp_path)


def test_what_was_not_synced_is_unpacked_again(machine: Powerless) -> None:
    """The lowest first; names, labels, times and what is built on them stay, and the files are right and synced."""
    with machine.boot() as bench:
        machine.unpack(bench, "one")
        machine.unpack(bench, "two", "one")
        bench.prepare("container", "two")
        before = {name: dict(_row(bench, name)) for name in ("one", "two", "container")}
    with machine.boot(syncs=True) as bench, machine.recovering(bench):
        _spoil(bench, "one")
        _spoil(bench, "two")
        lower = bench.mounts("container")[0].options
        assert machine.applied == ["one", "two"]
        for name in ("one", "two"):
            row = _row(bench, name)
            assert row["synced_at"] > 0
            assert {key for key in before[name] if row[key] != before[name][key]} <= {
                "number",
                "parent",
                "synced_at",
                "used_at",
                "size_bytes",
                "inodes",
            }
            home = bench.snapshotter.home(row["number"])
            assert home is not None
            assert (home / "fs" / name).read_text() == name
            assert any(str(home) in option for option in lower)
        assert _row(bench, "container")["number"] == before["container"]["number"]
        assert bench.names() == ["container", "one", "two"]
        assert list((bench.root / "snapshots").rglob(f"{REPLACED}*")) == [], "nobody can have the torn ones"
        assert upkeep.sweep(bench.db, bench.store) == upkeep.Swept()
    with machine.boot() as bench:
        assert bench.prepare("another", "two")


def test_all_is_made_again_after_a_start_without_being_asked_for(machine: Powerless) -> None:
    with machine.boot() as bench:
        machine.unpack(bench, "one")
        machine.unpack(bench, "two", "one")
    with machine.boot(syncs=True) as bench, machine.recovering(bench) as recovery:
        assert recovery._all is not None
        bench.run(_ended(recovery._all))
        assert machine.applied == ["one", "two"]
        assert upkeep.lost_snapshots(bench.db, bench.store) == []


async def _started(recovery: Recovery) -> None:
    recovery.start()


async def _ended(task: "asyncio.Task[None]") -> None:
    await task


@pytest.mark.parametrize("call", ["prepare", "view", "commit"])
def test_every_way_to_build_on_a_snapshot_waits_for_it(machine: Powerless, call: str) -> None:
    with machine.boot() as bench:
        machine.unpack(bench, "one")
        bench.prepare("mine", "one")
    with machine.boot(syncs=True) as bench, machine.recovering(bench):
        if call == "commit":
            bench.commit("my-own", "mine")
        else:
            getattr(bench, call)("new", "one")
        assert machine.applied == ["one"]


def test_many_who_wait_have_it_made_once(machine: Powerless) -> None:
    with machine.boot() as bench:
        machine.unpack(bench, "one")
    with machine.boot(syncs=True) as bench, machine.recovering(bench):

        async def all_at_once() -> list[Any]:
            return await asyncio.gather(
                *(bench.store.prepare(NAMESPACE, f"container-{number}", "one") for number in range(8))
            )

        assert len(bench.run(all_at_once())) == 8
        assert machine.applied == ["one"]


@pytest.mark.parametrize("what", ["gone", "other"])
def test_what_cannot_be_made_again_is_refused(machine: Powerless, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its blob is not there any more, or holds something else: the snapshot stays as it is, and so does its row."""
    with machine.boot() as bench:
        machine.unpack(bench, "one")
        machine.unpack(bench, "two", "one")
    getattr(machine, what).add("one")
    with machine.boot(syncs=True) as bench, machine.recovering(bench):
        for parent in ("one", "two"):
            with pytest.raises(errdefs.DataLossError, match=r'"(one|two)" may be incomplete .*unpack its image again'):
                bench.prepare("x", parent)
        assert "cannot be made again" in caplog.text
        assert bench.names() == ["one", "two"]
        assert "two" not in machine.applied
        for key in ("two", "one"):
            bench.remove(key)


def test_one_that_a_client_wrote_is_synced_and_not_made_again(machine: Powerless) -> None:
    with machine.boot(syncs=True) as bench:
        bench.prepare("key")
        bench.commit("own", "key")
    with machine.boot() as bench, machine.recovering(bench):
        bench.prepare("x", "own")
        assert machine.applied == []


def test_a_disk_that_failed_has_it_made_again_when_it_is_back(machine: Powerless) -> None:
    """In the same boot: a container may run on what the page cache has, so that is kept for it."""
    with machine.boot(syncs=True) as bench, machine.recovering(bench):
        machine.unpack(bench, "one")
        bench.prepare("container", "one")

        def fails(_numbers: object) -> None:
            raise OSError(errno.EIO, "Input/output error")

        works, bench.snapshotter.sync = bench.snapshotter.sync, fails  # type: ignore[method-assign, assignment]
        with pytest.raises(OSError, match="Input/output error"):
            upkeep.flush(bench.db, bench.store)
        with pytest.raises(errdefs.DataLossError, match="may be incomplete"):
            bench.prepare("x", "one")
        bench.snapshotter.sync = works  # type: ignore[method-assign]
        bench.prepare("x", "one")
        assert len(list((bench.root / "snapshots").rglob(f"{REPLACED}*"))) == 1


def test_a_daemon_that_stops_meanwhile_answers(machine: Powerless) -> None:
    with machine.boot() as bench:
        machine.unpack(bench, "one")
    with machine.boot(syncs=True) as bench:
        machine.gate = asyncio.Event()

        async def stopped() -> None:
            recovery = Recovery(bench.db, bench.stores, machine.apply)
            recovery.start()
            assert recovery._all is not None
            recovery._all.cancel()
            asked = asyncio.create_task(bench.store.prepare(NAMESPACE, "x", "one"))
            await machine.entered.wait()
            await recovery.close()
            with pytest.raises(errdefs.UnavailableError, match="the daemon stops"):
                await asked

        bench.run(stopped())
        assert bench.names() == ["one"]


def test_a_copy_that_was_not_synced_is_made_again(tmp_path: Path) -> None:
    """A snapshotter that copies: a container's files were copied, and not yet on disk when its Prepare was answered."""
    machine = Powerless(tmp_path, Native)
    with machine.boot(syncs=True) as bench:
        bench.prepare("key")
        home = bench.snapshotter.home(bench.number("key"))
        assert home is not None
        (home / "fs" / "base").write_text("base")
        bench.commit("base", "key")
    with machine.boot() as bench:
        bench.prepare("container", "base", labels={"mine": "yes"})
    with machine.boot(syncs=True) as bench, machine.recovering(bench):
        torn = bench.snapshotter.home(bench.number("container"))
        assert torn is not None
        (torn / "fs" / "base").write_text("")
        (mount,) = bench.mounts("container")
        assert Path(mount.source, "base").read_text() == "base"
        assert bench.stat("container").kind == Kind.ACTIVE
        assert bench.stat("container").labels == {"mine": "yes"}
        assert upkeep.flush(bench.db, bench.store) == 0


def test_an_active_copy_is_noted_as_synced_only_while_it_is_active(tmp_path: Path) -> None:
    """What was committed while the sync ran holds more than was synced."""
    machine = Powerless(tmp_path, Native)
    with machine.boot(syncs=True) as bench:
        bench.prepare("extract-one")

        def commit_meanwhile(_numbers: object) -> None:
            bench.db.write_sync(
                lambda tx: tx.execute("UPDATE snapshots SET kind = ?, name = 'one'", (Kind.COMMITTED,)).rowcount
            )

        bench.snapshotter.sync = commit_meanwhile  # type: ignore[method-assign, assignment]
        assert upkeep.flush(bench.db, bench.store) == 1
        assert _row(bench, "one")["synced_at"] is None


def test_what_is_lost_counts_in_no_quota_while_it_is_made_again(machine: Powerless) -> None:
    sizes = []
    with machine.boot() as bench:
        machine.unpack(bench, "one")
        assert _row(bench, "one")["size_bytes"] == 7
    with machine.boot(syncs=True) as bench:
        whole = machine.apply

        async def apply(namespace: str, layer: LayerBlob, mounts: list[Mount]) -> Applied:
            sizes.append(_row(bench, "one")["size_bytes"])
            return await whole(namespace, layer, mounts)

        machine.apply = apply  # type: ignore[method-assign]
        with machine.recovering(bench):
            bench.prepare("x", "one")
        assert sizes == [0]
        assert _row(bench, "one")["size_bytes"] > 0


def test_a_blob_that_is_deleted_is_not_needed_any_more(machine: Powerless) -> None:
    """Deleting it syncs what could only be made again out of it."""
    with machine.boot(syncs=True) as bench, machine.recovering(bench) as recovery:
        machine.unpack(bench, "one")
        bench.run(recovery.let_go(NAMESPACE, "another"))
        bench.run(recovery.let_go("another", "one"))
        assert _row(bench, "one")["synced_at"] is None
        bench.run(recovery.let_go(NAMESPACE, "one"))
        assert _row(bench, "one")["synced_at"] > 0


def test_removed_while_it_is_made_again(machine: Powerless) -> None:
    """Whoever removes it wins, and what was being made goes."""
    with machine.boot() as bench:
        machine.unpack(bench, "one")
    with machine.boot(syncs=True) as bench:
        whole = machine.apply

        async def apply(namespace: str, layer: LayerBlob, mounts: list[Mount]) -> Applied:
            await bench.store.remove(NAMESPACE, "one")
            return await whole(namespace, layer, mounts)

        machine.apply = apply  # type: ignore[method-assign]
        with machine.recovering(bench), pytest.raises(errdefs.OrlopError):
            bench.prepare("x", "one")
        assert bench.names() == []


def test_leases_follow_the_name(machine: Powerless) -> None:
    def lease(tx: Transaction) -> None:
        tx.execute(
            "INSERT INTO leases (namespace, id, created_at, updated_at, used_at) VALUES (?, 'l', 1, 1, 1)", (NAMESPACE,)
        )
        tx.execute(
            "INSERT INTO lease_resources (namespace, lease, type, id) VALUES (?, 'l', ?, 'one')",
            (NAMESPACE, f"snapshots/{NAME}"),
        )

    with machine.boot() as bench:
        machine.unpack(bench, "one")
        bench.db.write_sync(lease)
    with machine.boot(syncs=True) as bench, machine.recovering(bench):
        bench.prepare("x", "one")
        held = bench.db.all("SELECT type, id FROM lease_resources")
        assert [tuple(row) for row in held] == [(f"snapshots/{NAME}", "one")]


def test_a_cancelled_waiter_leaves_the_others_waiting(machine: Powerless) -> None:
    with machine.boot() as bench:
        machine.unpack(bench, "one")
    with machine.boot(syncs=True) as bench, machine.recovering(bench):
        machine.gate = asyncio.Event()

        async def two() -> None:
            first, second = (
                asyncio.create_task(bench.store.prepare(NAMESPACE, key, "one")) for key in ("first", "second")
            )
            await machine.entered.wait()
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            assert machine.gate is not None
            machine.gate.set()
            await second

        bench.run(two())
        assert bench.names() == ["one", "second"]


def test_a_layer_that_two_namespaces_have_is_made_again_for_both(machine: Powerless) -> None:
    with machine.boot() as bench:
        for namespace in (NAMESPACE, "other"):
            bench.run(_shared(machine, bench, namespace))
        number = _row(bench, "one")["layer"]
        assert number is not None
    with machine.boot(syncs=True) as bench, machine.recovering(bench):
        home = bench.snapshotter.home(number)
        assert home is not None
        (home / "fs" / "one").write_text("")
        bench.prepare("x", "one")
        bench.prepare("x", "one", namespace="other")
        assert machine.applied == ["one"]
        assert (home / "fs" / "one").read_text() == "one"
        assert [
            row["synced_at"] > 0 for row in bench.db.all("SELECT synced_at FROM snapshots WHERE layer = ?", (number,))
        ]
        assert _row(bench, "one")["layer"] == number


async def _shared(machine: Powerless, bench: Bench, namespace: str) -> None:
    mounts = await bench.store.prepare(namespace, "extract-one")
    found = await bench.stores.shared(namespace, mounts)
    assert found is not None

    async def unpack(place: Any) -> Filled:
        _write(list(place), "one")
        return Filled(diff_id="diff one", size=1, usage=Usage(7, 1))

    await found.fill("one", "layer", unpack)
    await bench.store.commit(namespace, "one", "extract-one")
