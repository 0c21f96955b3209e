"""Registries: names resolved to descriptors, content fetched and pushed.

The interface is here; `resolver.RegistryResolver` speaks the OCI distribution protocol. A program that only names these
protocols does not import an HTTP library: that happens at the first request.

Source: containerd's core/remotes/resolver.go and handlers.go.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from orlop.oci import media_types
from orlop.oci.image import Descriptor

Source = Callable[[], AsyncIterator[bytes]]
"""Gives the bytes of a blob from the start; called again when an upload has to begin anew."""


class Fetcher(Protocol):
    """Reads content of one repository."""

    def fetch(
        self, descriptor: Descriptor, *, offset: int = 0, verify: bool = True
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The content of `descriptor` from `offset` on, in pieces as they arrive.

        The stream itself checks the size and never goes beyond it; it goes on after a cut connection by itself.

        Args:
            verify: check the digest too, at the end. Without effect from an offset on, for what comes before was not
                seen: who joins parts must check the whole.

        Raises:
            NotFoundError: no host has it.
            UnauthenticatedError, PermissionDeniedError: the registry does not let us.
            UnavailableError: no host answered, after the allowed number of attempts.
            FailedPreconditionError: what came has another size or digest. What was read must be thrown away.
        """
        ...

    async def read(self, descriptor: Descriptor) -> bytes:
        """The whole content of a small `descriptor`, such as a manifest, verified.

        Raises:
            InvalidArgumentError: it says to be larger than 8 MiB; nothing was fetched.
        """
        ...


class PushStatus(StrEnum):
    """What a push did."""

    UPLOADED = "uploaded"
    EXISTS = "exists"
    MOUNTED = "mounted"


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """How content came to be in the repository; `mounted_from` names the repository it was taken from, if it was."""

    status: PushStatus
    mounted_from: str = ""


class Pusher(Protocol):
    """Writes content to one repository, under the reference that it was made for."""

    async def push(
        self, descriptor: Descriptor, source: Source, *, labels: Mapping[str, str] | None = None
    ) -> PushResult:
        """Put content into the repository: a blob by its digest, a manifest by the reference's tag or by its digest.

        When this returns, the registry has confirmed the content. Pushing again is harmless.

        Args:
            labels: the content's labels; `containerd.io/distribution.source.*` among them (or among the descriptor's
                annotations) name repositories of the same registry that it can be mounted from.

        Raises:
            UnauthenticatedError, PermissionDeniedError: the registry does not let us.
            FailedPreconditionError: `source` does not give what the descriptor says, or the registry stored another
                digest.
            UnavailableError: it did not answer, after the allowed number of attempts.
        """
        ...


class Resolver(Protocol):
    """Turns references into descriptors, and opens repositories."""

    async def resolve(self, ref: str) -> tuple[str, Descriptor]:
        """The name and the descriptor that `ref` stands for now.

        Raises:
            NotFoundError: no host knows it.
            InvalidArgumentError: it is no reference, or one without tag and digest.
        """
        ...

    def fetcher(self, ref: str) -> Fetcher:
        """A reader of the repository that `ref` is in."""
        ...

    def pusher(self, ref: str) -> Pusher:
        """A writer of the repository that `ref` is in; manifests get its tag, if it has one."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


def ref_key(descriptor: Descriptor) -> str:
    """The `ref` under which content of a descriptor is ingested, such as `layer-sha256:…`.

    Two clients that fetch the same content meet under it.
    """
    media_type = descriptor.media_type
    if media_types.is_manifest(media_type):
        kind = "manifest"
    elif media_types.is_index(media_type):
        kind = "index"
    elif media_types.is_layer(media_type):
        kind = "layer"
    elif media_types.is_known_config(media_type):
        kind = "config"
    elif media_types.is_attestation(media_type):
        kind = "attestation"
    else:
        kind = "unknown"
    return f"{kind}-{descriptor.digest}"
