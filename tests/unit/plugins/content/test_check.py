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
        await writer.write(DATA)
        await writer.commit(expected=DIGEST)
    finally:
        await writer.close()


async def read(store, namespace):
    reader = await store.reader(namespace, DIGEST)
    try:
        return await reader.read_at(0, 100)
    finally:
        reader.close()


@pytest.mark.parametrize("policy", SharingPolicy)
def test_lost_bytes_are_taken_again(tmp_path, policy):
    asyncio.run(lose_and_bring(tmp_path, policy))


async def lose_and_bring(tmp_path, policy):
    async with local_store(tmp_path, policy) as store:
        await write(store, "one")
        await store.update("one", DIGEST, {"label": "kept"})
        with pytest.raises(AlreadyExistsError):
            await store.writer("one", "again", expected=DIGEST)
        store.blob_path(DIGEST).unlink()
        with pytest.raises(DataLossError):
            await store.reader("one", DIGEST)
        with pytest.raises(AlreadyExistsError):  # the record is there, as before: clients take that for done
            await write(store, "one")
        assert await read(store, "one") == DATA
        assert (await store.info("one", DIGEST)).labels == {"label": "kept"}


def test_another_namespace_cannot_claim_lost_bytes_and_brings_them(tmp_path):
    asyncio.run(bring_from_another(tmp_path))


async def bring_from_another(tmp_path):
    async with local_store(tmp_path) as store:
        await write(store, "one")
        store.blob_path(DIGEST).unlink()
        writer = await store.writer("two", "ref", total=len(DATA), expected=DIGEST)
        assert writer.status().offset == 0
        await writer.write(DATA)
        await writer.commit(expected=DIGEST)
        assert await read(store, "one") == DATA
