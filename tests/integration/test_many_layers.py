"""An image of 125 layers runs, through our supervisor and through Debian's shim, whose mount options end at a page."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import orlop
from orlop.client.spec import SpecOptions, make_spec
from orlop.core.mount.perform import temp_mount
from orlop.oci.spec import encode
from tools import daemons
from tools.daemons import Orlopd

pytestmark = [pytest.mark.root, pytest.mark.interop]

LAYERS = 125
KEEP = {"containerd.io/gc.root": "test"}


@pytest.fixture(scope="module")
def client(orlopd: Orlopd) -> Iterator[orlop.Client]:
    with orlop.Client(address=str(orlopd.address), namespace="many-layers") as client:
        yield client


@pytest.fixture(scope="module")
def top(client: orlop.Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of the top snapshot; each layer adds a file and changes one."""
    scratch = os.fspath(tmp_path_factory.mktemp("layers"))
    snapshots = client.snapshots()
    parent = ""
    for index in range(LAYERS):
        with temp_mount(snapshots.prepare(f"key-{index}", parent, labels=KEEP), scratch) as path:
            root = Path(path)
            if index == 0:
                (root / "bin").mkdir()
                shutil.copy2(daemons.program("busybox"), root / "bin/busybox")
                (root / "layers").mkdir()
            (root / "layers" / str(index)).touch()
            (root / "top").write_text(f"{index}\n")
        parent = f"layer-{index}"
        snapshots.commit(parent, f"key-{index}", labels=KEEP)
    yield parent
    for index in reversed(range(LAYERS)):
        snapshots.remove(f"layer-{index}")
    assert snapshots.list() == []


@pytest.mark.parametrize("runtime", ["io.containerd.runc.v2", "containerd-shim-runc-v2"])
def test_a_container_on_many_layers(client: orlop.Client, top: str, runtime: str) -> None:
    if runtime.startswith("containerd-shim"):
        runtime = str(daemons.program(runtime))
    name = f"on-many-{len(runtime)}"
    client.snapshots().prepare(name, top, labels=KEEP)
    script = "/bin/busybox ls /layers | /bin/busybox wc -l; /bin/busybox cat /top; echo x > /written"
    options = SpecOptions(args=["/bin/busybox", "sh", "-c", script])
    spec = encode(make_spec(namespace=client.namespace, container_id=name, options=options))
    container = client.containers.create(name, spec, runtime=runtime, snapshotter="overlayfs", snapshot_key=name)
    io = orlop.Capture()
    with container, container.new_task(io) as task:
        task.start()
        assert task.wait().code == 0, bytes(io.stderr)
        task.delete()
        assert bytes(io.stdout).split() == [str(LAYERS).encode(), str(LAYERS - 1).encode()]
    assert [info.name for info in client.snapshots().list(["kind==active"])] == []
