"""`ctr oci`."""

import click

from orlop.cmd.cli import App, GoCommand, LazyGroup, pass_app, print_json


@click.group(cls=LazyGroup)
def oci() -> None:
    """OCI tools."""


@oci.command(cls=GoCommand)
@pass_app
def spec(app: App) -> None:
    """Print the spec that containers are made from by default."""
    from orlop.client.spec import default_spec, spec_json

    print_json(spec_json(default_spec(app.namespace, "")))
