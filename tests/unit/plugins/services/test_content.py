"""The Content service: the Write conversation, the chunks of Read and List, and the texts that clients see."""

import asyncio
import contextlib

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from orlop.api.services.content.v1 import content_pb2 as api
from orlop.base.errdefs import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    UnavailableError,
)
from orlop.core.metadata import Database
from orlop.core.metadata.trash import Trash
from orlop.oci.digest import EMPTY_SHA256, Digest
from orlop.plugins.content.local import LocalStore
from orlop.plugins.services.content import LIST_CHUNK, READ_CHUNK, Content
from orlop.testing.services import InProcess

STAT, WRITE, COMMIT = api.WriteAction.STAT, api.WriteAction.WRITE, api.WriteAction.COMMIT
Request = api.WriteContentRequest


@pytest.fixture
def run(tmp_path):
    events = []

    def run(test):
        async def main():
            with (
                Database(tmp_path / "meta.db", publisher=lambda *event: events.append(event)) as db,
                Trash(tmp_path, db) as trash,
            ):
                store = LocalStore(tmp_path / "content", db, trash)
                with contextlib.closing(store):
                    service = api.DESCRIPTOR.services_by_name["Content"]
                    await test(InProcess.of(service, Content(store), namespace="ns"), store)
            return events

        return asyncio.run(main())

    return run


async def refused(cls, call, text):
    with pytest.raises(cls) as caught:
        await call
    assert str(caught.value) == text


async def put(content, data, **commit):
    digest = Digest.of(data)
    async with content.duplex("Write") as talk:
        await talk.ask(Request(action=COMMIT, ref=f"put-{digest}", data=data, **commit))
    return digest


def test_a_write_is_asked_about_sent_and_committed(run):
    async def test(content, _store):
        data = b"0123456789"
        digest = Digest.of(data)
        async with content.duplex("Write") as talk:
            first = await talk.ask(Request(action=STAT, ref="layer", total=10, expected=digest))
            assert (first.action, first.offset, first.total, first.digest) == (STAT, 0, 10, EMPTY_SHA256)
            assert 0 < first.started_at.ToNanoseconds() <= first.updated_at.ToNanoseconds()
            for at in (0, 4):
                answer = await talk.ask(Request(action=WRITE, offset=at, data=data[at : at + 4]))
                assert (answer.action, answer.offset, answer.digest) == (WRITE, at + 4, Digest.of(data[: at + 4]))
            answer = await talk.ask(Request(action=WRITE))  # without offset: begin again
            assert (answer.offset, answer.digest) == (0, EMPTY_SHA256)
            await talk.ask(Request(action=WRITE, data=data[:5]))
            last = await talk.ask(
                Request(action=COMMIT, offset=5, data=data[5:], total=10, expected=digest, labels={"a": "1"})
            )
            assert (last.action, last.offset, last.digest) == (COMMIT, 10, digest)
            with pytest.raises(EOFError):
                await talk.receive()
        info = (await content.unary("Info", api.InfoRequest(digest=digest))).info
        assert (info.size, dict(info.labels)) == (10, {"a": "1"})

    events = run(test)
    assert [(namespace, topic) for namespace, topic, _ in events] == [("ns", "/content/create")]
    assert (events[0][2].digest, events[0][2].size) == (Digest.of(b"0123456789"), 10)


def test_a_stream_that_ends_leaves_the_ingest_and_frees_the_ref(run):
    async def test(content, _store):
        async with content.duplex("Write") as talk:
            await talk.ask(Request(action=WRITE, ref="layer", data=b"some"))
            async with content.duplex("Write") as other:
                with pytest.raises(UnavailableError, match=r"^ref layer locked for"):
                    await other.ask(Request(action=STAT, ref="layer"))
            await talk.finish()
        async with content.duplex("Write") as talk:  # and one that goes away without a word
            assert (await talk.ask(Request(action=STAT, ref="layer"))).offset == 4
            await talk.ask(Request(action=WRITE, offset=4, data=b"more"))
        assert (await content.unary("Status", api.StatusRequest(ref="layer"))).status.offset == 8
        statuses = await content.unary("ListStatuses", api.ListStatusesRequest(filters=["ref==layer"]))
        assert [status.offset for status in statuses.statuses] == [8]

    run(test)


