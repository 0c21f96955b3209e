"""`ctr sandboxes`. Source: cmd/ctr/commands/sandboxes of containerd, for names, flags and output."""

import click

from orlop.base.errdefs import InvalidArgumentError, NotFoundError, OrlopError
from orlop.client.containers import DEFAULT_RUNTIME
from orlop.cmd.cli import App, GoCommand, LazyGroup, fail_each, pass_app, print_json
from orlop.cmd.tabwriter import TabWriter
from orlop.cmd.units import go_time


@click.group(
    cls=LazyGroup,
    listing="list",
    aliases={"create": "run", "c": "run", "r": "run", "ls": "list", "rm": "remove"},
)
def sandboxes() -> None:
    """Manage sandboxes."""


@sandboxes.command(cls=GoCommand)
@click.argument("config", metavar="POD-CONFIG.JSON")
@click.argument("sandbox_id", metavar="SANDBOX")
@click.option("--runtime", default=DEFAULT_RUNTIME, show_default=True, help="Runtime name, or path of a shim.")
@pass_app
def run(app: App, config: str, sandbox_id: str, runtime: str) -> None:
    """Run a new sandbox; the file holds a runtime-spec for its shim."""
    import json

    try:
        with open(config, "rb") as file:
            spec = file.read()
        if not isinstance(json.loads(spec), dict):
            raise ValueError("not an object")
    except OSError as error:
        raise NotFoundError(f"failed to read sandbox config: open {config}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidArgumentError(f"failed to parse sandbox config: {error}") from error
    sandbox = app.client.sandboxes.create(sandbox_id, spec, runtime=runtime)
    try:
        sandbox.start()
    except BaseException:
        sandbox.delete()
        raise
    click.echo(sandbox.id)


@sandboxes.command("list", cls=GoCommand)
@click.option("--filters", multiple=True, help="Filters to apply when querying sandboxes from the store.")
@pass_app
def list_(app: App, filters: tuple[str, ...]) -> None:
    """List sandboxes."""
    table = TabWriter()
    table.row("ID", "CREATED", "RUNTIME", "")
    for one in app.client.sandboxes.list(filters):
        table.row(one.id, go_time(one.record.created_at), one.record.runtime, "")
    click.echo(str(table), nl=False)


@sandboxes.command(cls=GoCommand)
@click.argument("ids", nargs=-1, required=True, metavar="SANDBOX...")
@click.option("--force", "-f", is_flag=True, help="Ignore shutdown errors when removing sandbox.")
@pass_app
def remove(app: App, ids: tuple[str, ...], force: bool) -> None:
    """Stop sandboxes and remove them."""
    errors = []
    for sandbox_id in ids:
        try:
            sandbox = app.client.sandboxes.get(sandbox_id)
        except OrlopError as error:
            errors.append(f"failed to load sandbox {sandbox_id}: {error}")
            continue
        try:
            sandbox.stop()
        except OrlopError as error:
            errors.append(f"failed to stop sandbox {sandbox_id}: {error}")
            if not force:
                continue
        try:
            sandbox.delete()
        except OrlopError as error:
            errors.append(f"failed to shutdown sandbox {sandbox_id}: {error}")
    fail_each(app, errors)


@sandboxes.command(cls=GoCommand)
@click.argument("sandbox_id", metavar="SANDBOX")
@pass_app
def info(app: App, sandbox_id: str) -> None:
    """Print a sandbox's record as JSON."""
    import json

    from orlop.api.services.sandbox.v1 import sandbox_pb2 as pb
    from orlop.client.sandboxes import STORE_GET
    from orlop.client.stamps import rfc3339_nano
    from orlop.cmd.gojson import to_json

    found = app.client.call(STORE_GET, pb.StoreGetRequest(sandbox_id=sandbox_id)).sandbox
    options = to_json(found.runtime.options) if found.runtime.HasField("options") else None
    print_json(
        {
            "ID": found.sandbox_id,
            "Labels": dict(sorted(found.labels.items())) or None,
            "Runtime": {"Name": found.runtime.name, "Options": options},
            "Spec": json.loads(found.spec.value) if found.spec.value else None,
            "Sandboxer": found.sandboxer,
            "CreatedAt": rfc3339_nano(found.created_at),
            "UpdatedAt": rfc3339_nano(found.updated_at),
            "Extensions": {key: to_json(value) for key, value in sorted(found.extensions.items())} or None,
        }
    )
