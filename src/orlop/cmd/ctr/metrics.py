"""`ctr tasks metrics`."""

from typing import Any

import click

from orlop.cmd.cli import App, GoCommand, pass_app
from orlop.cmd.tabwriter import TabWriter
from orlop.cmd.units import go_time


@click.command(cls=GoCommand)
@click.argument("container_id", metavar="CONTAINER")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@pass_app
def metrics(app: App, container_id: str, form: str) -> None:
    """Show one reading of a task's cgroup."""
    found = app.client.task(container_id).metrics()
    if found.data is None:
        from orlop.base.errdefs import UnknownError

        raise UnknownError(f"cannot convert metric data to cgroups.Metrics: its type is {found.type_url}")
    if form == "json":
        import json

        from orlop.cmd.gojson import to_json

        click.echo(json.dumps(to_json(found.data), indent=2))
        return
    head = TabWriter(1, 8, 4)
    head.row("ID", "TIMESTAMP")
    head.row(found.id, go_time(found.timestamp, found.nanoseconds))
    click.echo(str(head))
    table = TabWriter(1, 8, 4)
    table.row("METRIC", "VALUE")
    for name, value in _rows(found.data, found.type_url):
        table.row(name, value)
    click.echo(str(table), nl=False)


def _rows(data: Any, type_url: str) -> list[tuple[str, object]]:
    # Any: one of two generated messages, told apart by their type URL.
    if type_url.endswith("v1.Metrics"):
        return _v1(data)
    return _v2(data)


def _v1(data: Any) -> list[tuple[str, object]]:
    """Source: printCgroupMetricsTable in cmd/ctr/commands/tasks/metrics.go."""
    rows: list[tuple[str, object]] = []
    if data.HasField("memory"):
        memory = data.memory
        rows += [
            ("memory.usage_in_bytes", memory.usage.usage),
            ("memory.limit_in_bytes", memory.usage.limit),
            ("memory.stat.cache", memory.total_cache),
        ]
    if data.HasField("cpu"):
        usage = data.cpu.usage
        rows += [("cpuacct.usage", usage.total), ("cpuacct.usage_percpu", f"[{' '.join(map(str, usage.per_cpu))}]")]
    if data.HasField("pids"):
        rows += [("pids.current", data.pids.current), ("pids.limit", data.pids.limit)]
    if data.HasField("blkio"):
        rows += [
            (f"blkio.service_bytes.{entry.op.lower()}.{entry.major}:{entry.minor}", entry.value)
            for entry in data.blkio.io_service_bytes_recursive
        ]
    return rows


def _v2(data: Any) -> list[tuple[str, object]]:
    """Source: printCgroup2MetricsTable, same file."""
    rows: list[tuple[str, object]] = []
    if data.HasField("pids"):
        rows += [("pids.current", data.pids.current), ("pids.limit", data.pids.limit)]
    if data.HasField("cpu"):
        rows += [
            (f"cpu.{name}", getattr(data.cpu, name))
            for name in ("usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec")
        ]
    if data.HasField("memory"):
        first = ("usage", "usage_limit", "swap_usage", "swap_limit")
        others = tuple(field.name for field in data.memory.DESCRIPTOR.fields if field.name not in first)
        rows += [(f"memory.{name}", getattr(data.memory, name)) for name in (*first, *others)]
    return rows
