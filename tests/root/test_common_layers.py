"""Layers that snapshots have in common, by real workers: unpacked once, kept apart, gone with the last."""

import asyncio
import contextlib
import gzip
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from orlop.base.errdefs import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from orlop.core.diff import Applied, LayerBlob
from orlop.core.diff.workers import Pool
from orlop.core.fsck import Finding
from orlop.core.fsck.checks import Order
from orlop.core.fsck.snapshots import SnapshotsCheck
from orlop.core.metadata import Database
from orlop.core.metadata.quotas import LABEL
from orlop.core.metadata.trash import Trash
from orlop.core.mount import Mount
from orlop.core.mount.perform import temp_mount
from orlop.core.snapshots import Kind, upkeep
from orlop.core.snapshots.store import Store
from orlop.core.snapshots.stores import Stores
from orlop.oci import media_types
from orlop.plugins.content.local import LocalStore
from orlop.plugins.diff.walking import Walking
from orlop.plugins.snapshots.erofs import Erofs, verdict
from orlop.plugins.snapshots.overlayfs import Overlayfs, options_here
from orlop.testing.content import write_blob
from tests.root.layers import archive, directory, file
from tests.root.test_ahead import looped

pytestmark = pytest.mark.root

DEADLINE_S = 20
LOWER = gzip.compress(archive(directory("usr"), file("usr/one", b"1"), file("gone")))
UPPER = gzip.compress(archive(directory("usr"), file("usr/two", b"2"), file(".wh.gone", b"")))


class Gate(Pool):
    """Holds jobs back until it is opened, and counts them."""

    def __init__(self) -> None:
        super().__init__(4)
        self.jobs = 0
        self.open = asyncio.Event()
        self.open.set()

    async def run(self, request, fd, *, tell=None, coming=None):
        self.jobs += 1
        await self.open.wait()
        return await super().run(request, fd, tell=tell, coming=coming)


class Host:
    """A daemon's stores and differ, without the daemon."""

    def __init__(
        self, root: Path, db: Database, trash: Trash, content: LocalStore, stores: Stores, pool: Gate, differ: Walking
    ):
        self.root = root
        self.db = db
        self.trash = trash
        self.content = content
        self.stores = stores
        self.pool = pool
        self.differ = differ
        self.name = next(iter(stores))

    @property
    def snapshots(self) -> Store:
        return self.stores[self.name]

    async def blob(self, data: bytes, *namespaces: str) -> LayerBlob:
        digests = [await write_blob(self.content, data, namespace=namespace) for namespace in namespaces]
        return LayerBlob(media_type=media_types.OCI_LAYER_GZIP, digest=str(digests[0]), size=len(data))

    async def prepare(self, namespace: str, key: str = "extract-1", parent: str = "") -> list[Mount]:
        return await self.snapshots.prepare(namespace, key, parent)

    async def apply(self, namespace: str, blob: LayerBlob, mounts: Sequence[Mount]) -> Applied:
        return await self.differ.apply(namespace, blob, mounts)

    async def unpack(self, namespace: str, blobs: Sequence[LayerBlob], key: str = "extract-1") -> str:
        name = ""
        for blob in blobs:
            parent, name = name, f"{name}/{blob.digest[7:15]}"
            applied = await self.apply(namespace, blob, await self.prepare(namespace, key, parent))
            assert applied.digest.startswith("sha256:")
            await self.snapshots.commit(namespace, name, key)
        return name

    async def files(self, namespace: str, name: str) -> dict[str, bytes]:
        """What a container would see."""
        mounts = await self.snapshots.view(namespace, "view", name)
        try:
            return _files(mounts)
        finally:
            await self.snapshots.remove(namespace, "view")

    def homes(self) -> set[int]:
        """Numbers of which there is something."""
        return set(self.snapshots.snapshotter.numbers())

    def column(self, namespace: str, name: str, column: str) -> object:
        row = self.db.one(f"SELECT {column} FROM snapshots WHERE namespace = ? AND name = ?", (namespace, name))
        return row[0] if row is not None else None


