"""`ctr images inspect` and `usage`: what an image consists of, and what it takes."""

import json
from typing import TYPE_CHECKING

import click

from orlop.base.errdefs import NotFoundError
from orlop.cmd.cli import App, GoCommand, pass_app
from orlop.cmd.ctr.images import snapshotter_option
from orlop.cmd.tabwriter import TabWriter
from orlop.cmd.units import binary, go_time

if TYPE_CHECKING:
    from orlop.client.composition import ImageNode

# Source of the drawing: pkg/display/manifest_printer.go of containerd.
_MIDDLE, _LAST, _BAR, _SPACE = "├── ", "└── ", "│   ", "    "
_RULE = "└───────────────────────"


@click.command(cls=GoCommand)
@click.argument("ref")
@click.option("--content", "content", is_flag=True, help="Show documents and labels as well.")
@pass_app
def inspect(app: App, ref: str, content: bool) -> None:
    """Show an image as a tree of its parts."""
    from orlop.api.services.images.v1 import images_pb2 as pb
    from orlop.client.images import GET

    image = app.client.images.get(ref)
    # The times as they came: Python's would lose nanoseconds.
    record = app.client.call(GET, pb.GetImageRequest(name=ref)).image
    click.echo(image.name)
    for word, moment, stamp in (
        ("Created", image.record.created_at, record.created_at),
        ("Updated", image.record.updated_at, record.updated_at),
    ):
        click.echo(f"{_BAR} {word}: {go_time(moment, stamp.nanos)}")
    for key, value in sorted(image.labels.items()):
        click.echo(f"{_BAR} Label {json.dumps(key)}: {json.dumps(value)}")
    _show(image.tree(), _LAST, _SPACE, content)


def _show(node: "ImageNode", prefix: str, inner: str, content: bool) -> None:
    from orlop.base.platforms import format_platform, normalize
    from orlop.oci import media_types

    one = node.descriptor
    below = inner + _BAR
    click.echo(f"{prefix}{one.media_type} @{one.digest} ({one.size} bytes)")
    if one.platform is not None and one.platform.architecture:
        click.echo(f"{below} Platform: {format_platform(normalize(one.platform))}")
    if not node.present:
        click.echo(f"{inner}{_LAST} Content does not exist locally, skipping")
        return
    if content:
        _show_content(node, below)
    is_manifest = media_types.is_manifest(one.media_type)
    for position, child in enumerate(node.children):
        last = position == len(node.children) - 1
        if not is_manifest:
            _show(child, inner + (_LAST if last else _MIDDLE), inner + (_SPACE if last else _BAR), content)
            continue
        leaf = child.descriptor
        click.echo(f"{inner}{_LAST if last else _MIDDLE}{leaf.media_type} @{leaf.digest} ({leaf.size} bytes)")
        if content and position == 0:
            _show_content(child, inner + (_SPACE if last else _BAR))


def _show_content(node: "ImageNode", prefix: str) -> None:
    if node.labels:
        click.echo(f"{prefix}┌────────Labels─────────")
        for key, value in sorted(node.labels.items()):
            click.echo(f"{prefix}│{json.dumps(key)}: {json.dumps(value)}")
        click.echo(f"{prefix}{_RULE}")
    if node.document is None:
        return
    try:
        text = json.dumps(json.loads(node.document), indent=3, ensure_ascii=False)
    except ValueError:
        text = node.document.decode("utf-8", "replace")
    click.echo(f"{prefix}┌────────Content────────")
    for line in text.splitlines():
        click.echo(f"{prefix}│{line}")
    click.echo(f"{prefix}{_RULE}")


@click.command(cls=GoCommand)
@click.argument("ref", default="")
@snapshotter_option
@pass_app
def usage(app: App, ref: str, snapshotter: str) -> None:
    """Show what the snapshots of an image take, the topmost first."""
    if not ref:
        raise click.UsageError("please provide an image reference to mount")
    image = app.client.images.get(ref)
    if not image.is_unpacked(snapshotter):
        raise NotFoundError(
            f"image {ref} isn't unpacked in snapshotter {snapshotter}", hint="ctr images mount, or run, unpacks it"
        )
    snapshots = app.client.snapshots(snapshotter)
    table = TabWriter()
    table.row("KEY", "SIZE", "INODES")
    key = image.chain_id()
    while key:
        found = snapshots.usage(key)
        table.row(key, binary(found.size_bytes), found.inodes)
        key = snapshots.stat(key).parent
    click.echo(str(table), nl=False)
