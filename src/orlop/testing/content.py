"""What every content store must do, as tests that a plug-in's author can run.

    from orlop.testing.content import ContentContract

    class TestMine(ContentContract):
        @contextlib.asynccontextmanager
        async def store(self, root: Path) -> AsyncIterator[Store]:
            yield Mine(root)

Run with pytest. The suite asks what containerd's asks of its own (core/content/testsuite), and what our services rely
on.
`SharedContract` and `IsolatedContract` ask what namespaces see of each other under either policy.
"""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import ClassVar, Final

import pytest

from orlop.base.errdefs import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from orlop.core.content import Store, Writer
from orlop.oci.digest import EMPTY_SHA256, Digest

NAMESPACE: Final = "testsuite"
OTHER: Final = "testsuite-other"
LABELS: Final[Mapping[str, str]] = {"containerd.io/gc.root": "2026-01-01T00:00:00Z"}

_SEEDS: Final = itertools.count(1)


def some_bytes(size: int) -> tuple[bytes, Digest]:
    """Bytes that no other call gives, the same in each run, and their digest."""
    data = random.Random(next(_SEEDS)).randbytes(size)
    return data, Digest.of(data)


async def write_blob(
    store: Store, data: bytes, *, namespace: str = NAMESPACE, ref: str = "", labels: Mapping[str, str] | None = None
) -> Digest:
    """Store a blob by an ingest of its own."""
    digest = Digest.of(data)
    writer = await store.writer(namespace, ref or f"blob-{digest}", total=len(data), expected=digest)
    try:
        await writer.write(data[writer.status().offset :])
        await writer.commit(size=len(data), expected=digest, labels=labels)
    finally:
        await writer.close()
    return digest


async def read_blob(store: Store, digest: str, *, namespace: str = NAMESPACE) -> bytes:
    """All bytes of a blob."""
    reader = await store.reader(namespace, digest)
    try:
        return await reader.read_at(0, reader.size)
    finally:
        reader.close()


class Contract:
    """How a suite's tests get at a store; say `store` to use it."""

    def store(self, root: Path) -> AbstractAsyncContextManager[Store]:
        """A context with a new, empty store below `root`."""
        raise NotImplementedError

    def run(self, root: Path, test: Callable[[Store], Awaitable[None]]) -> None:
        """Run a test on a new store."""

        async def inside() -> None:
            async with self.store(root) as store:
                await test(store)

        asyncio.run(inside())


