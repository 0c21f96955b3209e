"""A record whose bytes were lost takes them again, from whoever brings them."""

import asyncio

import pytest

from orlop.base.errdefs import AlreadyExistsError, DataLossError
from orlop.core.content import SharingPolicy
from orlop.oci.digest import Digest
from tests.unit.plugins.content.test_local import local_store

DATA = b"some bytes"
DIGEST = Digest.of(DATA)


async def write(store, namespace, ref="ref"):
    writer = await store.writer(namespace, ref, total=len(DATA), expected=DIGEST)
    try:
        await writer.write(DATA[writer.status().offset :])
        await writer.commit(expected=DIGEST)
    finally:
        await writer.close()


async def read(store, namespace):
    reader = await store.reader(namespace, DIGEST)
    try:
        return await reader.read_at(0, 100)
    finally:
        reader.close()


@pytest.fixture(params=["gone", "cut", "longer"])
def lose(request):
    """Do something to a blob's file that its length tells of."""

    def damage(path):
        path.chmod(0o600)
        if request.param == "gone":
            path.unlink()
        elif request.param == "cut":
            path.write_bytes(DATA[:-1])
        else:
            path.write_bytes(DATA + b"!")

    return damage


@pytest.mark.parametrize("policy", SharingPolicy)
def test_lost_bytes_are_taken_again(tmp_path, policy, lose):
    asyncio.run(lose_and_bring(tmp_path, policy, lose))


async def lose_and_bring(tmp_path, policy, lose):
    async with local_store(tmp_path, policy) as store:
        await write(store, "one")
        await store.update("one", DIGEST, {"label": "kept"})
        with pytest.raises(AlreadyExistsError):
            await store.writer("one", "again", expected=DIGEST)
        lose(store.blob_path(DIGEST))
        with pytest.raises(DataLossError, match=f"content {DIGEST}: .*(gone|instead of)"):
            await store.reader("one", DIGEST)
        with pytest.raises(AlreadyExistsError):  # the record is there, as before: clients take that for done
            await write(store, "one")
        assert await read(store, "one") == DATA
        assert (await store.info("one", DIGEST)).labels == {"label": "kept"}


@pytest.mark.parametrize("policy", SharingPolicy)
def test_another_namespace_cannot_claim_lost_bytes_and_brings_them(tmp_path, policy, lose):
    asyncio.run(bring_from_another(tmp_path, policy, lose))


async def bring_from_another(tmp_path, policy, lose):
    async with local_store(tmp_path, policy) as store:
        await write(store, "one")
        lose(store.blob_path(DIGEST))
        writer = await store.writer("two", "ref", total=len(DATA), expected=DIGEST)
        assert writer.status().offset == 0
        await writer.write(DATA)
        await writer.commit(expected=DIGEST)
        assert await read(store, "one") == DATA
        await store.delete("two", DIGEST)
        assert await read(store, "one") == DATA


def test_a_claim_on_bytes_that_are_lost_makes_no_record(tmp_path, lose):
    asyncio.run(lose_what_is_claimed(tmp_path, lose))


async def lose_what_is_claimed(tmp_path, lose):
    async with local_store(tmp_path) as store:
        await write(store, "one")
        writer = await store.writer("two", "ref", total=len(DATA), expected=DIGEST)
        assert writer.status().offset == len(DATA)
        lose(store.blob_path(DIGEST))
        with pytest.raises(DataLossError, match=f"content {DIGEST}: "):
            await writer.commit(expected=DIGEST)
        assert store.find("two", DIGEST) is None
        await write(store, "two")
        assert await read(store, "one") == await read(store, "two") == DATA


def test_a_record_of_a_wrong_size_is_put_right(tmp_path):
    asyncio.run(correct_the_size(tmp_path))


async def correct_the_size(tmp_path):
    async with local_store(tmp_path) as store:
        await write(store, "one")
        await write(store, "two", "other")
        await store.db.write(lambda tx: tx.execute("UPDATE blobs SET size_bytes = 3").rowcount)
        await store.db.write(lambda tx: tx.execute("UPDATE content SET size_bytes = min(3, size_bytes)").rowcount)
        with pytest.raises(DataLossError, match=f"{len(DATA)} bytes are there instead of 3"):
            await store.reader("one", DIGEST)
        with pytest.raises(AlreadyExistsError):
            await write(store, "two")
        assert await read(store, "one") == DATA
        rows = store.db.all("SELECT namespace, size_bytes FROM content ORDER BY namespace")
        assert [tuple(row) for row in rows] == [("one", len(DATA)), ("two", 0)]
