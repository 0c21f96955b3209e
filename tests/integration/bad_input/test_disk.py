"""A full disk: told as such, nothing half done, and with room the same daemon goes on."""

import contextlib
import gzip
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import orlop
from orlop.base.errdefs import (
    NotFoundError,
    ResourceExhaustedError,
)
from orlop.oci import media_types
from orlop.oci.digest import Digest
from tests.hostile.tarballs import archive, member
from tests.integration.bad_input.leftovers import Ledger
from tests.integration.bad_input.pulling import NAME, NAMESPACE, image_of, pull, refuses
from tools import residue
from tools.daemons import Orlopd

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture
def small_disk(short_directory: Path, tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB on a loop device, for a daemon's root."""
    image, mount = tmp_path / "disk", short_directory / "small"
    with open(image, "wb") as disk:
        disk.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    (mount / "root").mkdir(parents=True)
    subprocess.run(["mount", "-o", "loop", image, mount / "root"], check=True)
    try:
        yield mount
    finally:
        residue.unmount(str(mount / "root"))


@pytest.mark.parametrize("where", ["fetching", "unpacking", "content"])
def test_a_full_disk(small_disk: Path, where: str) -> None:
    """The error is told, nothing is left, and with less to store the same daemon goes on."""
    noise = os.urandom(1 << 20)
    large = [archive(member(b"f%d" % number, noise * 30)) for number in range(1)]
    zeros = archive(*(member(b"z%d" % number, bytes(1 << 20)) for number in range(40)))
    with Orlopd(small_disk) as daemon:
        ok = archive(member(b"fits", noise[:1000]))

        def fits(registry):
            image_of(registry, ok)
            return NAME

        def too_much(registry):
            if where == "fetching":
                image_of(registry, *large)
            else:
                packed = gzip.compress(zeros, 1)
                image_of(registry, packed, diff_ids=(Digest.of(zeros),), layer_type=media_types.OCI_LAYER_GZIP)
            return NAME

        pull(daemon, fits)
        with orlop.Client(str(daemon.address), NAMESPACE, timeout_s=60) as client:
            for image in client.images.list():
                image.delete(synchronous=True)
            ledger = Ledger(daemon)
            for _ in range(2):
                with refuses(ResourceExhaustedError, r"[Nn]o space left on"):
                    if where == "content":
                        client.content.write("big", noise * 30)
                    else:
                        pull(daemon, too_much)
                with contextlib.suppress(NotFoundError):
                    client.content.abort("big")
                client.leases.delete(client.leases.create("collect").id, synchronous=True)
                ledger.check()
            pull(daemon, fits)
            for image in client.images.list():
                image.delete(synchronous=True)
            ledger.check()