class ContentContract(Contract):
    """What holds within one namespace."""

    def test_writers_with_and_without_size_and_digest_make_content(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            blobs = [some_bytes(256) for _ in range(4)]
            sizes, digests = (0, 256, 0, 256), ("", "", blobs[2][1], blobs[3][1])
            writers = [
                await store.writer(NAMESPACE, f"c{at}", total=sizes[at], expected=digests[at]) for at in range(4)
            ]
            for writer, (data, digest) in zip(writers, blobs, strict=True):
                for start in range(0, 256, 32):
                    await writer.write(data[start : start + 32])
                await writer.commit(labels=LABELS)
                assert writer.digest() == digest
                info = await store.info(NAMESPACE, digest)
                assert (info.digest, info.size, info.labels) == (digest, 256, LABELS)
                assert 0 < info.created_at == info.updated_at
                assert await read_blob(store, digest) == data
                await writer.close()

        self.run(tmp_path, test)

    def test_the_status_follows_the_writes(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            data, digest = some_bytes(256)
            writer = await store.writer(NAMESPACE, "c1", total=256, expected=digest)
            began = writer.status()
            assert (began.ref, began.offset, began.total) == ("c1", 0, 256)
            assert writer.digest() == EMPTY_SHA256
            for start, end in ((0, 64), (64, 192), (192, 256)):
                await writer.write(data[start:end])
                status = writer.status()
                assert (status.offset, status.total, status.started_at) == (end, 256, began.started_at)
                assert status.updated_at >= status.started_at
                assert writer.digest() == Digest.of(data[:end])
                seen = await store.status(NAMESPACE, "c1")
                assert (seen.offset, seen.total, seen.started_at) == (end, 256, began.started_at)
            await writer.commit(labels=LABELS)
            await writer.close()
            with pytest.raises(NotFoundError):
                await store.status(NAMESPACE, "c1")

        self.run(tmp_path, test)

    def test_an_ingest_goes_on_where_it_was_left(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            data, digest = some_bytes(256)
            first = await store.writer(NAMESPACE, "cb", total=256, expected=digest)
            await first.write(data[:128])
            before = first.status()
            await first.close()
            second = await store.writer(NAMESPACE, "cb", total=256, expected=digest)
            after = second.status()
            assert (after.offset, after.total, after.started_at) == (128, 256, before.started_at)
            assert second.digest() == Digest.of(data[:128])
            await second.write(data[128:])
            assert second.digest() == digest
            await second.commit()
            await second.close()
            assert (await store.info(NAMESPACE, digest)).size == 256
            assert await read_blob(store, digest) == data

        self.run(tmp_path, test)

    @pytest.mark.parametrize(
        ("size", "part", "truncate"),
        [(500, 0.5, True), (50_000, 0.1, False), (300_000, 0.0, False), (300_000, 0.5, False), (300_000, 1.0, True)],
    )
    def test_a_resumed_ingest_is_completed_or_begun_again(
        self, tmp_path: Path, size: int, part: float, truncate: bool
    ) -> None:
        async def test(store: Store) -> None:
            data, digest = some_bytes(size)
            limit = int(size * part)
            writer = await store.writer(NAMESPACE, "ref", total=size, expected=digest)
            await writer.write(data[:limit])
            await writer.close()
            writer = await store.writer(NAMESPACE, "ref", total=size, expected=digest)
            assert writer.status().offset == limit
            if truncate:
                await writer.truncate()
                assert writer.status().offset == 0
            await writer.write(data[writer.status().offset :])
            await writer.commit(size=size, expected=digest)
            await writer.close()
            assert await read_blob(store, digest) == data

        self.run(tmp_path, test)

    def test_a_blob_that_is_there_is_refused_at_commit_and_at_opening(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            data, digest = some_bytes(256)
            await write_blob(store, data)
            for at, expected in enumerate((digest, "")):
                writer = await store.writer(NAMESPACE, f"again-{at}")
                await writer.write(data)
                with pytest.raises(AlreadyExistsError):
                    await writer.commit(size=256, expected=expected)
                await writer.close()
                with pytest.raises(NotFoundError):
                    await store.status(NAMESPACE, f"again-{at}")
            with pytest.raises(AlreadyExistsError):
                await store.writer(NAMESPACE, "again", expected=digest)
            with pytest.raises(NotFoundError):
                await store.status(NAMESPACE, "again")

        self.run(tmp_path, test)

    def test_a_failed_commit_keeps_the_ingest_and_frees_the_ref(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            data, digest = some_bytes(256)
            _, wrong = some_bytes(256)
            for size, expected in ((256 + 4, wrong), (256, "")):
                writer = await self._reopened(store, data + b"more")
                with pytest.raises(FailedPreconditionError):
                    await writer.commit(size=size, expected=expected)
                await writer.close()
            writer = await self._reopened(store, data + b"more")
            with pytest.raises(InvalidArgumentError):
                await writer.commit(labels={"key": "x" * 5000})
            await writer.close()
            writer = await self._reopened(store, data + b"more")
            await writer.commit(size=260)
            await writer.close()
            with pytest.raises(NotFoundError):
                await store.info(NAMESPACE, digest)
            assert await read_blob(store, Digest.of(data + b"more")) == data + b"more"

        self.run(tmp_path, test)

    async def _reopened(self, store: Store, data: bytes) -> Writer:
        """The writer of a ref that nobody else can have meanwhile, with `data` written, now or before."""
        writer = await store.writer(NAMESPACE, "state")
        with pytest.raises(UnavailableError):
            await store.writer(NAMESPACE, "state")
        await writer.write(data[writer.status().offset :])
        return writer

    def test_a_closed_writer_refuses(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            writer = await store.writer(NAMESPACE, "closed")
            await writer.write(b"some")
            await writer.close()
            await writer.close()
            with pytest.raises(FailedPreconditionError):
                await writer.write(b"more")
            with pytest.raises(FailedPreconditionError):
                await writer.commit()
            assert (await store.status(NAMESPACE, "closed")).offset == 4

        self.run(tmp_path, test)

    def test_labels_are_replaced_or_changed_one_by_one(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            data, digest = some_bytes(256)
            await write_blob(store, data, labels={"k1": "v1", "k2": "v2", **LABELS})
            made = await store.info(NAMESPACE, digest)
            await store.update(NAMESPACE, digest, {"k1": "new", "k3": "v3", **LABELS})
            info = await store.info(NAMESPACE, digest)
            assert info.labels == {"k1": "new", "k3": "v3", **LABELS}
            assert info.created_at == made.created_at < info.updated_at
            await store.update(NAMESPACE, digest, {"k1": "v1"}, ["labels.k3", "labels.k1"])
            assert (await store.info(NAMESPACE, digest)).labels == {"k1": "v1", **LABELS}
            await store.update(NAMESPACE, digest, {"k9": "", "k8": "x"}, ["labels"])
            assert (await store.info(NAMESPACE, digest)).labels == {"k8": "x"}
            for paths, labels in ((["size"], {}), (["labels.k"], {"k": "x" * 5000})):
                with pytest.raises(InvalidArgumentError):
                    await store.update(NAMESPACE, digest, labels, paths)
            with pytest.raises(NotFoundError):
                await store.update(NAMESPACE, some_bytes(1)[1], {})

        self.run(tmp_path, test)

    def test_reading_takes_offset_and_length(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            data, digest = some_bytes(1_500_000)
            await write_blob(store, data)
            reader = await store.reader(NAMESPACE, digest)
            assert reader.size == len(data)
            for offset, length in ((0, 6), (10, 1 << 20), (1_499_990, 100), (1_500_000, 1), (0, 2_000_000)):
                assert await reader.read_at(offset, length) == data[offset : offset + length]
            reader.close()
            with pytest.raises(NotFoundError):
                await store.reader(NAMESPACE, some_bytes(1)[1])

        self.run(tmp_path, test)

    def test_small_and_empty_blobs(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            for data in (b"foobar", b""):
                digest = await write_blob(store, data)
                assert await read_blob(store, digest) == data
                assert (await store.info(NAMESPACE, digest)).size == len(data)

        self.run(tmp_path, test)

    def test_walking_is_in_order_and_filtered(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            digests = [await write_blob(store, some_bytes(10)[0], labels={"n": str(at)}) for at in range(8)]
            assert [info.digest async for info in store.walk(NAMESPACE)] == sorted(digests)
            found = [info.digest async for info in store.walk(NAMESPACE, ['labels."n"==3', f"digest=={digests[5]}"])]
            assert found == sorted([digests[3], digests[5]])
            with pytest.raises(InvalidArgumentError):
                [info async for info in store.walk(NAMESPACE, ["labels.=="])]
            assert [info async for info in store.walk(OTHER)] == []

        self.run(tmp_path, test)

    def test_deleting(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            data, digest = some_bytes(10)
            await write_blob(store, data)
            reader = await store.reader(NAMESPACE, digest)
            await store.delete(NAMESPACE, digest)
            for gone in (store.info(NAMESPACE, digest), store.reader(NAMESPACE, digest)):
                with pytest.raises(NotFoundError):
                    await gone
            with pytest.raises(NotFoundError):
                await store.delete(NAMESPACE, digest)
            reader.close()
            await write_blob(store, data)
            assert await read_blob(store, digest) == data

        self.run(tmp_path, test)

    def test_ingests_are_listed_and_aborted(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            for ref in ("b", "a", "c"):
                writer = await store.writer(NAMESPACE, ref, total=9)
                await writer.write(ref.encode())
                await writer.close()
            statuses = await store.list_statuses(NAMESPACE)
            assert [(status.ref, status.offset, status.total) for status in statuses] == [
                ("a", 1, 9),
                ("b", 1, 9),
                ("c", 1, 9),
            ]
            assert [status.ref for status in await store.list_statuses(NAMESPACE, ["ref~=[ac]"])] == ["a", "c"]
            assert await store.list_statuses(OTHER) == []
            await store.abort(NAMESPACE, "b")
            for gone in (store.status(NAMESPACE, "b"), store.abort(NAMESPACE, "b"), store.abort(OTHER, "a")):
                with pytest.raises(NotFoundError):
                    await gone
            writer = await store.writer(NAMESPACE, "b")
            assert writer.status().offset == 0
            await writer.close()

        self.run(tmp_path, test)

    def test_bad_names_are_refused(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            for bad in ("", "sha256:abc", "md5:" + "0" * 32, "sha256:" + "G" * 64, "sha256:../../../etc/passwd"):
                with pytest.raises(InvalidArgumentError):
                    await store.info(NAMESPACE, bad)
            with pytest.raises(InvalidArgumentError):
                await store.writer(NAMESPACE, "")
            # No bytes have such a digest, which is found at the commit, as in containerd.
            writer = await store.writer(NAMESPACE, "x", expected="sha256:abc")
            await writer.write(b"x")
            with pytest.raises(FailedPreconditionError):
                await writer.commit(expected="sha256:abc")
            odd = "../../" + "ü" * 200 + "/ref with spaces"
            writer = await store.writer(NAMESPACE, odd)
            await writer.write(b"x")
            await writer.close()
            assert (await store.status(NAMESPACE, odd)).ref == odd

        self.run(tmp_path, test)

    algorithms: ClassVar[tuple[str, ...]] = ("sha256", "sha512")

    def test_other_algorithms(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            for algorithm in self.algorithms:
                data, _ = some_bytes(100)
                digest = Digest.of(data, algorithm)
                writer = await store.writer(NAMESPACE, f"early-{algorithm}", expected=digest)
                await writer.write(data)
                await writer.commit(expected=digest)
                await writer.close()
                assert await read_blob(store, digest) == data
                late, _ = some_bytes(100)
                writer = await store.writer(NAMESPACE, f"late-{algorithm}")
                await writer.write(late)
                await writer.commit(expected=Digest.of(late, algorithm))
                await writer.close()
                assert await read_blob(store, Digest.of(late, algorithm)) == late

        self.run(tmp_path, test)


class SharedContract(Contract):
    """What holds between namespaces where naming a digest gives a right to the blob."""

    def test_a_blob_of_another_namespace_needs_no_bytes(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            data, digest = some_bytes(1000)
            await write_blob(store, data)
            with pytest.raises(NotFoundError):
                await store.info(OTHER, digest)
            writer = await store.writer(OTHER, "ref", total=1000, expected=digest)
            status = writer.status()
            assert (status.offset, status.total, writer.digest()) == (1000, 1000, digest)
            await writer.commit(size=1000, expected=digest, labels=LABELS)
            await writer.close()
            assert (await store.info(OTHER, digest)).labels == LABELS
            assert (await store.info(NAMESPACE, digest)).labels == {}
            await store.delete(NAMESPACE, digest)
            assert await read_blob(store, digest, namespace=OTHER) == data

        self.run(tmp_path, test)

    def test_a_claimed_blob_stays_until_the_commit(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            data, digest = some_bytes(1000)
            await write_blob(store, data)
            writer = await store.writer(OTHER, "ref", expected=digest)
            await store.delete(NAMESPACE, digest)
            await writer.commit()
            await writer.close()
            assert await read_blob(store, digest, namespace=OTHER) == data

        self.run(tmp_path, test)

    def test_bytes_can_be_added_to_a_claimed_blob(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            data, digest = some_bytes(1000)
            await write_blob(store, data)
            writer = await store.writer(OTHER, "ref", total=1000, expected=digest)
            longer = data + b"appended bytes"
            await writer.write(b"appended bytes")
            assert writer.status().offset == len(longer)
            await writer.commit(size=len(longer), expected=Digest.of(longer))
            await writer.close()
            assert await read_blob(store, digest) == data
            assert await read_blob(store, Digest.of(longer), namespace=OTHER) == longer
            with pytest.raises(NotFoundError):
                await store.info(OTHER, digest)

        self.run(tmp_path, test)

    def test_a_claimed_blob_can_be_sent_all_the_same(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            data, digest = some_bytes(1000)
            await write_blob(store, data)
            writer = await store.writer(OTHER, "ref", total=1000, expected=digest)
            await writer.truncate()
            assert writer.status().offset == 0
            await writer.write(data)
            await writer.commit(size=1000, expected=digest)
            await writer.close()
            assert await read_blob(store, digest, namespace=OTHER) == data

        self.run(tmp_path, test)

    def test_another_size_means_another_blob(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            data, digest = some_bytes(1000)
            await write_blob(store, data)
            writer = await store.writer(OTHER, "ref", total=999, expected=digest)
            assert writer.status().offset == 0
            await writer.close()

        self.run(tmp_path, test)

    def test_aborting_a_claim_leaves_the_owner_alone(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            data, digest = some_bytes(1000)
            await write_blob(store, data)
            writer = await store.writer(OTHER, "ref", expected=digest)
            await writer.close()
            await store.abort(OTHER, "ref")
            assert await read_blob(store, digest) == data
            with pytest.raises(NotFoundError):
                await store.info(OTHER, digest)

        self.run(tmp_path, test)


class IsolatedContract(Contract):
    """What holds between namespaces where the bytes must be shown."""

    def test_naming_a_blob_is_not_enough(self, tmp_path: Path) -> None:
        async def test(store: Store) -> None:
            data, digest = some_bytes(1000)
            await write_blob(store, data)
            writer = await store.writer(OTHER, "ref", total=1000, expected=digest)
            assert writer.status().offset == 0
            assert writer.digest() == EMPTY_SHA256
            await writer.write(data)
            await writer.commit(size=1000, expected=digest)
            await writer.close()
            assert await read_blob(store, digest, namespace=OTHER) == data

        self.run(tmp_path, test)
