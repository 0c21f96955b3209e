"""Where the time of a start has gone: `ctr run --timings`, `ctr tasks exec --timings`, `ctr tasks timings`."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import click

from orlop.base.errdefs import OrlopError
from orlop.base.phases import Phase, arranged
from orlop.cmd.cli import App
from orlop.cmd.tabwriter import TabWriter


@dataclass(slots=True)
class Shown:
    """Whose phases are to be shown; nothing of the daemon's before the container is known."""

    container_id: str = ""
    exec_id: str = ""


@contextlib.contextmanager
def shown_at_end(app: App, container_id: str = "", exec_id: str = "") -> Iterator[Shown]:
    """Note how long calls take, and show it with what daemon and supervisor know, on standard error, on leaving."""
    app.timed()
    shown = Shown(container_id, exec_id)
    try:
        yield shown
    finally:
        phases = app.client.timings.own()
        if shown.container_id:
            try:
                phases += app.client.timings.of(shown.container_id, shown.exec_id)
            except OrlopError as error:
                app.warn(f"times of the daemon: {error}")
        click.echo(table(phases), err=True, nl=False)


def table(phases: Iterable[Phase]) -> str:
    """A line for each phase, indented below those that it lies within; times count from the first."""
    writer = TabWriter(minwidth=4, padding=2)
    writer.row("PHASE", "PROCESS", "START", "TIME")
    rows = arranged(phases)
    for depth, phase in rows:
        since = (phase.start_ns - rows[0][1].start_ns) / 1e6
        length = phase.seconds * 1e3
        writer.row(f"{'  ' * depth}{phase.name}", phase.process, f"{since:.1f} ms", f"{length:.1f} ms")
    return "\n".join(line.rstrip() for line in str(writer).splitlines()) + "\n"
