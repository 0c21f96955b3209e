"""The client library through a container's life, the same tests on Debian's containerd (gRPC) and on orlopd (ttrpc)."""

import asyncio
import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

import orlop
from orlop.base.errdefs import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from orlop.client.connect import Transport
from orlop.oci.media_types import OCI_LAYER
from tools.daemons import Containerd, Engine
from tools.images import Image

POWERCAP = "/sys/devices/virtual/powercap"
"""A path that containerd masks since 1.7."""

pytestmark = [pytest.mark.root, pytest.mark.interop]

DAEMONS: list[tuple[str, Transport | None]] = [("containerd", None), ("orlopd", None), ("orlopd", "grpc")]


@pytest.fixture(params=DAEMONS, ids=lambda pair: f"{pair[0]}-{pair[1] or 'found'}")
def client(
    request: pytest.FixtureRequest, containerd: Engine, orlopd: Engine, namespace: str, busybox_image: Image
) -> Iterator[orlop.Client]:
    """A client in a namespace of its own that has the busybox image, unpacked; the namespace is empty afterwards."""
    name, transport = request.param
    daemon = containerd if name == "containerd" else orlopd
    with orlop.Client(str(daemon.address), namespace, transport=transport, timeout_s=60) as made:
        with open(busybox_image.archive, "rb") as archive:
            [image] = made.import_(archive)
        image.unpack()
        yield made
        for state in made.tasks():
            made.task(state.container_id).delete(force=True)
        for container in made.containers.list():
            container.delete()
        for one in made.images.list():
            one.delete(synchronous=True)
        daemon.forget_cgroup(namespace)


def options(*args: str, **more: object) -> orlop.SpecOptions:
    return orlop.SpecOptions(args=args, **more)  # type: ignore[arg-type]  # each test gives what it is about


def test_what_is_found_out(client: orlop.Client, request: pytest.FixtureRequest) -> None:
    client.version()
    expected = "ttrpc" if "orlopd-found" in request.node.name else "grpc"
    channel = client.session.connection.channel
    assert channel is not None
    assert channel.transport == expected


def test_run_to_the_exit(client: orlop.Client, busybox_image: Image, tmp_path: Path) -> None:
    io = orlop.Capture(stdin=b"from the client\n", directory=str(tmp_path))
    script = "cat; echo problem >&2; id -u; exit 7"
    with client.new_container("one", busybox_image.reference, options("sh", "-c", script)) as container:
        assert container.image == busybox_image.reference
        with container.new_task(io) as task:
            assert task.pid > 0
            assert task.status() == "CREATED"
            task.start()
            assert task.wait().code == 7
            assert task.wait().code == 7  # it may be asked again, until the task is deleted
            assert task.delete().code == 7
        assert bytes(io.stdout) == b"from the client\n0\n"
        assert bytes(io.stderr) == b"problem\n"
    with pytest.raises(NotFoundError):
        client.containers.get("one")
    with pytest.raises(NotFoundError):
        client.snapshots().stat("one")


def test_signals_pause_and_exec(client: orlop.Client, busybox_image: Image, tmp_path: Path) -> None:
    with client.new_container("one", busybox_image.reference, options("sleep", "1000")) as container:
        with container.new_task() as task:
            task.start()
            with pytest.raises(FailedPreconditionError):
                task.delete()
            with pytest.raises(FailedPreconditionError):
                container.delete()
            task.pause()
            assert task.status() == "PAUSED"
            task.resume()
            assert task.status() == "RUNNING"
            assert task.pid in task.pids()
            io = orlop.Capture(directory=str(tmp_path))
            spec = container.exec_spec(["sh", "-c", "echo $WHO $PWD; exit 3"], cwd="/tmp", env=["WHO=exec"])
            with task.exec("e1", spec, io=io) as process:
                process.start()
                assert process.wait().code == 3
                assert process.delete().code == 3
            assert bytes(io.stdout) == b"exec /tmp\n"
            assert task.metrics().id == "one"
            task.kill("KILL")
            assert task.wait().code == 137
            assert task.delete().code == 137


