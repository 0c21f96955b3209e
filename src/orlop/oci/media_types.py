"""Media types of OCI and Docker, and what can be told from one.

Sources: image-spec's media-types.md; containerd's core/images/mediatypes.go; distribution's manifest schema 2.
"""

from enum import StrEnum
from typing import Final

from orlop.base.errdefs import UnimplementedError

OCI_DESCRIPTOR: Final = "application/vnd.oci.descriptor.v1+json"
OCI_LAYOUT_HEADER: Final = "application/vnd.oci.layout.header.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_ARTIFACT_MANIFEST: Final = "application/vnd.oci.artifact.manifest.v1+json"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_LAYER_NONDISTRIBUTABLE: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
OCI_LAYER_NONDISTRIBUTABLE_GZIP: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
OCI_LAYER_NONDISTRIBUTABLE_ZSTD: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"

DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_MANIFEST_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_SCHEMA1_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v1+prettyjws"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD: Final = "application/vnd.docker.image.rootfs.diff.tar.zstd"
DOCKER_LAYER_FOREIGN: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"
DOCKER_LAYER_FOREIGN_GZIP: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

CHECKPOINT: Final = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
CHECKPOINT_PREDUMP: Final = "application/vnd.containerd.container.criu.checkpoint.predump.tar"
CHECKPOINT_RESOURCE: Final = "application/vnd.containerd.container.resource.tar"
CHECKPOINT_RW: Final = "application/vnd.containerd.container.rw.tar"
CHECKPOINT_CONFIG: Final = "application/vnd.containerd.container.checkpoint.config.v1+proto"
CHECKPOINT_OPTIONS: Final = "application/vnd.containerd.container.checkpoint.options.v1+proto"
CHECKPOINT_RUNTIME_NAME: Final = "application/vnd.containerd.container.checkpoint.runtime.name"
CHECKPOINT_RUNTIME_OPTIONS: Final = "application/vnd.containerd.container.checkpoint.runtime.options+proto"

EROFS_LAYER: Final = "application/vnd.erofs.layer.v1"
EROFS: Final = "application/vnd.erofs"
EROFS_CHUNKS: Final = "application/vnd.erofs.chunk-index.v1"
IN_TOTO: Final = "application/vnd.in-toto+json"
OCTET_STREAM: Final = "application/octet-stream"

MANIFEST_ACCEPT: Final = ", ".join((DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, OCI_MANIFEST, OCI_INDEX, "*/*"))
"""What a client asks a registry for when it does not know what a reference is."""

_MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_INDEXES: Final = frozenset({OCI_INDEX, DOCKER_MANIFEST_LIST})
_IMAGE_CONFIGS: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
_KNOWN_CONFIGS: Final = _IMAGE_CONFIGS | {CHECKPOINT, CHECKPOINT_CONFIG}
_DOCKER_OPEN_LAYERS: Final = frozenset({DOCKER_LAYER, DOCKER_LAYER_FOREIGN})
_DOCKER_GZIP_LAYERS: Final = frozenset({DOCKER_LAYER_GZIP, DOCKER_LAYER_FOREIGN_GZIP})
_OTHER_LAYERS: Final = (
    _DOCKER_OPEN_LAYERS | _DOCKER_GZIP_LAYERS | {DOCKER_LAYER_ZSTD} | {EROFS_LAYER, EROFS, EROFS_CHUNKS}
)
_OCI_TAR_LAYERS: Final = frozenset({OCI_LAYER, OCI_LAYER_NONDISTRIBUTABLE})


class Compression(StrEnum):
    """How a layer's tar is compressed. UNKNOWN: the type leaves it open, look at the bytes."""

    NONE = ""
    GZIP = "gzip"
    ZSTD = "zstd"
    UNKNOWN = "unknown"


def parse(media_type: str) -> tuple[str, tuple[str, ...]]:
    """The type without its `+` suffixes, and those in order, without parameters after `;`."""
    base, *suffixes = media_type.partition(";")[0].strip().split("+")
    return base, tuple(suffixes)


def is_manifest(media_type: str) -> bool:
    return media_type in _MANIFESTS


def is_index(media_type: str) -> bool:
    return media_type in _INDEXES


def is_config(media_type: str) -> bool:
    """Whether this is the type of an image's config."""
    return media_type in _IMAGE_CONFIGS


def may_be_config(media_type: str) -> bool:
    """Whether a manifest's config of this type is an image's: Docker's registries of 2016 called it octet-stream.

    Source: docker/distribution#1622, and containerd's core/remotes/docker/converter.go.
    """
    return is_config(media_type) or media_type == OCTET_STREAM


def is_known_config(media_type: str) -> bool:
    """Whether this is a config of an image or of a checkpoint."""
    return media_type in _KNOWN_CONFIGS


def is_layer(media_type: str) -> bool:
    """Whether this is a layer of a root file system, of whatever compression."""
    return media_type.startswith("application/vnd.oci.image.layer.") or parse(media_type)[0] in _OTHER_LAYERS


def is_file_system(media_type: str) -> bool:
    """Whether a layer is no archive but an image of EROFS, plain or compressed as a whole.

    Source: IsErofsMediaType in containerd's internal/erofsutils; `.erofs` at the end is how such types began.
    """
    base, suffixes = parse(media_type)
    return (base in (EROFS_LAYER, EROFS) or base.endswith(".erofs")) and suffixes in ((), ("gzip",), ("zstd",))


def is_plain_file_system(media_type: str) -> bool:
    """Whether a layer is an image of EROFS that is not compressed as a whole: its digest is its DiffID."""
    return is_file_system(media_type) and not parse(media_type)[1]


def is_docker(media_type: str) -> bool:
    return media_type.startswith("application/vnd.docker.")


def is_attestation(media_type: str) -> bool:
    return media_type == IN_TOTO


def is_nondistributable(media_type: str) -> bool:
    """Whether a layer is fetched from its own URLs and is not pushed."""
    return media_type.startswith(
        ("application/vnd.oci.image.layer.nondistributable.", "application/vnd.docker.image.rootfs.foreign.")
    )


def is_childless(media_type: str) -> bool:
    """Whether a blob of this type is known to refer to nothing."""
    return is_layer(media_type) or is_known_config(media_type)


def layer_compression(media_type: str) -> Compression:
    """How a layer of this type is compressed; a Docker layer without a suffix may be anything.

    Raises:
        UnimplementedError: the type is none of a layer made of a tar.

    Source: DiffCompression in containerd's core/images/mediatypes.go: old Dockers said `.tar` of gzip.
    """
    base, suffixes = parse(media_type)
    if base in _OCI_TAR_LAYERS:
        last = max(suffixes, default="")  # what wraps, such as `encrypted`, sorts before
        return Compression(last) if last in {"gzip", "zstd"} else Compression.NONE
    if base in _DOCKER_OPEN_LAYERS:
        return Compression.NONE if suffixes else Compression.UNKNOWN
    if base in _DOCKER_GZIP_LAYERS:
        return Compression.NONE if suffixes else Compression.GZIP
    if base == DOCKER_LAYER_ZSTD:
        return Compression.NONE if suffixes else Compression.ZSTD
    raise UnimplementedError(f"unrecognised mediatype {media_type}")
