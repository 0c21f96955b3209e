"""Another form of the same image: media types of OCI or Docker, and layers compressed otherwise.

Documents are edited as plain JSON, so that what we do not know of stays; they are written as Go's encoder writes
image-spec's structs, so that containerd's converter gives the same digests for the same image.

Source: containerd's core/images/converter.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from orlop.base import json_text, platforms
from orlop.base.errdefs import DataLossError, InvalidArgumentError
from orlop.base.labels import GC_REF_CONTENT, UNCOMPRESSED
from orlop.core.diff.stream import CHUNK, Compression, decompressor, detect
from orlop.core.images.gc_labels import child_labels
from orlop.oci import media_types as types
from orlop.oci.digest import Digest, new_hash
from orlop.oci.image import Descriptor, Platform, decode_image, encode

_TO_OCI: Final = {
    types.DOCKER_MANIFEST_LIST: types.OCI_INDEX,
    types.DOCKER_MANIFEST: types.OCI_MANIFEST,
    types.DOCKER_CONFIG: types.OCI_CONFIG,
    types.DOCKER_LAYER: types.OCI_LAYER,
    types.DOCKER_LAYER_GZIP: types.OCI_LAYER_GZIP,
    types.DOCKER_LAYER_ZSTD: types.OCI_LAYER_ZSTD,
    types.DOCKER_LAYER_FOREIGN: types.OCI_LAYER_NONDISTRIBUTABLE,
    types.DOCKER_LAYER_FOREIGN_GZIP: types.OCI_LAYER_NONDISTRIBUTABLE_GZIP,
}
_TO_DOCKER: Final = {oci: docker for docker, oci in _TO_OCI.items()}
# The order in which Go writes the fields of image-spec's structs; what is in none of them follows in its own order.
_DOCUMENT_ORDER: Final = (
    "schemaVersion",
    "mediaType",
    "artifactType",
    "config",
    "layers",
    "manifests",
    "subject",
    "annotations",
)
_DESCRIPTOR_ORDER: Final = (
    "mediaType",
    "digest",
    "size",
    "urls",
    "annotations",
    "data",
    "platform",
    "artifactType",
)
_ESCAPES: Final = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_ZSTD_LEVEL: Final = 3
_GZIP_LEVEL: Final = 6


def oci_type(media_type: str) -> str:
    """The OCI media type for one of Docker's; any other as it is."""
    return _TO_OCI.get(media_type, media_type)


def docker_type(media_type: str) -> str:
    """Docker's media type for one of OCI's; any other as it is.

    Raises:
        InvalidArgumentError: a layer that Docker's types cannot tell.
    """
    if media_type not in _TO_DOCKER and media_type.startswith("application/vnd.oci.image."):
        raise InvalidArgumentError(f"media type {media_type} has no counterpart among Docker's")
    return _TO_DOCKER.get(media_type, media_type)


def layer_type(media_type: str, compression: Compression) -> str:
    """The media type of the same layer, compressed in another way.

    Raises:
        InvalidArgumentError: there is none, as for Docker's foreign layers in zstd.
    """
    docker = types.is_docker(media_type)
    plain = types.parse(oci_type(media_type))[0]
    if plain not in (types.OCI_LAYER, types.OCI_LAYER_NONDISTRIBUTABLE):
        raise InvalidArgumentError(f"layer of media type {media_type} is no tar")
    wanted = f"{plain}+{compression}" if compression else plain
    return docker_type(wanted) if docker else wanted


def is_tar_layer(media_type: str) -> bool:
    """Whether this is a layer that can be compressed otherwise: a tar that nothing else wraps."""
    base, suffixes = types.parse(oci_type(media_type))
    return base in (types.OCI_LAYER, types.OCI_LAYER_NONDISTRIBUTABLE) and set(suffixes) <= {"gzip", "zstd"}


