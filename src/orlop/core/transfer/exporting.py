"""Images into one archive that is an OCI layout and, with `manifest.json`, what `docker load` reads.

Source: Export in containerd's core/images/archive/exporter.go.
"""

import json
import tarfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from orlop.base import references
from orlop.base.errdefs import DataLossError, InvalidArgumentError, NotFoundError
from orlop.base.labels import DISTRIBUTION_SOURCE
from orlop.base.platforms import Matcher
from orlop.core.images.handlers import MAX_DEPTH, select
from orlop.core.transfer import Content, Named
from orlop.core.transfer.importing import LAYOUT_VERSION
from orlop.core.transfer.naming import NAME_ANNOTATION, REF_ANNOTATION
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor, Index, decode_index, decode_manifest, encode

Write = Callable[[bytes], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What goes into an archive.

    Attributes:
        matcher: of an index's manifests those that suit; the best is the one that Docker sees.
        all_platforms: the others too.
        docker_manifest: also `manifest.json`.
        skip_nondistributable: leave layers out that are not meant to be passed on.
    """

    matcher: Matcher
    all_platforms: bool = False
    docker_manifest: bool = True
    skip_nondistributable: bool = False


async def export_archive(content: Content, images: Sequence[Named], write: Write, options: ExportOptions) -> None:
    """Write images into one archive; `write` is given its bytes in order.

    Raises:
        NotFoundError: an image has nothing for the platform, or a blob is missing; nothing was written yet.
        InvalidArgumentError: a target is neither manifest nor index.
        DataLossError: a blob has other bytes than its digest says.
    """
    plan = _Plan(content, options)
    for image in images:
        await plan.add(image)
    await plan.write(write)


class _Plan:
    """What goes into an archive: blobs by digest, the index's entries, and Docker's manifest."""

    def __init__(self, content: Content, options: ExportOptions) -> None:
        self._content = content
        self._options = options
        self._blobs: dict[str, int] = {}
        self._entries: list[Descriptor] = []
        self._docker: dict[str, dict[str, Any]] = {}
        # What was found below a document: an index may name another a thousand times, and that one the next.
        self._found: dict[tuple[str, str], Descriptor | None] = {}

    async def add(self, image: Named) -> None:
        target = image.target
        self._entries.append(
            Descriptor(
                media_type=target.media_type,
                digest=target.digest,
                size=target.size,
                annotations={**target.annotations, **await self._sources(target), **_names(image.name)},
            )
        )
        best = await self._collect(image.name, target)
        if best is None:
            raise NotFoundError(f"image {image.name}: no manifest for platform {self._options.matcher} to export")
        await self._note_docker(image.name, best)

    async def _sources(self, target: Descriptor) -> dict[str, str]:
        labels = (await self._content.info(target.digest)).labels
        return {key: value for key, value in labels.items() if key.startswith(DISTRIBUTION_SOURCE)}

    async def _collect(self, name: str, descriptor: Descriptor, depth: int = 0) -> Descriptor | None:
        """Plan all below a descriptor; returns the manifest that suits best, None if none does."""
        if depth > MAX_DEPTH:
            raise InvalidArgumentError(f"image {name}: indexes nested more than {MAX_DEPTH} deep")
        key = (descriptor.digest, descriptor.media_type)
        if key not in self._found:
            self._found[key] = await self._look_below(name, descriptor, depth)
        return self._found[key]

    async def _look_below(self, name: str, descriptor: Descriptor, depth: int) -> Descriptor | None:
        if media_types.is_index(descriptor.media_type):
            blob = await self._document(descriptor)
            return await self._entries_of(name, decode_index(blob, what=descriptor.digest).manifests, depth)
        if not media_types.is_manifest(descriptor.media_type):
            raise InvalidArgumentError(f"image {name}: only manifests may be exported, not {descriptor.media_type}")
        manifest = decode_manifest(await self._document(descriptor), what=descriptor.digest)
        for one in (manifest.config, *manifest.layers):
            if not (self._options.skip_nondistributable and media_types.is_nondistributable(one.media_type)):
                self._blobs[one.digest] = (await self._content.info(one.digest)).size_bytes
        return descriptor

    async def _entries_of(self, name: str, entries: Sequence[Descriptor], depth: int) -> Descriptor | None:
        wanted = select(entries, self._options.matcher)
        best = None
        for one in wanted:
            found = await self._collect(name, one, depth + 1)
            best = best or found
        if self._options.all_platforms:
            for one in entries:
                await self._collect(name, one, depth + 1)
        return best

    async def _document(self, descriptor: Descriptor) -> bytes:
        blob = await self._content.read(descriptor.digest)
        self._blobs[descriptor.digest] = len(blob)
        return blob

    async def _note_docker(self, name: str, descriptor: Descriptor) -> None:
        manifest = decode_manifest(await self._content.read(descriptor.digest), what=descriptor.digest)
        if not media_types.is_config(manifest.config.media_type):
            return
        entry = self._docker.setdefault(
            manifest.config.digest,
            {
                "Config": _path_of(manifest.config.digest),
                "RepoTags": [],
                "Layers": [_path_of(one.digest) for one in manifest.layers],
            },
        )
        familiar = _familiar(name)
        if familiar not in entry["RepoTags"]:
            entry["RepoTags"].append(familiar)

    async def write(self, write: Write) -> None:
        files: dict[str, bytes | Digest] = {
            "oci-layout": json.dumps({"imageLayoutVersion": LAYOUT_VERSION}).encode(),
            "index.json": encode(Index(media_type="", manifests=tuple(self._entries))),
        }
        if self._options.docker_manifest and self._docker:
            files["manifest.json"] = json.dumps(list(self._docker.values()), separators=(",", ":")).encode()
        files.update({_path_of(digest): Digest(digest) for digest in self._blobs})
        for directory in ("blobs/", *sorted({f"blobs/{digest.partition(':')[0]}/" for digest in self._blobs})):
            await write(_header(directory, 0o755, kind=tarfile.DIRTYPE))
        for name in sorted(files):
            value = files[name]
            if isinstance(value, bytes):
                await write(_header(name, 0o444, len(value)) + value + _padding(len(value)))
            else:
                await self._copy(write, name, value)
        # Two empty blocks end an archive; it is filled up to whole records, as tar(1) does.
        await write(b"\0" * 2 * tarfile.BLOCKSIZE)

    async def _copy(self, write: Write, name: str, digest: Digest) -> None:
        """Put a blob in, chunk by chunk, verified on the way."""
        size = self._blobs[digest]
        await write(_header(name, 0o444, size))
        written = 0
        state = digest.hasher()
        async for chunk in self._content.chunks(digest):
            state.update(chunk)
            written += len(chunk)
            await write(chunk)
        if written != size or state.hexdigest() != digest.hex:
            raise DataLossError(f"blob {digest} has other bytes in the content store")
        if size % tarfile.BLOCKSIZE:
            await write(_padding(size))


def _names(name: str) -> dict[str, str]:
    try:
        tag = references.Spec.parse(name).object
    except InvalidArgumentError:
        tag = name
    return {NAME_ANNOTATION: name, REF_ANNOTATION: tag}


def _familiar(name: str) -> str:
    """What people write for a name, as Docker shows it; a name that is no reference of Docker's stays."""
    try:
        return references.Named.parse(name).with_default_tag().familiar
    except InvalidArgumentError:
        return name


def _path_of(digest: str) -> str:
    algorithm, _, encoded = digest.partition(":")
    return f"blobs/{algorithm}/{encoded}"


def _header(name: str, mode: int, size: int = 0, *, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.type = size, mode, kind
    # GNU's base-256 numbers beyond 8 GiB, where ustar has no room.
    return info.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return b"\0" * (-size % tarfile.BLOCKSIZE)
