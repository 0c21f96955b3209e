"""Media types of OCI and Docker, and what can be told from one.

Sources: image-spec's media-types.md; containerd's core/images/mediatypes.go; distribution's manifest schema 2.
"""

from enum import StrEnum
from typing import Final

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
IN_TOTO: Final = "application/vnd.in-toto+json"
OCTET_STREAM: Final = "application/octet-stream"

MANIFEST_ACCEPT: Final = ", ".join((DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, OCI_MANIFEST, OCI_INDEX, "*/*"))
"""What a client asks a registry for when it does not know what a reference is."""

_MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_INDEXES: Final = frozenset({OCI_INDEX, DOCKER_MANIFEST_LIST})
_CONFIGS: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG, CHECKPOINT_CONFIG})
_CHECKPOINTS: Final = frozenset(
    {CHECKPOINT, CHECKPOINT_PREDUMP, CHECKPOINT_RESOURCE, CHECKPOINT_RW, CHECKPOINT_OPTIONS}
)
_NONDISTRIBUTABLE: Final = frozenset(
    {
        OCI_LAYER_NONDISTRIBUTABLE,
        OCI_LAYER_NONDISTRIBUTABLE_GZIP,
        OCI_LAYER_NONDISTRIBUTABLE_ZSTD,
        DOCKER_LAYER_FOREIGN,
        DOCKER_LAYER_FOREIGN_GZIP,
    }
)
_DOCKER_LAYERS: Final = frozenset(
    {DOCKER_LAYER, DOCKER_LAYER_GZIP, DOCKER_LAYER_ZSTD, DOCKER_LAYER_FOREIGN, DOCKER_LAYER_FOREIGN_GZIP}
)


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
    """Whether this is the type of an image's config, or of a checkpoint's."""
    return media_type in _CONFIGS


def is_layer(media_type: str) -> bool:
    """Whether this is a layer of a root file system, of whatever compression."""
    if media_type.startswith("application/vnd.oci.image.layer."):
        return True
    return parse(media_type)[0] in _DOCKER_LAYERS or parse(media_type)[0] == EROFS_LAYER


def is_docker(media_type: str) -> bool:
    return media_type.startswith("application/vnd.docker.")


def is_nondistributable(media_type: str) -> bool:
    """Whether a layer is fetched from its own URLs and is not pushed."""
    return parse(media_type)[0] in _NONDISTRIBUTABLE or media_type in _NONDISTRIBUTABLE


def is_known_config_or_layer(media_type: str) -> bool:
    """Whether a blob of this type is known to have no children."""
    return is_layer(media_type) or is_config(media_type) or media_type in _CHECKPOINTS


def layer_compression(media_type: str) -> Compression:
    """How a layer of this type is compressed; a Docker layer without a suffix may be anything.

    Source: DiffCompression in containerd's core/images/mediatypes.go: Docker 1.12 and before said `.tar` of gzip.
    """
    base, suffixes = parse(media_type)
    if base in {DOCKER_LAYER_GZIP, DOCKER_LAYER_FOREIGN_GZIP}:
        return Compression.GZIP
    if base == DOCKER_LAYER_ZSTD:
        return Compression.ZSTD
    if base in {DOCKER_LAYER, DOCKER_LAYER_FOREIGN}:
        return Compression.UNKNOWN
    if not suffixes:
        return Compression.NONE
    return {"gzip": Compression.GZIP, "zstd": Compression.ZSTD}.get(suffixes[-1], Compression.UNKNOWN)
