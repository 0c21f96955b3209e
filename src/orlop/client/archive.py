"""Images out of tar archives and into them: OCI layouts and what `docker save` writes.

Both are read in one pass, as a stream. An OCI layout has `oci-layout`, `index.json` and `blobs/<algorithm>/<hex>`; a
Docker archive has `manifest.json`, which names files of the archive as configuration and layers. Every blob goes into
the content store under the digest that its bytes have; what a file is called proves nothing.

Source: ImportIndex and Export in containerd's core/images/archive, Import in client/import.go.
"""

import contextlib
import hashlib
import io
import json
import os
import posixpath
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

from orlop.base import references
from orlop.base.errdefs import AlreadyExistsError, DataLossError, InvalidArgumentError, NotFoundError, OrlopError
from orlop.base.platforms import ALL, Matcher
from orlop.client.content import CHUNK_BYTES, Content
from orlop.client.images import Image, Images
from orlop.client.leases import Held
from orlop.client.progress import Callback, Progress, Status, ignore
from orlop.client.session import Session
from orlop.core.images.gc_labels import child_labels
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

NAME_ANNOTATION: Final = "io.containerd.image.name"
REF_ANNOTATION: Final = "org.opencontainers.image.ref.name"
_LAYOUT_VERSION: Final = "1.0.0"
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """How images of an archive are named here.

    Attributes:
        base_name: prefix for names that are only tags; with `only_prefixed` other full names are passed over.
        digests: also make `base@digest` names; `skip_named` leaves those out that have a name.
        index_name: also keep the archive's whole index, under this name.
    """

    base_name: str = ""
    digests: bool = False
    skip_named: bool = False
    index_name: str = ""

    def name(self, descriptor: Descriptor) -> str:
        """The name of an entry of the archive's index, or an empty string."""
        full = descriptor.annotations.get(NAME_ANNOTATION, "")
        if full:
            return full
        ref = descriptor.annotations.get(REF_ANNOTATION, "")
        if not ref:
            return ""
        if any(mark in ref for mark in "/:@"):
            return ref if not self.base_name or self._prefixed(ref) else ""
        return f"{self.base_name or self._today()}:{ref}"

    def digest_name(self, descriptor: Descriptor) -> str:
        """The name by digest, or an empty string where none is wanted."""
        if not self.digests or (self.skip_named and self.name(descriptor)):
            return ""
        return f"{self.base_name or self._today()}@{descriptor.digest}"

    def _prefixed(self, ref: str) -> bool:
        rest = ref.removeprefix(self.base_name)
        return rest != ref and (not rest or rest[0] in "/:@")

    @staticmethod
    def _today() -> str:
        return time.strftime("import-%Y-%m-%d")


async def import_images(
    session: Session,
    source: IO[bytes],
    *,
    naming: Naming,
    matcher: Matcher = ALL,
    progress: Callback = ignore,
) -> list[Image]:
    """Store an archive's blobs and name its images; see `Client.import_`."""
    async with Held(session) as held:
        reader = _Reader(held, source, progress)
        top = await reader.read()
        index = decode_index(await Content(held).read(top.digest), what="index of the archive")
        named: dict[str, Descriptor] = {}
        if naming.index_name:
            named[naming.index_name] = top
        wanted = [one for one in index.manifests if _suits(matcher, one)]
        for one in wanted:
            for name in (naming.name(one), naming.digest_name(one)):
                if name:
                    named[name] = one
        if not named:
            raise NotFoundError("an image with a name in the archive", hint="give one with --base-name or --index-name")
        await _label_children(Content(held), Descriptor(media_type=top.media_type, digest=top.digest, size=top.size))
        for one in wanted:
            await _keep(Content(held), one, matcher)
        images = Images(held)
        for name, target in named.items():
            plain = Descriptor(media_type=target.media_type, digest=target.digest, size=target.size)
            await images.create(name, plain, replace=True)
        return [await Images(session).get(name) for name in named]


def _suits(matcher: Matcher, descriptor: Descriptor) -> bool:
    return descriptor.platform is None or not descriptor.platform.os or matcher.rank(descriptor.platform) is not None


