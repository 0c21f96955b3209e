"""An image's files at a path of this host, as `Image.mount` and `Images.unmount`."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orlop.base.errdefs import AlreadyExistsError, NotFoundError, UnimplementedError
from orlop.base.labels import GC_BREF_SNAPSHOT, GC_ROOT
from orlop.client.leases import Held
from orlop.client.mounts import Mounts
from orlop.client.session import Session
from orlop.client.snapshots import Snapshots
from orlop.core.mount import Mount

if TYPE_CHECKING:
    from orlop.client.images import Image


async def mount(
    session: Session,
    image: "Image",
    target: str,
    *,
    snapshotter: str,
    writable: bool,
    labels: Mapping[str, str],
) -> str:
    """Mount an image; see `Image.mount`."""
    from orlop.core.mount.perform import mount_all

    if not await session.blocking(os.path.isdir, target):
        raise NotFoundError(f"mount target {target}: no such directory")
    async with Held(session) as held:
        chain_id = await image.unpack(snapshotter=snapshotter)
        snapshots = Snapshots(held, snapshotter)
        # As in containerd the snapshot's key is the path, so that unmount finds it. Nothing but a label keeps it.
        marks = {GC_ROOT: "1", **labels}
        make = snapshots.prepare if writable else snapshots.view
        ours = True
        try:
            mounts = await make(target, chain_id, labels=marks)
        except AlreadyExistsError:
            mounts = await snapshots.mounts(target)
            ours = False
        try:
            left = await _activated(held, target, mounts, snapshotter)
            await session.blocking(mount_all, left, target)
        except BaseException:
            if ours:
                await _deactivate(session, target)
                with contextlib.suppress(NotFoundError):
                    await snapshots.remove(target)
            raise
    return chain_id


async def unmount(session: Session, target: str, *, snapshotter: str, remove: bool) -> None:
    """Unmount an image; see `Images.unmount`."""
    from orlop.core.mount.perform import unmount_all

    await session.blocking(unmount_all, target)
    await _deactivate(session, target)
    if remove:
        with contextlib.suppress(NotFoundError):
            await Snapshots(session, snapshotter).remove(target)


async def _activated(session: Session, target: str, mounts: Sequence[Mount], snapshotter: str) -> Sequence[Mount]:
    """What is left to mount when the daemon has done what of these mounts needs it. The snapshot keeps that."""
    manager = Mounts(session)
    try:
        labels = {f"{GC_BREF_SNAPSHOT}.{snapshotter}": target}
        return (await manager.activate(target, mounts, labels=labels)).system
    except UnimplementedError:  # nothing needs it, or this daemon cannot
        return mounts
    except AlreadyExistsError:
        return (await manager.get(target)).system


async def _deactivate(session: Session, target: str) -> None:
    with contextlib.suppress(NotFoundError, UnimplementedError):
        await Mounts(session).deactivate(target)
