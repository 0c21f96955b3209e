"""`ctr plugins`."""

from typing import Any

import click

from orlop.client.containers import DEFAULT_RUNTIME
from orlop.cmd.cli import App, GoCommand, LazyGroup, pass_app
from orlop.cmd.tabwriter import TabWriter


@click.group(cls=LazyGroup, listing="list", aliases={"ls": "list"})
def plugins() -> None:
    """Show the daemon's plug-ins."""


@plugins.command("list", cls=GoCommand)
@click.argument("filters", nargs=-1)
@click.option("--quiet", "-q", is_flag=True, help="Print only the ids.")
@click.option("--detailed", "-d", is_flag=True, help="Print all that is known of each.")
@pass_app
def list_(app: App, filters: tuple[str, ...], quiet: bool, detailed: bool) -> None:
    """List the daemon's plug-ins."""
    found = app.client.introspection.plugins(filters)
    if quiet:
        for one in found:
            click.echo(one.id)
        return
    if detailed:
        _details(app, filters)
        return
    table = TabWriter(4, 8, 4)
    table.row("TYPE", "ID", "PLATFORMS", "STATUS")
    for one in found:
        table.row(one.type, one.id, ",".join(one.platforms) or "-", one.status)
    click.echo(str(table), nl=False)


@plugins.command("inspect-runtime", cls=GoCommand)
@click.option("--runtime", default=DEFAULT_RUNTIME, show_default=True, help="Runtime name, or path of a shim.")
@click.option("--runtime-config-path", default="", help="Configuration file for the runtime.")
@click.option("--runc-binary", default="", help="OCI runtime to ask.")
@click.option("--runc-root", default="", help="State directory of the OCI runtime.")
@click.option("--runc-systemd-cgroup", is_flag=True, help="Let systemd manage the cgroup.")
@pass_app
def inspect_runtime(app: App, /, runtime: str, **flags: Any) -> None:
    """Print what a runtime says of itself, as JSON."""
    import json

    from orlop.api.types.runc.options import oci_pb2
    from orlop.cmd.cli import print_json
    from orlop.cmd.ctr.flags import runtime_options
    from orlop.cmd.gojson import to_json

    given = {"runtime": runtime, "no_pivot": False, "cgroup": "-", **flags}
    found = app.client.introspection.runtime_info(runtime, runtime_options(given))
    options = None
    if found.options is not None and found.options.type_url.endswith(oci_pb2.Options.DESCRIPTOR.full_name):
        options = to_json(oci_pb2.Options.FromString(found.options.value))
    print_json(
        {
            "Name": found.name,
            "Version": {"Version": found.version, "Revision": found.revision},
            "Options": options,
            "Features": json.loads(found.features) if found.features else None,
            "Annotations": dict(sorted(found.annotations.items())) or None,
        }
    )


def _details(app: App, filters: tuple[str, ...]) -> None:
    from orlop.base.errdefs import CLASS_OF_CODE

    # Go's Println puts blanks between its arguments, which here are cells: containerd's ctr has them too.
    table = TabWriter(4, 8, 4)
    for number, one in enumerate(app.client.introspection.plugins(filters)):
        if number:
            table.line("\t\t\t")
        table.line(f"Type:\t {one.type}")
        table.line(f"ID:\t {one.id}")
        if one.requires:
            table.line("Requires:\t")
            for required in one.requires:
                table.line(f"\t {required}")
        if one.platforms:
            table.line(f"Platforms:\t {','.join(sorted(set(one.platforms)))}")
        if one.exports:
            table.line("Exports:\t")
            for key, value in sorted(one.exports.items()):
                table.line(f"\t {key} \t {value}")
        if one.capabilities:
            table.line(f"Capabilities:\t {','.join(one.capabilities)}")
        if one.error:
            cls = CLASS_OF_CODE.get(one.error_code)
            table.line("Error:\t")
            table.line(f"\t Code:\t {cls.__name__.removesuffix('Error') if cls else one.error_code}")
            table.line(f"\t Message:\t {one.error}")
    click.echo(str(table), nl=False)
