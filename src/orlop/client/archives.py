"""Archives read and written by the client itself.

Source: containerd's client/import.go and client/export.go.
"""

import asyncio
from collections.abc import Sequence
from typing import IO

from orlop.base.errdefs import NotFoundError
from orlop.base.platforms import ALL, Matcher
from orlop.client.leases import Held
from orlop.client.session import Session
from orlop.client.stores import SessionStores
from orlop.core.images.gc_labels import label_of, without_layers
from orlop.core.images.handlers import select
from orlop.core.transfer.exporting import ExportOptions, export_archive
from orlop.core.transfer.importing import import_archive, keep
from orlop.core.transfer.naming import Naming
from orlop.core.transfer.progress import Callback, ignore
from orlop.oci.image import Descriptor, decode_index


async def import_images(
    session: Session,
    source: IO[bytes],
    *,
    naming: Naming,
    matcher: Matcher = ALL,
    compress: bool = False,
    discard_layers: bool = False,
    progress: Callback = ignore,
) -> list[str]:
    """Store an archive's blobs, name its images, and return the names; see `Client.import_`."""

    async def whole(looped: Session) -> list[str]:
        async with Held(looped) as held:
            stores = SessionStores(held)
            top = await import_archive(stores.content, source, compress=compress, progress=progress)
            await keep(stores.content, top, matcher, key_of=without_layers if discard_layers else label_of)
            index = decode_index(await stores.content.read(top.digest), what="index of the archive")
            named = _named(naming, top, select(index.manifests, None if matcher.match_all else matcher))
            for name, target in named.items():
                plain = Descriptor(media_type=target.media_type, digest=target.digest, size=target.size)
                await stores.images.put(name, plain, {})
            return list(named)

    return await session.looped(whole)


def _named(naming: Naming, top: Descriptor, entries: Sequence[Descriptor]) -> dict[str, Descriptor]:
    named = {naming.index_name: top} if naming.index_name else {}
    for one in entries:
        for name in (naming.name(one), naming.digest_name(one)):
            if name:
                named[name] = one
    if not named:
        raise NotFoundError("an image with a name in the archive", hint="give one with --base-name or --index-name")
    return named


async def export_images(session: Session, target: IO[bytes], names: Sequence[str], options: ExportOptions) -> None:
    """Write images into one archive; see `Client.export`."""

    async def whole(looped: Session) -> None:
        stores = SessionStores(looped)
        images = [await stores.images.named(name) for name in names]

        async def write(data: bytes) -> None:
            await asyncio.to_thread(target.write, data)

        await export_archive(stores.content, images, write, options)

    await session.looped(whole)
