"""The documents of an image, as image-spec has them: descriptor, manifest, index, config.

They are read tolerantly, as Go reads them: unknown fields are passed over, null counts as absent. They are written
compactly, in the order of the fields in image-spec's Go types, without what is empty. Digests and sizes are checked
while reading. A document that is to be changed and must keep what we do not know has to be edited as plain JSON.

Sources: image-spec's descriptor.md, manifest.md, image-index.md, config.md; validateMediaType in containerd's
core/images/image.go.
"""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Struct, field

from orlop.base.errdefs import InvalidArgumentError, OrlopError
from orlop.base.platforms import Platform as BasePlatform
from orlop.base.quoting import quote
from orlop.oci import media_types
from orlop.oci.digest import Digest

MAX_MANIFEST_SIZE: Final = 8 << 20
"""Bytes; containerd's bound for what it reads whole (core/images, core/remotes/docker)."""

if TYPE_CHECKING:
    Text = str
    Texts = tuple[str, ...]
    TextMap = Mapping[str, str]
    KeySet = Mapping[str, Any]
else:
    # Documents in the wild have null where a list or map is empty; __post_init__ makes that the empty value, so that
    # nobody who reads a document sees None.
    Text = str | None
    Texts = tuple[str, ...] | None
    TextMap = dict[str, str] | None
    KeySet = dict[str, Any] | None

Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]

T = TypeVar("T", bound="Document")


