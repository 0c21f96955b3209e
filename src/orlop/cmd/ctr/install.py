"""`ctr install`: the programs of an image onto this host."""

import click

from orlop.cmd.cli import App, GoCommand, pass_app


@click.command(cls=GoCommand)
@click.argument("ref", metavar="IMAGE")
@click.option("--libs", "-l", is_flag=True, help="Install libraries as well.")
@click.option("--replace", "-r", is_flag=True, help="Overwrite what is there.")
@click.option("--path", default="", help="Directory; by default that of the daemon's opt plug-in.")
@pass_app
def install(app: App, ref: str, libs: bool, replace: bool, path: str) -> None:
    """Install the files in an image's bin directory on this host.

    Programs for administrators travel in images as well as others; what is installed is not removed again.
    """
    app.client.images.get(ref).install(path, libraries=libs, replace=replace)
