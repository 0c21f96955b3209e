"""Making an image of another form out of one that is here, as `client.images.convert`.

First all documents of the wanted platforms are read, then their layers are converted side by side, each once however
often it stands in them, then the documents are written anew from the bottom up. A lease holds what is made until the
image has its name.

Layers become images of EROFS by mkfs.erofs, called as containerd calls it, so that who has the same program gets the
same bytes.

Source: containerd's core/images/converter.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

from orlop.base import platforms
from orlop.base.errdefs import AlreadyExistsError, InvalidArgumentError, NotFoundError, OrlopError
from orlop.base.platforms import Matcher
from orlop.client.content import Content, Writer
from orlop.client.images import Images
from orlop.client.leases import Held
from orlop.client.mkfs_erofs import Maker
from orlop.client.session import Session
from orlop.core.diff.stream import Compression
from orlop.core.images import conversion
from orlop.core.images.handlers import MAX_DEPTH
from orlop.core.leases import unique_id
from orlop.core.transfer.groups import first_error
from orlop.oci import media_types as types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor, decode_index, decode_manifest, encode

Json = dict[str, Any]  # Any: the values of a JSON object


class LayerForm(StrEnum):
    """How the layers of a converted image are compressed, or that they become file systems."""

    KEEP = "keep"
    UNCOMPRESSED = "uncompressed"
    GZIP = "gzip"
    ZSTD = "zstd"
    EROFS = "erofs"
    EROFS_ZSTD = "erofs+zstd"

    @property
    def is_erofs(self) -> bool:
        """Whether a layer becomes an image of EROFS; such an image's DiffIDs and platform are others."""
        return self in (LayerForm.EROFS, LayerForm.EROFS_ZSTD)


class MediaFamily(StrEnum):
    """Whose media types a converted image has."""

    KEEP = "keep"
    OCI = "oci"
    DOCKER = "docker"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """What shall be different in the converted image.

    Attributes:
        layers: their compression.
        erofs_compressors: of the data within images of EROFS, as `mkfs.erofs -z` takes them; empty for none.
        erofs_mkfs_options: more arguments of mkfs.erofs.
        family: of the media types.
        platforms: specifiers of what to keep of an index; this machine's when empty.
        all_platforms: keep everything; all of it must be here.
        max_concurrent: layers at once.
    """

    layers: LayerForm = LayerForm.KEEP
    erofs_compressors: str = ""
    erofs_mkfs_options: Sequence[str] = ()
    family: MediaFamily = MediaFamily.KEEP
    platforms: Sequence[str] = ()
    all_platforms: bool = False
    max_concurrent: int = 4

    @property
    def platform(self) -> str | None:
        """The platform under which the converted image is found in its index, None for this machine's."""
        first = self.platforms[0] if self.platforms else None
        if not self.layers.is_erofs:
            return first
        return platforms.format_all(platforms.with_erofs(platforms.parse(first) if first else platforms.default()))

    def matcher(self) -> Matcher:
        """What of an index is wanted."""
        if self.all_platforms:
            return platforms.ALL
        if self.platforms:
            return platforms.ordered(platforms.parse_all(self.platforms))
        here = platforms.default()
        # As containerd's DefaultStrict: the levels of amd64 are no part of it.
        return platforms.only_strict(replace(here, variant="") if here.architecture == "amd64" else here)


async def convert(session: Session, source: str, target: str, options: ConvertOptions) -> Descriptor:
    """Convert the image `source`, name the result `target`, and return its descriptor; see `Images.convert`."""
    if not source or not target:
        raise InvalidArgumentError("src and target image need to be specified")

    async def whole(looped: Session) -> Descriptor:
        async with Held(looped) as held:
            image = await Images(held).get(source)
            made = await _Conversion(held, options).run(image.target)
            await Images(held).create(target, made, labels=image.labels, replace=True)
            return made

    return await session.looped(whole)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    """A manifest or index: its JSON, the blob's labels, and of an index the entries that are wanted."""

    value: Json
    labels: Mapping[str, str]
    entries: tuple[Json, ...] = ()


class _Made(NamedTuple):
    """What became of a document: its digest, its size, and the platform that it has from now on, {} for as it was."""

    digest: str
    size: int
    platform: Json


