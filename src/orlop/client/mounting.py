"""An image's files at a path of this host, as `Image.mount` and `Images.unmount`."""

import contextlib
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from orlop.base.errdefs import (
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    OrlopError,
    UnimplementedError,
)
from orlop.base.labels import GC_BREF_SNAPSHOT, GC_ROOT
from orlop.client.leases import Held, Leases
from orlop.client.mounts import Mounts
from orlop.client.session import Session
from orlop.client.snapshots import Snapshots
from orlop.core.mount import Mount

if TYPE_CHECKING:
    from orlop.client.images import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounting:
    """How an image is mounted; see `Image.mount`."""

    snapshotter: str
    writable: bool
    labels: Mapping[str, str]
    expires_in: timedelta | None = None
    sync: bool = False


async def mount(session: Session, image: "Image", target: str, how: Mounting) -> str:
    """Mount an image; see `Image.mount`."""
    if not await session.blocking(os.path.isdir, target):
        raise NotFoundError(f"mount target {target}: no such directory")
    if how.expires_in is None:
        return await _mount(session, image, target, how)
    leases = Leases(session)
    try:
        ours = (await leases.create(target, expires_in=how.expires_in)).id
    except AlreadyExistsError:
        ours = ""
    try:
        return await _mount(session.with_lease(target), image, target, how)
    except BaseException:
        if ours:
            with contextlib.suppress(OrlopError):  # the first error tells, and the lease ends by itself
                await leases.delete(ours)
        raise


async def _mount(session: Session, image: "Image", target: str, how: Mounting) -> str:
    from orlop.core.mount.perform import mount_all

    snapshotter = how.snapshotter
    async with Held(session) as held:
        chain_id = await image.unpack(snapshotter=snapshotter, sync=how.sync)
        snapshots = Snapshots(held, snapshotter)
        # As in containerd the snapshot's key is the path, so that unmount finds it. Nothing but a label keeps it, or
        # the lease that it is mounted with.
        marks = {**how.labels} if how.expires_in else {GC_ROOT: "1", **how.labels}
        make = snapshots.prepare if how.writable else snapshots.view
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An image that the daemon has mounted.

    Attributes:
        chain_id: of what is mounted.
        path: where.
        name: of its lease, snapshot and activation.
    """

    chain_id: str
    path: str
    name: str


async def show(session: Session, image: "Image", how: Mounting) -> Shown:
    """Have the daemon mount an image; see `Image.show`. Source: containerd's cmd/ctr/commands/images/mount.go, 2.2."""
    name = f"ctr-images-mount-{time.time_ns() % 10**9}-{secrets.token_urlsafe(3)}"
    leases = Leases(session)
    await leases.create(name, expires_in=how.expires_in)
    try:
        return await _show(session.with_lease(name), image, name, how)
    except BaseException:
        with contextlib.suppress(OrlopError):  # the first error tells, and the lease ends by itself
            await leases.delete(name)
        raise


async def _show(held: Session, image: "Image", name: str, how: Mounting) -> Shown:
    chain_id = await image.unpack(snapshotter=how.snapshotter, sync=how.sync)
    snapshots = Snapshots(held, how.snapshotter)
    make = snapshots.prepare if how.writable else snapshots.view
    mounts: Sequence[Mount] = await make(name, chain_id, labels=how.labels)
    with contextlib.suppress(UnimplementedError):  # this daemon has no such service
        mounts = (await Mounts(held).activate(name, mounts, temporary=True)).system
    if len(mounts) != 1 or mounts[0].type != "bind":
        shown = ", ".join(f"{one.type} {one.source}" for one in mounts)
        raise FailedPreconditionError(f"image {image.name}: cannot handle returned mounts: {shown}")
    return Shown(chain_id=chain_id, path=mounts[0].source, name=name)


async def unmount(session: Session, target: str, *, snapshotter: str, remove: bool) -> None:
    """Unmount an image; see `Images.unmount`."""
    from orlop.core.mount.perform import unmount_all

    await session.blocking(unmount_all, target)
    await _deactivate(session, target)
    if remove:
        with contextlib.suppress(NotFoundError):
            await Snapshots(session, snapshotter).remove(target)
        with contextlib.suppress(NotFoundError):
            await Leases(session).delete(target)


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
