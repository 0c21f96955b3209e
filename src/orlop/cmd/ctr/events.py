"""`ctr events`."""

import json

import click

from orlop.cmd.cli import App, GoCommand, pass_app
from orlop.cmd.gojson import to_json
from orlop.cmd.units import go_time


@click.command(cls=GoCommand)
@click.argument("filters", nargs=-1)
@pass_app
def events(app: App, filters: tuple[str, ...]) -> None:
    """Display events of all namespaces as they happen: time, namespace, topic, and the event as JSON."""
    for event in app.client.subscribe(filters):
        value = to_json(event.message) if event.message is not None else {"type_url": event.type_url}
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        stamp = go_time(event.timestamp, event.nanoseconds)
        click.echo(f"{stamp} {event.namespace} {event.topic} {text}")
