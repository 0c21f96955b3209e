"""`ctr images`."""

from typing import TYPE_CHECKING

import click

from orlop.base.errdefs import InvalidArgumentError, NotFoundError, OrlopError
from orlop.cmd.cli import App, GoCommand, LazyGroup, fail_each, pass_app
from orlop.cmd.ctr.moving import Steps, local_option, moved
from orlop.cmd.tabwriter import TabWriter
from orlop.cmd.units import binary, parse_labels
from orlop.cmd.units import labels as label_text

if TYPE_CHECKING:
    from orlop.client.sync import Image

_HERE = "orlop.cmd.ctr"
snapshotter_option = click.option(
    "--snapshotter",
    default="overlayfs",
    envvar="CONTAINERD_SNAPSHOTTER",
    help="Snapshotter to use.  [env: CONTAINERD_SNAPSHOTTER]",
)


@click.group(
    cls=LazyGroup,
    listing="list",
    aliases={"ls": "list", "rm": "delete", "remove": "delete", "del": "delete", "i": "inspect"},
    lazy={
        "convert": (f"{_HERE}.converting:convert", "Convert an image."),
        "export": (f"{_HERE}.archives:export", "Export images into an archive."),
        "import": (f"{_HERE}.archives:import_", "Import images from an archive."),
        "inspect": (f"{_HERE}.looking:inspect", "Show an image as a tree of its parts."),
        "mount": (f"{_HERE}.mounts:mount", "Mount an image to a path."),
        "pull": (f"{_HERE}.distribution:pull", "Pull an image from a registry."),
        "push": (f"{_HERE}.distribution:push", "Push an image to a registry."),
        "unmount": (f"{_HERE}.mounts:unmount", "Unmount an image."),
        "usage": (f"{_HERE}.looking:usage", "Show what the snapshots of an image take."),
    },
)
def images() -> None:
    """Manage images."""


@images.command("list", cls=GoCommand)
@click.argument("filters", nargs=-1)
@click.option("--quiet", "-q", is_flag=True, help="Print only the references.")
@pass_app
def list_(app: App, filters: tuple[str, ...], quiet: bool) -> None:
    """List images."""
    show_images(app, filters, quiet=quiet, short=False)


def show_images(app: App, filters: tuple[str, ...], *, quiet: bool, short: bool) -> None:
    """The table of images; `short` has the four columns of 2017, as `dist` shows them."""
    found = app.client.images.list(filters)
    if quiet:
        for one in found:
            click.echo(one.name)
        return
    table = TabWriter()
    table.row("REF", "TYPE", "DIGEST", "SIZE", *(() if short else ("PLATFORMS", "LABELS")))
    for one in found:
        cells = [one.name, one.target.media_type, one.target.digest, _size(app, one)]
        if not short:
            cells += [_platforms(one) or "-", label_text(one.labels) or "-"]
        table.row(*cells)
    click.echo(str(table), nl=False)


@images.command(cls=GoCommand)
@click.argument("filters", nargs=-1)
@click.option("--quiet", "-q", is_flag=True, help="Print only references that are complete and unpacked.")
@snapshotter_option
@pass_app
def check(app: App, filters: tuple[str, ...], quiet: bool, snapshotter: str) -> None:
    """Check that all content of images is here."""
    found = app.client.images.list(filters)
    if not found:
        return
    table = TabWriter()
    table.row("REF", "TYPE", "DIGEST", "STATUS", "SIZE", "UNPACKED")
    for one in found:
        status = one.check(snapshotter=snapshotter)
        if quiet:
            if status.complete:
                click.echo(one.name)
            continue
        present = sum(blob.size for blob in status.present)
        total = sum(blob.size for blob in status.required)
        count = f"({len(status.present)}/{len(status.required)})"
        if not status.available:
            text = "unavailable (0/?)"
        else:
            text = f"{'complete' if status.complete else 'incomplete'} {count}"
        size = f"{binary(present)}/{binary(total) if status.available else '?'}"
        cells = (one.name, one.target.media_type, one.target.digest, text, size, str(status.unpacked).lower())
        table.line("\t".join(cells))
    if not quiet:
        click.echo(str(table), nl=False)


@images.command(cls=GoCommand)
@click.argument("refs", nargs=-1, required=True, metavar="REF...")
@click.option("--sync", is_flag=True, help="Return after what nothing else keeps is gone.")
@pass_app
def delete(app: App, refs: tuple[str, ...], sync: bool) -> None:
    """Remove images by reference."""
    errors = []
    for position, name in enumerate(refs):
        try:
            app.client.images.delete(name, synchronous=sync and position == len(refs) - 1)
        except NotFoundError:
            app.warn(f"{name}: image not found")
            continue
        except OrlopError as error:
            errors.append(f"unable to delete {name}: {error}")
            continue
        click.echo(name)
    fail_each(app, errors)


@images.command(cls=GoCommand)
@click.option("--all", "everything", is_flag=True, help="Remove all images that no container was made from.")
@pass_app
def prune(app: App, everything: bool) -> None:
    """Remove unused images."""
    if not everything:
        app.warn("No images pruned. `image prune` requires --all to be specified.")
        return
    for name in app.client.images.prune():
        app.warn(f"deleted image: {name}")


@images.command(cls=GoCommand)
@click.argument("source")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option("--force", is_flag=True, help="With --local: move a name that exists already; else that is always done.")
@click.option("--skip-reference-check", is_flag=True, help="Take any text for a name.")
@local_option
@pass_app
def tag(app: App, source: str, targets: tuple[str, ...], force: bool, skip_reference_check: bool, local: bool) -> None:
    """Give an image more names."""
    from orlop.core.transfer.ends import ImageStore
    from orlop.core.transfer.progress import ignore

    for target in targets:
        if not skip_reference_check:
            _check_reference(target)
        if local or not moved(app, ImageStore(name=source), ImageStore(name=target), Steps(ignore, target)):
            app.client.images.tag(source, target, replace=force)
        click.echo(target)


def _check_reference(name: str) -> None:
    from orlop.base.references import Named

    try:
        Named.parse(name)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            f'error parsing reference: "{name}" is not a valid repository/tag: {error.text}'
        ) from error


@images.command(cls=GoCommand)
@click.argument("name")
@click.argument("labels", nargs=-1, metavar="[KEY=VALUE...]")
@click.option("--replace-all", "-r", is_flag=True, help="Remove all other labels.")
@pass_app
def label(app: App, name: str, labels: tuple[str, ...], replace_all: bool) -> None:
    """Set labels; an empty value removes one."""
    image = app.client.images.label(name, parse_labels(labels), replace=replace_all and bool(labels))
    click.echo(label_text(image.labels))


def _size(app: App, image: "Image") -> str:
    try:
        return binary(image.size())
    except NotFoundError as error:
        app.warn(f"failed calculating size for image {image.name}: {error}")
        return binary(0)


def _platforms(image: "Image") -> str:
    return ",".join(str(platform) for platform in image.platforms())