def test_what_a_write_refuses(run):
    async def test(content, store):
        async def told(*requests):
            async with content.duplex("Write") as talk:
                for request in requests:
                    await talk.ask(request)

        known = await put(content, b"known")
        fresh = Digest.of(b"fresh")
        await refused(InvalidArgumentError, told(Request(action=STAT)), "first message must have a reference")
        await refused(
            OutOfRangeError,
            told(Request(action=WRITE, ref="r", data=b"xx"), Request(action=WRITE, offset=3, data=b"x")),
            "write @3 must occur at current offset 2",
        )
        await refused(
            AlreadyExistsError, told(Request(action=STAT, ref="r", expected=known)), f"content {known}: already exists"
        )
        await refused(
            AlreadyExistsError,
            told(Request(action=STAT, ref="r"), Request(action=COMMIT, offset=2, expected=known)),
            f"blob with expected digest {known} exists",
        )
        assert await store.list_statuses("ns") == [], "the ingest was thrown away"
        await refused(
            FailedPreconditionError,
            told(Request(action=COMMIT, ref="r", data=b"xx", total=3)),
            '"r" failed size validation: 2 != 3: failed precondition',
        )
        await refused(
            FailedPreconditionError,
            told(Request(action=COMMIT, ref="r", offset=2, expected=fresh)),
            f"unexpected commit digest {Digest.of(b'xx')}, expected {fresh}: failed precondition",
        )
        await refused(
            InvalidArgumentError,
            told(Request(action=COMMIT, ref="r", offset=2, labels={"k": "x" * 5000})),
            "info.Labels: label key and value length (5001 bytes) greater than maximum size (4096 bytes), key: k"
            ": invalid argument",
        )
        await refused(
            AlreadyExistsError,
            told(Request(action=COMMIT, ref="r", data=b"known")),
            f"content {known}: already exists",
        )
        await refused(NotFoundError, content.unary("Abort", api.AbortRequest(ref="r")), "reference r: not found")
        await refused(
            NotFoundError,
            content.unary("Status", api.StatusRequest(ref="r")),
            'could not get status for ref "r": reference r: not found',
        )

    run(test)


def test_an_empty_stream_is_nothing(run):
    async def test(content, store):
        async with content.duplex("Write") as talk:
            await talk.finish()
        assert await store.list_statuses("ns") == []

    run(test)


def test_reading_is_in_chunks_with_their_offsets(run):
    async def test(content, _store):
        data = bytes(range(256)) * 10_000
        digest = await put(content, data)

        async def read(**request):
            parts = content.stream("Read", api.ReadContentRequest(digest=digest, **request))
            return [(part.offset, part.data) async for part in parts]

        parts = await read()
        assert [(at, len(part)) for at, part in parts] == [
            (0, READ_CHUNK),
            (READ_CHUNK, READ_CHUNK),
            (2 * READ_CHUNK, len(data) - 2 * READ_CHUNK),
        ]
        assert b"".join(part for _, part in parts) == data
        assert await read(offset=5, size=7) == [(5, data[5:12])]
        assert await read(offset=len(data) - 3, size=100) == [(len(data) - 3, data[-3:])]
        assert await read(offset=len(data)) == []
        assert await read(offset=-4, size=4) == [(0, data[:4])]
        await refused(OutOfRangeError, read(offset=len(data) + 1), f"read past object length {len(data)} bytes")

    run(test)


def test_a_blob_that_was_cut_off_on_disk_is_told(run):
    async def test(content, store):
        digest = await put(content, b"0123456789")
        path = store.blob_path(digest)
        path.chmod(0o600)
        path.write_bytes(b"01234")
        with pytest.raises(DataLossError, match="5 bytes are there instead of 10"):
            [part async for part in content.stream("Read", api.ReadContentRequest(digest=digest))]

    run(test)


def test_listing_is_in_blocks_and_filtered(run):
    async def test(content, store):
        def many(tx):
            tx.ensure_namespace("ns")
            for at in range(250):
                digest = Digest.of(b"%d" % at)
                tx.execute("INSERT INTO blobs VALUES (?, 1, 0, 0)", (digest,))
                tx.execute(
                    "INSERT INTO content (namespace, digest, created_at, updated_at, used_at, labels)"
                    " VALUES ('ns', ?, 0, 0, 0, ?)",
                    (digest, '{"odd":"yes"}' if at % 2 else "{}"),
                )

        store.db.write_sync(many)
        blocks = [
            [info.digest for info in block.info] async for block in content.stream("List", api.ListContentRequest())
        ]
        assert [len(block) for block in blocks] == [LIST_CHUNK, LIST_CHUNK, 50]
        assert [digest for block in blocks for digest in block] == sorted(Digest.of(b"%d" % at) for at in range(250))
        odd = api.ListContentRequest(filters=["labels.odd==yes"])
        assert sum([len(block.info) async for block in content.stream("List", odd)]) == 125

    run(test)


def test_bad_digests_and_masks(run):
    async def test(content, _store):
        digest = await put(content, b"x")
        absent = Digest.of(b"absent")
        await refused(
            InvalidArgumentError, content.unary("Info", api.InfoRequest(digest="nope")), '"nope" failed validation'
        )
        await refused(
            NotFoundError,
            content.unary("Info", api.InfoRequest(digest=absent)),
            f"content digest {absent}: not found",
        )
        await refused(
            InvalidArgumentError,
            content.unary("Delete", api.DeleteContentRequest(digest="nope")),
            "invalid checksum digest format",
        )
        update = api.UpdateRequest(info=api.Info(digest=digest), update_mask=FieldMask(paths=["size"]))
        await refused(
            InvalidArgumentError,
            content.unary("Update", update),
            f'cannot update "size" field on content info "{digest}": invalid argument',
        )
        await content.unary("Delete", api.DeleteContentRequest(digest=digest))
        await refused(
            NotFoundError,
            content.unary("Delete", api.DeleteContentRequest(digest=digest)),
            f"content digest {digest}: not found",
        )

    events = run(test)
    assert [topic for _, topic, _ in events] == ["/content/create", "/content/delete"]
