"""Every service answers as containerd does: the same requests to both daemons, by generated clients.

The programs are in `tests/interop/api/programs/`; where we differ, and why, in `tests/interop/differences.py`.
"""

import contextlib
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.api.programs import PROGRAMS
from tests.interop.api.run import Peer, compare
from tests.interop.api.steps import Program
from tests.interop.differences import API
from tools.daemons import COLLECT_ON_REQUEST, Containerd, Orlopd

pytestmark = [pytest.mark.root, pytest.mark.interop]

ISOLATED = """
[plugins."io.containerd.metadata.v1.bolt"]
content_sharing_policy = "isolated"
"""

Peers = tuple[Peer, Peer, tuple[int, int]]


@pytest.fixture(scope="module")
def shared(short_directory: Path) -> Iterator[Peers]:
    """Containerd and orlopd, ready to be asked, and containerd's release."""
    with _peers(short_directory / "shared", COLLECT_ON_REQUEST) as peers:
        yield peers


@pytest.fixture(scope="module")
def isolated(short_directory: Path) -> Iterator[Peers]:
    """The same with the policy `isolated`."""
    with _peers(short_directory / "isolated", COLLECT_ON_REQUEST + ISOLATED) as peers:
        yield peers


@contextlib.contextmanager
def _peers(directory: Path, config: str) -> Iterator[Peers]:
    theirs = Containerd(directory / "containerd", config=config)
    ours = Orlopd(directory / "orlopd", config=config)
    with theirs, ours:
        places = [
            {str(daemon.address): "ADDRESS", str(daemon.root): "ROOT", str(daemon.state): "STATE"}
            for daemon in (theirs, ours)
        ]
        version = theirs.version
        with (
            Peer(theirs.address, places[0], version, repeats=True) as left,
            Peer(ours.address, places[1], version) as right,
        ):
            yield left, right, version


def _id(program: Program) -> str:
    return re.sub(r"\W+", "-", program.name)


@pytest.mark.parametrize("program", [one for one in PROGRAMS if not one.isolated], ids=_id)
def test_same_requests_same_answers(shared: Peers, program: Program) -> None:
    _run(shared, program)


@pytest.mark.parametrize("program", [one for one in PROGRAMS if one.isolated], ids=_id)
def test_same_answers_where_content_is_isolated(isolated: Peers, program: Program) -> None:
    _run(isolated, program)


def _run(peers: Peers, program: Program) -> None:
    theirs, ours, version = peers
    if not program.suits(version):
        pytest.skip(f"not for containerd {version[0]}.{version[1]}")
    namespace = f"api-{zlib.crc32(program.name.encode()):08x}"
    answers = theirs.run(program, namespace), ours.run(program, namespace)
    theirs.tidy(namespace)
    ours.tidy(namespace)
    problems = []
    listed = {label: row for (name, label), row in API.items() if name == program.name}
    for label, only_text, shown in compare(*answers):
        difference = listed.pop(label, None)
        if difference is None or not difference.covers(version, only_text=only_text):
            problems.append(f"{label}\n{shown}")
    problems += [
        f"{label} is listed as different ({difference.reason}), but is the same"
        for label, difference in listed.items()
        if difference.applies(version)
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("program", [one for one in PROGRAMS if one.expects], ids=_id)
def test_what_no_peer_has_is_as_its_source_says(shared: Peers, program: Program) -> None:
    _, ours, _ = shared
    namespace = f"later-{zlib.crc32(program.name.encode()):08x}"
    answers = ours.run(program, namespace)
    ours.tidy(namespace)
    assert {label: answers[label].lines() for label in program.expects} == {
        label: list(lines) for label, lines in program.expects.items()
    }, program.source


def test_what_no_peer_has_names_its_source() -> None:
    later = [program for program in PROGRAMS if program.since >= (2, 0)]
    assert [program.name for program in later if not (program.source and program.expects)] == []


def test_every_listed_difference_is_of_a_program() -> None:
    names = [program.name for program in PROGRAMS]
    assert len(names) == len(set(names)), "two programs of one name"
    assert {name for name, _ in API} <= set(names)
