"""A quota of bytes and what is not content yet: refused when it is announced, or where it grows past what is left."""

import asyncio
import contextlib
import os
import re

import pytest

from orlop.base.errdefs import ResourceExhaustedError
from orlop.core.content.allowance import STEP_BYTES
from orlop.core.metadata import Database
from orlop.core.metadata.quotas import Quota, Quotas
from orlop.core.metadata.trash import Trash
from orlop.oci.digest import Digest
from orlop.plugins.content.local import LocalStore

LIMIT = 1000


class Closing(LocalStore):
    """A store whose writers are closed in the end."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.writers = []

    async def writer(self, *arguments, **more):
        self.writers.append(await super().writer(*arguments, **more))
        return self.writers[-1]


@contextlib.asynccontextmanager
async def store(root, *, limit=LIMIT):
    quotas = Quotas(by_namespace={"small": Quota(bytes=limit)})
    with Database(root / "meta.db", quotas=quotas) as db, Trash(root, db) as trash:
        one = Closing(root / "content", db, trash)
        try:
            yield one
        finally:
            for writer in one.writers:
                await writer.close()
            one.close()


def exceeded(used, asked, *, limit=LIMIT):
    text = f'namespace "small": quota bytes: limit {limit}, in use {used}, asked for {asked}'
    return pytest.raises(ResourceExhaustedError, match=re.escape(text))


def runs(test):
    """A test whose body is a coroutine."""

    def run(tmp_path):
        asyncio.run(test(tmp_path))

    run.__name__ = test.__name__
    return run


@runs
async def test_what_is_announced_is_refused_before_a_byte_comes(root):
    async with store(root) as content:
        with exceeded(0, 1001):
            await content.writer("small", "a", total=1001)
        with pytest.raises(Exception, match="reference a"):
            await content.status("small", "a")  # nothing stays of it
        first = await content.writer("small", "a", total=600)
        with exceeded(600, 401):
            await content.writer("small", "b", total=401)
        second = await content.writer("small", "b", total=400)
        await content.writer("other", "c", total=5000)
        for writer, size in ((first, 600), (second, 400)):
            await writer.write(bytes([size % 251]) * size)
            await writer.commit(size=size)
        with exceeded(1000, 1):
            await content.writer("small", "c", total=1)


@runs
async def test_what_was_not_announced_is_refused_where_it_grows_too_far(root):
    async with store(root) as content:
        writer = await content.writer("small", "a")
        await writer.write(b"x" * 900)
        with exceeded(900, 101):
            await writer.write(b"x" * 101)
        assert writer.status().offset == 900
        await writer.write(b"x" * 100)
        with exceeded(1000, 1):
            await writer.write(b"x")
        await writer.truncate()
        await writer.write(b"y" * 1000)
        await writer.commit()


@runs
async def test_what_is_more_than_was_announced_counts(root):
    async with store(root) as content:
        writer = await content.writer("small", "a", total=10)
        with exceeded(10, 991):
            await writer.write(b"x" * 1001)
        await writer.write(b"x" * 1000)


@runs
async def test_two_at_once_do_not_both_get_what_is_left(root):
    os.mkdir(root / "grown")
    async with store(root) as content:
        opened = await asyncio.gather(
            *(content.writer("small", f"r{number}", total=300) for number in range(8)), return_exceptions=True
        )
        assert sum(isinstance(one, ResourceExhaustedError) for one in opened) == 5

    async with store(root / "grown") as content:
        writers = [await content.writer("small", f"r{number}") for number in range(8)]

        def grow(writer):
            for _ in range(60):
                asyncio.run(writer.write(b"x" * 10))

        outcomes = await asyncio.gather(
            *(asyncio.to_thread(grow, writer) for writer in writers), return_exceptions=True
        )
        assert any(isinstance(one, ResourceExhaustedError) for one in outcomes)
        assert sum(writer.status().offset for writer in writers) == LIMIT


@runs
async def test_what_nobody_writes_counts_for_what_is_there(root):
    async with store(root) as content:
        writer = await content.writer("small", "a", total=900)
        await writer.write(b"x" * 300)
        await writer.close()
        other = await content.writer("small", "b", total=700)
        with exceeded(1000, 600):
            await content.writer("small", "a", total=900)
        await other.close()  # of which nothing has come
        writer = await content.writer("small", "a", total=900)
        assert writer.status().offset == 300
        await writer.close()
    async with store(root) as content:  # a daemon that comes later counts it too
        with exceeded(300, 701):
            await content.writer("small", "b", total=701)
        await content.abort("small", "a")
        await content.writer("small", "b", total=1000)


@runs
async def test_what_an_unsized_writer_has_in_advance_is_taken_back(root):
    limit = 2 * STEP_BYTES
    async with store(root, limit=limit) as content:
        writer = await content.writer("small", "a")
        await writer.write(b"x")
        await content.writer("small", "b", total=limit - 1)
        with exceeded(limit, 1, limit=limit):
            await writer.write(b"x")


@runs
async def test_a_blob_that_others_have_counts_when_it_is_named(root):
    async with store(root) as content:
        writer = await content.writer("other", "a")
        await writer.write(b"x" * 1001)
        info = await writer.commit()
        with exceeded(0, 1001):
            await content.writer("small", "a", expected=info.digest)
        writer = await content.writer("other", "b")
        await writer.write(b"x" * 1000)
        info = await writer.commit()
        writer = await content.writer("small", "b", expected=Digest(info.digest))
        with exceeded(1000, 1):
            await content.writer("small", "c", total=1)
        await writer.commit()
