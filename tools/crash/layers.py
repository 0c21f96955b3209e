"""Operations on snapshots and containers: what snapshotters, unpackers and pulls do."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import orlop
from orlop.base import platforms
from orlop.base.errdefs import AlreadyExistsError, NotFoundError
from orlop.core.mount import Mount
from orlop.core.mount.perform import temp_mount
from orlop.core.snapshots import Kind
from orlop.core.transfer.ends import ImageStore, OCIRegistry, UnpackConfiguration
from tools import residue
from tools.crash.operations import LEASE, Operation, has_image, import_image, lease
from tools.crash.stage import Stage, Where, until

MOTD: Final = "etc/motd"


def _write(directory: str, name: str, text: str) -> None:
    (Path(directory) / name).write_text(text)


@contextlib.contextmanager
def _seen(client: orlop.Client, snapshotter: str, name: str) -> Iterator[Path]:
    """The files of a committed snapshot, through a view."""
    snapshots = client.snapshots(snapshotter)
    mounts = snapshots.view("look", name)
    try:
        with temp_mount(mounts) as path:
            yield Path(path)
    finally:
        snapshots.remove("look")


# -- snapshots --------------------------------------------------------------------------------------------------------


def _holds(snapshotter: str, name: str, text: str, client: orlop.Client) -> None:
    with _seen(client, snapshotter, name) as files:
        assert (files / "text").read_text() == text


def _exists(snapshotter: str, name: str, client: orlop.Client) -> None:
    client.snapshots(snapshotter).stat(name)


def _is_gone(snapshotter: str, name: str, client: orlop.Client) -> None:
    assert not client.snapshots(snapshotter).exists(name)


def _commit_two(snapshotter: str, stage: Stage) -> None:
    """A snapshot, one on top of it, and a view; files are written in between."""
    with stage.client() as plain:
        snapshots = plain.with_lease(LEASE).snapshots(snapshotter)
        for name, parent in (("base", ""), ("upper", "base")):
            if snapshots.exists(name):
                continue
            key = f"{name}-key"
            try:
                mounts = snapshots.prepare(key, parent)
            except AlreadyExistsError:
                mounts = snapshots.mounts(key)
            stage.promise(f"active {key}", partial(_exists, snapshotter, key))
            with temp_mount(mounts) as path:
                _write(path, "text", name)
            stage.withdraw(f"active {key}")
            snapshots.commit(name, key, labels={"colour": "blue"})
            stage.promise(f"committed {name}", partial(_holds, snapshotter, name, name))
        with contextlib.suppress(AlreadyExistsError):
            snapshots.view("view", "upper")
        stage.promise("view", partial(_exists, snapshotter, "view"))


def _two(snapshotter: str, stage: Stage) -> None:
    lease(stage)
    _commit_two(snapshotter, stage)
    stage.promises.clear()


def _remove_two(snapshotter: str, stage: Stage) -> None:
    with stage.client() as client:
        for name in ("view", "upper", "base"):
            with contextlib.suppress(NotFoundError):
                client.snapshots(snapshotter).remove(name)
            stage.promise(f"no {name}", partial(_is_gone, snapshotter, name))


# -- unpacking --------------------------------------------------------------------------------------------------------


def _unpacked(name: str, snapshotter: str, client: orlop.Client) -> None:
    """The image is unpacked, and its files are those of its layers."""
    image = client.images.get(name)
    assert image.is_unpacked(snapshotter)
    with _seen(client, snapshotter, image.chain_id()) as files:
        assert (files / MOTD).read_text() == "orlop\n"
        assert not (files / "etc/removed").exists(), "a whiteout is not there"
        busybox = hashlib.sha256((files / "bin/busybox").read_bytes()).hexdigest()
        assert busybox == _BUSYBOX.setdefault(name, busybox), "bin/busybox has other bytes than before"
        assert (files / "bin/sh").readlink() == Path("busybox")


_BUSYBOX: Final[dict[str, str]] = {}
"""What the first, undisturbed run saw."""


def _unpack(snapshotter: str, stage: Stage) -> None:
    name = stage.image.reference
    with stage.client() as client:
        client.images.get(name).unpack(snapshotter=snapshotter)
    stage.promise("unpacked", partial(_unpacked, name, snapshotter))


def _unpack_and_sync(stage: Stage) -> None:
    """What is unpacked is synced a while later."""
    _unpack("overlayfs", stage)

    def synced() -> bool:
        with stage.database() as db:
            return not db.execute(
                "SELECT 1 FROM snapshots WHERE kind = ? AND synced_at IS NULL", (int(Kind.COMMITTED),)
            ).fetchall()

    until(lambda: synced() or stage.struck, "not synced")


def _used(snapshotter: str, stage: Stage) -> None:
    """An image that is unpacked and has been looked at."""
    import_image(stage)
    _unpack(snapshotter, stage)
    with stage.client() as client:
        _unpacked(stage.image.reference, snapshotter, client)
    stage.promises.clear()


def _brought_before(stage: Stage) -> None:
    """An image that was unpacked and is gone: what its namespace is sent now is unpacked while it arrives."""
    _used("overlayfs", stage)
    _collect_layers("overlayfs", stage)
    stage.promises.clear()


def _bring_again(stage: Stage) -> None:
    import_image(stage)
    _unpack("overlayfs", stage)


def _collect_layers(snapshotter: str, stage: Stage) -> None:
    with stage.client() as client:
        try:
            client.images.delete(stage.image.reference, synchronous=True)
        except NotFoundError:
            stage.collect()
    stage.promise("no layers", partial(_has_no_layers, snapshotter))


def _has_no_layers(snapshotter: str, client: orlop.Client) -> None:
    assert not client.snapshots(snapshotter).list()


def _pull(stage: Stage) -> None:
    with stage.client() as client:
        client.pull(stage.pushed)
    stage.promise("image", partial(has_image, stage.pushed))
    stage.promise("unpacked", partial(_unpacked, stage.pushed, "overlayfs"))


def _transfer(stage: Stage) -> None:
    """The daemon pulls by itself."""
    with stage.client() as client:
        unpacks = (UnpackConfiguration(platform=platforms.default()),)
        client.transfer(OCIRegistry(reference=stage.pushed), ImageStore(name=stage.pushed, unpacks=unpacks))
    stage.promise("image", partial(has_image, stage.pushed))
    stage.promise("unpacked", partial(_unpacked, stage.pushed, "overlayfs"))


# -- containers -------------------------------------------------------------------------------------------------------


def unpacked_image(stage: Stage) -> None:
    import_image(stage)
    _unpack("overlayfs", stage)


def _create_container(stage: Stage) -> None:
    with stage.client() as client:
        try:
            client.containers.get("c")
        except NotFoundError:
            with contextlib.suppress(NotFoundError):  # what a creation that was cut off has left
                client.snapshots().remove("c")
            client.new_container("c", stage.image.reference)
    stage.promise("container", _has_container)


def _has_container(client: orlop.Client) -> None:
    client.containers.get("c").spec()
    client.snapshots().mounts("c")


def _container(stage: Stage) -> None:
    unpacked_image(stage)
    _create_container(stage)


def _delete_container(stage: Stage) -> None:
    stage.withdraw("container")
    with stage.client() as client:
        with contextlib.suppress(NotFoundError):
            client.containers.get("c").delete()
        with contextlib.suppress(NotFoundError):
            client.snapshots().remove("c")
    stage.promise("no container", _has_no_container)


def _has_no_container(client: orlop.Client) -> None:
    assert not client.containers.list()
    assert not client.snapshots().exists("c")


# -- mounts -----------------------------------------------------------------------------------------------------------


def _activate(stage: Stage) -> None:
    """A bind mount of a tmpfs, both performed by the daemon."""
    mounts = [
        Mount(type="tmpfs", source="tmpfs", options=("size=64k",)),
        Mount(type="format/bind", source="{{ mount 0 }}", options=("rbind",)),
    ]
    with stage.client() as plain:
        with contextlib.suppress(AlreadyExistsError):
            plain.with_lease(LEASE).mounts.activate("m", mounts, temporary=True)
    stage.promise("activation", _is_active)


def _is_active(client: orlop.Client) -> None:
    active = client.mounts.get("m").active
    mounted = set(residue.mount_targets())
    assert active
    assert {one.mount_point for one in active} <= mounted, "it is recorded and not mounted"


def _active(stage: Stage) -> None:
    lease(stage)
    _activate(stage)


def _deactivate(stage: Stage) -> None:
    stage.withdraw("activation")
    with stage.client() as client, contextlib.suppress(NotFoundError):
        client.mounts.deactivate("m")
    stage.promise("no activation", _is_not_active)


def _is_not_active(client: orlop.Client) -> None:
    assert not client.mounts.list()


def _each(name: str, prepare: Callable[[str, Stage], None], perform: Callable[[str, Stage], None]) -> list[Operation]:
    """The same on each snapshotter."""
    return [
        Operation(
            name=f"{name} ({snapshotter})",
            store=snapshotter,
            prepare=partial(prepare, snapshotter),
            perform=partial(perform, snapshotter),
            helpers="unpack.job.*",
            where=Where.BTRFS if snapshotter == "btrfs" else Where.HERE,
        )
        for snapshotter in ("overlayfs", "native", "erofs", "btrfs")
    ]


OPERATIONS: Final = (
    *_each("prepare, commit, view", lambda _snapshotter, stage: lease(stage), _commit_two),
    *_each("remove snapshots", _two, _remove_two),
    *_each("unpack", lambda _snapshotter, stage: import_image(stage), _unpack),
    *_each("collect layers", _used, _collect_layers),
    Operation(name="unpack and sync", store="overlayfs", prepare=import_image, perform=_unpack_and_sync),
    Operation(
        name="import and unpack again",
        store="images",
        prepare=_brought_before,
        perform=_bring_again,
        helpers="unpack.job.*",
    ),
    Operation(name="pull", store="images", perform=_pull),
    Operation(name="transfer", store="images", perform=_transfer),
    Operation(name="activate mounts", store="mounts", prepare=lease, perform=_activate),
    Operation(name="deactivate mounts", store="mounts", prepare=_active, perform=_deactivate),
    Operation(name="create container", store="containers", prepare=unpacked_image, perform=_create_container),
    Operation(name="delete container", store="containers", prepare=_container, perform=_delete_container),
)
