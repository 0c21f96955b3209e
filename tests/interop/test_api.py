"""Every service answers as containerd does: the same requests to both daemons, by generated clients.

The programs are in `tests/interop/api/programs/`; where we differ, and why, in `tests/interop/differences.py`.
"""

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.api.programs import PROGRAMS
from tests.interop.api.run import Peer, compare
from tests.interop.api.steps import Program
from tests.interop.differences import API
from tools.daemons import Containerd, Orlopd

pytestmark = [pytest.mark.root, pytest.mark.interop]

# Collections happen when a program asks for one and at no other time.
COLLECT_ON_REQUEST = """
[plugins."io.containerd.gc.v1.scheduler"]
pause_threshold = 0.000001
mutation_threshold = 0
startup_delay = "1h"
"""


@pytest.fixture(scope="module")
def peers(short_directory: Path) -> Iterator[tuple[Peer, Peer, tuple[int, int]]]:
    """Containerd and orlopd, ready to be asked, and containerd's release."""
    theirs = Containerd(short_directory / "api-containerd", config=COLLECT_ON_REQUEST)
    ours = Orlopd(short_directory / "api-orlopd", config=COLLECT_ON_REQUEST)
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


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: re.sub(r"\W+", "-", program.name))
def test_same_requests_same_answers(peers: tuple[Peer, Peer, tuple[int, int]], program: Program) -> None:
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


def test_every_listed_difference_is_of_a_program() -> None:
    names = [program.name for program in PROGRAMS]
    assert len(names) == len(set(names)), "two programs of one name"
    assert {name for name, _ in API} <= set(names)