def test_a_terminal(client: orlop.Client, busybox_image: Image, tmp_path: Path) -> None:
    read, write = os.pipe()
    output = bytearray()
    io = orlop.FifoIO(stdin=read, stdout=output, terminal=True, directory=str(tmp_path))
    with client.new_container(
        "one", busybox_image.reference, options("sh", "-c", "sleep 0.2; stty size", tty=True)
    ) as made:
        with made.new_task(io) as task:
            task.start()
            task.resize(101, 43)
            os.write(write, b"go\n")
            assert task.wait().code == 0
            task.delete()
    for fd in (read, write):
        os.close(fd)
    assert output.split() == [b"go", b"43", b"101"]


def test_what_cannot_be_started_leaves_nothing(client: orlop.Client, busybox_image: Image) -> None:
    with client.new_container("one", busybox_image.reference, options("/no/such/program")) as container:
        with pytest.raises(orlop.OrlopError, match="no such file"):
            with container.new_task() as task:
                task.start()
    assert client.tasks() == []
    with pytest.raises(NotFoundError):
        client.new_container("two", "example.org/none:1", options("true"))
    with pytest.raises(NotFoundError, match="nobody-knows"):
        client.new_container("two", busybox_image.reference, options("true", user="nobody-knows"))
    with pytest.raises(NotFoundError):
        client.snapshots().stat("two")
    with pytest.raises(InvalidArgumentError):
        client.new_container("bad/id", busybox_image.reference, options("true"))
    assert [one.name for one in client.snapshots().list() if one.kind == "Active"] == []


def test_names_are_unique(client: orlop.Client, busybox_image: Image) -> None:
    with client.new_container("one", busybox_image.reference, options("true")):
        with pytest.raises(AlreadyExistsError):
            client.new_container("one", busybox_image.reference, options("true"))
        assert client.snapshots().stat("one").kind == "Active"


def test_content(client: orlop.Client) -> None:
    content = client.content
    digest = content.write("w1", b"hello", labels={"containerd.io/gc.root": "1"})
    assert content.read(digest) == b"hello"
    assert b"".join(content.chunks(digest, offset=1, size=3)) == b"ell"
    assert content.info(digest).size_bytes == 5
    assert content.label(digest, {"a": "b"}).labels["a"] == "b"
    assert digest in [info.digest for info in content.walk()]
    assert content.write("w2", b"hello") == digest  # it is there already
    with pytest.raises(AlreadyExistsError):
        content.writer("w3", expected=digest)
    with content.writer("w4", size=10) as writer:
        writer.write(b"01234")
    assert content.status("w4").offset == 5
    with content.writer("w4", size=10) as writer:
        assert writer.offset == 5
        writer.write(b"56789")
        with pytest.raises(FailedPreconditionError):
            writer.commit(expected=f"sha256:{'0' * 64}")
    content.abort("w4")
    assert [one.ref for one in content.ingests()] == []
    content.delete(digest)
    with pytest.raises(NotFoundError):
        content.info(digest)


def test_images(client: orlop.Client, busybox_image: Image) -> None:
    image = client.images.get(busybox_image.reference)
    assert image.size() > 0
    assert image.config().config.cmd == ("sh",)
    assert [one.os for one in image.platforms()] == ["linux"]
    status = image.check()
    assert status.complete
    assert status.unpacked
    other = client.images.tag(image.name, "example.org/other:1")
    with pytest.raises(AlreadyExistsError):
        client.images.tag(image.name, "example.org/other:1")
    assert client.images.label(other.name, {"colour": "blue"}).labels["colour"] == "blue"
    assert [one.name for one in client.images.list(["labels.colour==blue"])] == ["example.org/other:1"]
    other.delete()
    with pytest.raises(NotFoundError):
        client.images.get("example.org/other:1")


