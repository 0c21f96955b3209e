"""Images moved by the daemon's transfer service: what its events look like here, and when the client does it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from orlop.base.errdefs import UnimplementedError
from orlop.cmd.cli import App
from orlop.core.transfer.progress import Event, Progress, Status, step_of

if TYPE_CHECKING:
    from orlop.base.platforms import Platform
    from orlop.core.transfer.ends import End

local_option = click.option("--local", is_flag=True, help="Let the client do it rather than the transfer service.")


class Steps:
    """Takes the events of a transfer, shows them as steps, and remembers what was saved.

    Args:
        ref: what is moved; its own row tells of the whole.
    """

    def __init__(self, show: Callable[[Progress], None], ref: str) -> None:
        self._show = show
        self._ref = ref
        self.saved: list[tuple[str, str]] = []

    def __call__(self, event: Event) -> None:
        if event.event.startswith("Resolving from "):
            self._show(Progress(ref=self._ref, status=Status.RESOLVING))
        elif event.event in ("fetching image content", "pushing content"):
            self._show(Progress(ref=self._ref, status=Status.RESOLVED))
        elif event.event == "saved":
            self.saved.append((event.name, event.descriptor.digest if event.descriptor is not None else ""))
        elif (step := step_of(event)) is not None:
            self._show(step)


def moved(app: App, source: "End", destination: "End", steps: Steps) -> bool:
    """Have something moved; False if the daemon has no transfer service, as containerd before 1.7."""
    try:
        app.client.transfer(source, destination, listener=steps)
    except UnimplementedError as error:
        if "unknown service" not in str(error):
            raise
        return False
    return True


def parse_platforms(specifiers: tuple[str, ...], *, everything: bool) -> "tuple[Platform, ...]":
    """The platforms that flags name, this machine's without any; none at all for everything.

    Raises:
        click.UsageError: both are given.
    """
    from orlop.base import platforms

    if everything:
        if specifiers:
            raise click.UsageError("cannot specify both --platform and --all-platforms")
        return ()
    return tuple(platforms.parse(one) for one in specifiers) or (platforms.parse(platforms.default_string()),)
