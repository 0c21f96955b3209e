"""A full disk under each store, at each stage: the error names the file system, nothing is half done, deleting works
without space, and the daemon goes on once there is some."""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import orlop
from orlop.base.errdefs import ResourceExhaustedError
from orlop.testing.registry import Registry
from tests.hostile.tarballs import archive, member
from tests.integration.bad_input.leftovers import Ledger
from tests.integration.bad_input.pulling import NAME, NAMESPACE, image_of, pull, refuses, transfer
from tests.integration.disks.filling import daemon_on, filled
from tools import filesystems
from tools.daemons import Orlopd
from tools.images import Image as BuiltImage

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

SIZE = 40 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with filesystems.mounted(tmp_path, "ext4", SIZE) as target:
        yield target


@pytest.fixture
def daemon(disk: Path, short_directory: Path) -> Iterator[Orlopd]:
    """One with its root on the small disk."""
    with daemon_on(disk, short_directory / "full", "root") as running:
        yield running


def connect(daemon: Orlopd) -> orlop.Client:
    return orlop.Client(str(daemon.address), NAMESPACE, timeout_s=60)


def collect(client: orlop.Client) -> None:
    client.leases.delete(client.leases.create("collect").id, synchronous=True)


@contextlib.contextmanager
def full(client: orlop.Client, disk: Path, room: int = 0) -> Iterator[None]:
    """Fill the disk for the block; at its end, while it is full still, collect: a lease made before is deleted then."""
    lease = client.leases.create()
    await_reserve(client, disk)
    with filled(disk, room=room):
        yield
        client.leases.delete(lease.id, synchronous=True)


def await_reserve(client: orlop.Client, disk: Path) -> None:
    """Wait until what was used of the space for deletions is set aside again, which a write does."""
    reserve = disk / "meta.db.reserve"
    deadline = time.monotonic() + 10
    while reserve.exists() and not reserve.stat().st_blocks and time.monotonic() < deadline:
        collect(client)
        time.sleep(0.02)
    assert not reserve.exists() or reserve.stat().st_blocks * 512 >= reserve.stat().st_size > 0


def delete_images(client: orlop.Client) -> None:
    for image in client.images.list():
        image.delete(synchronous=True)


def names(disk: Path) -> str:
    return rf"[Nn]o space left on (device on )?the file system at {re.escape(str(disk))}\b"


def fits(operation: Callable[[], object], disk: Path) -> bool:
    """Whether there was room; if not, the error says where not."""
    try:
        operation()
    except ResourceExhaustedError as error:
        if not re.search(names(disk), str(error)):
            raise
        return False
    return True


LAYERS = [archive(member(b"f%d" % number, os.urandom(size))) for number, size in enumerate((300_000, 40_000, 150_000))]


def test_a_pull_with_room_for_some_of_it(daemon: Orlopd, disk: Path) -> None:
    """Wherever in fetching, writing metadata or unpacking the space ends, and all is taken back on the full disk."""

    def scenario(registry: Registry) -> str:
        image_of(registry, *LAYERS)
        return NAME

    pull(daemon, scenario)
    with connect(daemon) as client:
        delete_images(client)
        ledger = Ledger(daemon)
        outcomes = []
        for room in (0, 20_000, 100_000, 350_000, 450_000, 560_000, 700_000, 900_000, 4_000_000):
            with full(client, disk, room):
                outcomes.append(fits(lambda: pull(daemon, scenario), disk))
                delete_images(client)
            assert client.images.list() == []
            assert list(client.content.walk()) == []
            ledger.check(lambda: collect(client))
        assert outcomes == sorted(outcomes)
        assert not outcomes[0]
        assert outcomes[-1]


@pytest.mark.parametrize("puller", [pull, transfer])
def test_what_cannot_fit_is_refused_before_it_is_sent(
    daemon: Orlopd, disk: Path, puller: Callable[[Orlopd, Callable[[Registry], str]], None]
) -> None:
    """From the manifest's sizes: none of the layers is asked for, though each would fit alone."""
    large = [archive(member(b"f", os.urandom(10 << 20))) for _ in range(4)]
    served: list[Registry] = []

    def scenario(registry: Registry) -> str:
        image_of(registry, *large)
        served.append(registry)
        return NAME

    with connect(daemon) as client:
        client.content.write("first", b"makes the directories")
        collect(client)
        ledger = Ledger(daemon)
        with refuses(
            ResourceExhaustedError, rf"room-for-.*open: \d+ bytes are to come: {names(disk)}, of which \d+ are"
        ):
            puller(daemon, scenario)
        paths = [seen.path for seen in served[0].seen]
        assert any("/manifests/" in path for path in paths)
        assert not any("/blobs/" in path for path in paths)
        ledger.check(lambda: collect(client))


