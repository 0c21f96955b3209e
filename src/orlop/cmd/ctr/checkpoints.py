"""`ctr containers checkpoint` and `restore`."""

import click

from orlop.base.errdefs import InvalidArgumentError, NotFoundError
from orlop.cmd.cli import App, GoCommand, pass_app


@click.command(cls=GoCommand)
@click.argument("container_id", metavar="CONTAINER", default="")
@click.argument("ref", default="")
@click.option("--rw", is_flag=True, help="Include what was written to the container's files.")
@click.option("--image", is_flag=True, help="Include the image.")
@click.option("--task", is_flag=True, help="Include the state of the task, by CRIU.")
@pass_app
def checkpoint(app: App, container_id: str, ref: str, rw: bool, image: bool, task: bool) -> None:
    """Keep what it takes to make a container again, as the image REF."""
    from orlop.client.checkpoint import CheckpointOptions

    _check(container_id, ref)
    container = app.client.containers.get(container_id)
    container.checkpoint(ref, CheckpointOptions(rw=rw, image=image, task=task))


@click.command(cls=GoCommand)
@click.argument("container_id", metavar="CONTAINER", default="")
@click.argument("ref", default="")
@click.option("--rw", is_flag=True, help="Restore what was written to the container's files.")
@click.option("--live", is_flag=True, help="Restore the state of the task, by CRIU.")
@pass_app
def restore(app: App, container_id: str, ref: str, rw: bool, live: bool) -> None:
    """Make a container from the checkpoint REF, which is fetched if it is not here, and start it."""
    from orlop.client.io import inherit

    _check(container_id, ref)
    try:
        image = app.client.images.get(ref)
    except NotFoundError:
        image = app.client.pull(ref, unpack=False)
    digest = image.checkpoint_digest() if live else ""
    container = app.client.restore(container_id, image.name, rw=rw)
    process = container.spec().process
    io = inherit(terminal=process is not None and process.terminal, feed=False)
    try:
        task = container.new_task(io, checkpoint=digest)
        task.start()
    except BaseException:
        container.delete()
        raise
    task.detach()


def _check(container_id: str, ref: str) -> None:
    if not container_id:
        raise InvalidArgumentError("container id must be provided")
    if not ref:
        raise InvalidArgumentError("ref must be provided")
