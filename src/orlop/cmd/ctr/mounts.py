"""`ctr images mount` and `unmount`: an image's files at a path of this host."""

import click

from orlop.cmd.cli import App, GoCommand, pass_app
from orlop.cmd.ctr.images import snapshotter_option
from orlop.cmd.units import parse_labels


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
    image = app.client.images.get(ref, platform=platform)
    click.echo(image.mount(target, snapshotter=snapshotter, writable=rw, labels=parse_labels(labels)))
    click.echo(target)


@click.command(cls=GoCommand)
@click.argument("target")
@click.option("--rm", "remove", is_flag=True, help="Remove the snapshot after a successful unmount.")
@snapshotter_option
@pass_app
def unmount(app: App, target: str, remove: bool, snapshotter: str) -> None:
    """Unmount an image."""
    app.client.images.unmount(target, snapshotter=snapshotter, remove=remove)
    click.echo(target)
