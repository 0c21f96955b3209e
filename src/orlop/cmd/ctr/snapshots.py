"""`ctr snapshots`."""

from collections.abc import Sequence
from dataclasses import dataclass

import click

from orlop.base.errdefs import InvalidArgumentError, OrlopError
from orlop.cmd.cli import App, GoCommand, LazyGroup, fail_each, print_json
from orlop.cmd.ctr.images import snapshotter_option
from orlop.cmd.tabwriter import TabWriter
from orlop.cmd.units import binary, parse_labels
from orlop.cmd.units import labels as label_text
from orlop.core.mount import Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime

    from orlop.client.snapshots import SnapshotInfo
    from orlop.client.sync import Snapshots

GC_ROOT = "containerd.io/gc.root"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The snapshotter that the group's flag names."""

    app: App
    name: str

    @property
    def store(self) -> "Snapshots":
        """The snapshotter."""
        return self.app.client.snapshots(self.name)


pass_chosen = click.make_pass_decorator(Chosen)


@click.group(
    cls=LazyGroup,
    listing="list",
    aliases={
        "ls": "list",
        "m": "mounts",
        "mount": "mounts",
        "del": "delete",
        "remove": "delete",
        "rm": "delete",
        "archive": "diff",
    },
)
@snapshotter_option
@click.pass_context
def snapshots(context: click.Context, snapshotter: str) -> None:
    """Manage snapshots."""
    context.obj = Chosen(context.obj, snapshotter)


@snapshots.command("list", cls=GoCommand)
@pass_chosen
def list_(chosen: Chosen) -> None:
    """List snapshots."""
    table = TabWriter()
    table.row("KEY", "PARENT", "KIND")
    for info in chosen.store.list():
        table.row(info.name, info.parent, info.kind)
    click.echo(str(table), nl=False)


@snapshots.command(cls=GoCommand)
@click.argument("keys", nargs=-1, metavar="[KEY...]")
@click.option("-b", "in_bytes", is_flag=True, help="Sizes in bytes.")
@pass_chosen
def usage(chosen: Chosen, keys: tuple[str, ...], in_bytes: bool) -> None:
    """Show what snapshots hold themselves."""
    table = TabWriter()
    table.row("KEY", "SIZE", "INODES")
    for key in keys or [info.name for info in chosen.store.list()]:
        found = chosen.store.usage(key)
        table.row(key, str(found.size_bytes) if in_bytes else binary(found.size_bytes), found.inodes)
    click.echo(str(table), nl=False)


@snapshots.command(cls=GoCommand)
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@pass_chosen
def delete(chosen: Chosen, keys: tuple[str, ...]) -> None:
    """Remove snapshots."""
    errors = []
    for key in keys:
        try:
            chosen.store.remove(key)
        except OrlopError as error:
            errors.append(f'failed to remove "{key}": {error}')
    fail_each(chosen.app, errors)


@snapshots.command(cls=GoCommand)
@click.argument("key")
@click.argument("parent", default="")
@click.option("--target", "-t", help="Print the command that mounts it there.")
@click.option("--mounts", "as_json", is_flag=True, help="Print the mounts as JSON.")
@click.option("--snapshot-name", hidden=True, help="Of 2017: KEY is the parent then, PARENT the mount target.")
@pass_chosen
def prepare(
    chosen: Chosen, key: str, parent: str, target: str | None, as_json: bool, snapshot_name: str | None
) -> None:
    """Prepare an active snapshot on top of a committed one."""
    if snapshot_name:
        key, parent, target = snapshot_name, key, target or parent
    _show_mounts(chosen.store.prepare(key, parent, labels=_root_label()), target, as_json)


@snapshots.command(cls=GoCommand)
@click.argument("key")
@click.argument("parent", default="")
@click.option("--target", "-t", help="Print the command that mounts it there.")
@click.option("--mounts", "as_json", is_flag=True, help="Print the mounts as JSON.")
@pass_chosen
def view(chosen: Chosen, key: str, parent: str, target: str | None, as_json: bool) -> None:
    """Make a read-only snapshot of a committed one."""
    _show_mounts(chosen.store.view(key, parent, labels=_root_label()), target, as_json)


@snapshots.command(cls=GoCommand)
@click.argument("target")
@click.argument("key", default="")
@click.option("--snapshot-name", hidden=True, help="Of 2017: the key.")
@pass_chosen
def mounts(chosen: Chosen, target: str, key: str, snapshot_name: str | None) -> None:
    """Print the commands that mount a snapshot at TARGET, which is its key too unless KEY is given."""
    _show_mounts(chosen.store.mounts(snapshot_name or key or target), target, False)


@snapshots.command(cls=GoCommand)
@click.argument("key")
@click.argument("active")
@pass_chosen
def commit(chosen: Chosen, key: str, active: str) -> None:
    """Commit the snapshot ACTIVE under the name KEY."""
    chosen.store.commit(key, active, labels=_root_label())


