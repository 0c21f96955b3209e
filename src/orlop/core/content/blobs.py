"""The bytes of a content store: where blobs and ingests lie. Who has a right to them is said by rows (`store`).

Blobs are named by digest, ingests by a key that the rows give. Neither knows of namespaces, leases or labels.

The order that keeps rows and bytes together is this. Bytes come first, durably (`Ingest.place`), then their row; from
the one until the other nobody removes them. On deletion the row goes first: `Blobs.discard` is called in the
transaction that removes the last one. So a crash leaves bytes without a row, which a sweep after the next start
removes, and never a row without bytes.

All is for one event loop, but for what takes a `Transaction`: that is called on the database's thread.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from orlop.base.errdefs import FailedPreconditionError
from orlop.core.content import Reader
from orlop.core.metadata import Transaction
from orlop.oci.digest import Digest

__all__ = ["Blobs", "Ingest", "require_expected"]

# Of what is expected and is no digest, an error shows as many characters.
_SHOWN_LENGTH = 256


class Ingest(Protocol):
    """The bytes of one ingest, for the writer that has it. Whoever makes it opens it, or never uses it.

    Attributes:
        offset: bytes so far.
        written_at: when they were last changed as far as is known on opening, in nanoseconds; else 0.
    """

    @property
    def offset(self) -> int: ...

    @property
    def written_at(self) -> int: ...

    async def exists(self) -> bool:
        """Whether there is anything of it yet."""
        ...

    async def open(self, *, fresh: bool) -> None:
        """Begin it, or go on with what is there; `fresh` forgets what there may be.

        Raises:
            ResourceExhaustedError: the disk is full.
            UnavailableError: the bytes lie elsewhere, and nobody answers there.
        """
        ...

    def follow(self, size: int) -> Reader | None:
        """Another reader of the `size` bytes that there will be; the caller's to close. None if they lie elsewhere.

        It goes on when they have become a blob, and what was written is never written again, but for `truncate`.
        """
        ...

    def digest(self) -> Digest:
        """The digest of the bytes so far."""
        ...

    async def write(self, data: bytes) -> None:
        """Append all of `data`, or nothing. Errors as `open`."""
        ...

    async def truncate(self) -> None:
        """Forget all bytes."""
        ...

    async def place(self, expected: str) -> Digest:
        """Make the bytes a blob, durably, and return its digest.

        From now on nobody removes the blob, until `recorded` or `take_back`. If this raises the ingest stays.

        Args:
            expected: digest that they must have, or empty.

        Raises:
            FailedPreconditionError: they have another one.
            Else as `open`.
        """
        ...

    def recorded(self, tx: Transaction) -> None:
        """The row of what was placed is written by `tx`, or is there. If `tx` is lost, `take_back` is called."""
        ...

    async def take_back(self) -> None:
        """What was placed gets no row: it goes unless another commit needs it, back into the ingest if that can be."""
        ...

    async def close(self, *, keep: bool) -> None:
        """Stop writing; `keep` has what is there for whoever opens it again. Idempotent."""
        ...

    async def remove(self) -> None:
        """Stop writing, and throw away what is left once the blob has its row; what stays is found by a sweep."""
        ...


class Blobs(Protocol):
    """Where the bytes of all namespaces lie, once each.

    Attributes:
        directory: where they are on this host's disk, or None if they lie elsewhere.
    """

    @property
    def directory(self) -> Path | None: ...

    def open(self, digest: str, size: int) -> Reader | None:
        """Open a blob that has a row. None if it is not there, as after a deletion that is not durable yet, or is not
        `size` bytes long, as far as can be told without waiting.
        """
        ...

    def flaw(self, digest: str, size: int) -> str:
        """What is wrong with a blob that has a row of that size, as far as can be told without waiting and without
        reading it; empty if nothing is.
        """
        ...

    async def look(self, digest: str, size: int) -> None:
        """Look after a blob that has a row, if that takes waiting, so that `flaw` tells of it.

        Raises nothing if it cannot be told: what was known before goes on to count.
        """
        ...

    def discard(self, tx: Transaction, digest: str) -> bool:
        """Throw a blob away whose last row is removed by `tx`, unless somebody is committing it.

        Called last of what `tx` does with the digest. Returns whether it goes.
        """
        ...

    def ingest(self, key: str, name: str, *, algorithm: str, total: int) -> Ingest:
        """The ingest of that key, not opened.

        Args:
            name: `<namespace>/<ref>`, for people.
            algorithm: of the digest that it will probably be asked for.
            total: bytes that will come, or 0.
        """
        ...

    def discard_ingest(self, tx: Transaction, key: str) -> bool:
        """Throw an ingest away whose row is removed by `tx`, open or not. Returns whether there was one."""
        ...

    async def measure(self, keys: Sequence[str]) -> Mapping[str, tuple[int, int]]:
        """How many bytes ingests have that nobody has open, and when they were last written; zeros if there is none."""
        ...

    def length(self, key: str) -> int:
        """How many bytes an ingest has, if that can be told without waiting; else 0."""
        ...

    def sweep(self) -> object:
        """Bring rows and bytes together again after a start, or begin to; blocks, in any thread but the event loop's.

        What it removes or misses is told in the log.
        """
        ...

    def close(self) -> None:
        """Wait for what is being done. Open ingests fail afterwards; what they have stays."""
        ...


def require_expected(digest: str, expected: str) -> None:
    """Raises FailedPreconditionError if `expected` is another digest than the bytes have."""
    if expected not in {"", digest}:
        raise FailedPreconditionError(f"unexpected commit digest {digest}, expected {expected[:_SHOWN_LENGTH]}")
