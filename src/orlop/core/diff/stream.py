"""The bytes of a layer blob: which compression, uncompressed chunks, and their digest, on threads of their own.

Inflating and hashing happen in C without the GIL, so they run beside the thread that parses and extracts. Queues
between them hold a few chunks; whoever is slow stops the others. Output is taken from the decompressors in bounded
pieces, so a bomb costs time and never memory.
"""

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Final, Protocol, cast

from orlop.core.diff.errors import ArchiveError, LimitError

CHUNK: Final = 1 << 18
"""Bytes per uncompressed chunk, at most. Chunks of a megabyte leave the processor's cache before they are hashed and
written, and each takes fresh pages from the kernel: a tenth of an unpacking's time."""
PLAIN_CHUNK: Final = 1 << 20
"""Bytes per chunk where nothing was compressed."""

HEAD: Final = 512
"""Bytes that tell what a blob is."""

_READ: Final = 1 << 18
_DEPTH: Final = 8
_GZIP: Final = b"\x1f\x8b\x08"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_WINDOW_LOG_MAX: Final = 27  # 128 MiB: the most that a frame may make us allocate


Read = Callable[[int], bytes]


class Compression(StrEnum):
    """How a layer blob is compressed; the values are image-spec's media type suffixes."""

    NONE = ""
    GZIP = "gzip"
    ZSTD = "zstd"


class _Decompressor(Protocol):
    """The standard library's shape (bz2, compression.zstd), which isal has too."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def detect(head: bytes) -> Compression:
    """The compression by the blob's first bytes; containerd too believes these rather than the media type."""
    if head.startswith(_GZIP):
        return Compression.GZIP
    if head.startswith(_ZSTD) or (head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):  # or a skippable frame
        return Compression.ZSTD
    return Compression.NONE


def is_layer(head: bytes) -> bool:
    """Whether a blob that begins so may be one: compressed, or a tar archive. Wants `HEAD` bytes."""
    return detect(head) is not Compression.NONE or head[257:262] == b"ustar"


class Growing:
    """A file that is still coming.

    Args:
        fd: the file, read from its present offset.
        more: an eventfd that counts the bytes as they come.
        total: bytes that there will be.
    """

    def __init__(self, fd: int, more: int, total: int) -> None:
        self._fd = fd
        self._more = more
        self._left = total
        self._here = 0

    def read(self, size: int) -> bytes:
        """Up to so many bytes, once there are any; none at the end."""
        if not self._left:
            return b""
        while not self._here:
            self._here = os.eventfd_read(self._more)
        data = os.read(self._fd, min(size, self._here, self._left))
        if not data:
            raise ArchiveError("the file ends before what was told of it")
        self._here -= len(data)
        self._left -= len(data)
        return data


def uncompressed(read: Read) -> Iterator[bytes]:
    """The uncompressed chunks of a blob whose bytes `read(size)` gives (empty at the end).

    Several gzip members or zstd frames follow each other as one stream; zeros after the last gzip member are padding.

    Raises:
        ArchiveError: the compressed stream is damaged, cut, or followed by something else.
    """
    head = read(_READ)
    while 0 < len(head) < 4 and (more := read(_READ)):
        head += more
    compression = detect(head)
    if compression is Compression.NONE:
        while head:
            yield head
            head = read(PLAIN_CHUNK)
        return
    yield from _members(head, read, compression)


def _members(data: bytes, read: Read, compression: Compression) -> Iterator[bytes]:
    make, errors = decompressor(compression)
    while True:
        inflater = make()
        while not inflater.eof:
            if inflater.needs_input and not data:
                data = read(_READ)
                if not data:
                    raise ArchiveError(f"the {compression} stream ends too early")
            try:
                chunk = inflater.decompress(data, CHUNK)
            except errors as error:
                raise ArchiveError(f"the {compression} stream is damaged: {error}") from error
            data = b""
            if chunk:
                yield chunk
        data = inflater.unused_data or read(_READ)
        if compression is Compression.GZIP and data.startswith(b"\0"):
            while data:
                if data.strip(b"\0"):
                    raise ArchiveError("something else than padding follows the gzip stream")
                data = read(_READ)
        if not data:
            return


def decompressor(compression: Compression) -> tuple[Callable[[], _Decompressor], tuple[type[Exception], ...]]:
    """How to make one, and what it raises. Imported late: a worker needs one of them, its importers none."""
    if compression is Compression.ZSTD:
        try:
            from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14
        except ImportError:
            from backports import zstd
        options = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG_MAX}
        return (lambda: zstd.ZstdDecompressor(options=options)), (zstd.ZstdError, EOFError)
    import zlib

    try:
        from isal import igzip_lib
    except ImportError:  # no wheel for this machine
        return lambda: _Zlib(), (zlib.error,)  # noqa: PLW0108 - a class is not a callable that returns the protocol
    failure = cast("type[Exception]", igzip_lib.error)  # isal's stubs call the class an instance
    return (lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)), (failure, EOFError)


class _Zlib:
    """zlib's decompressor in the shape of the others."""

    def __init__(self) -> None:
        import zlib

        self._inner = zlib.decompressobj(wbits=31)
        self._full = False  # the last output was cut, so more may come without input

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._full and not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        out = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self._full = len(out) == max_length
        return out


class Pipeline:
    """Uncompresses and hashes a blob on two threads while the caller iterates over the chunks.

    Args:
        read: gives up to so many bytes of the blob, none at its end; called on one thread.
        limit: uncompressed bytes beyond which the blob is refused.

    Attributes:
        size: uncompressed bytes so far, complete when iteration has ended.
        consumed: compressed bytes read so far.
    """

    def __init__(self, read: Read, *, limit: int) -> None:
        self._read_blob = read
        self._limit = limit
        self._chunks: queue.Queue[bytes | BaseException | None] = queue.Queue(_DEPTH)
        self._to_hash: queue.Queue[bytes | None] = queue.Queue(_DEPTH)
        self._hash = hashlib.sha256()
        self._go = threading.Event()
        self.size = 0
        self.consumed = 0
        self._threads = [
            threading.Thread(target=self._inflate, name="inflate", daemon=True),
            threading.Thread(target=self._digest, name="digest", daemon=True),
        ]

    def start(self) -> None:
        """Create the threads, which wait until the first chunk is asked for (a sandbox can be closed in between)."""
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[bytes]:
        self._go.set()
        while True:
            item = self._chunks.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def finish(self) -> str:
        """The digest of all chunks, once iteration has ended."""
        for thread in self._threads:
            thread.join()
        return f"sha256:{self._hash.hexdigest()}"

    def _read(self, size: int) -> bytes:
        data = self._read_blob(size)
        self.consumed += len(data)
        return data

    def _inflate(self) -> None:
        self._go.wait()
        end: BaseException | None = None
        try:
            for chunk in uncompressed(self._read):
                self.size += len(chunk)
                if self.size > self._limit:
                    raise LimitError(f"more than {self._limit} bytes uncompressed")
                self._to_hash.put(chunk)
                self._chunks.put(chunk)
        except BaseException as error:  # raised again in the thread that iterates
            end = error
        self._to_hash.put(None)
        self._chunks.put(end)

    def _digest(self) -> None:
        while (chunk := self._to_hash.get()) is not None:
            self._hash.update(chunk)
