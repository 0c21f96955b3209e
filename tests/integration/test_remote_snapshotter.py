"""A remote snapshotter: Prepare says that it has a layer, which then is neither fetched nor unpacked."""

import asyncio
import contextlib
import tempfile
from pathlib import Path

import pytest

from orlop.base import platforms
from orlop.base.errdefs import AlreadyExistsError
from orlop.base.labels import GC_ROOT, SNAPSHOT_REF
from orlop.client.pull import PullOptions
from orlop.core.kinds import SNAPSHOTTER
from orlop.core.plugin import Registration
from orlop.core.transfer.ends import ImageStore, OCIRegistry, UnpackConfiguration
from orlop.engine import Engine
from orlop.oci.chain import chain_ids
from orlop.oci.digest import Digest
from orlop.plugins.snapshots.native import Native
from orlop.server.builtins import registrations
from orlop.testing.registry import Registry
from tests.integration.test_transfer import layer

pytestmark = pytest.mark.root

LAYERS = [layer("bottom"), layer("middle"), layer("top")]
CHAIN = chain_ids([Digest.of(one) for one in LAYERS])
HERE = platforms.parse(platforms.default_string())


class Remote(Native):
    """Has the two lower layers, as if on another machine."""

    def prepare(self, snapshot):
        super().prepare(snapshot)
        target = snapshot.labels.get(SNAPSHOT_REF)
        if target in CHAIN[:2]:
            name = ("bottom", "middle")[CHAIN.index(target)]
            (Path(self.mounts(snapshot)[0].source) / name).write_bytes(b"from afar")
            raise AlreadyExistsError(f"snapshot {target}")


def remote_snapshotter(context):
    return Remote(context.root)


@pytest.mark.parametrize("service", [True, False], ids=["transfer", "client"])
def test_what_a_remote_snapshotter_has_is_not_fetched(short_directory, service):
    base = Path(tempfile.mkdtemp(prefix="rs.", dir=short_directory))
    plugins = [
        *registrations(with_entry_points=False),
        Registration(kind=SNAPSHOTTER, id="remote", init=remote_snapshotter),
    ]

    async def run():
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(asyncio.timeout(60))
            registry = await stack.enter_async_context(Registry())
            engine = await stack.enter_async_context(Engine(root=base / "root", state=base / "state", plugins=plugins))
            registry.add_image("team/app", "1", LAYERS)
            reference = f"{registry.address}/team/app:1"
            if service:
                unpack = UnpackConfiguration(platform=HERE, snapshotter="remote")
                await engine.transfer(OCIRegistry(reference=reference), ImageStore(name=reference, unpacks=(unpack,)))
            else:
                await engine.pull(reference, snapshotter="remote", options=PullOptions())
            fetched = [one for one in LAYERS if registry.requests("GET", Digest.of(one))]
            image = await engine.images.get(reference)
            assert await image.is_unpacked("remote")
            view = await engine.snapshots("remote").view("look", await image.chain_id(), labels={GC_ROOT: "1"})
            names = _sizes(Path(view[0].source))
            await engine.snapshots("remote").remove("look")
            return fetched, names

    fetched, names = asyncio.run(run())
    assert fetched == [LAYERS[2]]
    assert names == {"bottom": len(b"from afar"), "middle": len(b"from afar"), "top": 1 << 20}


def _sizes(directory):
    return {path.name: path.stat().st_size for path in directory.iterdir()}