class _Conversion:
    def __init__(self, session: Session, options: ConvertOptions) -> None:
        self._session = session
        self._content = Content(session)
        self._options = options
        self._matcher = options.matcher()
        self._documents: dict[str, _Document] = {}
        self._layers: dict[tuple[str, str], Json] = {}  # descriptors by digest and media type
        self._converted: dict[tuple[str, str], Json] = {}
        self._made: dict[tuple[str, str], _Made] = {}  # by digest and media type of what they were
        self._diff_ids: dict[str, str] = {}  # of layers that became file systems, by those of the tars

    async def run(self, target: Descriptor) -> Descriptor:
        top: Json = json.loads(encode(target))
        await self._read(top, 0)
        gate = asyncio.Semaphore(max(1, self._options.max_concurrent))
        try:
            async with asyncio.TaskGroup() as group:
                for name, layer in self._layers.items():
                    group.create_task(self._replace(gate, name, layer))
        except BaseExceptionGroup as failures:
            raise first_error(failures) from None
        new = await self._written(top)
        return Descriptor(
            media_type=_media_type(new),
            digest=Digest.parse(new["digest"]),
            size=new["size"],
            annotations=new.get("annotations") or {},
        )

    # ---- reading

    async def _read(self, descriptor: Json, depth: int) -> None:
        media_type, digest = _media_type(descriptor), descriptor["digest"]
        if digest in self._documents or not (types.is_manifest(media_type) or types.is_index(media_type)):
            return
        if depth > MAX_DEPTH:
            raise InvalidArgumentError(f"index {digest} lies more than {MAX_DEPTH} indexes deep")
        info = await self._content.info(digest)
        blob = await self._content.read(digest)
        if types.is_manifest(media_type):
            decode_manifest(blob, what=f"manifest {digest}")
            document = conversion.read_document(blob, f"manifest {digest}")
            self._documents[digest] = _Document(value=document, labels=info.labels)
            for layer in document.get("layers") or ():
                if self._changes(_media_type(layer)):
                    self._layers[layer["digest"], _media_type(layer)] = layer
            return
        index = decode_index(blob, what=f"index {digest}")
        document = conversion.read_document(blob, f"index {digest}")
        entries = tuple(
            entry
            for entry, typed in zip(document.get("manifests") or (), index.manifests, strict=True)
            if typed.platform is None or self._matcher(typed.platform)
        )
        if index.manifests and not entries:
            raise NotFoundError(f"no match for platform {self._matcher} in index {digest}")
        self._documents[digest] = _Document(value=document, labels=info.labels, entries=entries)
        for entry in entries:
            await self._read(entry, depth + 1)

    def _changes(self, media_type: str) -> bool:
        """Whether a layer of this type becomes another blob."""
        wanted = self._options.layers
        if wanted is LayerForm.KEEP or not conversion.is_tar_layer(media_type):
            return False
        if wanted.is_erofs:
            return not types.is_nondistributable(media_type)
        now = types.layer_compression(media_type)
        if wanted is LayerForm.UNCOMPRESSED:
            return now not in (types.Compression.NONE, types.Compression.UNKNOWN)
        return str(now) != str(wanted)

    # ---- layers

    async def _replace(self, gate: asyncio.Semaphore, name: tuple[str, str], layer: Json) -> None:
        async with gate:
            erofs = self._options.layers.is_erofs
            self._converted[name] = await (self._file_system(layer) if erofs else self._recode(layer))

    async def _recode(self, layer: Json) -> Json:
        """Store a layer in the wanted compression; its new descriptor."""
        form = self._options.layers
        compression = Compression.NONE if form is LayerForm.UNCOMPRESSED else Compression(str(form))
        media_type = conversion.layer_type(_media_type(layer), compression)
        recoder = conversion.Recoder(compression)
        await self._store(layer, recoder, self._content.chunks(layer["digest"]), named=bool(compression))
        return conversion.replaced(layer, media_type=media_type, digest=recoder.digest, size=recoder.size)

    async def _file_system(self, layer: Json) -> Json:
        """Store a layer as an image of EROFS; its new descriptor."""
        options = self._options
        compressed = options.layers is LayerForm.EROFS_ZSTD
        recoder = conversion.Recoder(Compression.ZSTD if compressed else Compression.NONE)
        with Maker(layer["digest"], compressors=options.erofs_compressors, extra=options.erofs_mkfs_options) as maker:
            async with contextlib.aclosing(self._content.chunks(layer["digest"])) as chunks:
                async for chunk in chunks:
                    await self._session.blocking(maker.feed, chunk)
            old = await self._session.blocking(maker.finish)
            await self._store(layer, recoder, self._image(maker), named=True)
        self._diff_ids[old] = recoder.diff_id
        media_type = types.EROFS_LAYER + ("+zstd" if compressed else "")
        return conversion.replaced(layer, media_type=media_type, digest=recoder.digest, size=recoder.size)

    async def _image(self, maker: Maker) -> AsyncGenerator[bytes, None]:
        pieces = maker.pieces()
        while (piece := await self._session.blocking(next, pieces, None)) is not None:
            yield piece

    async def _store(
        self, layer: Json, recoder: conversion.Recoder, source: AsyncGenerator[bytes, None], *, named: bool
    ) -> None:
        """Write what becomes of `source` as content with the layer's labels, and its DiffID among them if `named`."""
        info = await self._content.info(layer["digest"])
        ref = f"convert-{self._options.layers}-from-{layer['digest']}-{unique_id()}"
        try:
            async with await self._content.writer(ref) as writer:
                async with contextlib.aclosing(source) as chunks:
                    async for chunk in chunks:
                        await self._write(writer, recoder.feed(chunk))
                await self._write(writer, recoder.finish())
                labels = conversion.layer_labels(info.labels, compressed=named, diff_id=recoder.diff_id)
                try:
                    await writer.commit(size=recoder.size, expected=recoder.digest, labels=labels)
                except AlreadyExistsError:
                    await self._content.label(recoder.digest, labels)
        except BaseException:  # also when another layer has failed and this one is cancelled
            with contextlib.suppress(OrlopError):  # the first error tells; the lease's end frees it as well
                await self._content.abort(ref)
            raise

    async def _write(self, writer: Writer, pieces: Iterator[bytes]) -> None:
        # Compressing takes its time: in a thread, where an event loop must go on.
        while (piece := await self._session.blocking(next, pieces, None)) is not None:
            await writer.write(piece)

    # ---- writing

    async def _written(self, descriptor: Json) -> Json:
        """The descriptor of what becomes of a manifest, an index or what else an index may name."""
        known = self._documents.get(descriptor["digest"])
        if known is None:
            return self._renamed(descriptor)
        name = (descriptor["digest"], _media_type(descriptor))
        if name not in self._made:  # indexes may name the same again and again
            self._made[name] = await self._write_document(descriptor, known)
        made = self._made[name]
        changed = self._renamed(conversion.replaced(descriptor, digest=made.digest, size=made.size))
        return changed | {"platform": made.platform} if made.platform else changed

    async def _write_document(self, descriptor: Json, known: _Document) -> _Made:
        document = dict(known.value)
        platform: Json = {}
        if types.is_manifest(_media_type(descriptor)):
            document["config"] = self._renamed(document["config"])
            document["layers"] = layers = [self._layer(layer) for layer in document.get("layers") or ()]
            if any(types.is_file_system(_media_type(layer)) for layer in layers) and self._options.layers.is_erofs:
                document["config"], platform = await self._erofs_config(document["config"], descriptor.get("platform"))
            children = [document["config"], *layers]
        else:
            document["manifests"] = children = [await self._written(entry) for entry in known.entries]
        if isinstance(document.get("mediaType"), str) or self._options.family is MediaFamily.DOCKER:
            document["mediaType"] = self._type(document.get("mediaType") or _media_type(descriptor))
        if types.is_docker(document.get("mediaType") or ""):
            document.pop("annotations", None)
        if document == known.value:
            return _Made(descriptor["digest"], descriptor["size"], platform)
        blob = conversion.write_document(document)
        labels = conversion.document_labels(known.labels, [_descriptor(child) for child in children])
        digest = await self._content.write(f"convert-document-{Digest.of(blob)}-{unique_id()}", blob, labels=labels)
        return _Made(digest, len(blob), platform)

    async def _erofs_config(self, descriptor: Json, platform: Json | None) -> tuple[Json, Json]:
        """Write an image's config anew for layers that are file systems: its descriptor, and the platform it tells."""
        digest = descriptor["digest"]
        info = await self._content.info(digest)
        old = conversion.read_document(await self._content.read(digest), f"config {digest}")
        new, platform = conversion.erofs_config(old, self._diff_ids, platform)
        blob = conversion.write_config(new)
        written = await self._content.write(f"convert-config-{Digest.of(blob)}-{unique_id()}", blob, labels=info.labels)
        return conversion.replaced(descriptor, digest=written, size=len(blob)), platform

    def _layer(self, layer: Json) -> Json:
        return self._renamed(self._converted.get((layer["digest"], _media_type(layer)), layer))

    def _renamed(self, descriptor: Json) -> Json:
        media_type = self._type(_media_type(descriptor))
        changed = conversion.replaced(descriptor, media_type=media_type)
        if types.is_docker(media_type):
            changed.pop("annotations", None)  # Docker's manifests know none
        return changed

    def _type(self, media_type: str) -> str:
        match self._options.family:
            case MediaFamily.OCI:
                return conversion.oci_type(media_type)
            case MediaFamily.DOCKER:
                return conversion.docker_type(media_type)
        return media_type


def _descriptor(value: Json) -> Descriptor:
    return Descriptor(
        media_type=_media_type(value),
        digest=Digest.parse(value["digest"]),
        size=value["size"],
        annotations=value.get("annotations") or {},
    )


def _media_type(descriptor: Json) -> str:
    return descriptor.get("mediaType") or ""
