"""`ctr plugins`."""

import click

from orlop.cmd.cli import App, GoCommand, LazyGroup, pass_app
from orlop.cmd.tabwriter import TabWriter


@click.group(cls=LazyGroup, listing="list", aliases={"ls": "list"})
def plugins() -> None:
    """Show the daemon's plug-ins."""


@plugins.command("list", cls=GoCommand)
@click.argument("filters", nargs=-1)
@click.option("--quiet", "-q", is_flag=True, help="Print only the ids.")
@click.option("--detailed", "-d", is_flag=True, help="Print all that is known of each.")
@pass_app
def list_(app: App, filters: tuple[str, ...], quiet: bool, detailed: bool) -> None:
    """List the daemon's plug-ins."""
    found = app.client.introspection.plugins(filters)
    if quiet:
        for one in found:
            click.echo(one.id)
        return
    if detailed:
        _details(app, filters)
        return
    table = TabWriter(4, 8, 4)
    table.row("TYPE", "ID", "PLATFORMS", "STATUS")
    for one in found:
        table.row(one.type, one.id, ",".join(one.platforms) or "-", one.status)
    click.echo(str(table), nl=False)


def _details(app: App, filters: tuple[str, ...]) -> None:
    from orlop.base.errdefs import CLASS_OF_CODE

    # Of the same shape as the tabwriter of containerd's ctr, whose cells hang together over all plug-ins of a block.
    table = TabWriter(4, 8, 4)
    for one in app.client.introspection.plugins(filters):
        table.line(f"Type:\t{one.type}")
        table.line(f"ID:\t{one.id}")
        if one.requires:
            table.row("Requires:")
            for required in one.requires:
                table.line(f"\t{required}")
        if one.platforms:
            table.line(f"Platforms:\t{' '.join(one.platforms)}")
        if one.exports:
            table.row("Exports:")
            for key, value in sorted(one.exports.items()):
                table.line(f"\t{key}\t{value}")
        if one.capabilities:
            table.line(f"Capabilities:\t{' '.join(one.capabilities)}")
        if one.error:
            cls = CLASS_OF_CODE.get(one.error_code)
            table.row("Error:")
            table.line(f"\tCode:\t{cls.__name__.removesuffix('Error') if cls else one.error_code}")
            table.line(f"\tMessage:\t{one.error}")
        table.line("\t\t\t")
    click.echo(str(table), nl=False)
