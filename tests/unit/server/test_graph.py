"""The plug-in graph: order, skipping, failing, requiring and closing."""

import asyncio
from dataclasses import dataclass

import pytest

from orlop.base.errdefs import FailedPreconditionError, InvalidArgumentError, NotFoundError
from orlop.core.plugin import Kind, Registration, SkipPlugin
from orlop.server import builtins
from orlop.server.config import Config
from orlop.server.graph import Graph, ordered

LOW: Kind[str] = Kind("io.example.low.v1")
HIGH: Kind[str] = Kind("io.example.high.v1")


def plugin(kind, name, init=None, **more):
    return Registration(kind=kind, id=name, init=init or (lambda _context: f"{kind}.{name}"), **more)


def start(config, registrations, look=lambda graph: None):
    async def run():
        async with Graph(config, registrations) as graph:
            return graph, look(graph)

    return asyncio.run(run())


def states(graph):
    return {status.registration.id: (status.state, status.reason) for status in graph.status}


def test_what_is_required_starts_first_and_instances_are_found():
    high = plugin(HIGH, "h", lambda context: "+".join(context.all(LOW).values()), requires=(LOW,))
    _, (one, everything) = start(
        Config(), [high, plugin(LOW, "a"), plugin(LOW, "b")], lambda graph: (graph.get(HIGH), dict(graph.all(LOW)))
    )
    assert one == "io.example.low.v1.a+io.example.low.v1.b"
    assert list(everything) == ["a", "b"]


def test_the_single_one_of_a_kind_is_asked_for_without_a_name():
    """Source: GetSingle in containerd's plugin/context.go; what was skipped or failed does not count here."""

    def skip(_context):
        raise SkipPlugin("no kernel support")

    def single(*plugins):
        return start(Config(), plugins, lambda graph: graph.get(LOW))[1]

    assert single(plugin(LOW, "a"), plugin(LOW, "b", skip)) == "io.example.low.v1.a"
    with pytest.raises(FailedPreconditionError, match=r"multiple plugins registered for io\.example\.low\.v1: a, b"):
        single(plugin(LOW, "b"), plugin(LOW, "a"))


def test_skipped_and_failed_plugins_leave_the_others():
    def skip(_context):
        raise SkipPlugin("no kernel support")

    def fail(_context):
        raise ValueError("broken")

    graph, _ = start(
        Config(disabled_plugins=["io.example.low.v1.off"]),
        [plugin(LOW, "skip", skip), plugin(LOW, "fail", fail), plugin(LOW, "off"), plugin(LOW, "ok")],
    )
    assert states(graph) == {
        "skip": ("skipped", "no kernel support"),
        "fail": ("failed", "broken"),
        "off": ("skipped", "disabled in the configuration"),
        "ok": ("ok", ""),
    }
    with pytest.raises(NotFoundError, match=r"low\.v1\.fail: failed: broken"):
        graph.get(LOW, "fail")


def test_a_required_plugin_that_does_not_work_stops_the_daemon_and_closes_the_rest():
    closed = []

    def fail(_context):
        raise ValueError("broken")

    first = plugin(LOW, "first", lambda context: context.on_close(lambda: closed.append("first")))
    with pytest.raises(FailedPreconditionError, match="broken"):
        start(Config(required_plugins=["io.example.low.v1.bad"]), [first, plugin(LOW, "bad", fail)])
    assert closed == ["first"]
    with pytest.raises(FailedPreconditionError, match="there is none"):
        start(Config(required_plugins=["io.example.low.v1.none"]), [])


def test_closing_goes_backwards_and_waits():
    closed = []

    def opener(name):
        async def close():
            await asyncio.sleep(0)
            closed.append(name)

        async def init(context):
            context.on_close(close)

        return init

    start(Config(), [plugin(LOW, "a", opener("a")), plugin(HIGH, "b", opener("b"), requires=(LOW,))])
    assert closed == ["b", "a"]


def test_each_plugin_gets_its_own_section():
    @dataclass(kw_only=True)
    class Options:
        size: int = 1

    config = Config(plugins={"io.example.low.v1.a": {"size": 7}})
    _, size = start(
        config,
        [plugin(LOW, "a", lambda context: str(context.config.size), config=Options)],
        lambda graph: graph.get(LOW),
    )
    assert size == "7"


def test_duplicates_and_circles_are_refused():
    with pytest.raises(InvalidArgumentError, match="twice"):
        ordered([plugin(LOW, "a"), plugin(LOW, "a")])
    with pytest.raises(InvalidArgumentError, match="require each other"):
        ordered([plugin(LOW, "a", requires=(HIGH,)), plugin(HIGH, "b", requires=(LOW,))])


def test_an_entry_point_that_cannot_be_imported_is_a_failed_plugin():
    from importlib.metadata import EntryPoint

    point = EntryPoint(name="broken", value="no_such_module_at_all:thing", group=builtins.GROUP)
    graph, _ = start(Config(), builtins.foreign(point))
    state, reason = states(graph)["broken"]
    assert state == "failed"
    assert "no_such_module_at_all" in reason
