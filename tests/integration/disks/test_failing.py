"""A disk that fails for a while: errors name the file system, nothing is half done, and the daemon needs no restart.

The failing disk is a real one, a block device with ext4 on it, so that overlayfs, SQLite and the page cache are what
they always are. What the page cache has can be read whatever the disk says.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import orlop
from orlop.base.errdefs import InternalError, NotFoundError, OrlopError, UnavailableError
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor
from tests.hostile.tarballs import archive, member
from tests.integration.bad_input.leftovers import Ledger
from tests.integration.bad_input.pulling import NAME, NAMESPACE, image_of, pull
from tests.integration.disks.filling import daemon_on
from tools.daemons import Orlopd
from tools.faulty_disk import FaultyDisk
from tools.images import Image as BuiltImage

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

LAYERS = [archive(member(b"f%d" % number, os.urandom(300_000))) for number in range(3)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FaultyDisk]:
    if not os.path.exists("/dev/fuse"):
        pytest.skip("the host has no /dev/fuse")
    with FaultyDisk(tmp_path, 64 << 20) as made:
        yield made


@pytest.fixture
def daemon(disk: FaultyDisk, short_directory: Path) -> Iterator[Orlopd]:
    """One with its root on the failing disk."""
    with daemon_on(disk.target, short_directory / "failing", "root") as running:
        yield running


@pytest.fixture
def client(daemon: Orlopd) -> Iterator[orlop.Client]:
    with orlop.Client(str(daemon.address), NAMESPACE, timeout_s=60) as made:
        yield made


def collect(client: orlop.Client) -> None:
    client.leases.delete(client.leases.create("collect").id, synchronous=True)


def recovers(operation: Callable[[], object]) -> None:
    """The disk is whole again: what had failed works; what the kernel had remembered of errors is told at most once."""
    deadline = time.monotonic() + 20
    while True:
        try:
            operation()
            return
        except (InternalError, UnavailableError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def told(error: OrlopError, disk: FaultyDisk) -> None:
    assert type(error) in (InternalError, UnavailableError), error
    assert re.search(rf"on the file system at .*{re.escape(str(disk.target))}\b", str(error)), error


def test_writes_that_fail(client: orlop.Client, daemon: Orlopd, disk: FaultyDisk) -> None:
    """Content, metadata, snapshots and a whole pull: refused while the disk fails, done when it does not."""

    def scenario(registry):
        image_of(registry, *LAYERS)
        return NAME

    pull(daemon, scenario)
    for image in client.images.list():
        image.delete(synchronous=True)
    collect(client)
    ledger = Ledger(daemon)
    target = Descriptor(media_type="text/plain", digest=Digest.of(b"x"), size=1)
    operations: dict[str, Callable[[], object]] = {
        "content": lambda: client.content.write("blob", os.urandom(200_000)),
        "small content": lambda: client.content.write("small", b"x" * 100),
        "metadata": lambda: client.images.create("image", target),
        "snapshot": lambda: client.snapshots().prepare("snapshot"),
        "pull": lambda: pull(daemon, scenario),
    }
    for name, operation in operations.items():
        with disk.failing(writes=True):
            with pytest.raises(OrlopError) as caught:
                operation()
            told(caught.value, disk)
            client.version()
            assert client.images.list() == [], f"after {name}"
        recovers(operation)
        for image in client.images.list():
            image.delete()
        with contextlib.suppress(NotFoundError):
            client.snapshots().remove("snapshot")
        for ref in ("blob", "small"):
            with contextlib.suppress(NotFoundError):
                client.content.abort(ref)
        collect(client)
    ledger.check(lambda: collect(client))


def test_reads_that_fail(client: orlop.Client, daemon: Orlopd, disk: FaultyDisk, busybox_image: BuiltImage) -> None:
    """A blob that cannot be read is told to who reads it and to who unpacks it; afterwards it can be."""
    with open(busybox_image.archive, "rb") as opened:
        [image] = client.import_(opened)
    collect(client)
    blobs = sorted((disk.target / "content" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    ledger = Ledger(daemon)
    for path in blobs:
        disk.forget(path)
    largest = f"sha256:{blobs[-1].name}"
    with disk.failing(reads=True):
        for operation in (lambda: client.content.read(largest), image.unpack):
            with pytest.raises(OrlopError) as caught:
                operation()
            told(caught.value, disk)
    ledger.check()
    assert Digest.of(client.content.read(largest)) == largest
    image.unpack()


def test_bytes_that_did_not_reach_the_disk_are_sent_again(client: orlop.Client, disk: FaultyDisk) -> None:
    """What is on the disk in the end is what was answered for, also when the page cache has forgotten it."""
    data = os.urandom(300_000)
    digest = Digest.of(data)
    with client.with_lease(client.leases.create().id) as held:
        with disk.failing(writes=True), pytest.raises(OrlopError):
            held.content.write("blob", data, expected=digest)
        recovers(lambda: held.content.write("blob", data, expected=digest))
        disk.forget(disk.target / "content" / "blobs" / "sha256" / digest.hex)
        assert held.content.read(digest) == data


def test_deletions_on_a_disk_that_failed(client: orlop.Client, daemon: Orlopd, disk: FaultyDisk) -> None:
    """What could not be deleted is still there, wholly, and goes when the disk is back."""
    lease = client.leases.create("holder")
    data = os.urandom(100_000)
    digest = client.with_lease(lease.id).content.write("blob", data)
    with disk.failing(writes=True):
        with pytest.raises(OrlopError) as caught:
            client.content.delete(digest)
        told(caught.value, disk)
        assert client.content.read(digest) == data
    recovers(lambda: client.content.delete(digest))
    assert not client.content.exists(digest)
    client.leases.delete(lease.id, synchronous=True)
