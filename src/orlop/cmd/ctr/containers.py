"""`ctr containers`."""

from typing import Any

import click

from orlop.base.errdefs import OrlopError
from orlop.cmd.cli import App, GoCommand, LazyGroup, fail_each, pass_app, print_json
from orlop.cmd.tabwriter import TabWriter
from orlop.cmd.units import labels as label_text
from orlop.cmd.units import parse_labels

_HERE = "orlop.cmd.ctr"


@click.group(
    cls=LazyGroup,
    listing="list",
    aliases={"ls": "list", "del": "delete", "remove": "delete", "rm": "delete"},
    lazy={
        "checkpoint": (f"{_HERE}.checkpoints:checkpoint", "Keep a container as an image."),
        "create": (f"{_HERE}.run:create", "Create a container without running it."),
        "restore": (f"{_HERE}.checkpoints:restore", "Make and start a container from a checkpoint."),
    },
)
def containers() -> None:
    """Manage containers."""


@containers.command("list", cls=GoCommand)
@click.argument("filters", nargs=-1)
@click.option("--quiet", "-q", is_flag=True, help="Print only the ids.")
@pass_app
def list_(app: App, filters: tuple[str, ...], quiet: bool) -> None:
    """List containers."""
    found = app.client.containers.list(filters)
    if quiet:
        for one in found:
            click.echo(one.id)
        return
    table = TabWriter(4, 8, 4)
    table.row("CONTAINER", "IMAGE", "RUNTIME")
    for one in found:
        table.row(one.id, one.image or "-", one.record.runtime)
    click.echo(str(table), nl=False)


@containers.command(cls=GoCommand)
@click.argument("ids", nargs=-1, required=True, metavar="CONTAINER...")
@click.option("--keep-snapshot", is_flag=True, help="Keep the containers' snapshots.")
@pass_app
def delete(app: App, ids: tuple[str, ...], keep_snapshot: bool) -> None:
    """Delete containers that have no running task."""
    errors = []
    for container_id in ids:
        try:
            _delete(app, container_id, keep_snapshot)
        except OrlopError as error:
            errors.append(str(error))
    fail_each(app, errors)


def _delete(app: App, container_id: str, keep_snapshot: bool) -> None:
    from orlop.base.errdefs import NotFoundError
    from orlop.cmd.ctr.run import disconnect

    container = app.client.containers.get(container_id)
    try:
        task = container.task()
    except NotFoundError:
        pass
    else:
        # As containerd's ctr does: a task that has ended goes with its container, one that runs forbids it.
        if task.status() in ("STOPPED", "CREATED"):
            task.delete(force=True)
    container.delete(keep_snapshot=keep_snapshot)
    disconnect(app, container)


@containers.command(cls=GoCommand)
@click.argument("container_id", metavar="CONTAINER")
@click.option("--spec", "only_spec", is_flag=True, help="Print only the spec.")
@pass_app
def info(app: App, container_id: str, only_spec: bool) -> None:
    """Print a container's record as JSON."""
    import base64
    import json

    from orlop.api.services.containers.v1 import containers_pb2 as pb
    from orlop.client.containers import GET
    from orlop.client.stamps import rfc3339_nano

    # The record as it came: Python's times would lose its nanoseconds.
    found = app.client.call(GET, pb.GetContainerRequest(id=container_id)).container
    spec = json.loads(found.spec.value) if found.spec.value else None
    if only_spec:
        print_json(spec)
        return

    def packed(value: Any) -> dict[str, str]:  # Any: protobuf's Any
        shown = {"type_url": value.type_url}
        if value.value:
            shown["value"] = base64.b64encode(value.value).decode("ascii")
        return shown

    runtime: dict[str, object] = {"Name": found.runtime.name}
    runtime["Options"] = packed(found.runtime.options) if found.runtime.HasField("options") else None
    print_json(
        {
            "ID": found.id,
            "Labels": dict(sorted(found.labels.items())) or None,
            "Image": found.image,
            "Runtime": runtime,
            "SnapshotKey": found.snapshot_key,
            "Snapshotter": found.snapshotter,
            "CreatedAt": rfc3339_nano(found.created_at),
            "UpdatedAt": rfc3339_nano(found.updated_at),
            "Extensions": {key: packed(value) for key, value in sorted(found.extensions.items())},
            "SandboxID": found.sandbox,
            "Spec": spec,
        }
    )


@containers.command(cls=GoCommand)
@click.argument("container_id", metavar="CONTAINER")
@click.argument("labels", nargs=-1, metavar="[KEY=VALUE...]")
@pass_app
def label(app: App, container_id: str, labels: tuple[str, ...]) -> None:
    """Set labels; an empty value removes one."""
    container = app.client.containers.get(container_id)
    if labels:
        container = container.label(parse_labels(labels))
    click.echo(label_text(container.labels))