def test_blobs_of_one_lease_that_fit_alone_and_not_together(daemon: Orlopd, disk: Path) -> None:
    with connect(daemon) as client:
        free = os.statvfs(disk).f_bfree * os.statvfs(disk).f_frsize
        with refuses(ResourceExhaustedError, names(disk)):
            client.content.writer("huge", size=free + 1)
        lease = client.leases.create("pull")
        pulling, other = client.with_lease(lease.id), client
        with pulling.content.writer("a", size=free * 2 // 3):
            with refuses(ResourceExhaustedError, names(disk)):
                pulling.content.writer("b", size=free * 2 // 3)
            with other.content.writer("c", size=free * 2 // 3):
                pass
            with pulling.content.writer("b", size=free // 4):
                pass
        assert [status.ref for status in client.content.ingests()] == ["a", "b", "c"]


def test_unpacking_and_running_on_a_full_disk(daemon: Orlopd, disk: Path, busybox_image: BuiltImage) -> None:
    """Each stage fails with the file system's name and is made good when there is room; deletions work throughout."""
    with connect(daemon) as client, open(busybox_image.archive, "rb") as opened:
        collect(client)
        [image] = client.import_(opened)
        collect(client)
        unpacked = Ledger(daemon)
        with full(client, disk), refuses(ResourceExhaustedError, names(disk)):
            image.unpack()
        unpacked.check(lambda: collect(client))
        image.unpack()
        run(client, image.name)
        ledger = Ledger(daemon)
        with filled(disk), contextlib.suppress(ResourceExhaustedError):
            for number in range(200):  # until the log of the database has grown to the end of the disk
                client.new_container(f"c{number}", image.name, orlop.SpecOptions(args=("true",)))
            pytest.fail("there was room for everything")
        with full(client, disk):
            for container in client.containers.list():
                container.delete()
        assert client.containers.list() == []
        ledger.check(lambda: collect(client))
        run(client, image.name)


def test_collecting_without_space(daemon: Orlopd, disk: Path) -> None:
    """What is deleted on a disk without a free block frees its space, and so the next write succeeds."""
    with connect(daemon) as client:
        collect(client)
        before = os.statvfs(disk).f_bfree
        lease = client.leases.create("holder")
        held = client.with_lease(lease.id)
        digests = [held.content.write(f"blob-{number}", os.urandom(1 << 20)) for number in range(8)]
        for number in range(40):
            held.snapshots().prepare(f"s{number}")
        with filled(disk):
            with refuses(ResourceExhaustedError, names(disk)):
                for number in range(2000):
                    client.images.create(f"more/{number}", client_target(digests[0]))
            client.leases.delete(lease.id, synchronous=True)
            assert not any(client.content.exists(digest) for digest in digests[1:])
            assert client.snapshots().list() == []
            client.content.write("again", os.urandom(2 << 20))
        for image in client.images.list():
            image.delete()
        collect(client)
        client.content.write("last", b"x")
        assert os.statvfs(disk).f_bfree > before - 2048, "what was freed is free, and the reserve is one"


def test_a_daemon_that_starts_on_a_full_disk(daemon: Orlopd, disk: Path) -> None:
    with connect(daemon) as client:
        lease = client.leases.create("holder")
        digest = client.with_lease(lease.id).content.write("blob", os.urandom(1 << 20))
    for end in (daemon.kill, daemon.stop):
        with filled(disk):
            end()
            daemon.start()
            with connect(daemon) as client:
                assert client.content.exists(digest)
    with filled(disk), connect(daemon) as client:
        client.leases.delete(lease.id, synchronous=True)
        assert not client.content.exists(digest)


def test_bundles_on_a_full_disk(disk: Path, short_directory: Path, busybox_image: BuiltImage) -> None:
    """The state directory is full: no task can be made, which leaves nothing; those that run are deleted."""
    directory = short_directory / "fullstate"
    directory.mkdir()
    (directory / "state").symlink_to(disk)
    with Orlopd(directory) as daemon, connect(daemon) as client, open(busybox_image.archive, "rb") as opened:
        [image] = client.import_(opened)
        image.unpack()
        run(client, image.name)
        with client.new_container("up", image.name, orlop.SpecOptions(args=("sleep", "1000"))) as container:
            task = container.new_task()
            task.start()
            with filled(disk):
                with refuses(ResourceExhaustedError, names(disk)):
                    run(client, image.name)
                task.kill("SIGKILL")
                assert task.wait().code == 137
                task.delete()
            assert [one.id for one in client.containers.list()] == ["up"]
            run(client, image.name)


def client_target(digest: str) -> "orlop.Descriptor":
    from orlop.oci.digest import Digest
    from orlop.oci.image import Descriptor

    return Descriptor(media_type="application/octet-stream", digest=Digest(digest), size=1 << 20)


def run(client: orlop.Client, image: str) -> None:
    """A container from beginning to end, which is gone afterwards whatever happened."""
    with client.new_container("run", image, orlop.SpecOptions(args=("true",))) as container:
        with container.new_task() as task:
            task.start()
            assert task.wait().code == 0
            task.delete()
