"""What is written is on its way to the disk before the commit asks for it."""

import asyncio
import errno

import pytest

from orlop.core.metadata import Database
from orlop.core.metadata.trash import Trash
from orlop.oci.digest import Digest
from orlop.plugins.content.local import LocalStore, blobs
from orlop.plugins.content.local.writing import EARLY_SIZE
from orlop.testing.content import NAMESPACE

PIECE = bytes(range(256)) * (1 << 12)  # 1 MiB


@pytest.fixture
def asked(monkeypatch):
    """The ranges that the disk was told of; each call fails, which must not matter."""
    ranges = []

    def refuse(_fd, offset, length, _flags):
        ranges.append((offset, length))
        raise OSError(errno.EIO, "refused")

    monkeypatch.setattr(blobs, "sync_file_range", refuse)
    return ranges


def test_the_disk_is_told_of_each_part_once_and_in_order(tmp_path, asked):
    async def write() -> Digest:
        with Database(tmp_path / "meta.db") as db, Trash(tmp_path, db) as trash:
            store = LocalStore(tmp_path / "content", db, trash)
            try:
                writer = await store.writer(NAMESPACE, "ref")
                for _ in range(3):
                    await writer.write(PIECE)
                await writer.truncate()
                for _ in range(40):
                    await writer.write(PIECE)
                digest = Digest.of(PIECE * 40)
                info = await writer.commit(size=40 << 20, expected=digest)
                return info.digest
            finally:
                store.close()

    assert asyncio.run(write()) == Digest.of(PIECE * 40)
    assert asked
    end = 0
    for offset, length in asked:
        assert offset == end
        assert length > 0
        assert (offset + length) % EARLY_SIZE == 0
        end = offset + length
    assert end <= 40 << 20
