"""What can be moved from where to where: the ends of a transfer, as both sides of the API have them.

    from \\ to             OCIRegistry   ImageStore   ImageExportStream
    OCIRegistry           -             pull         -
    ImageStore            push          tag          export
    ImageImportStream     -             import       the bytes as they are

Source: containerd's core/transfer/{registry,image,archive} and local/transfer.go.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import IO, Protocol

from orlop.base.platforms import Platform
from orlop.core.transfer.progress import Listener


class HTTPDebug(IntEnum):
    """What of the traffic with a registry is logged."""

    DISABLED = 0
    DEBUG = 1
    TRACE = 2
    BOTH = 3


class AuthKind(IntEnum):
    """What a secret is: nothing, a password, a refresh token, or the value of the `Authorization` header."""

    NONE = 0
    CREDENTIALS = 1
    REFRESH = 2
    HEADER = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """An answer to the question who we are at a registry."""

    kind: AuthKind = AuthKind.NONE
    username: str = ""
    secret: str = field(default="", repr=False)


class CredentialHelper(Protocol):
    """Says who we are, when a registry wants to know. Source: CredentialHelper in core/transfer/registry."""

    async def secret(self, reference: str, host: str) -> Secret:
        """For the server `host`, which is asked for `reference`."""
        ...


class Sink(Protocol):
    """Takes bytes in order."""

    async def write(self, data: bytes) -> None: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OCIRegistry:
    """A reference at a registry that speaks the distribution protocol.

    Attributes:
        headers: sent with each request to the registry and its mirrors.
        host_dir: directory of hosts.toml files on the daemon's machine.
        default_scheme: `http` or `https` where `host_dir` says nothing.
        credentials: asked when the registry wants to know who we are; nobody without.
        logs: takes what `http_debug` wants to be told, else it is in the daemon's log.
    """

    reference: str
    headers: Mapping[str, str] = field(default_factory=dict)
    host_dir: str = ""
    default_scheme: str = ""
    credentials: CredentialHelper | None = None
    http_debug: HTTPDebug = HTTPDebug.DISABLED
    logs: Sink | None = None

    def __str__(self) -> str:
        return f"OCI Registry ({self.reference})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReference:
    """A further name for what comes in.

    Attributes:
        is_prefix: `name` goes before the tag that the archive has for an image.
        allow_overwrite: a whole name that the archive has is taken though it does not begin with `name`.
        add_digest: also make `name@digest`.
        skip_named_digest: but not for images that have a name.
    """

    name: str
    is_prefix: bool = False
    allow_overwrite: bool = False
    add_digest: bool = False
    skip_named_digest: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackConfiguration:
    """Into which snapshotter (the default one when empty) images of which platform (any when empty) are unpacked."""

    platform: Platform
    snapshotter: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStore:
    """The daemon's images.

    Attributes:
        name: the image's name; empty where an import brings names of its own.
        labels: for what comes in.
        platforms: what is wanted of an index, the first preferred; empty is everything.
        all_metadata: manifests and configurations of other platforms as well.
        manifest_limit: how many manifests of an index are followed; 0 is no limit.
        extra_references: further names.
        unpacks: what to unpack.
    """

    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    platforms: tuple[Platform, ...] = ()
    all_metadata: bool = False
    manifest_limit: int = 0
    extra_references: tuple[ImageReference, ...] = ()
    unpacks: tuple[UnpackConfiguration, ...] = ()

    def __str__(self) -> str:
        return f"Local Image Store ({self.name})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageImportStream:
    """An archive of images.

    Attributes:
        source: read once, in a thread, to its end.
        media_type: of the archive; empty finds out how it is compressed.
        force_compress: compress layers that come plain.
    """

    source: IO[bytes]
    media_type: str = ""
    force_compress: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageExportStream:
    """An archive to be made; `platforms` is this machine's when empty, and does not count with `all_platforms`."""

    target: Sink
    media_type: str = ""
    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False
    skip_compatibility_manifest: bool = False
    skip_non_distributable: bool = False


End = OCIRegistry | ImageStore | ImageImportStream | ImageExportStream


class Transferrer(Protocol):
    """Moves images; one plug-in of its kind after the other is asked."""

    async def transfer(
        self, namespace: str, source: object, destination: object, *, lease: str, listener: Listener | None
    ) -> None:
        """Move what `source` names to `destination`.

        Everything has been done when this returns, and nothing goes on when it raises.

        Raises:
            UnimplementedError: it does not know these two; nothing was done.
        """
        ...
