"""`dist`: the distribution half of `ctr`, under the name it had until July 2017."""

from typing import NoReturn

import click

from orlop.cmd.cli import CONTEXT_SETTINGS, App, GoCommand, LazyGroup, global_options, pass_app, start
from orlop.cmd.ctr.app import COMMANDS

_NAMES = ("apply", "completion", "content", "fetch", "fetch-object", "pull", "push", "push-object", "rootfs")
_IMAGES = "orlop.cmd.dist:images"


@click.group(
    cls=LazyGroup,
    lazy={**{name: COMMANDS[name] for name in _NAMES}, "images": (_IMAGES, "Manage images.")},
    context_settings=CONTEXT_SETTINGS,
)
@global_options
@click.version_option(package_name="orlop", prog_name="dist")
@click.pass_context
def dist(context: click.Context, /, **flags: object) -> None:
    """Move images between registries, archives and the daemon."""
    start(context, **flags)  # type: ignore[arg-type]  # click hands over what `global_options` declares


@click.group(
    cls=LazyGroup,
    listing="list",
    aliases={"ls": "list", "rm": "remove", "delete": "remove", "del": "remove"},
    lazy={
        "check": ("orlop.cmd.ctr.images:check", "Check that all content of images is here."),
        "export": ("orlop.cmd.ctr.archives:export", "Export images into an archive."),
        "import": ("orlop.cmd.ctr.archives:import_", "Import images from an archive."),
        "label": ("orlop.cmd.ctr.images:label", "Set labels of an image."),
        "remove": ("orlop.cmd.ctr.images:delete", "Remove images by reference."),
        "tag": ("orlop.cmd.ctr.images:tag", "Give an image more names."),
    },
)
def images() -> None:
    """Manage images."""


@images.command("list", cls=GoCommand)
@click.argument("filters", nargs=-1)
@click.option("--quiet", "-q", is_flag=True, help="Print only the references.")
@pass_app
def list_(app: App, filters: tuple[str, ...], quiet: bool) -> None:
    """List images."""
    from orlop.cmd.ctr.images import show_images

    show_images(app, filters, quiet=quiet, short=True)


def main() -> NoReturn:
    """The console script."""
    from orlop.cmd.cli import run

    run(dist, "dist")
