"""The bytes of an ingest for who reads along while they come."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from orlop.base.errdefs import AbortedError
from orlop.core.content import Reader
from orlop.oci.digest import Digest


@dataclass(frozen=True, slots=True)
class Coming:
    """What another process is told of a file that grows.

    Attributes:
        more: an eventfd whose value is how many bytes have come since it was read last.
        total: bytes that will come.
    """

    more: int
    total: int


class Arrival:
    """An ingest that is being written. Belongs to one event loop; its writer tells what has come, and how it ended.

    As a `Reader` it gives what is there.

    Attributes:
        namespace: whose it is.
        size: bytes that will come, as its writer has announced them.
        blob: the digest under which the namespace has it in the end; cancelled if nothing came of it, and if it became
            something else than was announced.
        grown_at: when something came last, as `time.monotonic` has it.
    """

    def __init__(self, namespace: str, size: int, follow: Callable[[], Reader | None]) -> None:
        self.namespace = namespace
        self.size = size
        self.blob: asyncio.Future[Digest] = asyncio.get_running_loop().create_future()
        self.grown_at = time.monotonic()
        self._follow = follow
        self._reader: Reader | None = None
        self._here = 0
        self._more = -1

    # For who reads.

    def open(self) -> bool:
        """Begin to read; whoever does also closes it. False if the bytes are in no file of this machine."""
        self._reader = self._follow()
        return self._reader is not None

    @property
    def fd(self) -> int | None:
        """A descriptor of the file, which ends somewhere; to be read only."""
        return None if self._reader is None else self._reader.fd

    async def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes of those that are there now.

        Raises:
            AbortedError: it is not open.
        """
        if self._reader is None:
            raise AbortedError("the ingest is not read")
        return await self._reader.read_at(offset, max(0, min(length, self._here - offset)))

    @contextlib.contextmanager
    def told(self) -> Iterator[Coming]:
        """Have another process told how far it can read the file, from the beginning on."""
        self._more = os.eventfd(self._here, os.EFD_CLOEXEC)
        try:
            yield Coming(self._more, self.size)
        finally:
            more, self._more = self._more, -1
            os.close(more)

    def close(self) -> None:
        """Read no more; idempotent."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    # For the writer.

    def grew(self, offset: int) -> None:
        """So many bytes are there."""
        if self._more >= 0 and offset > self._here:
            os.eventfd_write(self._more, offset - self._here)
        self._here = offset
        self.grown_at = time.monotonic()

    def end(self, blob: Digest | None) -> None:
        """Nothing more comes: it is this blob now, or none."""
        if blob is not None and self._here == self.size:
            self.blob.set_result(blob)
        else:
            self.blob.cancel()
