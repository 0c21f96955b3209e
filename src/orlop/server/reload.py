"""A changed configuration put into force without a restart, as far as that can be done.

What can be: logging, the OOM score, timeouts, `[runtimes]`, and the sections of plug-ins that take a new one
(`Context.on_reload`). All else is refused by name and stays as it was; a restart of the daemon costs no container.
"""

import dataclasses
import inspect
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from orlop.server import config as configuration
from orlop.server.config import Config
from orlop.server.graph import Graph

log: Final = logging.getLogger(__name__)

# Fields whose values others hold on to (dictionaries) or read anew (the rest).
RELOADABLE: Final = frozenset({"debug", "oom_score", "runtimes", "timeouts"})


@dataclass(slots=True)
class Outcome:
    """What a reload has done: names of keys, as they are written in the file."""

    applied: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


async def reload(graph: Graph, new: Config) -> Outcome:
    """Make the graph's configuration like `new` where that is possible. One key that cannot be does not stop others."""
    outcome = Outcome()
    _daemon(graph.config, new, outcome)
    for status in graph.status:
        if status.state == "ok":
            await _plugin(graph, status.registration.uri, status.registration.config, new, outcome)
    for name in outcome.applied:
        log.info("configuration reloaded", extra={"key": name})
    for name in outcome.refused:
        log.warning("configuration cannot be reloaded, restart the daemon for it", extra={"key": name})
    return outcome


def _daemon(old: Config, new: Config, outcome: Outcome) -> None:
    for one in dataclasses.fields(Config):
        if one.name in ("imports", "plugins", "version") or one.metadata.get("internal"):
            continue
        before, after = getattr(old, one.name), getattr(new, one.name)
        section = one.metadata.get("plugin")
        names = list(_different(before, after, f'plugins."{section}"' if section else one.name))
        if not names:
            continue
        if one.name not in RELOADABLE:
            outcome.refused += names
            continue
        if isinstance(before, dict):
            before.clear()
            before.update(after)
        else:
            setattr(old, one.name, after)
        outcome.applied += names


async def _plugin(graph: Graph, uri: str, cls: type[Any] | None, new: Config, outcome: Outcome) -> None:
    if cls is None:
        return
    before = graph.sections[uri]
    after = configuration.section(cls, new.plugins.get(uri, {}), f'plugins."{uri}"', new.warnings)
    names = list(_different(before, after, f'plugins."{uri}"'))
    if not names:
        return
    take = graph.reloaders.get(uri)
    if take is None:
        outcome.refused += names
        return
    try:
        answer = take(after)
        if inspect.isawaitable(answer):
            await answer
    except Exception:
        # Whatever a plug-in raises must not take the daemon along; its old section stays in force.
        log.exception("plug-in refuses its new configuration", extra={"plugin": uri})
        outcome.refused += names
        return
    graph.sections[uri] = after
    outcome.applied += names


def _different(before: Any, after: Any, name: str) -> Iterator[str]:
    """Names of the keys below `name` that differ; Any: sections and what they hold."""
    if dataclasses.is_dataclass(before) and dataclasses.is_dataclass(after):
        for one in dataclasses.fields(before):
            yield from _different(getattr(before, one.name), getattr(after, one.name), f"{name}.{one.name}")
    elif isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from _different(before.get(key), after.get(key), f'{name}."{key}"')
    elif before != after:
        yield name
