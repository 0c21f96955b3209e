"""`ctr content fetch-blob`: blobs of a registry by digest."""

import sys
from typing import TYPE_CHECKING

import click

from orlop.base.errdefs import InvalidArgumentError
from orlop.cmd.cli import App, GoCommand
from orlop.cmd.ctr.distribution import registry_flags

if TYPE_CHECKING:
    from orlop.client.registry import RegistryOptions


@click.command(cls=GoCommand)
@click.argument("remote")
@click.argument("digests", nargs=-1, metavar="DIGEST...")
@click.option("--media-type", default="", help="Ask the registry for this type.")
@registry_flags
def fetch_blob(
    app: App, registry: "RegistryOptions", progress: str, remote: str, digests: tuple[str, ...], media_type: str
) -> None:
    """Write blobs of the repository REMOTE to standard output, one after the other, each verified."""
    from orlop.oci.digest import Digest

    if not digests:
        raise InvalidArgumentError("must specify digests")
    repository = remote.partition("@")[0]
    for digest in map(Digest.parse, digests):
        app.client.fetch_object(
            f"{repository}@{digest}", sys.stdout.buffer.write, registry=registry, media_type=media_type
        )
    sys.stdout.buffer.flush()
