"""What images are made of, found by reading: children of a manifest, the manifest for a platform, all that is needed.

Nothing here stores anything. Content comes from a `Provider`, so that the same walk serves the daemon's store, a client
behind the API, and a registry.

Source: containerd's core/images/image.go and handlers.go.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from orlop.base.errdefs import InvalidArgumentError, NotFoundError
from orlop.base.platforms import Matcher, Platform, normalize
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor, Image, Manifest, decode_image, decode_index, decode_manifest

MAX_DEPTH = 8
"""How many indexes may lie within each other. Digests make cycles impossible, lies about them do not."""


class Provider(Protocol):
    """Where content is read from."""

    async def read(self, descriptor: Descriptor) -> bytes:
        """The whole content of a small blob.

        Raises:
            NotFoundError: it is not there.
        """
        ...


Handler = Callable[[Descriptor], Awaitable[Sequence[Descriptor]]]
"""Does something with a descriptor and returns the descriptors to go on with, often its children."""


async def children(provider: Provider, descriptor: Descriptor) -> list[Descriptor]:
    """What `descriptor` refers to directly: config and layers of a manifest, manifests of an index; else nothing.

    Raises:
        NotFoundError: the manifest or index is not there.
        InvalidArgumentError: it is not what its type says.
    """
    if media_types.is_manifest(descriptor.media_type):
        manifest = decode_manifest(await provider.read(descriptor), what=f"manifest {descriptor.digest}")
        return [manifest.config, *manifest.layers]
    if media_types.is_index(descriptor.media_type):
        index = decode_index(await provider.read(descriptor), what=f"index {descriptor.digest}")
        return list(index.manifests)
    return []


def select(descriptors: Iterable[Descriptor], matcher: Matcher | None, limit: int = 0) -> list[Descriptor]:
    """Those of an index's manifests that suit, the best first; those without a platform last, for they may suit too.

    Args:
        matcher: None takes all, in their order.
        limit: at most so many; 0 is no limit.
    """
    found = list(descriptors)
    if matcher is not None:
        ranked = [(_rank(matcher, descriptor), descriptor) for descriptor in found]
        found = [descriptor for rank, descriptor in sorted((r for r in ranked if r[0] is not None), key=_by_rank)]
    return found[:limit] if limit else found


def _by_rank(ranked: tuple[int | None, Descriptor]) -> int:
    return ranked[0] or 0


def _rank(matcher: Matcher, descriptor: Descriptor) -> int | None:
    if descriptor.platform is None:
        return len(matcher.alternatives) + 1
    return matcher.rank(descriptor.platform)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformManifest:
    """A manifest with the descriptor that led to it."""

    descriptor: Descriptor
    manifest: Manifest


async def manifest(provider: Provider, target: Descriptor, matcher: Matcher | None = None) -> PlatformManifest:
    """The manifest of an image for a platform.

    Where an index does not say a manifest's platform, the image's config is asked. A target that is itself a manifest
    is taken whatever its platform, as containerd does.

    Raises:
        NotFoundError: no manifest suits, or content is missing.
        InvalidArgumentError: a document is not what its type says.
    """
    found = await _find_manifest(provider, target, matcher, target, 0)
    if found is None:
        raise NotFoundError(f"no match for platform {matcher} in manifest {target.digest}")
    return found


async def _find_manifest(
    provider: Provider, target: Descriptor, matcher: Matcher | None, descriptor: Descriptor, depth: int
) -> PlatformManifest | None:
    if media_types.is_manifest(descriptor.media_type):
        read = decode_manifest(await provider.read(descriptor), what=f"manifest {descriptor.digest}")
        if descriptor is not target and matcher is not None and descriptor.platform is None:
            platform = await config_platform(provider, read.config)
            if not matcher(platform):
                return None
        return PlatformManifest(descriptor=descriptor, manifest=read)
    if not media_types.is_index(descriptor.media_type):
        raise NotFoundError(f"unexpected media type {descriptor.media_type} for {descriptor.digest}")
    _check_depth(descriptor, depth)
    for candidate in select(await children(provider, descriptor), matcher):
        if media_types.is_manifest(candidate.media_type) or media_types.is_index(candidate.media_type):
            found = await _find_manifest(provider, target, matcher, candidate, depth + 1)
            if found is not None:
                return found
    return None


async def image_config(provider: Provider, target: Descriptor, matcher: Matcher | None = None) -> Image:
    """The config document of an image for a platform.

    Raises:
        NotFoundError, InvalidArgumentError: as `manifest`.
    """
    found = await manifest(provider, target, matcher)
    return await read_config(provider, found.manifest.config)


async def read_config(provider: Provider, descriptor: Descriptor) -> Image:
    """The config document that `descriptor` names."""
    return decode_image(await provider.read(descriptor), what=f"image config {descriptor.digest}")


async def config_platform(provider: Provider, descriptor: Descriptor) -> Platform:
    """The platform that an image's config names, normalised."""
    return normalize((await read_config(provider, descriptor)).platform)


async def root_fs(provider: Provider, config: Descriptor) -> tuple[Digest, ...]:
    """The DiffIDs of an image, the lowest first."""
    return tuple((await read_config(provider, config)).rootfs.diff_ids)


async def platforms(provider: Provider, target: Descriptor) -> list[Platform]:
    """The platforms that an image says it is for; attestations, whose platform is `unknown`, are left out.

    Raises:
        NotFoundError: a manifest or config that would say so is missing.
    """
    found: list[Platform] = []

    async def handle(descriptor: Descriptor) -> Sequence[Descriptor]:
        said = descriptor.platform
        if said is not None:
            if "unknown" not in {said.os, said.architecture}:
                found.append(normalize(said))
            return ()
        if media_types.is_config(descriptor.media_type):
            found.append(await config_platform(provider, descriptor))
        return await children(provider, descriptor)

    await walk(handle, [target])
    return found


async def walk(handler: Handler, descriptors: Iterable[Descriptor], *, depth: int = 0) -> None:
    """Visit descriptors and what the handler returns for each, one after the other, parents first.

    Raises:
        InvalidArgumentError: the documents lie deeper in each other than any image.
    """
    for descriptor in descriptors:
        _check_depth(descriptor, depth)
        following = await handler(descriptor)
        await walk(handler, following, depth=depth + 1)


def _check_depth(descriptor: Descriptor, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidArgumentError(f"index {descriptor.digest} lies more than {MAX_DEPTH} indexes deep")


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """What an image needs for a platform, and what of it is there.

    Attributes:
        available: the manifest could be read, so that `required` is all there is.
    """

    available: bool
    required: tuple[Descriptor, ...]
    present: tuple[Descriptor, ...]
    missing: tuple[Descriptor, ...]


async def check(
    provider: Provider,
    has: Callable[[Descriptor], Awaitable[bool]],
    target: Descriptor,
    matcher: Matcher | None = None,
) -> Presence:
    """Say whether all parts of an image are there, without reading layers.

    Args:
        has: whether the store has the content of a descriptor.

    Raises:
        InvalidArgumentError: a document is not what its type says.
    """
    try:
        found = await manifest(provider, target, matcher)
    except NotFoundError:
        return Presence(available=False, required=(target,), present=(), missing=(target,))
    required = (found.manifest.config, *found.manifest.layers)
    there = [await has(descriptor) for descriptor in required]
    return Presence(
        available=True,
        required=required,
        present=tuple(descriptor for descriptor, yes in zip(required, there, strict=True) if yes),
        missing=tuple(descriptor for descriptor, yes in zip(required, there, strict=True) if not yes),
    )
