"""The engine inside a Python process."""

import asyncio
import gc
import io
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from pathlib import Path
from typing import IO, cast

import pytest

from orlop.base.errdefs import FailedPreconditionError, NotFoundError
from orlop.client.spec import SpecOptions
from orlop.client.transfer import FileSink
from orlop.core.mount import Mount
from orlop.core.transfer.ends import ImageExportStream, ImageImportStream, ImageReference, ImageStore
from orlop.engine import Engine
from orlop.oci.media_types import OCI_LAYER
from tools import residue

pytestmark = pytest.mark.root


@pytest.fixture
def places(short_directory):
    base = Path(tempfile.mkdtemp(prefix="e.", dir=short_directory))
    before = residue.cgroups()
    yield {"root": base / "root", "state": base / "state"}
    for path in residue.cgroups() - before:
        if os.path.basename(path) == "default":  # the namespace's, which the OCI runtime makes and keeps
            residue.patiently_rmdir(path)


def process_settings():
    """What belongs to the whole host process, and so is none of the engine's business."""
    umask = os.umask(0)
    os.umask(umask)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP)]
    status = Path("/proc/self/status").read_text()
    blocked = [line for line in status.splitlines() if line.startswith(("SigBlk", "SigIgn", "SigCgt"))]
    return umask, handlers, blocked, sys.getswitchinterval(), gc.get_freeze_count()


def test_a_container_runs_in_process_and_nothing_of_the_host_process_is_touched(places, busybox_image):
    async def run():
        async with Engine(**places) as engine:
            before = process_settings()
            (image,) = await engine.import_(io.BytesIO(busybox_image.archive.read_bytes()))
            options = SpecOptions(args=["sh", "-c", "exit 7"])
            async with await engine.new_container("one", image, options) as container:
                async with await container.new_task() as task:
                    await task.start()
                    status = await task.wait()
            assert process_settings() == before
            return status.code

    threads = set(threading.enumerate())
    code = asyncio.run(run())
    assert code == 7
    assert set(threading.enumerate()) <= threads


def test_leaving_stops_tasks_unless_told_to_keep_them(places, busybox_image):
    async def start(keep):
        async with Engine(**places, keep=keep) as engine:
            (image,) = await engine.import_(io.BytesIO(busybox_image.archive.read_bytes()))
            container = await engine.new_container("one", image, SpecOptions(args=["sleep", "1000"]))
            task = await container.new_task(io=None)
            await task.start()
            return task.pid

    async def find(keep):
        async with Engine(**places, keep=keep) as engine:
            return [state.pid for state in await engine.tasks()]

    pid = asyncio.run(start(keep=True))
    assert _runs(pid)
    assert asyncio.run(find(keep=False)) == [pid]
    assert not _runs(pid)
    assert asyncio.run(find(keep=False)) == []
    assert not residue.settle(places["root"].parent)


def _runs(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_errors_are_those_that_a_client_of_a_daemon_sees(places):
    async def run():
        async with Engine(**places) as engine:
            with pytest.raises(NotFoundError, match='image "none"'):
                await engine.images.get("none")
            with pytest.raises(FailedPreconditionError, match="in use by another daemon"):
                async with Engine(root=places["root"], state=places["state"] / "other"):
                    pass

    asyncio.run(run())


def test_two_engines_live_side_by_side_and_rounds_leak_nothing(places):
    async def two():
        second = Engine(root=f"{places['root']}2", state=f"{places['state']}2")
        async with Engine(**places) as one, second as two:
            await one.namespaces.create("only-here")
            names = [namespace.name for namespace in await two.namespaces.list()]
            assert "only-here" not in names

    async def round_trip():
        async with Engine(**places) as engine:
            await engine.version()

    asyncio.run(two())
    asyncio.run(round_trip())
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        asyncio.run(round_trip())
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_the_engine_imports_no_grpc():
    code = (
        "import sys; from orlop.engine import Engine; assert 'grpc' not in sys.modules and 'aiohttp' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_leaving_undoes_mounts_unless_told_to_keep_them(places):
    disk = Mount(type="mkfs/loop", source=f"{places['root']}/disk", options=("X-containerd.mkfs.size=1MiB",))

    async def activate(keep):
        async with Engine(**places, keep=keep) as engine:
            if not await engine.mounts.list():
                lease = await engine.leases.create()
                await engine.with_lease(lease.id).mounts.activate("disk", [disk])
            [found] = await engine.mounts.list()
            return found.active[0].mount_point

    place = asyncio.run(activate(keep=True))
    assert os.path.islink(place)
    assert asyncio.run(activate(keep=False)) == place
    assert not os.path.lexists(place)


def test_layers_are_made_in_process(places, tmp_path):
    (tmp_path / "file").write_text("contents")
    upper = [Mount(type="bind", source=str(tmp_path), options=("ro", "rbind"))]

    async def run():
        async with Engine(**places) as engine:
            held = engine.with_lease((await engine.leases.create("layers")).id)
            layer = await held.diff.compare([], upper, media_type=OCI_LAYER)
            return await held.content.read(layer.digest)

    with tarfile.open(fileobj=io.BytesIO(asyncio.run(run()))) as archive:
        assert archive.getnames() == ["file"]


def test_leaving_ends_sandboxes_unless_told_to_keep_them(places):
    async def start(keep):
        async with Engine(**places, keep=keep) as engine:
            if not await engine.sandboxes.list():
                await (await engine.sandboxes.create("pod")).start()
            return (await (await engine.sandboxes.get("pod")).status()).state

    assert asyncio.run(start(keep=True)) == "SANDBOX_READY"
    assert asyncio.run(start(keep=False)) == "SANDBOX_READY"

    async def look():
        async with Engine(**places) as engine:
            status = await (await engine.sandboxes.get("pod")).status()
            await (await engine.sandboxes.get("pod")).delete()
            return status.state

    assert asyncio.run(look()) == ""


def test_images_move_in_process_too(places, busybox_image):
    async def run():
        async with Engine(**places) as engine:
            archive = io.BytesIO(busybox_image.archive.read_bytes())
            names = ImageReference(name="moved", is_prefix=True, allow_overwrite=True)
            await engine.transfer(ImageImportStream(source=archive), ImageStore(extra_references=(names,)))
            target = io.BytesIO()
            name = busybox_image.reference
            await engine.transfer(ImageStore(name=name), ImageExportStream(target=FileSink(target)))
            with pytest.raises(NotFoundError):
                await engine.transfer(ImageStore(name="none"), ImageStore(name="other"))
            sink = _Counting(4 << 20)
            endless = cast("IO[bytes]", _Endless())
            moving = asyncio.create_task(
                engine.transfer(ImageImportStream(source=endless), ImageExportStream(target=sink))
            )
            await sink.enough.wait()
            moving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await moving
            return (await engine.images.get(name)).target.digest, await engine.leases.list()

    digest, leases = asyncio.run(run())
    assert digest.startswith("sha256:")
    assert leases == []


class _Counting:
    """A sink that says when it has had enough."""

    def __init__(self, left):
        self.left, self.enough = left, asyncio.Event()

    async def write(self, data):
        self.left -= len(data)
        if self.left <= 0:
            self.enough.set()

    async def close(self):
        pass


class _Endless(io.RawIOBase):
    def read(self, size=-1):
        return b"\0" * max(size, 1)
