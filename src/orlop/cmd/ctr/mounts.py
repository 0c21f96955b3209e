"""`ctr images mount` and `unmount`: an image's files at a path of this host."""

import os

import click

from orlop.base.errdefs import AlreadyExistsError, NotFoundError
from orlop.cmd.cli import App, GoCommand, pass_app
from orlop.cmd.ctr.images import snapshotter_option


@click.command(cls=GoCommand)
@click.argument("ref")
@click.argument("target")
@click.option("--rw", is_flag=True, help="Writable; what is written goes with the unmounting and --rm.")
@click.option("--platform", help="The image for this platform.")
@click.option("--label", "labels", multiple=True, help="Labels for the snapshot.")
@snapshotter_option
@pass_app
def mount(
    app: App, ref: str, target: str, rw: bool, platform: str | None, labels: tuple[str, ...], snapshotter: str
) -> None:
    """Mount an image's root file system to a path."""
    from orlop.cmd.units import parse_labels
    from orlop.core.mount.perform import mount_all

    if not os.path.isdir(target):
        raise NotFoundError(f"mount target {target}: no such directory")
    image = app.client.images.get(ref, platform=platform)
    chain_id = image.chain_id()
    if not image.is_unpacked(snapshotter):
        image.unpack(snapshotter=snapshotter)
    snapshots = app.client.snapshots(snapshotter)
    # As in containerd the snapshot's key is the path, so that unmount finds it. A label keeps it: nothing else does.
    marks = {"containerd.io/gc.root": "1", **parse_labels(labels)}
    make = snapshots.prepare if rw else snapshots.view
    try:
        mounts = make(target, chain_id, labels=marks)
    except AlreadyExistsError:
        mounts = snapshots.mounts(target)
    try:
        mount_all(mounts, target)
    except BaseException:
        snapshots.remove(target)
        raise
    click.echo(chain_id)
    click.echo(target)


@click.command(cls=GoCommand)
@click.argument("target")
@click.option("--rm", "remove", is_flag=True, help="Remove the snapshot after a successful unmount.")
@snapshotter_option
@pass_app
def unmount(app: App, target: str, remove: bool, snapshotter: str) -> None:
    """Unmount an image."""
    import contextlib

    from orlop.core.mount.perform import unmount_all

    unmount_all(target)
    if remove:
        with contextlib.suppress(NotFoundError):
            app.client.snapshots(snapshotter).remove(target)
    click.echo(target)
