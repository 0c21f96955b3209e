"""`ctr images mount` and `unmount`: an image's files at a path of this host."""

from datetime import timedelta
from typing import Any

import click

from orlop.cmd.cli import App, GoCommand, pass_app
from orlop.cmd.ctr.distribution import registry_options
from orlop.cmd.ctr.images import snapshotter_option
from orlop.cmd.units import parse_duration, parse_labels

# containerd's default.
_LIFETIME = timedelta(hours=1)


@click.command(cls=GoCommand)
@click.argument("ref")
@click.argument("target", required=False, default="")
@click.option("--rw", is_flag=True, help="Writable; what is written goes with the unmounting and --rm.")
@click.option("--platform", help="The image for this platform.")
@click.option("--label", "labels", multiple=True, help="Labels for the snapshot.")
@click.option("--sync-fs", is_flag=True, help="What is unpacked is on disk before it is mounted.")
@click.option("--expiration", "-x", default="", help="Let the snapshot go after this time, such as 1h; kept without.")
@snapshotter_option
@registry_options
@pass_app
def mount(
    app: App,
    /,
    ref: str,
    target: str,
    rw: bool,
    platform: str | None,
    labels: tuple[str, ...],
    sync_fs: bool,
    expiration: str,
    snapshotter: str,
    **_registry: Any,
) -> None:
    """Mount an image's root file system to a path, or where the daemon says.

    Without a target it is mounted for an hour, or the time of --expiration. No registry is asked; its flags are taken
    as containerd takes them.
    """
    image = app.client.images.get(ref, platform=platform)
    lifetime = timedelta(seconds=parse_duration(expiration)) if expiration else None
    if not target:
        shown = image.show(
            snapshotter=snapshotter,
            writable=rw,
            labels=parse_labels(labels),
            expires_in=lifetime or _LIFETIME,
            sync=sync_fs,
        )
        click.echo(shown.chain_id)
        click.echo(shown.path)
        return
    said = image.mount(
        target,
        snapshotter=snapshotter,
        writable=rw,
        labels=parse_labels(labels),
        expires_in=lifetime,
        sync=sync_fs,
    )
    click.echo(said)
    click.echo(target)


@click.command(cls=GoCommand)
@click.argument("target")
@click.option("--rm", "remove", is_flag=True, help="Remove the snapshot after a successful unmount.")
@click.option("--label", "_labels", multiple=True, hidden=True, help="Taken, as containerd takes it, and not used.")
@snapshotter_option
@registry_options
@pass_app
def unmount(app: App, /, target: str, remove: bool, snapshotter: str, **_others: Any) -> None:
    """Unmount an image. No registry is asked; its flags are taken as containerd takes them."""
    app.client.images.unmount(target, snapshotter=snapshotter, remove=remove)
    click.echo(target)
