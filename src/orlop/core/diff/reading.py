"""A blob for processes: a descriptor that gives its bytes, whether they are a file here or come from elsewhere.

What is no file here is pumped through a pipe as it is read; whoever is slow stops the other.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
from collections.abc import AsyncIterator
from typing import Final

from orlop.base.errdefs import DataLossError
from orlop.base.settling import settle
from orlop.core.content import Reader
from orlop.core.diff.workers import writable

_PIPE: Final = 1 << 20
_READ: Final = 4 << 20
"""Bytes that are asked of a blob elsewhere at a time; a question costs about as much as a megabyte."""


@contextlib.asynccontextmanager
async def reading(blob: Reader, name: str) -> AsyncIterator[int]:
    """Yield a descriptor to read all of `blob` from, once; it stays ours. A file is read from where it stands.

    Args:
        name: of the blob, for errors.

    Raises on leaving:
        DataLossError: the blob ended too early.
        Whatever made reading it fail, instead of the failure that came of it to whoever read.
    """
    if blob.fd is not None:
        yield blob.fd
        return
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        os.set_blocking(write_end, False)
        with contextlib.suppress(PermissionError):  # beyond the user's share of pipe pages
            fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, _PIPE)
        pump = asyncio.create_task(_pump(blob, name, write_end))
        try:
            yield read_end
        except Exception as error:
            if (failed := await _ended(pump)) is not None:
                raise failed from error
            raise
        finally:
            failed = await _ended(pump)
        if failed is not None:
            raise failed
    finally:
        os.close(read_end)


async def _pump(blob: Reader, name: str, target: int) -> None:
    """All of a blob into a pipe, whose end is closed afterwards."""
    try:
        at = 0
        while at < blob.size:
            data = await blob.read_at(at, min(_READ, blob.size - at))
            if not data:
                raise DataLossError(f"content {name}: ends at {at} of {blob.size} bytes")
            at += len(data)
            await _write(target, data)
    finally:
        os.close(target)


async def _write(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(target, view) :]
        except BlockingIOError:
            await writable(target)


async def _ended(pump: "asyncio.Task[None]") -> BaseException | None:
    """Stop it where it is; returns what it failed with. Nobody reading any more is no failure."""
    pump.cancel()
    await settle(asyncio.wait([pump]))
    if pump.cancelled():
        return None
    error = pump.exception()
    return None if isinstance(error, OSError) and error.errno == errno.EPIPE else error
