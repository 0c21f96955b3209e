"""Phases: noted, bounded, and laid out by what they lie within."""

import os

import pytest

from orlop.base.phases import CLIENT, DAEMON, SUPERVISOR, Phase, Phases, Recent, arranged


def phase(name, start, end, process=SUPERVISOR):
    return Phase(name=name, process=process, pid=1, start_ns=start, end_ns=end)


def test_what_is_noted_is_told_in_the_order_of_ends():
    phases = Phases()
    with phases("outer"), phases("inner"):
        pass
    with pytest.raises(ValueError, match="x"), phases("failed"):
        raise ValueError("x")
    inner, outer, failed = phases.of("test")
    assert [one.name for one in (inner, outer, failed)] == ["inner", "outer", "failed"]
    assert outer.start_ns <= inner.start_ns <= inner.end_ns <= outer.end_ns <= failed.start_ns
    assert {(one.process, one.pid) for one in (inner, outer, failed)} == {("test", os.getpid())}


def test_the_newest_are_kept():
    phases = Phases(limit=2)
    for number in range(5):
        phases.note(str(number), number, number + 1)
    assert [one.name for one in phases.of("test")] == ["3", "4"]


def test_of_too_many_processes_the_first_is_forgotten():
    recent: Recent[str] = Recent(limit=2)
    recent.begin("a").note("old", 0, 1)
    recent.begin("b")
    fresh = recent.begin("a")
    assert fresh.of("test") == []
    assert recent.at("a") is fresh
    recent.begin("c")
    assert recent.find("b") is None
    assert recent.find("a") is fresh


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], []),
        ([("b", 2, 3), ("a", 0, 10), ("c", 2, 9)], [(0, "a"), (1, "c"), (2, "b")]),
        ([("a", 0, 4), ("b", 4, 8)], [(0, "a"), (0, "b")]),
        ([("a", 0, 4), ("b", 2, 8), ("c", 3, 4)], [(0, "a"), (0, "b"), (2, "c")]),
        ([("a", 0, 0), ("b", 0, 5)], [(0, "b"), (1, "a")]),
        ([("a", 0, 5), ("b", 0, 5, DAEMON), ("c", 0, 5, CLIENT)], [(0, "c"), (1, "b"), (2, "a")]),
        # What goes on below does not make what goes on above a part of it.
        ([("a", 0, 9), ("b", 1, 2, DAEMON), ("c", 3, 4, CLIENT)], [(0, "a"), (0, "b"), (0, "c")]),
    ],
)
def test_phases_lie_within_others(given, wanted):
    assert [(depth, one.name) for depth, one in arranged(phase(*one) for one in given)] == wanted