@snapshots.command(cls=GoCommand)
@click.argument("key")
@pass_chosen
def info(chosen: Chosen, key: str) -> None:
    """Print a snapshot's record as JSON."""
    from orlop.api.services.snapshots.v1 import snapshots_pb2 as pb
    from orlop.client.snapshots import STAT
    from orlop.client.stamps import rfc3339_nano

    # The record as it came: Python's times would lose its nanoseconds.
    found = chosen.app.client.call(STAT, pb.StatSnapshotRequest(snapshotter=chosen.name, key=key)).info
    value: dict[str, object] = {"Kind": pb.Kind.Name(found.kind).capitalize(), "Name": found.name}
    if found.parent:
        value["Parent"] = found.parent
    if found.labels:
        value["Labels"] = dict(sorted(found.labels.items()))
    value["Created"] = rfc3339_nano(found.created_at)
    value["Updated"] = rfc3339_nano(found.updated_at)
    print_json(value)


@snapshots.command(cls=GoCommand)
@click.argument("key")
@click.argument("labels", nargs=-1, metavar="[KEY=VALUE...]")
@pass_chosen
def label(chosen: Chosen, key: str, labels: tuple[str, ...]) -> None:
    """Set labels; an empty value removes one. Without any, show them."""
    store = chosen.store
    found = store.label(key, parse_labels(labels)) if labels else store.stat(key)
    click.echo(label_text(found.labels))


@snapshots.command(cls=GoCommand)
@pass_chosen
def tree(chosen: Chosen) -> None:
    """Show snapshots as a tree of parents and children."""
    found = chosen.store.list()
    children: dict[str, list[SnapshotInfo]] = {}
    for one in found:
        children.setdefault(one.parent, []).append(one)
    # A depth-first walk with a list of our own: chains of a hundred layers and more are usual.
    pending = [(0, one) for one in reversed(children.get("", []))]
    while pending:
        depth, one = pending.pop()
        # Source of the drawing: printNode in cmd/ctr/commands/snapshots/snapshots.go.
        click.echo(f" {one.name}" if not depth else f"{'  ' * depth}\\_ {one.name}")
        pending += [(depth + 1, child) for child in reversed(children.get(one.name, []))]


@snapshots.command(cls=GoCommand)
@click.argument("digest")
@click.option("--sync-fs", is_flag=True, help="What is unpacked is on disk when this ends.")
@snapshotter_option
@pass_chosen
def unpack(chosen: Chosen, digest: str, sync_fs: bool, snapshotter: str) -> None:
    """Unpack the layers of an image, given the digest of its manifest or index."""
    from orlop.cmd.ctr.layers import unpack_digest

    name = snapshotter if chosen.name == "overlayfs" else chosen.name
    click.echo(unpack_digest(chosen.app, digest, name, sync=sync_fs))


@snapshots.command(cls=GoCommand)
@click.argument("key", default="", metavar="KEY")
@click.argument("other", default="", metavar="[OTHER]")
@click.option(
    "--media-type", default="application/vnd.oci.image.layer.v1.tar+gzip", show_default=True, help="Of the layer."
)
@click.option("--ref", default="", help="Ingest under this key.")
@click.option("--keep", is_flag=True, help="Keep the layer in the content store; whoever made it deletes it.")
@click.option("--label", "labels", multiple=True, help="Labels for the layer.")
@click.option("--id", "_container", hidden=True, help="Of 2017.")
@pass_chosen
def diff(
    chosen: Chosen,
    key: str,
    other: str,
    media_type: str,
    ref: str,
    keep: bool,
    labels: tuple[str, ...],
    _container: str | None,
) -> None:
    """Write what KEY has beyond its parent, or OTHER beyond KEY, as a layer to standard output.

    SOURCE_DATE_EPOCH in the environment, seconds since 1970, bounds the times in the layer.
    """
    import sys

    if not key:
        raise InvalidArgumentError("snapshot id must be provided")
    client = chosen.app.client
    wanted = parse_labels(labels)
    if keep:
        wanted |= _root_label()
    lease = client.leases.create("")
    try:
        held = client.with_lease(lease.id)
        layer = held.diff.create_diff(
            other or key,
            below=key if other else "",
            snapshotter=chosen.name,
            media_type=media_type,
            ref=ref,
            labels=wanted,
            source_date_epoch=_source_date_epoch(),
        )
        for chunk in held.content.chunks(layer.digest):
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    finally:
        client.leases.delete(lease.id)


def _source_date_epoch() -> "datetime | None":
    """See https://reproducible-builds.org/specs/source-date-epoch/."""
    import os
    from datetime import UTC, datetime

    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    try:
        return datetime.fromtimestamp(int(text), UTC)
    except (ValueError, OverflowError):
        raise InvalidArgumentError(f"SOURCE_DATE_EPOCH {text!r}: no number of seconds since 1970") from None


def _root_label() -> dict[str, str]:
    """Keeps what is made by hand from the collector, as containerd's ctr does."""
    from datetime import UTC, datetime

    return {GC_ROOT: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}


def _show_mounts(found: Sequence[Mount], target: str | None, as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    key: value
                    for key, value in (
                        ("Type", one.type),
                        ("Source", one.source),
                        ("Target", one.target),
                        ("Options", list(one.options)),
                    )
                    if value or key != "Target"
                }
                for one in found
            ],
            indent=4,
        )
        return
    if target is None:
        return
    if not target:
        raise InvalidArgumentError("mount target is empty")
    for one in found:
        options = f" -o {','.join(one.options)}" if one.options else ""
        click.echo(f"mount -t {one.type} {one.source} {target}{options}")