def _files(mounts: Sequence[Mount]) -> dict[str, bytes]:
    with temp_mount(mounts) as top:
        found = [path for path in Path(top).rglob("*") if path.is_file()]
        return {str(path.relative_to(top)): path.read_bytes() for path in found}


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what it looks at tells nobody
            await asyncio.sleep(0.01)


Open = Callable[..., contextlib.AbstractAsyncContextManager[Host]]


@pytest.fixture(params=["overlayfs", "erofs"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the same host again and again, as a daemon does that is started."""
    root = tmp_path / "host"
    root.mkdir()
    if request.param == "erofs" and not (works := verdict(root)):
        pytest.skip(works.reason)

    @contextlib.asynccontextmanager
    async def opened(*, atonce: int = 0) -> AsyncIterator[Host]:
        place = root / "snapshots"
        if request.param == "erofs":
            snapshotter: Overlayfs | Erofs = Erofs(place, options=options_here(root))
        else:
            snapshotter = Overlayfs(place, options=options_here(root))
        async with contextlib.AsyncExitStack() as stack:
            db = stack.enter_context(Database(root / "meta.db"))
            trash = stack.enter_context(Trash(root, db))
            if isinstance(snapshotter, Erofs):
                stack.callback(snapshotter.close)
            stores = stack.enter_context(Stores(db, trash, {request.param: snapshotter}))
            content = LocalStore(root / "content", db, trash)
            stack.callback(content.close)
            pool = Gate()
            stack.push_async_callback(pool.close)
            differ = Walking(content, stores, pool, {}, db=db, atonce=atonce)
            if differ.ahead is not None:
                stack.push_async_callback(differ.ahead.close)
            stack.push_async_callback(stores.stop)
            yield Host(root, db, trash, content, stores, pool, differ)

    return opened


@looped
async def test_who_wait_at_the_same_time_share_the_work_and_the_bytes(host: Open) -> None:
    async with host() as here:
        blobs = [await here.blob(data, "a", "b", "c") for data in (LOWER, UPPER)]
        here.pool.open.clear()
        unpacking = [asyncio.create_task(here.unpack(namespace, blobs)) for namespace in "abc"]
        await until(lambda: here.pool.jobs)
        here.pool.open.set()
        names = await asyncio.gather(*unpacking)
        assert len(set(names)) == 1
        assert here.pool.jobs == 2
        await until(lambda: len(here.homes()) == 2)
        usages = {await here.snapshots.usage(namespace, names[0]) for namespace in "abc"}
        assert len(usages) == 1
        assert usages.pop().size > 0
        for namespace in "abc":
            assert await here.files(namespace, names[0]) == {"usr/one": b"1", "usr/two": b"2"}
            assert here.snapshots.stat(namespace, names[0]).kind == Kind.COMMITTED
            assert len(list(here.snapshots.walk(namespace))) == 2


@looped
async def test_two_of_one_namespace_get_one_snapshot(host: Open) -> None:
    async with host() as here:
        blob = await here.blob(LOWER, "a")
        here.pool.open.clear()
        mounts = [await here.prepare("a", key) for key in ("extract-1", "extract-2")]
        applying = [asyncio.create_task(here.apply("a", blob, one)) for one in mounts]
        await until(lambda: here.pool.jobs)
        here.pool.open.set()
        first, second = await asyncio.gather(*applying)
        assert first == second
        assert here.pool.jobs == 1
        await here.snapshots.commit("a", "chain", "extract-1")
        with pytest.raises(AlreadyExistsError):
            await here.snapshots.commit("a", "chain", "extract-2")
        await here.snapshots.remove("a", "extract-2")
        assert await here.files("a", "chain") == {"usr/one": b"1", "gone": b"data"}


@looped
async def test_who_comes_later_finds_it(host: Open) -> None:
    async with host() as here:
        blobs = [await here.blob(data, "a") for data in (LOWER, UPPER)]
        name = await here.unpack("a", blobs)
        for data in (LOWER, UPPER):
            await here.blob(data, "b")
        await here.unpack("b", blobs)
        assert here.pool.jobs == 2
        assert await here.files("b", name) == await here.files("a", name)


@looped
async def test_who_has_not_the_blob_gets_nothing(host: Open) -> None:
    async with host() as here:
        blob = await here.blob(LOWER, "a")
        name = await here.unpack("a", [blob])
        with pytest.raises(NotFoundError):
            await here.apply("b", blob, await here.prepare("b"))
        with pytest.raises(NotFoundError):
            await here.prepare("b", "container", name)
        # Nor whoever has it, in the place of somebody else.
        await here.blob(LOWER, "b")
        mounts = await here.prepare("a", "extract-2")
        await here.apply("b", blob, mounts)
        assert here.column("a", "extract-2", "layer") is None


@looped
async def test_what_a_client_could_write_to_is_nobody_elses(host: Open) -> None:
    async with host() as here:
        blob = await here.blob(LOWER, "a", "b")
        mounts = await here.prepare("a")
        with temp_mount(mounts) as top:
            (Path(top) / "trap").write_bytes(b"run me")
        await here.apply("a", blob, mounts)
        await here.snapshots.commit("a", f"/{blob.digest[7:15]}", "extract-1")
        name = await here.unpack("b", [blob])
        assert await here.files("b", name) == {"usr/one": b"1", "gone": b"data"}
        if here.name == "overlayfs":
            assert "trap" in await here.files("a", name)


@looped
async def test_what_is_written_beside_the_layer_is_not_committed(host: Open) -> None:
    async with host() as here:
        blob = await here.blob(LOWER, "a")
        before = await here.prepare("a")
        await here.apply("a", blob, before)
        after = await here.snapshots.mounts("a", "extract-1")
        assert _files(after) == {"usr/one": b"1", "gone": b"data"}
        assert (await here.snapshots.usage("a", "extract-1")).size > 0
        with temp_mount(before) as top:
            (Path(top) / "trap").write_bytes(b"run me")
        with pytest.raises(FailedPreconditionError, match="something was written there beside the layer"):
            await here.snapshots.commit("a", "chain", "extract-1")
        await here.snapshots.remove("a", "extract-1")
        await until(lambda: not here.homes())


@looped
async def test_the_first_may_go_and_the_others_go_on(host: Open) -> None:
    async with host() as here:
        blob = await here.blob(LOWER, "a", "b")
        here.pool.open.clear()
        first = asyncio.create_task(here.unpack("a", [blob]))
        await until(lambda: here.pool.jobs)
        second = asyncio.create_task(here.unpack("b", [blob]))
        await until(lambda: len(_waiting(here)) == 2)
        first.cancel()
        await asyncio.wait([first])
        await here.snapshots.remove("a", "extract-1")
        here.pool.open.set()
        name = await second
        assert here.pool.jobs == 1
        assert await here.files("b", name) == {"usr/one": b"1", "gone": b"data"}
        await until(lambda: len(here.homes()) == 1)


@looped
async def test_the_last_who_goes_ends_the_work(host: Open) -> None:
    async with host() as here:
        blob = await here.blob(LOWER, "a", "b")
        here.pool.open.clear()
        both = [asyncio.create_task(here.unpack(namespace, [blob])) for namespace in "ab"]
        await until(lambda: len(_waiting(here)) == 2)
        for one in both:
            one.cancel()
        await asyncio.wait(both)
        for namespace in "ab":
            await here.snapshots.remove(namespace, "extract-1")
        await until(lambda: not here.homes() and not here.snapshots.making)
        here.pool.open.set()
        await here.unpack("a", [blob])


@looped
async def test_a_snapshot_that_goes_meanwhile_is_told(host: Open) -> None:
    async with host() as here:
        blob = await here.blob(LOWER, "a")
        here.pool.open.clear()
        unpacking = asyncio.create_task(here.unpack("a", [blob]))
        await until(lambda: here.pool.jobs)
        await here.snapshots.remove("a", "extract-1")
        here.pool.open.set()
        with pytest.raises(NotFoundError, match="is not there any more"):
            await unpacking
        await until(lambda: not here.homes())


@looped
async def test_a_quota_of_the_first_is_not_the_others(host: Open) -> None:
    async with host() as here:
        blob = await here.blob(gzip.compress(archive(file("large", os.urandom(1 << 20)))), "a", "b")
        await here.db.write(
            lambda tx: tx.execute(
                "UPDATE namespaces SET labels = ? WHERE name = 'a'", (f'{{"{LABEL}bytes":"1100000"}}',)
            )
        )
        here.pool.open.clear()
        first = asyncio.create_task(here.unpack("a", [blob]))
        await until(lambda: here.pool.jobs)
        second = asyncio.create_task(here.unpack("b", [blob]))
        await until(lambda: len(_waiting(here)) == 2)
        here.pool.open.set()
        with pytest.raises(ResourceExhaustedError, match="quota bytes"):
            await first
        await second
        assert here.pool.jobs >= 2
        # And for what is there it pays as for what it unpacks.
        await here.snapshots.remove("a", "extract-1")
        with pytest.raises(ResourceExhaustedError, match="quota bytes"):
            await here.unpack("a", [blob])


@looped
async def test_a_damaged_blob_is_told_to_all(host: Open) -> None:
    async with host() as here:
        blob = await here.blob(LOWER[:-20], "a", "b")
        here.pool.open.clear()
        both = [asyncio.create_task(here.unpack(namespace, [blob])) for namespace in "ab"]
        await until(lambda: len(_waiting(here)) == 2 and here.pool.jobs)
        here.pool.open.set()
        for error in await asyncio.gather(*both, return_exceptions=True):
            assert isinstance(error, InvalidArgumentError)
        assert here.pool.jobs == 1
        assert not [
            number for number in here.homes() if here.db.one("SELECT 1 FROM layers WHERE number = ?", (number,))
        ]


@looped
async def test_bytes_go_with_the_last_that_has_them(host: Open) -> None:
    async with host() as here:
        blobs = [await here.blob(data, "a", "b") for data in (LOWER, UPPER)]
        for namespace in "ab":
            name = await here.unpack(namespace, blobs)
        lower = name.rpartition("/")[0]
        await here.snapshots.remove("a", name)
        await here.snapshots.remove("a", lower)
        assert len(here.homes()) == 2
        assert await here.files("b", name) == {"usr/one": b"1", "usr/two": b"2"}
        await here.snapshots.remove("b", name)
        await here.snapshots.remove("b", lower)
        await until(lambda: not here.homes())
        assert here.db.all("SELECT * FROM layers") == []


@looped
async def test_a_stop_between_the_layer_and_its_commit_loses_nothing(host: Open) -> None:
    async with host() as here:
        blob = await here.blob(LOWER, "a", "b")
        await here.apply("a", blob, await here.prepare("a"))
    async with host() as here:
        assert upkeep.sweep(here.db, here.snapshots) == upkeep.Swept()
        await here.snapshots.commit("a", "chain", "extract-1")
        assert upkeep.sweep(here.db, here.snapshots) == upkeep.Swept()
        assert await here.files("a", "chain") == {"usr/one": b"1", "gone": b"data"}
        await here.unpack("b", [blob])
        assert here.pool.jobs == 0


@looped
async def test_what_may_be_incomplete_is_shared_no_more(host: Open) -> None:
    async with host() as here:
        blob = await here.blob(LOWER, "a", "b", "c")
        name = await here.unpack("a", [blob])
        await here.apply("c", blob, await here.prepare("c"))
        upkeep.mark_lost(here.db, here.snapshots, "another boot")
        with pytest.raises(DataLossError):
            await here.snapshots.view("a", "view", name)
        with pytest.raises(DataLossError):
            await here.snapshots.commit("c", name, "extract-1")
        with pytest.raises(DataLossError):
            await here.snapshots.mounts("c", "extract-1")
        await here.unpack("b", [blob])
        assert here.pool.jobs == 2
        assert await here.files("b", name) == {"usr/one": b"1", "gone": b"data"}
        await here.snapshots.remove("a", name)
        await here.snapshots.remove("c", "extract-1")
        await here.unpack("a", [blob])
        assert here.pool.jobs == 2
        await until(lambda: len(here.homes()) == 1)


@looped
async def test_what_is_synced_once_is_synced_for_all(host: Open) -> None:
    async with host() as here:
        blob = await here.blob(LOWER, "a", "b")
        name = await here.unpack("a", [blob])
        assert upkeep.flush(here.db, here.snapshots) <= 1  # the upkeep's own thread may have been quicker
        await here.unpack("b", [blob])
        assert here.column("a", name, "synced_at") == here.column("b", name, "synced_at") is not None


@looped
async def test_a_layer_without_its_directory_is_refused_to_all(host: Open) -> None:
    async with host() as here:
        blob = await here.blob(LOWER, "a", "b")
        for namespace in "ab":
            name = await here.unpack(namespace, [blob])
        layer = here.column("a", name, "layer")
        assert isinstance(layer, int)
        home = here.snapshots.snapshotter.home(layer)
        assert home is not None
        home.rename(here.root / "elsewhere")
        assert upkeep.sweep(here.db, here.snapshots).missing == (layer,)
        for namespace in "ab":
            with pytest.raises(DataLossError):
                await here.snapshots.view(namespace, "view", name)


@looped
async def test_a_parent_may_be_chosen_later(host: Open) -> None:
    async with host() as here:
        if "rebase" not in here.snapshots.snapshotter.capabilities:
            return
        plain = gzip.compress(archive(directory("usr"), file("usr/two", b"2")))
        lower, upper = [await here.blob(data, "a", "b") for data in (LOWER, plain)]
        for namespace in "ab":
            name = await here.unpack(namespace, [lower])
            await here.apply(namespace, upper, await here.prepare(namespace))
            await here.snapshots.commit(namespace, "top", "extract-1", parent=name)
            assert await here.files(namespace, "top") == {"usr/one": b"1", "usr/two": b"2", "gone": b"data"}
        assert here.pool.jobs == 2


@looped
async def test_other_keys_are_filled_in_place(host: Open) -> None:
    async with host() as here:
        blob = await here.blob(LOWER, "a")
        for key in ("mine", "extract-1"):
            mounts = await here.prepare("a", key)
            await here.differ.apply("a", blob, mounts, sync=key != "mine")
            assert here.column("a", key, "layer") is None
        if here.name == "overlayfs":
            assert _files(mounts) == {"usr/one": b"1", "gone": b"data"}


@looped
async def test_an_active_snapshot_takes_one_layer(host: Open) -> None:
    async with host() as here:
        lower, upper = [await here.blob(data, "a") for data in (LOWER, UPPER)]
        mounts = await here.prepare("a")
        first = await here.apply("a", lower, mounts)
        assert await here.apply("a", lower, mounts) == first  # again, since its answer was lost
        with pytest.raises(FailedPreconditionError, match="is unpacked there"):
            await here.apply("a", upper, mounts)


@looped
async def test_what_is_unpacked_ahead_for_one_serves_the_other(host: Open) -> None:
    async with host(atonce=4) as here:
        top = gzip.compress(archive(directory("opt"), file("opt/three", b"3")))
        blobs = [await here.blob(data, "a", "b") for data in (LOWER, UPPER, top)]
        listed = [{"mediaType": one.media_type, "digest": one.digest, "size": one.size} for one in blobs]
        config = {"mediaType": media_types.OCI_CONFIG, "digest": f"sha256:{'0' * 64}", "size": 2}
        body = {"schemaVersion": 2, "mediaType": media_types.OCI_MANIFEST, "config": config, "layers": listed}
        labels = {f"containerd.io/gc.ref.content.l.{number}": one.digest for number, one in enumerate(blobs)}
        manifest = await here.blob(json.dumps(body).encode(), "a", "b")
        for namespace in "ab":
            await here.content.update(namespace, manifest.digest, labels, ["labels"])
        names = await asyncio.gather(*(here.unpack(namespace, blobs) for namespace in "ab"))
        assert here.pool.jobs == 3
        for namespace, name in zip("ab", names, strict=True):
            assert await here.files(namespace, name) == {"usr/one": b"1", "usr/two": b"2", "opt/three": b"3"}


@looped
async def test_the_check_knows_layers(host: Open) -> None:
    async with host() as here:
        blob = await here.blob(LOWER, "a", "b")
        names = {await here.unpack(namespace, [blob]) for namespace in "ab"}
        assert await _checked(here) == []
        [name] = names
        layer = here.column("a", name, "layer")
        assert isinstance(layer, int)
        home = here.snapshots.snapshotter.home(layer)
        assert home is not None
        home.rename(here.root / "elsewhere")
        assert await _checked(here) == [("snapshot-missing", ("a", "b"), False)]
        assert await _checked(here, repair=True) == [("snapshot-missing", ("a", "b"), False)]  # no image says its blob
        for namespace in "ab":
            with pytest.raises(DataLossError):
                await here.snapshots.view(namespace, "view", name)
        (here.root / "elsewhere").rename(home)
        assert await _checked(here) == [("snapshot-lost", ("a", "b"), False)]


@looped
async def test_a_layer_is_mended_for_all_who_have_it(host: Open) -> None:
    async with host() as here:
        if here.name != "overlayfs":
            return  # the kernel goes on showing what it has read of an image
        blob = await here.blob(LOWER, "a", "b")
        diff_id = f"sha256:{hashlib.sha256(gzip.decompress(LOWER)).hexdigest()}"
        config = json.dumps(
            {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
        ).encode()
        about = await here.blob(config, "a")
        described = {"mediaType": media_types.OCI_CONFIG, "digest": about.digest, "size": len(config)}
        listed = {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size}
        body = {"schemaVersion": 2, "mediaType": media_types.OCI_MANIFEST, "config": described, "layers": [listed]}
        manifest = await here.blob(json.dumps(body).encode(), "a")
        await here.content.update(
            "a", manifest.digest, {"containerd.io/gc.ref.content.config": about.digest}, ["labels"]
        )
        for namespace in "ab":
            await here.apply(namespace, blob, await here.prepare(namespace))
            await here.snapshots.commit(namespace, diff_id, "extract-1")
        await here.snapshots.prepare("b", "container", diff_id)
        layer = here.column("a", diff_id, "layer")
        assert isinstance(layer, int)
        home = here.snapshots.snapshotter.home(layer)
        assert home is not None
        (home / "fs/usr/one").write_bytes(b"?")
        assert await _checked(here) == [("layer-changed", ("a", "b"), False)]
        assert await _checked(here, repair=True) == [("layer-changed", ("a", "b"), True)]
        for namespace in "ab":
            assert await here.files(namespace, diff_id) == {"usr/one": b"1", "gone": b"data"}
        # It is kept for who may have it mounted: in whatever namespace.
        assert await _checked(here, repair=True) == []
        await here.snapshots.remove("b", "container")
        assert [kind for kind, _, mended in await _checked(here, repair=True) if mended] == ["layer-replaced"]
        assert await _checked(here) == []


async def _checked(here: Host, *, repair: bool = False) -> list[tuple[str, tuple[str, ...], bool]]:
    order = Order(loop=asyncio.get_running_loop(), repair=repair)
    check = SnapshotsCheck(here.db, here.trash, here.stores, here.content, [here.differ])
    found = await asyncio.to_thread(lambda: list(check.run(order)))
    return [(one.kind, tuple(one.namespaces), one.mended) for one in found if isinstance(one, Finding)]


def _waiting(here: Host) -> set[int]:
    return {number for work in here.snapshots.layers._works.values() for number in work.waiting}
