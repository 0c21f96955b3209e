"""`ctr oci`."""

import click

from orlop.base import platforms
from orlop.base.errdefs import InvalidArgumentError
from orlop.cmd.cli import App, GoCommand, LazyGroup, pass_app, print_json


@click.group(cls=LazyGroup)
def oci() -> None:
    """OCI tools."""


@oci.command(cls=GoCommand)
@click.option("--platform", default="", help="A platform of Linux; its spec is the same on all of them.")
@pass_app
def spec(app: App, platform: str) -> None:
    """Print the spec that containers are made from by default."""
    if platform and platforms.parse(platform).os != "linux":
        raise InvalidArgumentError(f"failed to generate spec: platform {platform}: specs of Linux only are made here")
    from orlop.client.spec import default_spec, spec_json

    print_json(spec_json(default_spec(app.namespace, "")))
