"""Images out of tar archives: OCI layouts and what `docker save` writes.

Both are read in one pass, as a stream. An OCI layout has `oci-layout`, `index.json` and `blobs/<algorithm>/<hex>`; a
Docker archive has `manifest.json`, which names files of the archive as configuration and layers. Every blob goes into
the content store under the digest that its bytes have; what a file is called proves nothing.

Source: ImportIndex in containerd's core/images/archive.
"""

import contextlib
import hashlib
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

from orlop.base import json_text, references
from orlop.base.errdefs import AlreadyExistsError, InvalidArgumentError, NotFoundError, OrlopError
from orlop.base.labels import UNCOMPRESSED
from orlop.base.platforms import ALL, Matcher
from orlop.core.diff import tar
from orlop.core.diff.errors import ArchiveError
from orlop.core.diff.stream import uncompressed
from orlop.core.diff.tar import Reader
from orlop.core.images.gc_labels import child_labels, label_of
from orlop.core.images.handlers import MAX_DEPTH, select
from orlop.core.transfer import Content
from orlop.core.transfer.naming import NAME_ANNOTATION, REF_ANNOTATION
from orlop.core.transfer.progress import Callback, Progress, Status
from orlop.core.transfer.threads import Thread
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import (
    MAX_MANIFEST_SIZE,
    Descriptor,
    Index,
    Manifest,
    Platform,
    decode_image,
    decode_index,
    decode_manifest,
    encode,
)

LAYOUT_VERSION: Final = "1.0.0"
MAX_ENTRIES: Final = 1 << 16
"""Headers of an archive; an image has a few dozen."""
MAX_NAMES: Final = 16 << 20
"""Bytes of all names and link targets together."""
MAX_PADDING: Final = 16 << 20
"""Bytes after an archive's end."""
MAX_LISTED: Final = 4096
"""Layers of an image, and names in a Docker archive."""
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_GZIP_WBITS: Final = 31  # zlib's way to ask for gzip's header


async def import_archive(
    content: Content, source: IO[bytes], *, compress: bool = False, progress: Callback
) -> Descriptor:
    """Store an archive's blobs and return its index, made here for a Docker archive.

    Args:
        source: a file that is read to its end in a thread; plain, gzip or zstd.
        compress: compress layers of a Docker archive that come plain.

    Raises:
        InvalidArgumentError: it is no archive of images; the text says what is wrong.
    """
    async with Thread("orlop-import") as thread:
        return await _Reader(content, thread, source, compress, progress).read()


async def keep(
    content: Content,
    descriptor: Descriptor,
    matcher: Matcher = ALL,
    *,
    key_of: Callable[[Descriptor], str | None] = label_of,
) -> None:
    """Label what is below a descriptor, so that the collector keeps it; entries of other platforms may be missing.

    Args:
        key_of: see `gc_labels.child_labels`.

    Raises:
        NotFoundError: a blob that is wanted is not in the archive.
    """
    await _keep(content, descriptor, matcher, key_of, set(), 0)


async def _keep(
    content: Content,
    descriptor: Descriptor,
    matcher: Matcher,
    key_of: Callable[[Descriptor], str | None],
    seen: set[tuple[str, str]],
    depth: int,
) -> None:
    if depth > MAX_DEPTH:
        raise InvalidArgumentError(f"indexes of the archive are nested more than {MAX_DEPTH} deep")
    # An index may name another a thousand times, and that one the next.
    if (descriptor.digest, descriptor.media_type) in seen:
        return
    seen.add((descriptor.digest, descriptor.media_type))
    if media_types.is_index(descriptor.media_type):
        blob = await _wanted(content, descriptor, "index")
        children: Sequence[Descriptor] = decode_index(blob, what=f"index {descriptor.digest}").manifests
        for child in select(children, None if matcher.match_all else matcher):
            await _keep(content, child, matcher, key_of, seen, depth + 1)
    elif media_types.is_manifest(descriptor.media_type):
        blob = await _wanted(content, descriptor, "manifest")
        manifest = decode_manifest(blob, what=f"manifest {descriptor.digest}")
        children = (manifest.config, *manifest.layers)
        for one in children:
            # A layer that may not be passed on need not be in an archive.
            if not media_types.is_nondistributable(one.media_type) and not await content.exists(one.digest):
                raise NotFoundError(f"archive: blob {one.digest} of manifest {descriptor.digest}")
    else:
        return
    if labels := child_labels(children, key_of):
        await content.label(descriptor.digest, labels)


