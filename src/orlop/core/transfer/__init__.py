"""Moving images: between registries, archives and the stores, and from layers into snapshots.

The work is written once, against the protocols here. A client implements them over the API (`orlop.client.stores`), the
daemon's transfer service over its own stores (`orlop.plugins.transfer`); what they promise, errors included, is what
`core.content`, `core.snapshots` and `core.diff` promise, for one namespace and one lease.

    fetch.py     content from a registry, each blob once     push.py       content to a registry
    unpack.py    layers into snapshots                       pull.py       a whole pull, unpacking beside the download
    importing.py archives into the content store             exporting.py  images into archives
    naming.py    how images are called that come from archives

Source: containerd's core/transfer, core/unpack, core/remotes/handlers.go and core/images/archive.
"""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, Self

from orlop.base.errdefs import AlreadyExistsError, OutOfRangeError
from orlop.core.mount import Mount
from orlop.oci.image import Descriptor

CHUNK_BYTES: Final = 1 << 20
"""What is read and written at once; below the 4 MiB at which foreign peers' ttrpc frames end."""

MAX_READ_BYTES: Final = 64 << 20
"""What `read_blob` accepts without being told more: manifests and configurations are far smaller."""


class BlobInfo(Protocol):
    """A namespace's record of a blob."""

    @property
    def digest(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def labels(self) -> Mapping[str, str]: ...


class Ingest(Protocol):
    """An open write; leaving it without a commit keeps what was written, for whoever opens its ref again."""

    @property
    def offset(self) -> int:
        """Bytes written so far, those of earlier attempts included."""
        ...

    async def write(self, data: bytes) -> None: ...
    async def truncate(self) -> None: ...

    async def commit(self, *, size: int = 0, expected: str = "", labels: Mapping[str, str] | None = None) -> str:
        """Turn it into a blob, wholly or not at all, and return the digest. Raises as `core.content.Writer.commit`."""
        ...

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc: object) -> None: ...


class Content(Protocol):
    """The content of a namespace; what is made belongs to the operation's lease."""

    async def info(self, digest: str) -> BlobInfo:
        """Raises NotFoundError."""
        ...

    async def exists(self, digest: str) -> bool: ...

    async def label(self, digest: str, labels: Mapping[str, str]) -> BlobInfo:
        """Set labels and keep the others."""
        ...

    def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[BlobInfo]: ...

    def chunks(self, digest: str, *, offset: int = 0, size: int = 0) -> AsyncGenerator[bytes, None]:
        """A blob's bytes from `offset`, `size` of them or, when 0, to the end."""
        ...

    async def read(self, digest: str) -> bytes:
        """The whole of a small blob."""
        ...

    async def write(self, ref: str, data: bytes, *, expected: str = "", labels: Mapping[str, str] | None = None) -> str:
        """Store bytes as a blob, and return its digest; it may be there already."""
        ...

    async def offset(self, ref: str) -> int:
        """How far an ingest is, whoever writes it. Raises NotFoundError."""
        ...

    async def writer(self, ref: str, *, size: int = 0, expected: str = "") -> Ingest:
        """Raises AlreadyExistsError if the blob is there, UnavailableError while someone else writes the ref."""
        ...

    async def abort(self, ref: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A name with its target."""

    name: str
    target: Descriptor
    labels: Mapping[str, str]


class Images(Protocol):
    """The images of a namespace."""

    async def named(self, name: str) -> Named:
        """Raises NotFoundError."""
        ...

    async def put(self, name: str, target: Descriptor, labels: Mapping[str, str]) -> Named:
        """Make the image, or move the one of that name."""
        ...


class Snapshots(Protocol):
    """The snapshots of a namespace in one snapshotter."""

    @property
    def name(self) -> str:
        """The snapshotter's."""
        ...

    async def exists(self, key: str) -> bool: ...

    async def prepare(self, key: str, parent: str = "", *, labels: Mapping[str, str] | None = None) -> list[Mount]:
        """Raises AlreadyExistsError; with the label `containerd.io/snapshot.ref` also if what it names is there."""
        ...

    async def commit(self, name: str, key: str, *, labels: Mapping[str, str] | None = None) -> None: ...
    async def remove(self, key: str) -> None: ...


class Applier(Protocol):
    """What unpacks layers."""

    async def apply(self, layer: Descriptor, mounts: Sequence[Mount]) -> Descriptor:
        """Unpack a layer of the content store onto mounts; the answer's digest is the layer's DiffID."""
        ...


class Stores(Protocol):
    """Where a transfer works: one namespace, one lease."""

    @property
    def content(self) -> Content: ...
    @property
    def images(self) -> Images: ...
    @property
    def applier(self) -> Applier: ...

    def snapshots(self, snapshotter: str) -> Snapshots:
        """Raises InvalidArgumentError if there is no such snapshotter."""
        ...


async def read_blob(content: Content, digest: str, *, max_bytes: int = MAX_READ_BYTES) -> bytes:
    """The whole of a small blob; for implementations of `Content.read`.

    Raises:
        NotFoundError: there is no such blob.
        OutOfRangeError: it is larger than `max_bytes`.
    """
    found = bytearray()
    chunks = content.chunks(digest)
    try:
        async for chunk in chunks:
            found += chunk
            if len(found) > max_bytes:
                raise OutOfRangeError(f"blob {digest} is larger than the {max_bytes} bytes that were expected")
    finally:
        await chunks.aclose()
    return bytes(found)


async def write_blob(
    content: Content, ref: str, data: bytes, *, expected: str = "", labels: Mapping[str, str] | None = None
) -> str:
    """Store bytes as a blob; for implementations of `Content.write`."""
    digest = expected or f"sha256:{hashlib.sha256(data).hexdigest()}"
    try:
        async with await content.writer(ref, size=len(data), expected=digest) as writer:
            if writer.offset:
                await writer.truncate()
            await writer.write(data)
            return await writer.commit(size=len(data), expected=digest, labels=labels)
    except AlreadyExistsError:
        if labels:
            await content.label(digest, labels)
        return digest
