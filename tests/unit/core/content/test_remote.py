"""Rows here over bytes in another content store: the contract, and what must hold whoever dies or does not answer."""

import asyncio
import contextlib
import functools
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, cast

import pytest

from orlop.api.services.content.v1 import content_pb2 as api
from orlop.base.errdefs import (
    AbortedError,
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from orlop.base.labels import GC_ROOT
from orlop.core.content import SharingPolicy, Store, remote
from orlop.core.content.proxy import ProxyStore
from orlop.core.content.remote import RemoteBlobs
from orlop.core.content.store import ContentStore
from orlop.core.fsck import Finding, Unchecked
from orlop.core.fsck.elsewhere import ElsewhereCheck
from orlop.core.fsck.running import Fsck
from orlop.core.metadata import Database
from orlop.core.metadata.quotas import Quota, Quotas
from orlop.core.metadata.trash import Trash
from orlop.oci.digest import Digest
from orlop.plugins.content.local import LocalStore
from orlop.plugins.services.content import Content
from orlop.testing.content import ContentContract, IsolatedContract, SharedContract, read_blob, some_bytes, write_blob
from orlop.testing.services import InProcess

THERE = "orlop-test"
DATA = b"last" * 1000
DIGEST = Digest.of(DATA)


@contextlib.asynccontextmanager
async def local(root: Path) -> AsyncIterator[LocalStore]:
    os.makedirs(root, exist_ok=True)
    with Database(root / "meta.db") as db, Trash(root, db) as trash:
        store = LocalStore(root / "content", db, trash)
        try:
            yield store
        finally:
            store.close()


@contextlib.asynccontextmanager
async def over(there: Store, root: Path, policy: SharingPolicy = SharingPolicy.SHARED) -> AsyncIterator[ContentStore]:
    """Our rows over `there`."""
    os.makedirs(root, exist_ok=True)
    with Database(root / "meta.db") as db:
        async with RemoteBlobs(there, db, namespace=THERE) as blobs:
            yield ContentStore(db, blobs, policy=policy)


@contextlib.asynccontextmanager
async def direct(root: Path, policy: SharingPolicy = SharingPolicy.SHARED) -> AsyncIterator[ContentStore]:
    async with local(root / "there") as there, over(there, root / "here", policy) as store:
        yield store


@contextlib.asynccontextmanager
async def served(root: Path) -> AsyncIterator[ContentStore]:
    async with local(root / "there") as there:
        service = InProcess.of(api.DESCRIPTOR.services_by_name["Content"], Content(there))
        async with over(ProxyStore(service), root / "here") as store:
            yield store


class TestOverAStore(ContentContract, SharedContract):
    def store(self, root: Path) -> AbstractAsyncContextManager[Store]:
        return direct(root)


class TestIsolatedOverAStore(IsolatedContract):
    def store(self, root: Path) -> AbstractAsyncContextManager[Store]:
        return direct(root, SharingPolicy.ISOLATED)


class TestOverAService(ContentContract, SharedContract):
    def store(self, root: Path) -> AbstractAsyncContextManager[Store]:
        return served(root)


class Play:
    """A store there whose calls a test plays with, by name; the rest goes through."""

    def __init__(self, store: LocalStore) -> None:
        self.store = store
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}
        self.after: dict[str, Callable[[], Awaitable[None]]] = {}
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        own = object.__getattribute__(self, "__dict__")
        if name in own or name in {"played", "__class__", "__dict__"}:
            return object.__getattribute__(self, name)
        found = getattr(own["store"], name)
        return self.played(name, found) if asyncio.iscoroutinefunction(found) else found

    def played(self, name: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def play(*arguments: Any, **named: Any) -> Any:
            self.calls.append(name)
            if name in self.before:
                await self.before[name]()
            answer = await call(*arguments, **named)
            if name in self.after:
                await self.after[name]()
            return answer

        return play


def played(test: Callable[[ContentStore, Play, RemoteBlobs], Awaitable[None]]) -> Callable[[Path], None]:
    """A test on a store over one that it can play with."""

    def run(tmp_path: Path) -> None:
        async def inside() -> None:
            async with local(tmp_path / "there") as there:
                play = Play(there)
                async with over(cast("Store", play), tmp_path / "here") as store:
                    assert isinstance(store.blobs, RemoteBlobs)
                    await test(store, play, store.blobs)

        asyncio.run(inside())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what it looks at tells nobody
            await asyncio.sleep(0.005)


async def quiet(blobs: RemoteBlobs) -> None:
    """Everything that can go has gone."""
    await until(lambda: not blobs._doomed and not blobs._aborted and not blobs._removing and not blobs._sweeping)


def _has_lengths(blobs: RemoteBlobs) -> bool:
    return bool(blobs._lengths)


def is_there(play: Play, digest: str = DIGEST) -> bool:
    return play.store.find(THERE, digest) is not None


async def unanswered() -> None:
    raise UnavailableError("nobody answers")


@played
async def test_what_is_there_is_kept_there_and_has_no_names_of_ours(store, play, blobs):
    digest = await write_blob(
        store, DATA, namespace="a", labels={"mine": "x", "containerd.io/gc.ref.content": str(DIGEST)}
    )
    assert play.store.find(THERE, digest).labels == {GC_ROOT: "1970-01-01T00:00:00Z"}
    assert play.store.find("a", digest) is None
    assert not blobs._held
    assert (await store.info("a", digest)).labels["mine"] == "x"


@played
async def test_bytes_go_after_the_last_record_and_not_before(store, play, blobs):
    await write_blob(store, DATA, namespace="a")
    writer = await store.writer("b", "r", expected=DIGEST)
    assert writer.status().offset == len(DATA)
    await writer.commit(expected=DIGEST)
    await store.delete("a", DIGEST)
    await quiet(blobs)
    assert await read_blob(store, DIGEST, namespace="b") == DATA
    await store.delete("b", DIGEST)
    await quiet(blobs)
    assert not is_there(play)
    assert not store.db.all("SELECT 1 FROM blobs")


@played
async def test_an_open_reader_goes_on_when_the_blob_is_deleted(store, play, blobs):
    await write_blob(store, DATA, namespace="a")
    reader = await store.reader("a", DIGEST)
    await store.delete("a", DIGEST)
    await asyncio.sleep(0)
    assert await reader.read_at(0, 4) == b"last"
    assert is_there(play)
    reader.close()
    reader.close()
    await until(lambda: not is_there(play))


@pytest.mark.parametrize("step", ["before", "after"])
def test_who_writes_what_is_being_removed_waits_and_has_it(tmp_path, step):
    """The removal is under way there, before it is carried out or after, while somebody else brings the same bytes."""

    @played
    async def test(store, play, blobs):
        await write_blob(store, DATA, namespace="a")
        under_way, go_on = asyncio.Event(), asyncio.Event()

        async def held():
            under_way.set()
            await go_on.wait()

        getattr(play, step)["delete"] = held
        await store.delete("a", DIGEST)
        await under_way.wait()
        writing = asyncio.create_task(write_blob(store, DATA, namespace="b"))
        # It comes as far as the commit, and no further.
        await until(lambda: bool(store.db.all("SELECT 1 FROM ingests")))
        for _ in range(50):
            await asyncio.sleep(0.002)
        assert not writing.done()
        go_on.set()
        assert await writing == DIGEST
        await quiet(blobs)
        assert await read_blob(store, DIGEST, namespace="b") == DATA

    test(tmp_path)


@pytest.mark.parametrize("step", ["opened", "written", "commit", "committed"])
def test_a_last_deletion_at_any_step_of_a_write(tmp_path, step):
    @played
    async def test(store, play, blobs):
        await write_blob(store, DATA, namespace="a")
        played_at: list[str] = []

        async def delete():
            if not played_at:
                played_at.append(step)
                await store.delete("a", DIGEST)
                for _ in range(20):  # as far as that gets while the writer waits
                    await asyncio.sleep(0.002)

        writer = await store.writer("b", "r", total=len(DATA))
        if step == "opened":
            await delete()
        await writer.write(DATA)
        if step == "written":
            await delete()
        real = blobs.hold
        if step == "commit":
            blobs.hold = lambda digest: _in_turn(delete, lambda: real(digest))
        if step == "committed":  # the blob is there and held, its row is not written
            write = store.db.write
            store.db.write = lambda fn: _in_turn(lambda: _restored(store, write, delete), lambda: write(fn))
        assert (await writer.commit(expected=DIGEST)).digest == DIGEST
        assert played_at
        await quiet(blobs)
        assert await read_blob(store, DIGEST, namespace="b") == DATA
        await store.delete("b", DIGEST)
        await quiet(blobs)
        assert not is_there(play)

    test(tmp_path)


async def _in_turn(first, then):
    await first()
    return await then()


async def _restored(store, write, work):
    store.db.write = write
    await work()


@played
async def test_a_record_deleted_as_soon_as_it_is_durable_takes_the_bytes_along(store, play, blobs):
    writer = await store.writer("a", "r")
    await writer.write(DATA)
    real = store.db.write

    async def write(fn):
        store.db.write = real
        result = await real(fn)
        await store.delete("a", DIGEST)
        return result

    store.db.write = write
    await writer.commit()
    await until(lambda: not is_there(play))
    await quiet(blobs)


@played
async def test_a_removal_that_nobody_answers_is_tried_until_somebody_does(store, play, blobs):
    await write_blob(store, DATA, namespace="a")
    play.before["delete"] = unanswered
    await store.delete("a", DIGEST)
    await until(lambda: "delete" in play.calls)
    assert is_there(play)
    del play.before["delete"]
    await until(lambda: not is_there(play))


@played
async def test_a_removal_of_unknown_outcome_keeps_writers_of_the_digest_waiting(store, play, blobs):
    """The request may still be carried out: whoever commits meanwhile would lose the bytes."""
    await write_blob(store, DATA, namespace="a")

    async def never_again() -> None:
        play.before["delete"] = unanswered  # the attempts after it are not answered either, however soon they come
        await unanswered()

    play.after["delete"] = never_again
    await store.delete("a", DIGEST)
    await until(lambda: not is_there(play))
    writing = asyncio.create_task(write_blob(store, DATA, namespace="b"))
    await until(lambda: bool(store.db.all("SELECT 1 FROM ingests")))
    assert DIGEST in blobs._removing
    assert not writing.done()
    del play.after["delete"]
    del play.before["delete"]
    assert await writing == DIGEST
    assert await read_blob(store, DIGEST, namespace="b") == DATA


def test_a_writer_does_not_wait_for_the_pause_between_attempts(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "RETRY_S", 3600.0)

    @played
    async def test(store, play, blobs):
        await write_blob(store, DATA, namespace="a")
        play.before["delete"] = unanswered
        await store.delete("a", DIGEST)
        await until(lambda: "delete" in play.calls)
        del play.before["delete"]
        assert await write_blob(store, DATA, namespace="b") == DIGEST

    test(tmp_path)


@played
async def test_a_lost_transaction_leaves_no_blob_there(store, play, blobs):
    writer = await store.writer("a", "r")
    await writer.write(DATA)
    real = store.db.write

    async def write(fn):
        store.db.write = real
        raise KeyError("lost")

    store.db.write = write
    with pytest.raises(KeyError):
        await writer.commit()
    await until(lambda: not is_there(play))
    status = await store.status("a", "r")
    assert status.offset == 0, "the bytes must be sent again"
    assert await write_blob(store, DATA, namespace="a", ref="r") == DIGEST
    await quiet(blobs)
    assert await read_blob(store, DIGEST, namespace="a") == DATA


@played
async def test_a_commit_whose_answer_was_lost_can_be_made_again(store, play, blobs):
    """The blob has come into being there, and nobody here knows."""
    writer = await store.writer("a", "r")
    await writer.write(DATA)
    inner = writer._ingest._writer
    real = inner.commit

    async def commit(**options):
        await real(**options)
        raise UnavailableError("the connection broke")

    inner.commit = commit
    with pytest.raises(UnavailableError):
        await writer.commit()
    assert await write_blob(store, DATA, namespace="a", ref="r") == DIGEST
    await quiet(blobs)
    assert await read_blob(store, DIGEST, namespace="a") == DATA


@played
async def test_what_is_there_already_is_taken(store, play, blobs):
    await write_blob(play.store, DATA, namespace=THERE)
    assert await write_blob(store, DATA, namespace="a") == DIGEST
    assert GC_ROOT in play.store.find(THERE, DIGEST).labels


@played
async def test_a_wrong_digest_or_size_leaves_the_ingest(store, play, blobs):
    for options in ({"expected": Digest.of(b"other")}, {"size": 3}):
        writer = await store.writer("a", "r")
        if not writer.status().offset:
            await writer.write(DATA)
        with pytest.raises(FailedPreconditionError):
            await writer.commit(**options)
        assert (await store.status("a", "r")).offset == len(DATA)
    writer = await store.writer("a", "r")
    assert writer.digest() == DIGEST
    sha512 = Digest.parse("sha512:" + hashlib.sha512(DATA).hexdigest())
    assert (await writer.commit(expected=sha512)).digest == sha512
    assert await read_blob(store, sha512, namespace="a") == DATA


@played
async def test_an_aborted_writer_fails_and_its_ingest_goes_there(store, play, blobs):
    writer = await store.writer("a", "r")
    await writer.write(b"some")
    [there] = await play.store.list_statuses(THERE)
    assert "r" not in there.ref.split("/")
    await store.abort("a", "r")
    with pytest.raises(AbortedError):
        await writer.write(b"more")
    await writer.close()
    await quiet(blobs)
    assert await play.store.list_statuses(THERE) == []
    assert await store.list_statuses("a") == []


@played
async def test_bytes_that_have_gone_there_are_lost_data(store, play, blobs):
    await write_blob(store, DATA, namespace="a")
    await play.store.delete(THERE, DIGEST)
    reader = await store.reader("a", DIGEST)
    with pytest.raises(DataLossError, match="its bytes have gone"):
        await reader.read_at(0, 10)
    reader.close()
    with pytest.raises(AlreadyExistsError):
        await write_blob(store, DATA, namespace="a", ref="again")


@played
async def test_list_statuses_asks_once_for_many(store, play, blobs):
    for at in range(3):
        writer = await store.writer("a", f"r{at}")
        await writer.write(b"x" * at)
        await writer.close()
    play.calls.clear()
    assert [(one.ref, one.offset) for one in await store.list_statuses("a")] == [("r0", 0), ("r1", 1), ("r2", 2)]
    assert play.calls == ["list_statuses"]


def test_a_sweep_removes_what_a_crash_left_and_tells_of_what_is_missing(tmp_path, caplog):
    async def main():
        async with local(tmp_path / "there") as there:
            async with over(there, tmp_path / "here") as store:
                kept = await write_blob(store, DATA, namespace="a")
                lost = await write_blob(store, b"lost", namespace="a")
                ours = await store.writer("a", "ours")
                await ours.write(b"begun")
                await ours.close()
            # A crash after the blob, and before its row; one after an ingest's row had gone; somebody who meddles.
            orphan, _ = some_bytes(100)
            await write_blob(there, orphan, namespace=THERE)
            await write_blob(there, orphan, namespace="somebody")
            stray = await there.writer(THERE, "stray")
            await stray.write(b"x")
            await stray.close()
            await there.delete(THERE, lost)
            async with over(there, tmp_path / "here") as store:
                await asyncio.to_thread(store.sweep)
                await until(lambda: there.find(THERE, Digest.of(orphan)) is None)
                await quiet(cast("RemoteBlobs", store.blobs))
                assert await read_blob(store, kept, namespace="a") == DATA
                assert [one.ref for one in await store.list_statuses("a")] == ["ours"]
                assert (await store.status("a", "ours")).offset == 5
                assert len(await there.list_statuses(THERE)) == 1
                assert there.find("somebody", Digest.of(orphan))
                assert [record.digest for record in caplog.records if hasattr(record, "digest")] == [lost]

    asyncio.run(main())


def test_ingests_there_count_for_the_quota_here(tmp_path):
    """Open or closed, and after a restart as soon as the sweep has seen them."""

    async def main():
        quotas = Quotas(by_namespace={"small": Quota(bytes=1000)})
        async with local(tmp_path / "there") as there:
            os.mkdir(tmp_path / "here")
            for start in range(2):
                with Database(tmp_path / "here" / "meta.db", quotas=quotas) as db:
                    async with RemoteBlobs(there, db, namespace=THERE) as blobs:
                        store = ContentStore(db, blobs)
                        if start == 0:
                            writer = await store.writer("small", "r")
                            await writer.write(b"x" * 600)
                            await writer.close()
                        else:
                            store.sweep()
                            await until(functools.partial(_has_lengths, blobs))
                        with pytest.raises(ResourceExhaustedError, match="in use 600, asked for 401"):
                            await store.writer("small", "other", total=401)
                        await (await store.writer("small", "other", total=400)).close()
                        if start == 1:
                            await store.abort("small", "r")
                            await quiet(blobs)
                            await (await store.writer("small", "third", total=900)).close()

    asyncio.run(main())


def test_a_sweep_waits_for_a_store_that_does_not_answer(tmp_path):
    @played
    async def test(store, play, blobs):
        await write_blob(play.store, DATA, namespace=THERE)
        play.before["list_statuses"] = unanswered
        store.sweep()
        await until(lambda: "list_statuses" in play.calls)
        del play.before["list_statuses"]
        await until(lambda: not is_there(play))

    test(tmp_path)


@pytest.mark.parametrize("brought", ["swept", "read", "written"])
def test_who_brings_bytes_that_have_gone_writes_them(tmp_path, brought):
    """A sweep tells that they have gone, or whoever reads them, or the store is asked by who would write them."""

    @played
    async def test(store, play, blobs):
        await write_blob(store, DATA, namespace="a")
        await play.store.delete(THERE, DIGEST)
        if brought == "swept":
            store.sweep()
            await until(lambda: bool(blobs.flaw(DIGEST, len(DATA))))
        elif brought == "read":
            with pytest.raises(DataLossError):
                await read_blob(store, DIGEST, namespace="a")
        for namespace in ("a", "b"):
            with contextlib.suppress(AlreadyExistsError):  # the record of the first has always been there
                await write_blob(store, DATA, namespace=namespace, ref="again")
            assert await read_blob(store, DIGEST, namespace=namespace) == DATA
        assert not blobs.flaw(DIGEST, len(DATA))

    test(tmp_path)


def test_who_brings_a_blob_that_was_cut_there_writes_it(tmp_path):
    """Also where the store there still says its old size."""

    @played
    async def test(store, play, blobs):
        await write_blob(store, DATA, namespace="a")
        path = play.store.blob_path(DIGEST)
        path.chmod(0o600)
        path.write_bytes(DATA[:-1])
        writer = await store.writer("a", "again", total=len(DATA), expected=DIGEST)
        assert writer.status().offset == 0
        assert not is_there(play)
        await writer.write(DATA)
        with pytest.raises(AlreadyExistsError):
            await writer.commit(expected=DIGEST)
        assert await read_blob(store, DIGEST, namespace="a") == DATA
        await quiet(blobs)
        assert not blobs._held

    test(tmp_path)


def test_what_may_be_there_is_not_asked_for_where_nobody_answers(tmp_path):
    @played
    async def test(store, play, blobs):
        await write_blob(store, DATA, namespace="a")

        def nobody(*_arguments):
            raise UnavailableError("nobody answers")

        play.before["reader"] = nobody
        with pytest.raises(AlreadyExistsError):
            await store.writer("a", "again", expected=DIGEST)
        del play.before["reader"]
        assert await read_blob(store, DIGEST, namespace="a") == DATA

    test(tmp_path)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("repair", [True, False])
def test_a_check_finds_what_is_missing_cut_or_wrong(tmp_path, quick, repair):
    @played
    async def test(store, play, blobs):
        names = ("fine", "missing", "cut", "wrong")
        good = {name: await write_blob(store, name.encode() * 1000, namespace="a", ref=name) for name in names}
        await play.store.delete(THERE, good["missing"])
        for name, data in (("cut", b"cu"), ("wrong", b"wrong" * 999 + b"WRONG")):
            path = play.store.blob_path(good[name])
            path.chmod(0o600)
            path.write_bytes(data)
        cut = "UPDATE blobs SET size_bytes = 2 WHERE digest = ?"
        await play.store.db.write(lambda tx: tx.execute(cut, (good["cut"],)).rowcount)
        fsck = Fsck({"far": ElsewhereCheck(store.db, blobs)})
        found = {one.kind: one async for one in fsck.run(quick=quick, repair=repair) if isinstance(one, Finding)}
        kinds = {"blob-missing": "missing", "blob-truncated": "cut", **({} if quick else {"blob-corrupt": "wrong"})}
        assert {kind: one.object for kind, one in found.items()} == {kind: good[name] for kind, name in kinds.items()}
        assert all(one.namespaces == ("a",) for one in found.values())
        for kind, name in kinds.items():
            assert (play.store.find(THERE, good[name]) is None) is (repair or kind == "blob-missing")
            if repair:
                with contextlib.suppress(AlreadyExistsError):
                    await write_blob(store, name.encode() * 1000, namespace="a", ref=name)
                assert await read_blob(store, good[name], namespace="a") == name.encode() * 1000
        await quiet(blobs)
        assert not blobs._held

    test(tmp_path)


def test_a_check_of_one_that_does_not_answer_says_so(tmp_path):
    @played
    async def test(store, play, blobs):
        def nobody(*_arguments):
            raise UnavailableError("nobody answers")

        play.walk = nobody
        [found] = [one async for one in Fsck({"far": ElsewhereCheck(store.db, blobs)}).run()]
        assert found == Unchecked(what="content elsewhere", why="nobody answers: unavailable")

    test(tmp_path)


def test_a_commit_that_is_under_way_is_no_orphan(tmp_path):
    @played
    async def test(store, play, blobs):
        writer = await store.writer("a", "r")
        await writer.write(DATA)
        real = store.db.write

        async def write(fn):
            store.db.write = real
            store.sweep()
            await until(lambda: DIGEST in blobs._doomed)
            return await real(fn)

        store.db.write = write
        await writer.commit()
        await quiet(blobs)
        assert await read_blob(store, DIGEST, namespace="a") == DATA

    test(tmp_path)


@played
async def test_writers_and_deleters_at_once_never_part_rows_and_bytes(store, play, blobs):
    datas = [b"blob %d" % at for at in range(3)]

    async def churn(seed):
        for turn in range(30):
            data = datas[(seed * 7 + turn * 3) % 3]
            namespace = "ab"[(seed + turn) % 2]
            with contextlib.suppress(AlreadyExistsError, NotFoundError):
                if (seed + turn) % 3:
                    writer = await store.writer(
                        namespace, f"{seed}-{turn}", expected="" if turn % 2 else Digest.of(data)
                    )
                    try:
                        await writer.write(data[writer.status().offset :])
                        await writer.commit(expected=Digest.of(data))
                    finally:
                        await writer.close()
                else:
                    await store.delete(namespace, Digest.of(data))
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for seed in range(6):
            group.create_task(churn(seed))
    await quiet(blobs)
    rows = {row["digest"] for row in store.db.all("SELECT digest FROM blobs")}
    assert {info.digest async for info in play.store.walk(THERE)} == rows
    needed = {row["digest"] for row in store.db.all("SELECT digest FROM content")}
    assert rows == needed
    for row in store.db.all("SELECT namespace, digest FROM content"):
        assert Digest.of(await read_blob(store, row["digest"], namespace=row["namespace"])) == row["digest"]
    assert not blobs._held