class Document(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all structs here: null becomes the field's default."""

    def __post_init__(self) -> None:
        for name, default in _NULLABLE.get(type(self), ()):
            if getattr(self, name) is None:
                msgspec.structs.force_setattr(self, name, default())


class Platform(Document, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """The platform that a manifest is for; it has the fields of `base.platforms.Platform`."""

    architecture: Text = ""
    os: Text = ""
    os_version: Text = field(name="os.version", default="")
    os_features: Texts = field(name="os.features", default=())
    variant: Text = ""

    @classmethod
    def of(cls, platform: BasePlatform) -> "Platform":
        """The same platform as image-spec writes it."""
        return cls(
            architecture=platform.architecture,
            os=platform.os,
            os_version=platform.os_version,
            os_features=platform.os_features,
            variant=platform.variant,
        )


class Descriptor(Document, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """A typed, sized name of content."""

    media_type: Text = field(default_factory=str)
    digest: Digest
    size: Size
    urls: Texts = ()
    annotations: TextMap = field(default_factory=dict)
    data: bytes | None = None
    platform: Platform | None = None
    artifact_type: Text = ""


if TYPE_CHECKING:
    Descriptors = tuple[Descriptor, ...]
else:
    Descriptors = tuple[Descriptor, ...] | None


class Manifest(Document, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """One image for one platform, or an artifact."""

    # A factory that is no bare `tuple` has a field written even where it is empty: the specification wants it there.
    schema_version: int = field(default_factory=lambda: 2)
    media_type: Text = ""
    artifact_type: Text = ""
    config: Descriptor
    layers: Descriptors = field(default_factory=lambda: ())
    subject: Descriptor | None = None
    annotations: TextMap = field(default_factory=dict)


class Index(Document, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """A list of manifests, or a Docker manifest list."""

    schema_version: int = field(default_factory=lambda: 2)
    media_type: Text = ""
    artifact_type: Text = ""
    manifests: Descriptors = field(default_factory=lambda: ())
    subject: Descriptor | None = None
    annotations: TextMap = field(default_factory=dict)


class ContainerConfig(Document, frozen=True, kw_only=True, omit_defaults=True, rename="pascal"):
    """How a container of the image runs by default."""

    user: Text = ""
    exposed_ports: KeySet = field(default_factory=dict)
    env: Texts = ()
    entrypoint: Texts = ()
    cmd: Texts = ()
    volumes: KeySet = field(default_factory=dict)
    working_dir: Text = ""
    labels: TextMap = field(default_factory=dict)
    stop_signal: Text = ""
    args_escaped: bool = False


if TYPE_CHECKING:
    Digests = tuple[Digest, ...]
else:
    Digests = tuple[Digest, ...] | None


class RootFS(Document, frozen=True, kw_only=True, omit_defaults=True):
    """The layers of the image by their DiffIDs, the lowest first."""

    type: Text = field(default_factory=lambda: "layers")
    diff_ids: Digests = field(default_factory=tuple)


class History(Document, frozen=True, kw_only=True, omit_defaults=True):
    """How a layer came about."""

    created: Text = ""
    created_by: Text = ""
    author: Text = ""
    comment: Text = ""
    empty_layer: bool = False


if TYPE_CHECKING:
    Histories = tuple[History, ...]
    Config = ContainerConfig
    Layers = RootFS
else:
    Histories = tuple[History, ...] | None
    Config = ContainerConfig | None
    Layers = RootFS | None


class Image(Document, frozen=True, kw_only=True, omit_defaults=True):
    """An image's config document. Times are RFC 3339 texts, untouched."""

    created: Text = ""
    author: Text = ""
    architecture: Text = ""
    variant: Text = ""
    os: Text = ""
    os_version: Text = field(name="os.version", default="")
    os_features: Texts = field(name="os.features", default=())
    config: Config = field(default_factory=ContainerConfig)
    rootfs: Layers = field(default_factory=RootFS)
    history: Histories = ()

    @property
    def platform(self) -> BasePlatform:
        """The platform that the config names; empty texts where it does not."""
        return BasePlatform(
            os=self.os,
            architecture=self.architecture,
            variant=self.variant,
            os_version=self.os_version,
            os_features=tuple(self.os_features),
        )


class _Shape(Struct, frozen=True, kw_only=True, rename="camel"):
    """Enough of a document to tell a manifest from an index."""

    media_type: str | None = None
    config: msgspec.Raw = field(default_factory=msgspec.Raw)
    layers: msgspec.Raw = field(default_factory=msgspec.Raw)
    manifests: msgspec.Raw = field(default_factory=msgspec.Raw)
    fs_layers: msgspec.Raw = field(default_factory=msgspec.Raw)


_NULLABLE: Final[dict[type, tuple[tuple[str, Callable[[], Any]], ...]]] = {}


def decode_manifest(data: bytes, *, what: str = "manifest") -> Manifest:
    """Read a manifest.

    Args:
        what: names the document in errors, such as its digest.

    Raises:
        InvalidArgumentError: it is no JSON, no manifest, an index in disguise, of schema 1, or larger than 8 MiB.
    """
    shape = decode_shape(data, what=what)
    if shape.is_index:
        raise InvalidArgumentError(f"{what}: media-type: expected manifest but found index ({shape.media_type})")
    return _decode(data, Manifest, what)


def decode_index(data: bytes, *, what: str = "index") -> Index:
    """Read an index or manifest list.

    Raises:
        InvalidArgumentError: as `decode_manifest`, with the roles reversed.
    """
    shape = decode_shape(data, what=what)
    if shape.is_manifest:
        raise InvalidArgumentError(f"{what}: media-type: expected index but found manifest ({shape.media_type})")
    return _decode(data, Index, what)


def decode_image(data: bytes, *, what: str = "image config") -> Image:
    """Read an image's config.

    Raises:
        InvalidArgumentError: it is no JSON, has wrong types, or is larger than 8 MiB.
    """
    return _decode(data, Image, what)


def encode(document: Struct) -> bytes:
    """Write any of these documents: compact JSON."""
    return _ENCODER.encode(document)


class Shape(Struct, frozen=True, kw_only=True):
    """What a document looks like, whatever its type says it is."""

    media_type: str
    is_manifest: bool
    is_index: bool


def decode_shape(data: bytes, *, what: str = "document") -> Shape:
    """Tell a manifest from an index by its fields and its own media type.

    One that looks like both at once is told as both, so that neither reader takes it: two readers must not see
    different images in the same bytes (CVE-2021-41190).

    Raises:
        InvalidArgumentError: it is no JSON object, of schema 1, or larger than 8 MiB.
    """
    found = _decode(data, _Shape, what)
    media_type = found.media_type or ""
    if _has(found.fs_layers) or media_type == media_types.DOCKER_SCHEMA1_MANIFEST:
        raise InvalidArgumentError(f"{what}: media-type: schema 1 not supported")
    return Shape(
        media_type=media_type,
        is_manifest=_has(found.config) or _has(found.layers) or media_types.is_manifest(media_type),
        is_index=_has(found.manifests) or media_types.is_index(media_type),
    )


def _has(raw: msgspec.Raw) -> bool:
    return bytes(raw) not in {b"", b"null"}


S = TypeVar("S", bound=Struct)


def _decode(data: bytes, kind: type[S], what: str) -> S:
    if len(data) > MAX_MANIFEST_SIZE:
        raise InvalidArgumentError(f"{what}: {len(data)} bytes, more than the allowed {MAX_MANIFEST_SIZE}")
    try:
        return msgspec.json.decode(data, type=kind, dec_hook=_from_json)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{what}: {error}") from error


def _from_json(kind: type, value: Any) -> Any:
    # Any: this is where JSON becomes typed.
    if kind is Digest:
        if not isinstance(value, str):
            raise TypeError("a digest must be a text")
        try:
            return Digest.parse(value)
        except OrlopError as error:
            raise ValueError(error.text) from error  # msgspec adds where in the document
    raise NotImplementedError(f"no reader for {quote(kind.__name__)}")


def _to_json(value: Any) -> Any:
    if isinstance(value, str):
        return str(value)
    raise NotImplementedError(f"no writer for {quote(type(value).__name__)}")


_ENCODER: Final = msgspec.json.Encoder(enc_hook=_to_json, order="deterministic")


def _nullable_fields(kind: type[Struct]) -> tuple[tuple[str, Callable[[], Any]], ...]:
    """Fields that take null while reading, with what makes their empty value."""
    found: list[tuple[str, Callable[[], Any]]] = []
    for info in msgspec.structs.fields(kind):
        if info.default_factory is not msgspec.NODEFAULT:
            found.append((info.name, info.default_factory))
        elif info.default is not msgspec.NODEFAULT and info.default is not None:
            found.append((info.name, functools.partial(_same, info.default)))
    return tuple(found)


def _same(value: Any) -> Any:
    return value


for _kind in (Platform, Descriptor, Manifest, Index, ContainerConfig, RootFS, History, Image):
    _NULLABLE[_kind] = _nullable_fields(_kind)