def test_import_and_export(client: orlop.Client, busybox_image: Image, tmp_path: Path) -> None:
    with open(tmp_path / "out.tar", "wb") as file:
        client.export(file, [busybox_image.reference])
    digest = client.images.get(busybox_image.reference).target.digest
    client.images.delete(busybox_image.reference, synchronous=True)
    with open(tmp_path / "out.tar", "rb") as file:
        [image] = client.import_(file)
    assert (image.name, image.target.digest) == (busybox_image.reference, digest)
    with pytest.raises(InvalidArgumentError):
        with open("/etc/passwd", "rb") as file:
            client.import_(file)


def test_snapshots_and_diff(client: orlop.Client, busybox_image: Image) -> None:
    snapshots = client.snapshots()
    top = client.images.get(busybox_image.reference).chain_id()
    mounts = snapshots.prepare("work", top, labels={"containerd.io/gc.root": "1"})
    assert mounts[0].type == "overlay"
    assert snapshots.mounts("work") == mounts
    view = snapshots.view("look", top, labels={"containerd.io/gc.root": "1"})
    lease = client.leases.create("layers")
    held = client.with_lease(lease.id)
    layer = held.diff.compare(view, mounts, media_type=OCI_LAYER, labels={"colour": "blue"})
    assert client.content.info(layer.digest).labels == {"colour": "blue"}
    assert (layer.media_type, layer.size) == (OCI_LAYER, 1024)  # nothing differs: an archive's end
    assert held.diff.create_diff("work", media_type=OCI_LAYER) == layer
    zipped = held.diff.create_diff("work")
    assert client.content.info(zipped.digest).labels["containerd.io/uncompressed"] == layer.digest
    assert snapshots.usage("work").inodes >= 0
    snapshots.commit("done", "work", labels={"containerd.io/gc.root": "1"})
    assert snapshots.stat("done").parent == top
    with pytest.raises(FailedPreconditionError):
        snapshots.remove(top)
    for key in ("done", "look"):
        snapshots.remove(key)
    client.leases.delete(lease.id, synchronous=True)
    with pytest.raises(NotFoundError):
        client.content.info(layer.digest)


def test_leases(client: orlop.Client) -> None:
    lease = client.leases.create("mine", labels={"a": "b"}, expires_in=timedelta(hours=1))
    assert lease.id == "mine"
    held = client.with_lease("mine")
    digest = held.content.write("w", b"held by the lease alone")
    assert digest in [one.id for one in client.leases.resources("mine")]
    client.leases.delete("mine", synchronous=True)
    with pytest.raises(NotFoundError):
        client.content.info(digest)
    with pytest.raises(NotFoundError):
        client.leases.delete("mine")


def test_namespaces(client: orlop.Client) -> None:
    name = f"{client.namespace}-b"
    client.namespaces.create(name, {"a": "b"})
    assert client.namespaces.label(name, {"c": "d"}).labels == {"a": "b", "c": "d"}
    with pytest.raises(AlreadyExistsError):
        client.namespaces.create(name)
    other = client.in_namespace(name)
    assert other.images.list() == []
    with pytest.raises(FailedPreconditionError, match="must be empty"):
        client.namespaces.delete(client.namespace)
    client.namespaces.delete(name)
    assert name not in [one.name for one in client.namespaces.list()]


def test_events(client: orlop.Client, busybox_image: Image) -> None:
    """A thread listens; the marker event that it waits for shows that the subscription stands."""
    from orlop.api.events import namespace_pb2

    seen: list[str] = []
    ready, done = threading.Event(), threading.Event()
    events = client.subscribe([f"namespace=={client.namespace}"])

    def listen() -> None:
        for event in events:
            seen.append(event.topic)
            ready.set()
            if event.topic == "/containers/delete":
                break
        done.set()

    listener = threading.Thread(target=listen)
    listener.start()
    while not ready.wait(0.05):
        client.publish("/test/marker", namespace_pb2.NamespaceCreate(name="marker"))
    with client.new_container("one", busybox_image.reference, options("true")) as container:
        with container.new_task() as task:
            task.start()
            task.wait()
    assert done.wait(30)
    listener.join()
    events.close()
    order = [topic for topic in seen if topic.startswith("/tasks/")]
    assert order == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


