"""What killed supervisors leave: who has something to do, and which sockets are nobody's."""

import fcntl
import os
import socket
import tempfile
from pathlib import Path

import pytest

from orlop.shim import records, unfinished
from orlop.shim.paths import Place
from orlop.shim.records import Record

ADDRESS = "/run/d.sock"


@pytest.fixture
def state(short_directory: Path) -> Path:
    state = Path(tempfile.mkdtemp(dir=short_directory))
    (state / "s").mkdir(mode=0o700)
    return state


def bury(place: Place, container: str) -> None:
    records.write_file(f"{place.gone}/{container}", Record(boot="b", container=container, shim_cgroup=place.cgroup))


def left_by_killed(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)


def test_supervisors_with_tombstones_are_found_in_whatever_cgroup(state: Path) -> None:
    plain, grouped, other = (
        Place(str(state), ADDRESS, "ns"),
        Place(str(state), ADDRESS, "ns", "/a/cgroup"),
        Place(str(state), ADDRESS, "other"),
    )
    for place in (plain, grouped, other):
        bury(place, "c")
    os.mkdir(f"{Place(str(state), ADDRESS, 'empty').gone}")

    def found(namespace: str) -> list[str]:
        return [place.socket for place in unfinished.places(str(state), ADDRESS, namespace)]

    assert found("ns") == [plain.socket, grouped.socket]
    assert found("other") == [other.socket]
    assert found("empty") == found("unknown") == []


def test_only_sockets_of_nobody_are_forgotten(state: Path) -> None:
    dead, starting = (Place(str(state), ADDRESS, name).socket for name in ("dead", "starting"))
    for path in (dead, starting):
        left_by_killed(path)
    living = Place(str(state), ADDRESS, "living").socket
    with socket.socket(socket.AF_UNIX) as listener, open(f"{starting}.lock", "w") as lock:
        listener.bind(living)
        listener.listen()
        fcntl.flock(lock, fcntl.LOCK_EX)
        unfinished.forget_sockets(f"{state}/s")
    left = {path for path in os.listdir(f"{state}/s") if not path.endswith(".lock")}
    assert left == {os.path.basename(starting), os.path.basename(living)}
