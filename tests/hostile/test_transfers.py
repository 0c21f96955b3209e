"""Hostile registries against the daemon's own pulls: side by side, each ends, and the daemon stays small and clean."""

import asyncio
import io
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

import orlop
from orlop import aio
from orlop.base import platforms
from orlop.base.errdefs import InternalError, OrlopError
from orlop.core.transfer.ends import ImageImportStream, ImageStore, OCIRegistry, UnpackConfiguration
from orlop.testing.registry import Registry
from tests.hostile.doors import unharmed
from tests.hostile.generators import GENERATORS, archive
from tests.hostile.test_registries import LAYER, fault, rules
from tools.daemons import Orlopd

pytestmark = [pytest.mark.root, pytest.mark.timeout(170)]

COUNT = 60
AT_ONCE = 15
HERE = platforms.parse(platforms.default_string())


@pytest.fixture(scope="module")
def shared(short_directory: Path) -> Iterator[Orlopd]:
    with Orlopd(short_directory / "transfers") as running:
        yield running


@pytest.fixture
def daemon(shared: Orlopd, caplog: pytest.LogCaptureFixture) -> Iterator[Orlopd]:
    caplog.set_level(logging.CRITICAL, "aiohttp.server")  # of the registries' own broken answers
    with unharmed(shared):
        yield shared
    with orlop.Client(str(shared.address), "hostile", timeout_s=60) as client:
        for image in client.images.list():
            image.delete()
        deadline = time.monotonic() + 30
        while client.leases.list() and time.monotonic() < deadline:
            time.sleep(0.05)
        client.leases.delete(client.leases.create("sweep").id, synchronous=True)
        assert client.content.ingests() == []
        assert list(client.content.walk()) == []
        assert client.snapshots().list() == []


async def pull(client: aio.Client, seed: int, gate: asyncio.Semaphore) -> str:
    """One hostile registry; what came of it."""
    rng = Random(f"transfer {seed}")
    async with gate, Registry() as stranger:
        async with Registry(token=rules(rng, stranger.address) if rng.random() < 0.3 else None) as registry:
            layer = rng.choice([LAYER, archive(rng), archive(rng)])
            registry.add_image("team/app", "1", [layer])
            if rng.random() < 0.3:
                kind = rng.choice(["manifest", "index"])
                registry.add_manifest("team/app", "1", GENERATORS[kind](rng))
            for _ in range(rng.choice([0, 0, 1, 2])):
                registry.misbehave(fault(rng, stranger.address))
            stranger.misbehave(fault(rng, registry.address))
            name = f"{registry.address}/team/app:1"
            store = ImageStore(name=name, platforms=(HERE,), unpacks=(UnpackConfiguration(platform=HERE),))
            try:
                async with asyncio.timeout(90):
                    await client.transfer(OCIRegistry(reference=name), store)
            except OrlopError as error:
                return type(error).__name__
    return "right"


def test_pulls_from_hostile_registries(daemon: Orlopd) -> None:
    async def all_of_them() -> list[str]:
        gate = asyncio.Semaphore(AT_ONCE)
        async with aio.Client(str(daemon.address), "hostile") as client:
            return await asyncio.gather(*(pull(client, seed, gate) for seed in range(COUNT)))

    outcomes = asyncio.run(all_of_them())
    assert InternalError.__name__ not in outcomes
    assert len(set(outcomes)) > 3


def test_imports_of_hostile_archives(daemon: Orlopd) -> None:
    """As streams, in which half of them are cut or packed wrongly."""
    outcomes = []
    with orlop.Client(str(daemon.address), "hostile", timeout_s=60) as client:
        for seed in range(40):
            blob = archive(Random(f"import {seed}"))
            try:
                client.transfer(ImageImportStream(source=io.BytesIO(blob)), ImageStore(name=f"x{seed}"))
                outcomes.append("right")
            except OrlopError as error:
                outcomes.append(type(error).__name__)
    assert "InternalError" not in outcomes