def test_asyncio(client: orlop.Client, busybox_image: Image, tmp_path: Path) -> None:
    """The same objects for asyncio, several containers at once."""
    from orlop import aio

    async def one(made: aio.Client, number: int) -> tuple[int, bytes]:
        io = orlop.Capture(directory=str(tmp_path))
        script = f"echo {number}; exit {number}"
        wishes = options("sh", "-c", script)
        async with await made.new_container(f"c{number}", busybox_image.reference, wishes) as container:
            async with await container.new_task(io) as task:
                await task.start()
                await task.wait()
                code = (await task.delete()).code
        return code, bytes(io.stdout)

    async def main() -> list[tuple[int, bytes]]:
        async with aio.Client(client.address, client.namespace) as made:
            return list(await asyncio.gather(*(one(made, number) for number in range(1, 4))))

    assert asyncio.run(main()) == [(number, f"{number}\n".encode()) for number in range(1, 4)]


def test_a_daemon_that_is_not_there() -> None:
    with pytest.raises(orlop.OrlopError, match=r"connect to /nowhere/x\.sock: no such file") as caught:
        orlop.Client("/nowhere/x.sock").version()
    assert caught.value.hint is not None


def test_specs_mean_what_containerd_means(containerd: Containerd, namespace: str, busybox_image: Image) -> None:
    """Debian's ctr and ours make the same container, option by option."""
    import json

    from tools.daemons import Ctr, our_program, program

    theirs, ours = (Ctr(path, containerd.address, namespace) for path in (program("ctr"), our_program("ctr")))
    ours("images", "import", busybox_image.archive)
    flags = [
        [],
        ["--tty"],
        ["--net-host"],
        ["--read-only"],
        ["--cap-add", "CAP_SYS_ADMIN", "--cap-drop", "CAP_KILL"],
        ["--memory-limit", "100000000"],
        ["--with-ns", "network:/proc/1/ns/net"],
        ["--allow-new-privs", "--label", "foo=bar", "--annotation", "c=d"],
        ["--mount", "type=bind,src=/tmp,dst=/host,options=rbind:ro", "--env", "A=b", "--cwd", "/root"],
        ["--device", "/dev/null", "--cpu-quota", "50000", "--cpu-period", "100000"],
        ["--rootfs-propagation", "shared"],
        ["--privileged"],
    ]
    try:
        for number, chosen in enumerate(flags):
            specs = []
            for who, ctr in (("a", theirs), ("b", ours)):
                name = f"{who}{number}"
                ctr("containers", "create", *chosen, busybox_image.reference, name, "true")
                specs.append(json.loads(theirs("containers", "info", "--spec", name).replace(name, "NAME")))
                theirs("containers", "rm", name)
            for spec in specs:
                spec.pop("ociVersion")
                if containerd.version < (1, 7) and POWERCAP in spec["linux"].get("maskedPaths", []):
                    spec["linux"]["maskedPaths"].remove(POWERCAP)
                devices = spec["linux"].get("devices", [])
                devices.sort(key=lambda device: str(device["path"]))
            assert specs[0] == specs[1], chosen
    finally:
        theirs("images", "rm", "--sync", busybox_image.reference)


def test_whoever_deletes_a_task_removes_its_fifos(client: orlop.Client, busybox_image: Image, tmp_path: Path) -> None:
    """The program that made them may have gone long before."""
    io = orlop.FifoIO(stdout=bytearray(), stderr=bytearray(), directory=str(tmp_path))
    container = client.new_container("one", busybox_image.reference, options("sleep", "1000"))
    task = container.new_task(io)
    task.start()
    task.detach()
    assert list(tmp_path.iterdir())
    client.task("one").delete(force=True)
    assert not list(tmp_path.iterdir())
    container.delete()
