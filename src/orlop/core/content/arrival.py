"""The bytes of an ingest for who reads along while they come."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from orlop.base.errdefs import AbortedError
from orlop.core.content import Reader
from orlop.oci.digest import Digest

_PIECE: Final = 1 << 20


class Arrival:
    """An ingest that is being written, as a `Reader` of what it will be: reading waits for what has not come.

    Belongs to one event loop. Its writer tells it what has come, and how it ended.

    Attributes:
        namespace: whose it is.
        size: bytes that will come, as its writer has announced them.
        blob: the digest under which the namespace has it in the end; cancelled if nothing came of it, and if it became
            something else than was read here.
        grown_at: when something came last, as `time.monotonic` has it.
    """

    fd: Final = None  # what the file ends with now is not the blob's end

    def __init__(self, namespace: str, size: int, follow: Callable[[], Reader | None]) -> None:
        self.namespace = namespace
        self.size = size
        self.blob: asyncio.Future[Digest] = asyncio.get_running_loop().create_future()
        self.grown_at = time.monotonic()
        self._follow = follow
        self._reader: Reader | None = None
        self._here = 0
        self._more = asyncio.Event()

    # For who reads.

    def open(self) -> bool:
        """Begin to read; whoever does also closes it. False if the bytes are not on this machine."""
        self._reader = self._follow()
        return self._reader is not None

    async def read_at(self, offset: int, length: int) -> bytes:
        """What has come from `offset` on, at least one byte and at most `length`.

        Raises:
            AbortedError: nothing more will come, and there is no blob.
        """
        while offset >= self._here and not self.blob.done():
            self._more.clear()
            await self._more.wait()
        if self.blob.cancelled() or self._reader is None:
            raise AbortedError("the ingest was given up")
        return await self._reader.read_at(offset, min(length, self._here - offset, _PIECE))

    def close(self) -> None:
        """Read no more; idempotent."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    # For the writer.

    def grew(self, offset: int) -> None:
        """So many bytes are there."""
        self._here = offset
        self.grown_at = time.monotonic()
        self._more.set()

    def end(self, blob: Digest | None) -> None:
        """Nothing more comes: it is this blob now, or none."""
        if blob is not None and self._here == self.size:
            self.blob.set_result(blob)
        else:
            self.blob.cancel()
        self._more.set()
