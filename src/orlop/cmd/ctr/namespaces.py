"""`ctr namespaces`."""

import sys

import click

from orlop.base.errdefs import InvalidArgumentError, NotFoundError, OrlopError
from orlop.cmd.cli import App, GoCommand, LazyGroup, fail_each, grpc_text, pass_app
from orlop.cmd.tabwriter import TabWriter
from orlop.cmd.units import labels as label_text
from orlop.cmd.units import parse_labels

# Names of a kind that a plan shows.
SHOWN = 5


@click.group(
    cls=LazyGroup,
    listing="list",
    aliases={"c": "create", "ls": "list", "rm": "remove", "delete": "remove", "del": "remove"},
)
def namespaces() -> None:
    """Manage namespaces."""


@namespaces.command(cls=GoCommand)
@click.argument("name")
@click.argument("labels", nargs=-1, metavar="[KEY=VALUE...]")
@pass_app
def create(app: App, name: str, labels: tuple[str, ...]) -> None:
    """Create a namespace. Its name must be unique."""
    app.client.namespaces.create(name, parse_labels(labels))


@namespaces.command("list", cls=GoCommand)
@click.option("--quiet", "-q", is_flag=True, help="Print only the names.")
@pass_app
def list_(app: App, quiet: bool) -> None:
    """List namespaces."""
    found = app.client.namespaces.list()
    if quiet:
        for one in found:
            click.echo(one.name)
        return
    table = TabWriter()
    table.row("NAME", "LABELS")
    for one in found:
        table.row(one.name, label_text(one.labels))
    click.echo(str(table), nl=False)


@namespaces.command(cls=GoCommand)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--cgroup", "-c", is_flag=True, help="Delete the namespace's cgroup as well.")
@click.option("--cascade", is_flag=True, help="Kill and remove all that is in the namespace first.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before a cascade.")
@pass_app
def remove(app: App, names: tuple[str, ...], cgroup: bool, cascade: bool, yes: bool) -> None:
    """Remove namespaces. A namespace must be empty, unless --cascade is given.

    A cascade prints what it would remove and asks. One that was cut off goes on when it is started again.
    """
    errors = []
    for name in names:
        quoted = f'"{name}"'
        if cascade and not _planned(app, name, yes=yes):
            continue
        try:
            if cascade:
                app.persist(app.client.in_namespace(name).remove_namespace)
            else:
                app.client.namespaces.delete(name)
        except NotFoundError:
            pass  # as containerd's: what is not there is as good as removed
        except OrlopError as error:
            # The line that scripts have matched since 2017: the status as gRPC prints it, the name without quotes.
            errors.append(f"unable to delete {name}: {grpc_text(error).replace(quoted, name, 1)}")
            continue
        if cgroup:
            _remove_cgroups(app, name)
        click.echo(name)
    fail_each(app, errors)


@namespaces.command(cls=GoCommand)
@click.argument("name")
@click.argument("labels", nargs=-1, required=True, metavar="KEY=VALUE...")
@pass_app
def label(app: App, name: str, labels: tuple[str, ...]) -> None:
    """Set labels; an empty value removes one."""
    app.client.namespaces.label(name, parse_labels(labels))


def _planned(app: App, name: str, *, yes: bool) -> bool:
    """Print what a cascade removes, on standard error; whether the user wants that.

    Raises:
        InvalidArgumentError: there is nobody to ask.
    """
    found = list(app.persist(app.client.in_namespace(name).contents).kinds())
    table = TabWriter()
    for kind, things in found:
        more = f" and {len(things) - SHOWN} more" if len(things) > SHOWN else ""
        table.row(f"  {len(things)} {kind}", f"{', '.join(things[:SHOWN])}{more}")
    click.echo(f"namespace {name}: {'to be removed are' if found else 'is empty'}", err=True)
    click.echo(str(table), err=True, nl=False)
    if yes or not found:
        return True
    if not sys.stdin.isatty():
        raise InvalidArgumentError(f"namespace {name}: standard input is no terminal to ask at", hint="give --yes")
    return click.confirm("Remove all of it?", err=True)


def _remove_cgroups(app: App, name: str) -> None:
    """Remove the cgroups below which the namespace's tasks ran, in each hierarchy that has one."""
    import os

    from orlop.base.identifiers import validate

    validate(name)
    root = "/sys/fs/cgroup"
    hierarchies = [root, *(os.path.join(root, one) for one in sorted(os.listdir(root)))]
    for hierarchy in hierarchies:
        path = os.path.join(hierarchy, name)
        if not os.path.isdir(path) or not os.path.exists(os.path.join(path, "cgroup.procs")):
            continue
        try:
            os.rmdir(path)
        except OSError as error:
            app.warn(f"cgroup {path} stays: {(error.strerror or '').lower()}")