async def _wanted(content: Content, descriptor: Descriptor, kind: str) -> bytes:
    try:
        return await content.read(descriptor.digest)
    except NotFoundError as error:
        raise NotFoundError(f"archive: {kind} {descriptor.digest}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """A file or a link of an archive; `kind` is one of core.diff.tar's."""

    kind: int
    name: str
    link: str
    size: int


class _Reader:
    """One pass over an archive."""

    def __init__(self, content: Content, thread: Thread, source: IO[bytes], compress: bool, progress: Callback) -> None:
        self._content = content
        self._thread = thread
        self._source = source
        self._compress = compress
        self._progress = progress
        self._files: dict[str, Descriptor] = {}
        self._links: dict[str, str] = {}
        self._layout = ""
        self._docker: Any = None  # the JSON of manifest.json

    async def read(self) -> Descriptor:
        archive = _Archive(self._source)
        while (member := await self._thread.run(archive.next)) is not None:
            await self._take(archive, member)
        if self._layout:
            if self._layout != LAYOUT_VERSION:
                raise InvalidArgumentError(f"archive: unsupported OCI layout version {self._layout!r}")
            index = self._files.get("index.json")
            if index is None:
                raise InvalidArgumentError("archive: OCI layout without index.json")
            return Descriptor(media_type=media_types.OCI_INDEX, digest=index.digest, size=index.size)
        if self._docker is None:
            raise InvalidArgumentError("unrecognized image format: neither oci-layout nor manifest.json is there")
        return await self._docker_index()

    async def _take(self, archive: "_Archive", member: _Member) -> None:
        name = posixpath.normpath(member.name)
        if member.kind != tar.REGULAR:
            hard = member.kind == tar.LINK
            target = member.link if hard else posixpath.join(posixpath.dirname(name), member.link)
            self._links[name] = posixpath.normpath(target)
            return
        if name in ("oci-layout", "manifest.json"):
            if member.size > MAX_MANIFEST_SIZE:
                raise InvalidArgumentError(f"archive: {name} has {member.size} bytes")
            try:
                value = json_text.loads(await self._thread.run(archive.whole))
            except ValueError as error:
                raise InvalidArgumentError(f"archive: {name} is no JSON: {error}") from error
            if name == "oci-layout":
                self._layout = str(value.get("imageLayoutVersion", "")) if isinstance(value, dict) else ""
            else:
                self._docker = value
            return
        self._files[name] = await self._store(name, archive, member.size)

    async def _store(self, name: str, archive: "_Archive", size: int) -> Descriptor:
        """Bring a file's bytes into the content store."""
        expected = _digest_of_path(name)
        ref = f"import-{expected or name}-{os.urandom(4).hex()}"
        shown = f"blob-{expected or name}"
        try:
            opened = await self._content.writer(ref, size=size, expected=expected)
        except AlreadyExistsError:
            # And now in the lease. Reading on past it is the tar reader's business.
            self._progress(Progress(ref=shown, status=Status.EXISTS, offset=size, total=size))
            return Descriptor(digest=Digest(expected), size=size)
        state = hashlib.sha256()
        try:
            async with opened as writer:
                # Another namespace may have the blob: then the store has the bytes, and shares them.
                there = writer.offset
                while chunk := await self._thread.run(archive.piece):
                    state.update(chunk)
                    fresh, there = chunk[there:], max(0, there - len(chunk))
                    if fresh:
                        await writer.write(fresh)
                    self._progress(Progress(ref=shown, status=Status.DOWNLOADING, offset=writer.offset, total=size))
                digest = expected or f"sha256:{state.hexdigest()}"
                await writer.commit(size=size, expected=digest)
        except AlreadyExistsError:
            digest = expected or f"sha256:{state.hexdigest()}"
        except BaseException:
            await self._abort(ref)
            raise
        self._progress(Progress(ref=shown, status=Status.DONE, offset=size, total=size))
        return Descriptor(digest=Digest(digest), size=size)

    async def _abort(self, ref: str) -> None:
        with contextlib.suppress(OrlopError):  # the first error tells; the lease lets go of the ingest
            await self._content.abort(ref)

    async def _docker_index(self) -> Descriptor:
        if not isinstance(self._docker, list):
            raise InvalidArgumentError("archive: manifest.json is no list")
        entries: list[Descriptor] = []
        for one in self._docker:
            if not isinstance(one, dict) or not isinstance(one.get("Config"), str):
                raise InvalidArgumentError("archive: manifest.json has an entry without Config")
            manifest = await self._docker_manifest(one)
            names = [name for name in one.get("RepoTags") or [] if isinstance(name, str)]
            entries += [manifest] if not names else [_named(manifest, name) for name in names]
            if len(entries) > MAX_LISTED:
                raise InvalidArgumentError(f"archive: manifest.json names more than {MAX_LISTED} images")
        return await self._write(encode(Index(manifests=tuple(entries))), media_types.OCI_INDEX)

    async def _docker_manifest(self, entry: dict[str, Any]) -> Descriptor:
        config_file = self._file(entry["Config"])
        blob = await self._content.read(config_file.digest)
        config = decode_image(blob, what=f"archive: {entry['Config']}")
        if not config.os or not config.architecture:
            raise InvalidArgumentError(f"archive: {entry['Config']} names no platform")
        listed = entry.get("Layers") or []
        if not isinstance(listed, list) or len(listed) > MAX_LISTED:
            raise InvalidArgumentError(f"archive: Layers of {entry['Config']} is no list, or of more than {MAX_LISTED}")
        layers = [await self._layer(self._file(str(name))) for name in listed]
        manifest = Manifest(
            media_type=media_types.DOCKER_MANIFEST,
            config=Descriptor(media_type=media_types.DOCKER_CONFIG, digest=config_file.digest, size=config_file.size),
            layers=tuple(layers),
        )
        written = await self._write(encode(manifest), media_types.DOCKER_MANIFEST)
        return Descriptor(
            media_type=written.media_type,
            digest=written.digest,
            size=written.size,
            platform=Platform.of(config.platform),
        )

    async def _layer(self, file: Descriptor) -> Descriptor:
        """A layer of a Docker archive: the blob that is known as its compressed form, or its own."""
        async for known in self._content.walk([f'labels."{UNCOMPRESSED}"=={file.digest}']):
            if known.digest != file.digest:
                found = Descriptor(digest=Digest(known.digest), size=known.size_bytes)
                return await self._typed(found)
        typed = await self._typed(file)
        if self._compress and typed.media_type == media_types.DOCKER_LAYER:
            return await self._compressed(file)
        return typed

    async def _typed(self, file: Descriptor) -> Descriptor:
        """With Docker's media type, by the first bytes: `docker save` of today compresses some."""
        start = b""
        async for chunk in self._content.chunks(file.digest, size=min(4, file.size)):
            start += chunk
        media_type = media_types.DOCKER_LAYER
        if start.startswith(_GZIP):
            media_type = media_types.DOCKER_LAYER_GZIP
        elif start.startswith(_ZSTD):
            media_type = media_types.DOCKER_LAYER_ZSTD
        return Descriptor(media_type=media_type, digest=file.digest, size=file.size)

    async def _compressed(self, file: Descriptor) -> Descriptor:
        from isal import isal_zlib

        ref = f"compress-blob-{file.digest}-{os.urandom(4).hex()}"
        squeezer = isal_zlib.compressobj(wbits=_GZIP_WBITS)
        state, size = hashlib.sha256(), 0
        try:
            async with await self._content.writer(ref) as writer:
                async for chunk in self._content.chunks(file.digest):
                    data = await self._thread.run(squeezer.compress, chunk)
                    state.update(data)
                    size += len(data)
                    await writer.write(data)
                data = await self._thread.run(squeezer.flush)
                state.update(data)
                size += len(data)
                await writer.write(data)
                digest = f"sha256:{state.hexdigest()}"
                await writer.commit(size=size, expected=digest, labels={UNCOMPRESSED: file.digest})
        except AlreadyExistsError:
            await self._content.label(digest, {UNCOMPRESSED: file.digest})
        except BaseException:
            await self._abort(ref)
            raise
        return Descriptor(media_type=media_types.DOCKER_LAYER_GZIP, digest=Digest(digest), size=size)

    def _file(self, name: str) -> Descriptor:
        path = posixpath.normpath(name)
        for _ in range(8):
            if path in self._files:
                return self._files[path]
            if path not in self._links:
                break
            path = self._links[path]
        raise NotFoundError(f"archive: file {name!r}, which manifest.json names")

    async def _write(self, blob: bytes, media_type: str) -> Descriptor:
        digest = Digest.of(blob)
        await self._content.write(f"import-{digest}", blob, expected=digest)
        return Descriptor(media_type=media_type, digest=digest, size=len(blob))


def _named(manifest: Descriptor, name: str) -> Descriptor:
    full = references.normalize(name)
    return Descriptor(
        media_type=manifest.media_type,
        digest=manifest.digest,
        size=manifest.size,
        platform=manifest.platform,
        annotations={NAME_ANNOTATION: full, REF_ANNOTATION: references.Spec.parse(full).object},
    )


def _digest_of_path(name: str) -> str:
    """The digest in `blobs/sha256/<hex>`, or an empty string."""
    parts = name.split("/")
    if len(parts) == 3 and parts[0] == "blobs":
        return Digest.parse(f"{parts[1]}:{parts[2]}")
    return ""


class _Archive:
    """The archive, for a thread: its entries and their bytes; what an archive can make large is bounded."""

    def __init__(self, source: IO[bytes]) -> None:
        self._chunks = uncompressed(source.read)
        self._reader = Reader(self._chunks)
        self._reader.max_entries = MAX_ENTRIES
        self._pieces: Iterator[memoryview] = iter(())
        self._names = 0

    def next(self) -> _Member | None:
        """The next entry that is a file or a link.

        Raises:
            InvalidArgumentError: the archive is damaged, or larger in some way than any image's.
        """
        try:
            for _ in self._pieces:
                pass  # what its reader has left
            while (entry := self._reader.next()) is not None:
                if entry.type not in (tar.REGULAR, tar.LINK, tar.SYMLINK):
                    continue
                if entry.segments is not None:
                    raise ArchiveError("a sparse file", entry.name)
                self._names += len(entry.name) + len(entry.link)
                if self._names > MAX_NAMES:
                    raise ArchiveError(f"names of more than {MAX_NAMES} bytes")
                self._pieces = self._reader.pieces(entry.stored)
                return _Member(kind=entry.type, name=_text(entry.name), link=_text(entry.link), size=entry.size)
            self._end()
        except (ArchiveError, OSError, ValueError) as error:
            what = "cannot be read" if self._names else "is no tar"
            raise InvalidArgumentError(f"archive {what}: {error}") from error
        return None

    def _end(self) -> None:
        """Read what pads the archive, and so check a compressed one to its end."""
        left = MAX_PADDING
        for chunk in self._chunks:
            left -= len(chunk)
            if left < 0:
                raise ArchiveError(f"more than {MAX_PADDING} bytes follow its end")

    def piece(self) -> bytes:
        """Some bytes of the current file, empty at its end; as `next`."""
        try:
            return bytes(next(self._pieces, b""))
        except (ArchiveError, OSError, ValueError) as error:
            raise InvalidArgumentError(f"archive cannot be read: {error}") from error

    def whole(self) -> bytes:
        """The current file."""
        return b"".join(iter(self.piece, b""))


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