async def _keep(content: Content, descriptor: Descriptor, matcher: Matcher, depth: int = 0) -> None:
    """Label what is below a descriptor, so that the collector keeps it. What another platform lacks is passed over."""
    if depth > 8:
        raise InvalidArgumentError("indexes of the archive are nested more than 8 deep")
    if media_types.is_index(descriptor.media_type):
        index = decode_index(await content.read(descriptor.digest), what=f"index {descriptor.digest}")
        children = [one for one in index.manifests if _suits(matcher, one)]
        for child in children:
            await _keep(content, child, matcher, depth + 1)
        await _label_children(content, descriptor)
    elif media_types.is_manifest(descriptor.media_type):
        manifest = decode_manifest(await content.read(descriptor.digest), what=f"manifest {descriptor.digest}")
        for blob in (manifest.config, *manifest.layers):
            if not await content.exists(blob.digest):
                raise NotFoundError(f"archive: blob {blob.digest} of manifest {descriptor.digest}")
        await _label_children(content, descriptor)


async def _label_children(content: Content, descriptor: Descriptor) -> None:
    blob = await content.read(descriptor.digest)
    if media_types.is_index(descriptor.media_type):
        labels = child_labels(decode_index(blob, what=descriptor.digest).manifests)
    else:
        manifest = decode_manifest(blob, what=descriptor.digest)
        labels = child_labels((manifest.config, *manifest.layers))
    if labels:
        await content.label(descriptor.digest, labels)


class _Reader:
    """One pass over an archive."""

    def __init__(self, session: Session, source: IO[bytes], progress: Callback) -> None:
        self._session = session
        self._content = Content(session)
        self._source = source
        self._progress = progress
        self._files: dict[str, Descriptor] = {}
        self._links: dict[str, str] = {}
        self._layout = ""
        self._docker: Any = None  # the JSON of manifest.json

    async def read(self) -> Descriptor:
        """Store every blob and return the descriptor of the index, made here for a Docker archive."""
        archive = await self._session.blocking(_open_tar, self._source)
        try:
            while (member := await self._session.blocking(_next_member, archive)) is not None:
                await self._take(archive, member)
        finally:
            archive.close()
        if self._layout:
            if self._layout != _LAYOUT_VERSION:
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
                value = json.loads(await self._session.blocking(file.read))
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
        if expected and await self._content.exists(expected):
            # Reading on past it is the tar reader's business.
            self._progress(Progress(ref=shown, status=Status.EXISTS, offset=size, total=size))
            return Descriptor(digest=Digest(expected), size=size)
        state = hashlib.sha256()
        try:
            async with await self._content.writer(ref, size=size, expected=expected) as writer:
                # Another namespace may have the blob: then the daemon has the bytes, and shares them.
                there = writer.offset
                while chunk := await self._session.blocking(file.read, CHUNK_BYTES):
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

    async def _docker_manifest(self, entry: "dict[str, Any]") -> Descriptor:
        config_file = self._file(entry["Config"])
        blob = await self._content.read(config_file.digest)
        config = decode_image(blob, what=f"archive: {entry['Config']}")
        if not config.os or not config.architecture:
            raise InvalidArgumentError(f"archive: {entry['Config']} names no platform")
        layers = []
        for name in entry.get("Layers") or []:
            file = self._file(str(name))
            media_type = await self._layer_type(file)
            layers.append(Descriptor(media_type=media_type, digest=file.digest, size=file.size))
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

    async def _layer_type(self, file: Descriptor) -> str:
        """Docker's media type for a layer, by its first bytes: `docker save` of today compresses some."""
        start = b""
        async for chunk in self._content.chunks(file.digest, size=min(4, file.size)):
            start += chunk
        if start.startswith(_GZIP):
            return media_types.DOCKER_LAYER_GZIP
        return media_types.DOCKER_LAYER_ZSTD if start.startswith(_ZSTD) else media_types.DOCKER_LAYER

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
    except tarfile.TarError as error:
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


async def export_images(
    session: Session,
    target: IO[bytes],
    names: Sequence[str],
    *,
    matcher: Matcher,
    all_platforms: bool = False,
    docker_manifest: bool = True,
    skip_nondistributable: bool = False,
) -> None:
    """Write images into one archive; see `Client.export`."""
    content = Content(session)
    plan = _Plan(content, ALL if all_platforms else matcher, skip_nondistributable)
    for name in names:
        image = await Images(session).get(name)
        await plan.add(name, image.target)
    await plan.write(session, target, docker_manifest=docker_manifest)


