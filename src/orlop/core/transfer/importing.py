"""Images out of tar archives: OCI layouts and what `docker save` writes.

Both are read in one pass, as a stream. An OCI layout has `oci-layout`, `index.json` and `blobs/<algorithm>/<hex>`; a
Docker archive has `manifest.json`, which names files of the archive as configuration and layers. Every blob goes into
the content store under the digest that its bytes have; what a file is called proves nothing.

Source: ImportIndex in containerd's core/images/archive.
"""

import contextlib
import hashlib
import io
import os
import posixpath
import tarfile
from collections.abc import Callable, Sequence
from typing import IO, Any, Final

from orlop.base import json_text, references
from orlop.base.errdefs import AlreadyExistsError, InvalidArgumentError, NotFoundError, OrlopError
from orlop.base.labels import UNCOMPRESSED
from orlop.base.platforms import ALL, Matcher
from orlop.core.images.gc_labels import child_labels, label_of
from orlop.core.images.handlers import MAX_DEPTH, select
from orlop.core.transfer import CHUNK_BYTES, Content
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
    depth: int = 0,
) -> None:
    """Label what is below a descriptor, so that the collector keeps it; entries of other platforms may be missing.

    Args:
        key_of: see `gc_labels.child_labels`.

    Raises:
        NotFoundError: a blob that is wanted is not in the archive.
    """
    if depth > MAX_DEPTH:
        raise InvalidArgumentError(f"indexes of the archive are nested more than {MAX_DEPTH} deep")
    if media_types.is_index(descriptor.media_type):
        blob = await _wanted(content, descriptor, "index")
        children: Sequence[Descriptor] = decode_index(blob, what=f"index {descriptor.digest}").manifests
        for child in select(children, None if matcher.match_all else matcher):
            await keep(content, child, matcher, key_of=key_of, depth=depth + 1)
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
        archive = await self._thread.run(_open_tar, self._source)
        while (member := await self._thread.run(_next_member, archive)) is not None:
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

    async def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        name = posixpath.normpath(member.name)
        if member.issym() or member.islnk():
            target = member.linkname if member.islnk() else posixpath.join(posixpath.dirname(name), member.linkname)
            self._links[name] = posixpath.normpath(target)
            return
        if not member.isreg():
            return
        file = archive.extractfile(member)
        assert file is not None  # a regular member has bytes
        if name in ("oci-layout", "manifest.json"):
            if member.size > MAX_MANIFEST_SIZE:
                raise InvalidArgumentError(f"archive: {name} has {member.size} bytes")
            try:
                value = json_text.loads(await self._thread.run(_read, file, member.size))
            except ValueError as error:
                raise InvalidArgumentError(f"archive: {name} is no JSON: {error}") from error
            if name == "oci-layout":
                self._layout = str(value.get("imageLayoutVersion", "")) if isinstance(value, dict) else ""
            else:
                self._docker = value
            return
        self._files[name] = await self._store(name, file, member.size)

    async def _store(self, name: str, file: IO[bytes], size: int) -> Descriptor:
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
                while chunk := await self._thread.run(_read, file, CHUNK_BYTES):
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
        entries = []
        for one in self._docker:
            if not isinstance(one, dict) or not isinstance(one.get("Config"), str):
                raise InvalidArgumentError("archive: manifest.json has an entry without Config")
            manifest = await self._docker_manifest(one)
            names = [name for name in one.get("RepoTags") or [] if isinstance(name, str)]
            entries += [manifest] if not names else [_named(manifest, name) for name in names]
        return await self._write(encode(Index(manifests=tuple(entries))), media_types.OCI_INDEX)

    async def _docker_manifest(self, entry: dict[str, Any]) -> Descriptor:
        config_file = self._file(entry["Config"])
        blob = await self._content.read(config_file.digest)
        config = decode_image(blob, what=f"archive: {entry['Config']}")
        if not config.os or not config.architecture:
            raise InvalidArgumentError(f"archive: {entry['Config']} names no platform")
        layers = [await self._layer(self._file(str(name))) for name in entry.get("Layers") or []]
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


def _open_tar(source: IO[bytes]) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=_decompressed(source), mode="r|")
    except (tarfile.TarError, EOFError) as error:
        raise InvalidArgumentError(f"archive is no tar: {error}") from error


def _decompressed(source: IO[bytes]) -> Any:  # Any: the compressors' file classes declare no common base
    """The tar's bytes, out of gzip or zstd where they are compressed."""
    buffered: Any = source if hasattr(source, "peek") else io.BufferedReader(_Raw(source), CHUNK_BYTES)
    start = buffered.peek(4)[:4]
    if start.startswith(_GZIP):
        from isal import igzip

        return igzip.IGzipFile(fileobj=buffered, mode="rb")  # type: ignore[no-untyped-call]
    if start.startswith(_ZSTD):
        from backports import zstd

        return zstd.ZstdFile(buffered, mode="rb")
    return buffered


class _Raw(io.RawIOBase):
    """A file-like object that can only read, as a raw stream that io can buffer."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # Any: the buffer protocol has no type before Python 3.12
        data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _next_member(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return archive.next()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InvalidArgumentError(f"archive cannot be read: {error}") from error


def _read(file: IO[bytes], size: int) -> bytes:
    try:
        return file.read(size)
    except (tarfile.TarError, EOFError) as error:
        raise InvalidArgumentError(f"archive cannot be read: {error}") from error
