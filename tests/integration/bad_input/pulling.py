"""Images that a registry of the test's own serves to a daemon, and how errors are expected."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest

from orlop import aio
from orlop.base.errdefs import (
    OrlopError,
)
from orlop.core.transfer.ends import ImageStore, OCIRegistry
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor, Image, Manifest, Platform, RootFS, encode
from orlop.testing.registry import Registry
from tests.hostile.tarballs import archive, directory, member
from tools.daemons import Orlopd

NAMESPACE = "bad-input"
HERE = Platform(os="linux", architecture=os.uname().machine.replace("x86_64", "amd64").replace("aarch64", "arm64"))
LAYER = archive(directory(b"bin"), member(b"bin/program", b"x" * 300_000, mode=0o755))


def refuses(cls: type[OrlopError], pattern: str) -> Any:
    """As pytest.raises, for exactly this class of error."""
    return pytest.raises(cls, match=pattern, check=lambda error: error.code == cls.code)


def pull(daemon: Orlopd, scenario: Callable[[Registry], str]) -> None:
    """Prepare a registry and pull what the scenario names, with our client."""

    async def run() -> None:
        async with asyncio.timeout(90), Registry() as registry:
            reference = scenario(registry)
            async with aio.Client(str(daemon.address), NAMESPACE) as connected:
                await connected.pull(reference.format(here=registry.address))

    asyncio.run(run())


def transfer(daemon: Orlopd, scenario: Callable[[Registry], str]) -> None:
    """As `pull`, by the daemon itself."""

    async def run() -> None:
        async with asyncio.timeout(90), Registry() as registry:
            reference = scenario(registry).format(here=registry.address)
            async with aio.Client(str(daemon.address), NAMESPACE) as connected:
                await connected.transfer(OCIRegistry(reference=reference), ImageStore(name=reference))

    asyncio.run(run())


def image_of(registry: Registry, *layers: bytes, **changes: Any) -> Descriptor:
    """An image for this machine, with parts of its configuration and manifest changed."""
    config = Image(
        os=HERE.os,
        architecture=changes.get("architecture", HERE.architecture),
        rootfs=RootFS(diff_ids=changes.get("diff_ids", tuple(Digest.of(layer) for layer in layers))),
    )
    blobs = [registry.add_blob("a/b", layer, changes.get("layer_type", media_types.OCI_LAYER)) for layer in layers]
    manifest = Manifest(
        media_type=media_types.OCI_MANIFEST,
        config=registry.add_blob("a/b", encode(config), media_types.OCI_CONFIG),
        layers=changes.get("layers", tuple(blobs)),
    )
    return registry.add_manifest("a/b", "1", encode(manifest))


NAME = "{here}/a/b:1"