class _Plan:
    """What goes into an archive: blobs by digest, the index's entries, and Docker's manifest."""

    def __init__(self, content: Content, matcher: Matcher, skip_nondistributable: bool) -> None:
        self._content = content
        self._matcher = matcher
        self._skip = skip_nondistributable
        self._blobs: dict[str, int] = {}
        self._entries: list[Descriptor] = []
        self._docker: dict[str, dict[str, Any]] = {}

    async def add(self, name: str, target: Descriptor) -> None:
        annotations = {NAME_ANNOTATION: name}
        try:
            tag = references.Spec.parse(name).tag
        except InvalidArgumentError:
            tag = ""
        annotations[REF_ANNOTATION] = tag or name
        self._entries.append(
            Descriptor(media_type=target.media_type, digest=target.digest, size=target.size, annotations=annotations)
        )
        if not await self._collect(name, target):
            raise NotFoundError(f"image {name}: no manifest for platform {self._matcher} to export")

    async def _collect(self, name: str, descriptor: Descriptor, depth: int = 0) -> bool:
        if depth > 8:
            raise InvalidArgumentError(f"image {name}: indexes nested more than 8 deep")
        blob = await self._content.read(descriptor.digest)
        self._blobs[descriptor.digest] = descriptor.size
        if media_types.is_index(descriptor.media_type):
            found = False
            for one in decode_index(blob, what=descriptor.digest).manifests:
                if _suits(self._matcher, one):
                    found = await self._collect(name, one, depth + 1) or found
            return found
        manifest = decode_manifest(blob, what=descriptor.digest)
        for one in (manifest.config, *manifest.layers):
            if self._skip and media_types.is_nondistributable(one.media_type):
                continue
            self._blobs[one.digest] = (await self._content.info(one.digest)).size_bytes
        if media_types.is_config(manifest.config.media_type):
            entry = self._docker.setdefault(
                manifest.config.digest,
                {
                    "Config": _path_of(manifest.config.digest),
                    "RepoTags": [],
                    "Layers": [_path_of(one.digest) for one in manifest.layers],
                },
            )
            if name not in entry["RepoTags"]:
                entry["RepoTags"].append(name)
        return True

    async def write(self, session: Session, target: IO[bytes], *, docker_manifest: bool) -> None:
        files: dict[str, bytes | Digest] = {
            "oci-layout": json.dumps({"imageLayoutVersion": _LAYOUT_VERSION}).encode(),
            "index.json": encode(Index(media_type="", manifests=tuple(self._entries))),
        }
        if docker_manifest and self._docker:
            files["manifest.json"] = json.dumps(list(self._docker.values()), separators=(",", ":")).encode()
        files.update({_path_of(digest): Digest(digest) for digest in self._blobs})
        archive = tarfile.open(fileobj=target, mode="w|", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed below, in a thread
        try:
            for directory in ("blobs/", *sorted({f"blobs/{digest.partition(':')[0]}/" for digest in self._blobs})):
                await session.blocking(archive.addfile, _directory(directory))
            for name in sorted(files):
                value = files[name]
                if isinstance(value, bytes):
                    await session.blocking(archive.addfile, _file(name, len(value)), _bytes_file(value))
                else:
                    await self._copy(session, archive, name, value)
        finally:
            await session.blocking(archive.close)

    async def _copy(self, session: Session, archive: tarfile.TarFile, name: str, digest: Digest) -> None:
        """Put a blob in, chunk by chunk, verified on the way."""
        size = self._blobs[digest]
        output = archive.fileobj
        assert output is not None
        header = _file(name, size).tobuf(tarfile.USTAR_FORMAT)
        await session.blocking(output.write, header)
        written = 0
        state = digest.hasher()
        async for chunk in self._content.chunks(digest):
            state.update(chunk)
            written += len(chunk)
            await session.blocking(output.write, chunk)
        if written != size or state.hexdigest() != digest.hex:
            raise DataLossError(f"blob {digest} has other bytes in the content store")
        padding = -size % tarfile.BLOCKSIZE
        await session.blocking(output.write, b"\0" * padding)
        archive.offset += len(header) + size + padding


def _path_of(digest: str) -> str:
    algorithm, _, encoded = digest.partition(":")
    return f"blobs/{algorithm}/{encoded}"


def _file(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o444
    return info


def _directory(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    info.mode = 0o755
    return info


def _bytes_file(value: bytes) -> IO[bytes]:
    return io.BytesIO(value)
