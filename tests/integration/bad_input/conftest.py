"""A daemon that is given bad input, and clients that see afterwards that nothing is left."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import orlop
from tests.integration.bad_input.leftovers import Ledger
from tests.integration.bad_input.pulling import NAMESPACE
from tools.daemons import Orlopd
from tools.images import Image as BuiltImage


@pytest.fixture(scope="module")
def daemon(short_directory: Path) -> Iterator[Orlopd]:
    with Orlopd(short_directory / "bad-input") as running:
        yield running


@pytest.fixture(scope="module")
def prepared(daemon: Orlopd, busybox_image: BuiltImage) -> str:
    """The name of an image that is there and unpacked; every kind of thing has been made once."""
    with orlop.Client(str(daemon.address), NAMESPACE) as client, open(busybox_image.archive, "rb") as opened:
        [image] = client.import_(opened)
        image.unpack()
        with client.new_container("warm", image.name, orlop.SpecOptions(args=("true",))) as container:
            with container.new_task() as task:
                task.start()
                task.wait()
                task.delete()
    return image.name


@pytest.fixture
def client(daemon: Orlopd, prepared: str) -> Iterator[orlop.Client]:
    """A client; after the test the daemon has what it had before."""
    with orlop.Client(str(daemon.address), NAMESPACE, timeout_s=60) as made:
        ledger = Ledger(daemon)
        yield made
        ledger.check(lambda: made.leases.delete(made.leases.create("collect").id, synchronous=True))