class Recoder:
    """Turns a layer's blob, as its bytes come, into the same tar compressed otherwise. Deterministic.

    Attributes of the result are known after `finish`: `digest` and `size` of the new blob, `diff_id` of the tar.
    """

    def __init__(self, compression: Compression) -> None:
        self._compression = compression
        self._head: bytes | None = b""
        self._source = Compression.NONE
        self._inflater: Any = None  # a decompressor in the shape of `orlop.core.diff.stream`
        self._new: Callable[[], Any] | None = None
        self._errors: tuple[type[Exception], ...] = ()
        self._padding = False
        self._deflater: Any = _compressor(compression)
        self._tar = new_hash()
        self._out = new_hash()
        self.size = 0

    @property
    def digest(self) -> Digest:
        """Of the new blob."""
        return Digest.of_hash(self._out)

    @property
    def diff_id(self) -> Digest:
        """Of the uncompressed tar."""
        return Digest.of_hash(self._tar)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what follows of the new blob from the next bytes of the old, in pieces of bounded size.

        Raises:
            DataLossError: the old blob is damaged.
        """
        if self._head is not None:
            self._head += data
            if len(self._head) < 4:
                return
            data, self._head = self._head, None
            self._begin(data)
        for piece in self._inflated(data):
            self._tar.update(piece)
            yield from self._emitted(self._deflater.compress(piece))

    def finish(self) -> Iterator[bytes]:
        """Yield the end of the new blob. Raises DataLossError if the old one is cut."""
        if self._head:
            short, self._head = self._head, None
            self._tar.update(short)
            yield from self._emitted(self._deflater.compress(short))
        if self._inflater is not None and not self._inflater.eof:
            raise DataLossError(f"the {self._source} stream of the layer ends too early")
        yield from self._emitted(self._deflater.flush())

    def _begin(self, head: bytes) -> None:
        self._source = detect(head)
        if self._source is not Compression.NONE:
            self._new, self._errors = decompressor(self._source)
            self._inflater = self._new()

    def _inflated(self, data: bytes) -> Iterator[bytes]:
        if self._inflater is None:
            yield data
            return
        assert self._new is not None
        while True:
            if self._inflater.eof:
                if not data:
                    return
                # Another member or frame follows; after the last of gzip there may be zeros, which mean nothing.
                if self._padding or (self._source is Compression.GZIP and data.startswith(b"\0")):
                    self._padding = True
                    if data.strip(b"\0"):
                        raise DataLossError("something else than padding follows the layer's gzip stream")
                    return
                self._inflater = self._new()
            elif self._inflater.needs_input and not data:
                return
            try:
                piece = self._inflater.decompress(data, CHUNK)
            except self._errors as error:
                raise DataLossError(f"the {self._source} stream of the layer is damaged: {error}") from error
            data = b""
            if piece:
                yield piece
            if self._inflater.eof:
                data = self._inflater.unused_data

    def _emitted(self, piece: bytes) -> Iterator[bytes]:
        if piece:
            self._out.update(piece)
            self.size += len(piece)
            yield piece


class _Plain:
    """No compression, in the shape of a compressor."""

    def compress(self, data: bytes) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def _compressor(compression: Compression) -> Any:
    # Any: zlib's, zstd's and ours share a shape and no type.
    if compression is Compression.NONE:
        return _Plain()
    if compression is Compression.GZIP:
        return zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31)  # a header without a time or a name
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14
    except ImportError:
        from backports import zstd
    return zstd.ZstdCompressor(_ZSTD_LEVEL)


def layer_labels(old: Mapping[str, str], *, compressed: bool, diff_id: Digest) -> dict[str, str]:
    """The labels of a converted layer: those of the old one, and its DiffID where it is compressed."""
    labels = {key: value for key, value in old.items() if key != UNCOMPRESSED}
    return {**labels, UNCOMPRESSED: diff_id} if compressed else labels


def erofs_config(
    config: Mapping[str, Any], diff_ids: Mapping[str, str], platform: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """An image's config for layers that are file systems, and the platform its manifest has from now on.

    Args:
        diff_ids: those of the images by those of the tars.
        platform: what an index says of the manifest, or None for what the config says.

    Raises:
        InvalidArgumentError: it is no config of an image.

    Source: convertConfig in core/images/converter/default.go, UpdateManifestPlatform in converter/erofs/erofs.go.
    """
    said = msgspec.convert(platform, Platform) if platform else decode_image(json.dumps(config).encode()).platform
    there = platforms.with_erofs(said)
    new = dict(config)
    rootfs = new.get("rootfs")
    if isinstance(rootfs, dict) and rootfs.get("type") == "layers":
        changed = [diff_ids.get(one, one) for one in rootfs.get("diff_ids") or ()]
        if changed != rootfs.get("diff_ids"):
            new["rootfs"] = {"type": "layers", "diff_ids": changed}
            for name in ("config", "container_config"):  # Docker's names of what the layers were
                if isinstance(new.get(name), dict):
                    new[name] = {key: value for key, value in sorted(new[name].items()) if key != "Image"}
    new["os.features"] = list(there.os_features)
    return new, json.loads(encode(Platform.of(there)))


def write_config(config: Mapping[str, Any]) -> bytes:
    """The JSON of a config as Go writes a map: its names in order, and what they stand for as it was."""
    return _escaped(json.dumps(dict(sorted(config.items())), separators=(",", ":"), ensure_ascii=False)).encode()


def document_labels(old: Mapping[str, str], children: Sequence[Descriptor]) -> dict[str, str]:
    """The labels of a converted manifest or index: those of the old one, with references to the new children."""
    return {
        **{key: value for key, value in old.items() if not key.startswith(f"{GC_REF_CONTENT}.")},
        **child_labels(children),
    }


def read_document(blob: bytes, what: str) -> dict[str, Any]:
    """A manifest or index as plain JSON. Raises InvalidArgumentError."""
    try:
        document = json_text.loads(blob)
    except ValueError as error:
        raise InvalidArgumentError(f"{what} is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidArgumentError(f"{what} is no JSON object")
    return document


def write_document(document: Mapping[str, Any], *, indent: int | None = None) -> bytes:
    """The JSON of a manifest or index; `indent` is as Go's MarshalIndent has it."""
    ordered = _ordered(document, _DOCUMENT_ORDER)
    for name in ("config", "subject"):
        if isinstance(ordered.get(name), dict):
            ordered[name] = _ordered(ordered[name], _DESCRIPTOR_ORDER)
    for name in ("layers", "manifests"):
        if isinstance(ordered.get(name), list):
            ordered[name] = [_ordered(one, _DESCRIPTOR_ORDER) for one in ordered[name]]
    colon = ":" if indent is None else ": "
    text = json.dumps(ordered, indent=indent, separators=(",", colon), ensure_ascii=False)
    return _escaped(text).encode()


def replaced(
    descriptor: Mapping[str, Any],
    *,
    media_type: str | None = None,
    digest: str | None = None,
    size: int | None = None,
) -> dict[str, Any]:
    """A descriptor with other values in those fields, and all its others."""
    changed = dict(descriptor)
    for name, value in (("mediaType", media_type), ("digest", digest), ("size", size)):
        if value is not None:
            changed[name] = value
    return changed


def _escaped(text: str) -> str:
    for plain, escaped in _ESCAPES.items():
        text = text.replace(plain, escaped)
    return text


def _ordered(value: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    known = {name: value[name] for name in order if name in value}
    return known | {name: item for name, item in value.items() if name not in known}
