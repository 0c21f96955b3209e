"""One suite about tasks on four stands: which daemon, and which shim it runs containers with.

    orlopd              our daemon with our supervisor
    orlopd+runc.v2      our daemon with Debian's containerd-shim-runc-v2
    containerd+orlop.v1 Debian's containerd with our supervisor
    containerd          Debian's containerd with its own shim: the oracle, on which no test may fail

Where Debian's containerd is 1.6, some of it (`LATER`) stands beside Debian 13's too, under the same names with 1.7
behind them; with ORLOP_TEST_STANDS=all, all of it. On Debian 13 itself the four are those of 1.7.

Where an answer differs on purpose, `tests/interop/tasks/differences.py` says so and why.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import orlop
from tests.interop.tasks.differences import DIFFERENCES
from tests.interop.tasks.room import Listener, Room
from tools import containerd17, daemons
from tools.daemons import Containerd, Engine, Orlopd
from tools.images import Image
from tools.peers import PeerError

ORACLE = "containerd"
STANDS = ("orlopd", "orlopd+runc.v2", "containerd+orlop.v1", ORACLE)
STANDS_17 = tuple(f"{name} 1.7" for name in STANDS[1:])
LATER = frozenset(
    {
        "test_where_output_goes",
        "test_a_container_runs_again_under_its_id",
        "test_the_exits_of_execs_come_before_that_of_init",
        "test_resources_are_updated",
    }
)
"""What is asked of the later release's shim and daemon, too, in every run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """A daemon and the runtime's name for the shim."""

    name: str
    daemon: Engine
    runtime: str

    @property
    def supervised(self) -> bool:
        """Whether our supervisor holds the tasks."""
        return self.name.removesuffix(" 1.7") in ("orlopd", "containerd+orlop.v1")

    @property
    def ours(self) -> bool:
        """Whether our daemon is asked."""
        return self.name.startswith("orlopd")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "stand" in metafunc.fixturenames:
        wanted = os.environ.get("ORLOP_TEST_STANDS") == "all" or metafunc.definition.originalname in LATER
        metafunc.parametrize("stand", STANDS + STANDS_17 if wanted and _beside_16() else STANDS, indirect=True)


def _beside_16() -> bool:
    try:
        return daemons.containerd_version() <= (1, 6)
    except daemons.Missing:
        return False


class Containerd17(Containerd):
    """Debian 13's containerd."""

    version = (1, 7)

    def command(self) -> Sequence[str | Path]:
        return [containerd17.program("containerd"), *super().command()[1:]]


@pytest.fixture(scope="session")
def containerd_with_ours(short_directory: Path) -> Iterator[Containerd]:
    """A containerd that finds our shim beside its own."""
    directory = short_directory / "mixed"
    with Containerd(directory, config=daemons.COLLECT_ON_REQUEST, env=_mixed(directory)) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def containerd17_with_ours(short_directory: Path) -> Iterator[Containerd]:
    """The same of Debian 13."""
    directory = short_directory / "mixed17"
    environment = _mixed(directory, program_17("containerd").parent)
    with Containerd17(directory, config=daemons.COLLECT_ON_REQUEST, env=environment) as daemon:
        yield daemon


def program_17(name: str) -> Path:
    """A program of Debian 13's containerd; the test is skipped where there is none."""
    try:
        return containerd17.program(name)
    except PeerError as error:
        pytest.skip(str(error))


def _mixed(directory: Path, *more: Path) -> dict[str, str]:
    environment = daemons.environment()
    environment["PATH"] = ":".join([*map(str, more), str(daemons.BIN), environment["PATH"]])
    return environment | {"ORLOP_STATE": str(directory / "o"), "ORLOP_SHIM_LINGER": "1"}


@pytest.fixture
def namespace(namespace: str) -> str:
    """This run's own: two at once would meet in cgroups, and in the state directory that Debian's shim uses."""
    return f"{namespace}-{os.getpid()}"


@pytest.fixture(scope="session")
def stands(containerd_with_ours: Containerd, orlopd: Orlopd) -> Mapping[str, Stand]:
    """Those beside this host's containerd, by name."""
    shim = daemons.program("containerd-shim-runc-v2")
    return {one.name: one for one in _stands("", orlopd, shim, containerd_with_ours)}


@pytest.fixture(scope="session")
def stands_17(containerd17_with_ours: Containerd, orlopd: Orlopd) -> Mapping[str, Stand]:
    """Those beside Debian 13's."""
    shim = program_17("containerd-shim-runc-v2")
    return {one.name: one for one in _stands(" 1.7", orlopd, shim, containerd17_with_ours)}


def _stands(suffix: str, ours: Orlopd, shim: Path, theirs: Containerd) -> list[Stand]:
    return [
        Stand(name=f"orlopd{suffix}", daemon=ours, runtime="io.containerd.runc.v2"),
        Stand(name=f"orlopd+runc.v2{suffix}", daemon=ours, runtime=str(shim)),
        Stand(name=f"containerd+orlop.v1{suffix}", daemon=theirs, runtime="io.containerd.orlop.v1"),
        Stand(name=f"{ORACLE}{suffix}", daemon=theirs, runtime="io.containerd.runc.v2"),
    ]


@pytest.fixture
def stand(request: pytest.FixtureRequest, orlopd: Orlopd) -> Stand:
    """Each in turn; a test that is listed as different on one fails there. All of them need orlopd."""
    name = request.param
    reason = DIFFERENCES.get((request.node.originalname, name.removesuffix(" 1.7")))
    if reason is not None:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    known = request.getfixturevalue("stands_17" if name in STANDS_17 else "stands")
    found: Stand = known[name]
    return found


@pytest.fixture
def client(stand: Stand, namespace: str, busybox_image: Image) -> Iterator[orlop.Client]:
    """A client in a namespace of its own that has the busybox image, unpacked; the namespace is empty afterwards."""
    with connected(stand, namespace, busybox_image) as made:
        yield made


@contextlib.contextmanager
def connected(stand: Stand, namespace: str, image: Image) -> Iterator[orlop.Client]:
    """See `client`."""
    with orlop.Client(str(stand.daemon.address), namespace, timeout_s=60) as made:
        with open(image.archive, "rb") as archive:
            [imported] = made.import_(archive)
        imported.unpack()
        yield made
        for state in made.tasks():
            made.task(state.container_id).delete(force=True)
        for container in made.containers.list():
            container.delete()
        for one in made.images.list():
            one.delete(synchronous=True)
    stand.daemon.forget_cgroup(namespace)


@pytest.fixture
def room(client: orlop.Client, stand: Stand, tmp_path: Path) -> Room:
    """Makes containers on the stand."""
    return Room(client, stand, tmp_path)


@pytest.fixture
def listener(client: orlop.Client) -> Iterator[Listener]:
    """Has begun to listen to the events of the test's namespace."""
    made = Listener(client)
    yield made
    made.close(client)
