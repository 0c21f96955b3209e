"""`ctr version` and `ctr info`: who answers."""

import click

from orlop.cmd.cli import App, GoCommand, pass_app
from orlop.version import __version__


@click.command(cls=GoCommand)
@pass_app
def version(app: App) -> None:
    """Print the client's and the daemon's version."""
    import sys

    click.echo("Client:")
    click.echo(f"  Version:  {__version__}")
    click.echo(f"  Python version: {sys.version.partition(' ')[0]}")
    click.echo("")
    answer = app.client.version()
    click.echo("Server:")
    click.echo(f"  Version:  {answer.version}")
    click.echo(f"  Revision: {answer.revision}")
    click.echo(f"  UUID: {app.client.introspection.server().uuid}")


@click.command(cls=GoCommand)
@pass_app
def info(app: App) -> None:
    """Print who the daemon is, as JSON."""
    from orlop.cmd.cli import print_json

    server = app.client.introspection.server()
    print_json({"server": {"uuid": server.uuid, "pid": server.pid, "pidns": server.pidns}})
