"""`ctr deprecations`."""

import click

from orlop.cmd.cli import App, GoCommand, LazyGroup, pass_app, print_json
from orlop.cmd.tabwriter import TabWriter


@click.group(cls=LazyGroup, listing="list", aliases={"ls": "list"})
def deprecations() -> None:
    """Show what the daemon warns of because it will go."""


@deprecations.command("list", cls=GoCommand)
@click.option("--format", "form", default="", help="json, or a table.")
@pass_app
def list_(app: App, form: str) -> None:
    """List the daemon's warnings."""
    found = app.client.introspection.server().deprecations
    if not found:
        return
    if form == "json":
        print_json(
            [{"id": one.id, "message": one.message, "lastOccurrence": one.last_occurrence.isoformat()} for one in found]
        )
        return
    table = TabWriter(4, 8, 4)
    table.row("ID", "LAST OCCURRENCE", "MESSAGE")
    for one in found:
        table.line(f"{one.id}\t{one.last_occurrence.isoformat()}\t{one.message}")
    click.echo(str(table), nl=False)
