"""Pulling by the client itself: resolve a reference, bring all its content into the store, name it, unpack it.

A lease holds everything until the image has its name.

Source: containerd's client/pull.go.
"""

import asyncio
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orlop.base import platforms
from orlop.base.errdefs import NotFoundError
from orlop.base.platforms import Matcher
from orlop.client.images import matcher
from orlop.client.leases import Held
from orlop.client.registry import RegistryOptions
from orlop.client.session import Session
from orlop.client.stores import SessionStores
from orlop.core.transfer.fetch import Selection
from orlop.core.transfer.legacy import with_config_type
from orlop.core.transfer.progress import Callback, Progress, Status
from orlop.core.transfer.pull import Unpack
from orlop.core.transfer.pull import pull as pull_target
from orlop.oci import media_types

if TYPE_CHECKING:
    from orlop.core.remotes.resolver import RegistryResolver


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """What a pull brings.

    Attributes:
        platform: specifier of the one to pull for; this machine's when empty.
        all_platforms: everything that the index names.
        all_metadata: manifests and configurations of all platforms, layers of the one.
        metadata_only: no layers at all.
        labels: for the image.
        referrers: what names the image or its manifests as its subject, too: signatures, attestations.
        max_concurrent: blobs at once; 0 is no limit.
    """

    platform: str = ""
    all_platforms: bool = False
    all_metadata: bool = False
    metadata_only: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    referrers: bool = False
    max_concurrent: int = 0

    @property
    def wanted(self) -> Matcher:
        """Which manifests of an index to take."""
        return platforms.ALL if self.all_platforms else matcher(self.platform)

    @property
    def selection(self) -> Selection:
        """The same in the words of a transfer."""
        everything = self.all_platforms or self.all_metadata
        return Selection(
            matcher=self.wanted,
            manifest_limit=0 if everything else 1,
            all_metadata=self.all_metadata,
            layers=not self.metadata_only,
        )


async def pull(
    session: Session,
    ref: str,
    *,
    registry: RegistryOptions,
    options: PullOptions,
    snapshotter: str = "",
    progress: Callback,
) -> str:
    """Bring an image, name it, unpack it if a snapshotter is named, and return the name; see `Client.pull`."""

    async def whole(looped: Session) -> str:
        async with Held(looped) as held, registry.resolver() as resolver:
            unpacks = [Unpack(snapshotter=snapshotter, matcher=options.wanted)] if snapshotter else []
            return await _pull(held, resolver, ref, options, unpacks, progress)

    return await session.looped(whole)


async def _pull(
    held: Session,
    resolver: "RegistryResolver",
    ref: str,
    options: PullOptions,
    unpacks: Sequence[Unpack],
    progress: Callback,
) -> str:
    progress(Progress(ref=ref, status=Status.RESOLVING))
    name, target = await resolver.resolve(ref)
    progress(Progress(ref=ref, status=Status.RESOLVED))
    stores = SessionStores(held)
    gate = asyncio.Semaphore(options.max_concurrent) if options.max_concurrent > 0 else None
    manifests = await pull_target(
        stores,
        resolver.fetcher(name),
        name,
        target,
        selection=options.selection,
        unpacks=unpacks,
        gate=gate,
        referrers=functools.partial(resolver.referrers, name) if options.referrers else None,
        progress=progress,
    )
    if media_types.is_index(target.media_type) and not manifests:
        raise NotFoundError(f"pull {name}: no manifest for platform {options.wanted}")
    target = await with_config_type(stores.content, target)
    # Only now: an image whose name is there is whole.
    await stores.images.put(name, target, options.labels)
    return name
