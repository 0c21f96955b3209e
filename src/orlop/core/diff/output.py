"""The other end of a layer that is made: hashed, compressed and written on threads of its own.

Hashing and compressing happen in C without the GIL, so they run beside the thread that walks and reads. Between them
lie a few chunks; whoever is slow stops the others.

gzip is written by isal at its highest level: some 370 MB/s where zlib's default gives 40, for a tenth more bytes. The
same archive gives the same bytes, as long as the library is the same.
"""

import hashlib
import os
import queue
import threading
from collections.abc import Callable
from typing import Final, Protocol

from orlop.core.diff.stream import PLAIN_CHUNK, Compression

_DEPTH: Final = 8
_ISAL_LEVEL: Final = 3
_ZLIB_LEVEL: Final = 6
_ZSTD_LEVEL: Final = 3
_GZIP: Final = 31  # zlib's name for a window of 32 KiB inside gzip's frame


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class Output:
    """Takes an archive and writes it, compressed, to a descriptor.

    Args:
        fd: a pipe or file, stays the caller's.
        compression: of what is written.

    Attributes:
        written: bytes that have gone to `fd`.
    """

    def __init__(self, fd: int, compression: Compression) -> None:
        self._fd = fd
        self._compressor = compressor(compression)() if compression is not Compression.NONE else None
        self._hash = hashlib.sha256()
        self._pending: list[bytes] = []
        self._size = 0
        self._error: BaseException | None = None
        self._queues = [queue.Queue[bytes | None](_DEPTH), queue.Queue[bytes | None](_DEPTH)]
        self._threads = [
            threading.Thread(target=self._consume, args=args, daemon=True, name=args[1].__name__)
            for args in zip(self._queues, (self._hash.update, self._store), strict=True)
        ]
        self.written = 0

    def start(self) -> None:
        """Create the threads, which wait for the first bytes (a sandbox can be closed in between)."""
        for thread in self._threads:
            thread.start()

    def write(self, data: bytes) -> None:
        """Take some bytes. Raises OSError if those before could not be written."""
        self._pending.append(data)
        self._size += len(data)
        if self._size >= PLAIN_CHUNK:
            self._pass_on()

    def finish(self) -> str:
        """Write all that is left, end the threads, and return the digest of the archive, uncompressed.

        Raises as `write`; the threads have ended then too.
        """
        try:
            if self._pending:
                self._pass_on()
        finally:
            self._end()
        if self._error is None and self._compressor is not None:
            self._send(self._compressor.flush())
        if self._error is not None:
            raise self._error
        return f"sha256:{self._hash.hexdigest()}"

    def _end(self) -> None:
        for waiting in self._queues:
            waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _pass_on(self) -> None:
        if self._error is not None:
            raise self._error
        data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
        self._pending.clear()
        self._size = 0
        for waiting in self._queues:
            waiting.put(data)

    def _consume(self, waiting: "queue.Queue[bytes | None]", take: Callable[[bytes], object]) -> None:
        while (data := waiting.get()) is not None:
            if self._error is not None:
                continue  # empty the queue, or who fills it would wait forever
            try:
                take(data)
            except BaseException as error:  # raised again in the thread that writes
                self._error = error

    def _store(self, data: bytes) -> None:
        self._send(data if self._compressor is None else self._compressor.compress(data))

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            count = os.write(self._fd, view)
            self.written += count
            view = view[count:]


def compressor(compression: Compression) -> Callable[[], _Compressor]:
    """How to make a compressor. Imported late: a worker needs one of them, its importers none."""
    if compression is Compression.ZSTD:
        try:
            from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14
        except ImportError:
            from backports import zstd
        return lambda: zstd.ZstdCompressor(level=_ZSTD_LEVEL)
    try:
        from isal import isal_zlib
    except ImportError:  # no wheel for this machine
        import zlib

        return lambda: zlib.compressobj(_ZLIB_LEVEL, zlib.DEFLATED, _GZIP)
    return lambda: isal_zlib.compressobj(_ISAL_LEVEL, isal_zlib.DEFLATED, _GZIP)
