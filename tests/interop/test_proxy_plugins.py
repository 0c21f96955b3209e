"""Snapshotters and differs of other daemons, containerd among them, behind `[proxy_plugins]`.

The other way round cannot be: containerd's proxies send no namespace, which every daemon's Snapshots service wants.
"""

import threading
import time
from collections.abc import Callable

import pytest

import orlop
from orlop.base.errdefs import DeadlineExceededError, NotFoundError, UnavailableError
from orlop.client.sandboxes import WAIT
from tools.daemons import Containerd, Orlopd
from tools.images import Image

pytestmark = [pytest.mark.root, pytest.mark.interop]


def proxied(kind: str, name: str, address: object, remote: str = "") -> str:
    text = f'[proxy_plugins.{name}]\ntype = "{kind}"\naddress = "{address}"\nexports = {{ root = "/far" }}\n'
    return text + f'remote = "{remote}"\n' if remote else text


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def run_a_container(daemon: Orlopd, image: Image, namespace: str) -> bytes:
    with orlop.Client(str(daemon.address), namespace, timeout_s=60) as client:
        with open(image.archive, "rb") as archive:
            [found] = client.import_(archive)
        found.unpack(snapshotter="far")
        io = orlop.Capture()
        options = orlop.SpecOptions(args=("echo", "hello"))
        with client.new_container("far", found, options, snapshotter="far") as container:
            with container.new_task(io) as task:
                task.start()
                assert task.wait().code == 0
        for one in client.images.list():
            one.delete(synchronous=True)
        assert not list(client.snapshots("far").walk())
    return bytes(io.stdout)


@pytest.mark.parametrize("other", ["orlopd", "containerd"])
def test_a_snapshotter_of_another_daemon_is_used(
    other: str,
    orlopd: Orlopd,
    containerd: Containerd,
    new_orlopd: Callable[..., Orlopd],
    busybox_image: Image,
    namespace: str,
) -> None:
    far = orlopd if other == "orlopd" else containerd
    daemon = new_orlopd(config=proxied("snapshot", "far", far.address, remote="overlayfs"))
    assert run_a_container(daemon, busybox_image, namespace) == b"hello\n"
    with orlop.Client(str(daemon.address), "default", timeout_s=60) as client:
        [plugin] = client.introspection.plugins(["type==io.containerd.snapshotter.v1,id==far"])
        assert plugin.exports == {"root": "/far", "address": str(far.address)}
    with orlop.Client(str(far.address), "default", timeout_s=60) as client:
        until(lambda: not [info for info in client.snapshots().walk() if info.name.startswith("orlop-")])


def test_one_that_does_not_answer_spoils_nothing_else(
    new_orlopd: Callable[..., Orlopd], short_directory: object
) -> None:
    nobody = f"{short_directory}/nobody.sock"
    daemon = new_orlopd(config=proxied("snapshot", "far", nobody) + proxied("diff", "x", nobody))
    with orlop.Client(str(daemon.address), "default", timeout_s=60) as client:
        states = {one.id: one for one in client.introspection.plugins()}
        assert not states["overlayfs"].error
        assert not states["x"].error
        client.snapshots("overlayfs").prepare("near")
        with pytest.raises(UnavailableError, match=f"proxy plug-in at {nobody}: Prepare"):
            client.snapshots("far").prepare("far")


def test_a_differ_of_another_daemon_is_used(
    orlopd: Orlopd, new_orlopd: Callable[..., Orlopd], busybox_image: Image, namespace: str
) -> None:
    """It has the blob in its own content store, as a differ beside the daemon would."""
    config = 'disabled_plugins = ["io.containerd.differ.v1.walking"]\n' + proxied("diff", "far", orlopd.address)
    daemon = new_orlopd(config=config)
    for one in (orlopd, daemon):
        with (
            orlop.Client(str(one.address), namespace, timeout_s=60) as client,
            open(busybox_image.archive, "rb") as archive,
        ):
            client.import_(archive)
    with orlop.Client(str(daemon.address), namespace, timeout_s=60) as client:
        [image] = client.images.list()
        image.unpack()
        assert list(client.snapshots().walk())


def test_a_sandbox_of_another_daemon_s_controller(new_orlopd: Callable[..., Orlopd]) -> None:
    far = new_orlopd()
    daemon = new_orlopd(config=proxied("sandbox", "far", far.address, remote="shim"))
    with (
        orlop.Client(str(daemon.address), "default", timeout_s=60) as client,
        orlop.Client(str(far.address), "default", timeout_s=60) as there,
    ):
        sandbox = client.sandboxes.create("pod", sandboxer="far")
        sandbox.start()
        status = sandbox.status()
        assert status.state == "SANDBOX_READY"
        assert status.address.startswith(f"ttrpc+unix://{far.state}/")
        assert sandbox.platform().os == "linux"
        exits = []
        waiting = threading.Thread(target=lambda: exits.append(sandbox.wait()))
        waiting.start()
        # Who goes away while it waits holds nobody up.
        with (
            orlop.Client(str(daemon.address), "default", timeout_s=0.2) as hasty,
            pytest.raises(DeadlineExceededError),
        ):
            hasty.call(WAIT, WAIT.request(sandbox_id="pod", sandboxer="far"))
        sandbox.stop()
        waiting.join(30)
        assert exits[0].code == 0
        assert there.sandboxes.list() == []  # the record is ours, the running thing theirs
        sandbox.delete()
        assert sandbox.status().state == ""
        with pytest.raises(NotFoundError):
            sandbox.wait()
