"""One suite about tasks on four stands: which daemon, and which shim it runs containers with.

    orlopd              our daemon with our supervisor
    orlopd+runc.v2      our daemon with Debian's containerd-shim-runc-v2
    containerd+orlop.v1 Debian's containerd with our supervisor
    containerd          Debian's containerd with its own shim: the oracle, on which no test may fail

Where an answer differs on purpose, `tests/interop/tasks/differences.py` says so and why.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import orlop
from tests.interop.tasks.differences import DIFFERENCES
from tests.interop.tasks.room import Listener, Room
from tools import daemons
from tools.daemons import Containerd, Engine, Orlopd
from tools.images import Image

ORACLE = "containerd"
STANDS = ("orlopd", "orlopd+runc.v2", "containerd+orlop.v1", ORACLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """A daemon and the runtime's name for the shim."""

    name: str
    daemon: Engine
    runtime: str

    @property
    def supervised(self) -> bool:
        """Whether our supervisor holds the tasks."""
        return self.name in ("orlopd", "containerd+orlop.v1")

    @property
    def ours(self) -> bool:
        """Whether our daemon is asked."""
        return self.name.startswith("orlopd")


@pytest.fixture(scope="session")
def containerd_with_ours(short_directory: Path) -> Iterator[Containerd]:
    """A containerd that finds our shim beside its own."""
    directory = short_directory / "mixed"
    environment = daemons.environment()
    environment["PATH"] = f"{daemons.BIN}:{environment['PATH']}"
    environment |= {"ORLOP_STATE": str(directory / "o"), "ORLOP_SHIM_LINGER": "1"}
    with Containerd(directory, config=daemons.COLLECT_ON_REQUEST, env=environment) as daemon:
        yield daemon


@pytest.fixture
def namespace(namespace: str) -> str:
    """This run's own: two at once would meet in cgroups, and in the state directory that Debian's shim uses."""
    return f"{namespace}-{os.getpid()}"


@pytest.fixture(scope="session")
def stands(containerd_with_ours: Containerd, orlopd: Orlopd) -> Mapping[str, Stand]:
    """All stands, by name."""
    made = [
        Stand(name="orlopd", daemon=orlopd, runtime="io.containerd.runc.v2"),
        Stand(name="orlopd+runc.v2", daemon=orlopd, runtime=str(daemons.program("containerd-shim-runc-v2"))),
        Stand(name="containerd+orlop.v1", daemon=containerd_with_ours, runtime="io.containerd.orlop.v1"),
        Stand(name=ORACLE, daemon=containerd_with_ours, runtime="io.containerd.runc.v2"),
    ]
    return {one.name: one for one in made}


@pytest.fixture(params=STANDS)
def stand(request: pytest.FixtureRequest, stands: Mapping[str, Stand]) -> Stand:
    """Each in turn; a test that is listed as different on one fails there."""
    name = request.param
    reason = DIFFERENCES.get((request.node.originalname, name))
    if reason is not None:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    return stands[name]


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
