"""Content: immutable bytes by digest, and the ingests that become them.

A *blob* is named by the digest of its bytes. A namespace has a right to a blob when it has a record of it (`Info`); the
bytes are there once for all namespaces. A blob comes into being by an *ingest*, an unfinished write under a `ref` that
the caller chooses: whoever opens the same `ref` again, after a restart of the daemon too, goes on where it ended.

A store is asked with the namespace as the first argument of everything. Times are nanoseconds since the epoch, UTC.

Source: containerd's core/content/content.go.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from orlop.base import filters
from orlop.oci.digest import Digest

if TYPE_CHECKING:
    from orlop.core.content.arrival import Arrival

__all__ = ["Info", "Reader", "SharingPolicy", "Status", "Store", "Writer", "adapt_info", "adapt_status"]


class SharingPolicy(StrEnum):
    """Whether naming a digest is enough to get a right to a blob that another namespace brought.

    Under `isolated` it is not, and the bytes must be sent, unless a namespace has the blob that is labelled
    `containerd.io/namespace.shareable=true`.
    """

    SHARED = "shared"
    ISOLATED = "isolated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """A namespace's record of a blob."""

    digest: Digest
    size: int
    created_at: int = 0
    updated_at: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """An ingest: `offset` bytes of `total` (0 where it is not known) are there.

    `expected` is set only where the ingest stands for a blob that the store has already.
    """

    ref: str
    offset: int = 0
    total: int = 0
    expected: str = ""
    started_at: int = 0
    updated_at: int = 0


class Reader(Protocol):
    """An open blob; it stays readable until it is closed, also when the blob is deleted meanwhile."""

    @property
    def size(self) -> int:
        """Bytes of the whole blob."""
        ...

    @property
    def fd(self) -> int | None:
        """A descriptor of the blob's file for whoever holds the reader, or None if it is no file of this machine."""
        ...

    async def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end."""
        ...

    def close(self) -> None: ...


class Writer(Protocol):
    """An open ingest. There is one writer per ref at a time; whoever opens one closes it."""

    def status(self) -> Status: ...

    def digest(self) -> Digest:
        """The digest of the bytes so far."""
        ...

    async def write(self, data: bytes) -> None:
        """Append `data` wholly.

        Raises:
            FailedPreconditionError: the writer is closed.
            AbortedError: the ingest was aborted meanwhile.
            ResourceExhaustedError: the disk is full; the ingest ends where it ended before.
        """
        ...

    async def truncate(self) -> None:
        """Forget all bytes and begin again."""
        ...

    async def commit(self, *, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> Info:
        """Turn this ingest into content, wholly or not at all, and close the writer.

        When this returns, the blob is synced to disk, renamed into place and visible to readers in this namespace, and
        the ingest is gone.

        Args:
            size: expected length in bytes; checked unless it is 0.
            expected: digest that the bytes must have; checked unless it is empty.
            labels: of the new record.

        Raises:
            FailedPreconditionError: size or digest differ; the ingest stays and can be opened again.
            InvalidArgumentError: a label is too long; the ingest stays.
            AlreadyExistsError: this namespace has the blob; the ingest is gone.
        """
        ...

    async def close(self) -> None:
        """Keep what there is for whoever opens the ref again; nothing happens after a commit."""
        ...


class Store(Protocol):
    """Content by namespace and digest."""

    async def info(self, namespace: str, digest: str) -> Info:
        """Raises NotFoundError if the namespace has no record of the blob."""
        ...

    async def update(self, namespace: str, digest: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        """Replace all labels, or those that `paths` name (`labels.<key>`; without a value the key is removed).

        Raises:
            NotFoundError: the namespace has no record of the blob.
            InvalidArgumentError: a path names something else, or a label is too long.
        """
        ...

    def walk(self, namespace: str, filters: Sequence[str] = ()) -> AsyncIterator[Info]:
        """The namespace's records in the order of their digests; fields are `digest`, `size`, `labels.<key>`."""
        ...

    async def delete(self, namespace: str, digest: str, *, lease: str = "") -> None:
        """Remove the namespace's record; the bytes go with the last one.

        Raises:
            NotFoundError: there is none.
        """
        ...

    async def reader(self, namespace: str, digest: str) -> Reader:
        """Open the blob.

        Raises:
            NotFoundError: the namespace has no record of it.
            DataLossError: there is a record, but the bytes have gone.
        """
        ...

    async def status(self, namespace: str, ref: str) -> Status:
        """Raises NotFoundError if there is no such ingest."""
        ...

    async def list_statuses(self, namespace: str, filters: Sequence[str] = ()) -> Sequence[Status]:
        """The namespace's ingests in the order of their refs; the field is `ref`."""
        ...

    async def writer(
        self,
        namespace: str,
        ref: str,
        *,
        total: int = 0,
        expected: str = "",
        lease: str = "",
        owner_uid: int | None = None,
    ) -> Writer:
        """Begin or resume the ingest `ref`.

        Where the store has the blob `expected` for another namespace and shares it, the writer stands at its end and
        can be committed without a byte sent.

        Raises:
            AlreadyExistsError: the namespace has a record of `expected` (which is now in the lease).
            UnavailableError: another writer has the ref; trying again may succeed.
            NotFoundError: the lease does not exist.
        """
        ...

    async def abort(self, namespace: str, ref: str, *, lease: str = "") -> None:
        """Throw an ingest away; its writer, if there is one, fails from then on.

        Raises:
            NotFoundError: there is no such ingest.
        """
        ...


class WatchedStore(Store, Protocol):
    """The daemon's own store, for who must know at once what happens in it.

    Attributes:
        on_labelled: called on the event loop with the namespace and what a blob's record is now that it was updated.
        on_blob: called on the event loop when a blob has come.
        on_arrival: called on the event loop when the first bytes of an ingest have come whose size is known.
        on_removed: called on the thread that writes metadata, with namespace and digest, when a record has gone.
        before_delete: awaited with namespace and digest before a client's deletion.
    """

    on_labelled: Callable[[str, Info], None] | None
    on_blob: Callable[[], None] | None
    on_arrival: "Callable[[Arrival], None] | None"
    on_removed: Callable[[str, str], None] | None
    before_delete: Callable[[str, str], Awaitable[None]] | None

    def find(self, namespace: str, digest: str) -> Info | None:
        """The namespace's record of a blob, if it has one. Does not wait."""
        ...


def adapt_info(info: Info) -> filters.Adaptor:
    """How a record shows itself to a filter. Source: core/content/adaptor.go."""
    return filters.adapt({"digest": info.digest, "size": str(info.size), "labels": info.labels})


def adapt_status(status: Status) -> filters.Adaptor:
    """How an ingest shows itself to a filter. Source: core/metadata/adaptors.go."""
    return filters.adapt({"ref": status.ref})
