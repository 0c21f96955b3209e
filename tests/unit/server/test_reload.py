"""What a changed configuration does to a running graph: what is applied, what is refused by name."""

import asyncio
from dataclasses import dataclass

from orlop.core.plugin import Kind, Registration
from orlop.server.config import Config, Debug, Metrics
from orlop.server.graph import Graph
from orlop.server.reload import Outcome, reload

KIND: Kind[str] = Kind("io.example.v1")


@dataclass
class Section:
    threshold: int = 1
    path: str = ""


def reloaded(old: Config, new: Config, *plugins: Registration) -> tuple[Outcome, Graph]:
    async def run() -> tuple[Outcome, Graph]:
        async with Graph(old, plugins) as graph:
            return await reload(graph, new), graph

    return asyncio.run(run())


def test_nothing_changed_is_nothing_done():
    outcome, _ = reloaded(Config(), Config())
    assert outcome == Outcome()


def test_what_can_be_is_applied_and_the_rest_is_refused_by_name():
    old = Config(runtimes={"a": "/a", "gone": "/g"})
    held = old.runtimes  # as the task manager holds it
    new = Config(
        root="/elsewhere",
        debug=Debug(level="debug"),
        runtimes={"a": "/other", "b": "/b"},
        metrics=Metrics(address="127.0.0.1:1"),
        imports=["/more"],
    )
    outcome, graph = reloaded(old, new)
    assert outcome.applied == ["debug.level", 'runtimes."a"', 'runtimes."b"', 'runtimes."gone"']
    assert outcome.refused == ["root", 'plugins."io.containerd.server.v1.metrics".address']
    assert held == {"a": "/other", "b": "/b"}
    assert (graph.config.root, graph.config.debug.level) == (Config().root, "debug")


def test_a_plugin_that_asks_gets_its_new_section_and_one_that_does_not_keeps_its_own():
    got = []

    async def take(section: Section) -> None:
        got.append(section)

    def asks(context):
        context.on_reload(take)
        return "asks"

    table: dict[str, dict[str, object]] = {
        "io.example.v1.asks": {"threshold": 5},
        "io.example.v1.quiet": {"path": "/x"},
    }
    outcome, graph = reloaded(
        Config(),
        Config(plugins=table),
        Registration(kind=KIND, id="asks", init=asks, config=Section),
        Registration(kind=KIND, id="quiet", init=lambda _context: "quiet", config=Section),
    )
    assert got == [Section(threshold=5)]
    assert outcome.applied == ['plugins."io.example.v1.asks".threshold']
    assert outcome.refused == ['plugins."io.example.v1.quiet".path']
    assert graph.sections["io.example.v1.quiet"] == Section()


def test_a_plugin_that_refuses_keeps_its_section():
    def refuse(_section):
        raise ValueError("no")

    def init(context):
        context.on_reload(refuse)
        return "p"

    outcome, graph = reloaded(
        Config(),
        Config(plugins={"io.example.v1.p": {"threshold": 5}}),
        Registration(kind=KIND, id="p", init=init, config=Section),
    )
    assert outcome == Outcome(refused=['plugins."io.example.v1.p".threshold'])
    assert graph.sections["io.example.v1.p"] == Section()
