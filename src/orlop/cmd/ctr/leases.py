"""`ctr leases`."""

from datetime import UTC, timedelta

import click

from orlop.base.errdefs import NotFoundError, OrlopError
from orlop.cmd.cli import App, GoCommand, LazyGroup, fail_each, pass_app
from orlop.cmd.tabwriter import TabWriter
from orlop.cmd.units import labels as label_text
from orlop.cmd.units import parse_duration, parse_labels


@click.group(cls=LazyGroup, listing="list", aliases={"ls": "list", "del": "delete", "remove": "delete", "rm": "delete"})
def leases() -> None:
    """Manage leases."""


@leases.command(cls=GoCommand)
@click.argument("labels", nargs=-1, metavar="[LABEL=VALUE...]")
@click.option("--id", "lease_id", default="", help="Set the id; one is made by default.")
@click.option("--expires", "-x", default="24h0m0s", show_default=True, help="Expiration; 0 does not expire.")
@pass_app
def create(app: App, labels: tuple[str, ...], lease_id: str, expires: str) -> None:
    """Create a lease and print its id."""
    seconds = parse_duration(expires)
    made = app.client.leases.create(
        lease_id,
        labels=parse_labels(labels),
        expires_in=timedelta(seconds=seconds) if seconds else None,
    )
    click.echo(made.id)


@leases.command("list", cls=GoCommand)
@click.argument("filters", nargs=-1)
@click.option("--quiet", "-q", is_flag=True, help="Print only the ids.")
@pass_app
def list_(app: App, filters: tuple[str, ...], quiet: bool) -> None:
    """List leases."""
    found = sorted(app.client.leases.list(filters), key=lambda lease: lease.id)
    if quiet:
        for one in found:
            click.echo(one.id)
        return
    table = TabWriter()
    table.row("ID", "CREATED AT", "LABELS")
    for one in found:
        created = one.created_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        table.row(one.id, created, label_text(one.labels) or "-")
    click.echo(str(table), nl=False)


@leases.command(cls=GoCommand)
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--sync", is_flag=True, help="Return after what nothing else keeps is gone.")
@pass_app
def delete(app: App, ids: tuple[str, ...], sync: bool) -> None:
    """Delete leases."""
    errors = []
    for position, lease_id in enumerate(ids):
        try:
            # One collection is enough, after the last.
            app.client.leases.delete(lease_id, synchronous=sync and position == len(ids) - 1)
        except NotFoundError as error:
            errors.append(str(error))
            continue
        except OrlopError as error:
            errors.append(f"failed to delete lease {lease_id!r}: {error}")
            continue
        click.echo(lease_id)
    fail_each(app, errors)
