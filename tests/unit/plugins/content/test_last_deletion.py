"""One namespace's last deletion against another's write of the same digest, at each step of the write, one by one.

The deletion is played between two given steps. Whatever the order, who wrote has the bytes, and rows and bytes match.
"""

import asyncio
import contextlib
import threading
from pathlib import Path

import pytest

from orlop.base.errdefs import NotFoundError
from orlop.core.content.writer import ContentWriter
from orlop.core.metadata import Database
from orlop.core.metadata.trash import Trash
from orlop.oci.digest import Digest
from orlop.plugins.content.local import LocalStore
from orlop.plugins.content.local.writing import LocalIngest
from tests.unit.plugins.content.blocking import Blocking

DATA = b"last" * 1000
DIGEST = Digest.of(DATA)


@pytest.fixture
def store(tmp_path):
    with Database(tmp_path / "meta.db") as db, Trash(tmp_path, db) as trash:
        one = Blocking(LocalStore(tmp_path / "content", db, trash))
        try:
            yield one
        finally:
            one.close()


def put(store, namespace, *, before_commit=lambda: None, claim=True):
    """Write the blob; with `claim` its digest is named on opening, so that what another has need not be sent."""
    made = store.writer_sync(namespace, "r", total=len(DATA), expected=DIGEST if claim else "")
    made.write_sync(DATA[made.status().offset :])
    before_commit()
    return made.commit_sync(expected=DIGEST).digest


def read(store, namespace):
    with contextlib.closing(store.open(namespace, DIGEST)) as reader:
        return reader.pread(0, reader.size)


def emptied(store):
    while store.db.all("SELECT 1 FROM trash"):
        store.trash.empty()


def delete(store):
    """The last record goes, and what is in the trash with it, at once."""
    in_thread = threading.Thread(target=lambda: asyncio.run(store.delete("first", DIGEST)))
    in_thread.start()
    in_thread.join()
    emptied(store)


@pytest.mark.parametrize("claim", [True, False])
@pytest.mark.parametrize("step", ["open", "place", "rename", "record", "recorded"])
def test_who_writes_has_the_bytes(store, monkeypatch, step, claim):
    put(store, "first")
    played: list[str] = []

    def play(at):
        if at == step and not played:
            played.append(at)
            delete(store)

    place, rename = ContentWriter._place, LocalIngest._rename

    async def placing(self, *arguments):
        play("place")
        answer = await place(self, *arguments)
        play("record")  # the bytes are where blobs are, the row is not there yet
        return answer

    def renaming(self, target: Path):
        play("rename")
        return rename(self, target)

    monkeypatch.setattr(ContentWriter, "_place", placing)
    monkeypatch.setattr(LocalIngest, "_rename", renaming)
    assert put(store, "second", before_commit=lambda: play("open"), claim=claim) == DIGEST
    play("recorded")
    if not played:  # a claim renames nothing
        assert (step, claim) == ("rename", True)
        delete(store)
    emptied(store)
    assert read(store, "second") == DATA
    with pytest.raises(NotFoundError):
        read(store, "first")
    asyncio.run(store.delete("second", DIGEST))
    emptied(store)
    assert not store.db.all("SELECT 1 FROM blobs")
    assert not store.blob_path(DIGEST).exists()
