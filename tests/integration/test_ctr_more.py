"""`ctr` beyond what Debian's has: looking into images, programs out of images, runtimes, shims; and its small start."""

import hashlib
import http.server
import json
import os
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orlop.base.errdefs import AlreadyExistsError, NotFoundError
from orlop.client.sync import Client
from tests.root.shims import until
from tools.daemons import Ctr, Orlopd, Registry, environment
from tools.images import Image

pytestmark = [pytest.mark.root, pytest.mark.interop]
Bind = Callable[..., Ctr]

# What `ctr version` may import of ours, and of others. Each module costs every command a millisecond or so.
OURS = {
    "orlop",
    "orlop.api",
    "orlop.api.services",
    "orlop.api.services.introspection",
    "orlop.api.services.introspection.v1",
    "orlop.api.services.introspection.v1.introspection_pb2",
    "orlop.api.services.version",
    "orlop.api.services.version.v1",
    "orlop.api.services.version.v1.version_pb2",
    "orlop.api.types",
    "orlop.api.types.platform_pb2",
    "orlop.base",
    "orlop.base.errdefs",
    "orlop.base.phases",
    "orlop.client",
    "orlop.client.channel",
    "orlop.client.client",
    "orlop.client.connect",
    "orlop.client.introspection",
    "orlop.client.session",
    "orlop.client.sync",
    "orlop.client.ttrpc_channel",
    "orlop.client.twins",
    "orlop.cmd",
    "orlop.cmd.cli",
    "orlop.cmd.ctr",
    "orlop.cmd.ctr.app",
    "orlop.cmd.ctr.server",
    "orlop.cmd.units",
    "orlop.ttrpc",
    "orlop.ttrpc._channel",
    "orlop.ttrpc._reader",
    "orlop.ttrpc.client",
    "orlop.ttrpc.errors",
    "orlop.ttrpc.wire",
    "orlop.version",
}
OTHERS = {"click", "google", "org"}  # pickle looks for Jython's org.python
# Of the standard library what is large and what asks for the network or for processes.
NOT = {"asyncio", "concurrent", "email", "http", "importlib.metadata", "json", "logging", "multiprocessing"}
NOT |= {"ssl", "subprocess", "tarfile", "tempfile", "tomllib", "unittest", "urllib", "xml"}


@pytest.fixture
def ctr(orlopd: Orlopd, our_ctr: Bind, namespace: str) -> Iterator[Ctr]:
    one = our_ctr(orlopd, namespace)
    yield one
    for container in one("containers", "ls", "-q").split():
        one("tasks", "rm", "-f", container, check=False)
        one("containers", "rm", container)
    for image in one("images", "ls", "-q").split():
        one("images", "rm", "--sync", image)
    orlopd.forget_cgroup(namespace)


@pytest.fixture
def client(ctr: Ctr, orlopd: Orlopd, busybox_multi_image: Image) -> Iterator[Client]:
    """With an index of two platforms."""
    with Client(str(orlopd.address), ctr.namespace) as one:
        with open(busybox_multi_image.archive, "rb") as file:
            one.import_(file)
        yield one


def _imported(*words: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words], capture_output=True, text=True, check=True, env=environment()
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines[1:]}


def test_version_imports_little(ctr: Ctr) -> None:
    names = _imported(*ctr.argv("version")) - _imported("-c", "pass")  # a distribution may import something of its own
    assert {name for name in names if name.partition(".")[0] == "orlop"} <= OURS
    installed = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"orlop"}
    assert {name for name in installed if not name.startswith(("_", "editable"))} <= OTHERS
    assert not {name for name in names if name in NOT or name.partition(".")[0] in NOT}


def test_an_image_is_shown_as_a_tree(ctr: Ctr, client: Client, busybox_multi_image: Image) -> None:
    name = busybox_multi_image.reference
    image = client.images.get(name)
    tree = image.tree()
    assert (tree.descriptor, tree.present) == (image.target, True)
    assert [child.descriptor for child in tree.children[-1].children][1:] == list(image.manifest().layers)
    shown = ctr("images", "inspect", name).splitlines()
    assert shown[0] == name
    assert [line.split(":")[0] for line in shown[1:3]] == ["│    Created", "│    Updated"]
    assert shown[3] == f"└── {image.target.media_type} @{image.target.digest} ({image.target.size} bytes)"
    assert shown[4].startswith("    ├── application/vnd.oci.image.manifest.v1+json @sha256:")
    assert shown[5].startswith("    │   │    Platform: linux/")
    last = image.manifest().layers[-1]
    assert shown[-1] == f"        └── {last.media_type} @{last.digest} ({last.size} bytes)"
    content = ctr("images", "i", "--content", name)
    assert "┌────────Content────────" in content
    assert '"containerd.io/gc.ref.content.m.0": "sha256:' in content
    manifest = image.manifest()
    client.content.delete(manifest.config.digest)
    assert [child.present for child in image.tree().children[-1].children][:2] == [False, True]
    assert "Content does not exist locally" not in ctr("images", "inspect", name)  # of what is listed only


def test_what_an_image_takes(ctr: Ctr, client: Client, busybox_multi_image: Image) -> None:
    image = client.images.get(busybox_multi_image.reference)
    before = image.usage()
    assert before.content_bytes == image.size() == before.manifest_bytes
    assert before.snapshot_bytes == {}
    everything = image.usage(all_platforms=True)
    assert everything.content_bytes > before.content_bytes
    assert ctr.run("images", "usage", image.name).returncode == 1
    image.unpack()
    after = image.usage()
    rows = [line.split() for line in ctr("images", "usage", image.name).splitlines()]
    assert rows[0] == ["KEY", "SIZE", "INODES"]
    assert rows[1][0] == image.chain_id()
    sizes = [client.snapshots().usage(row[0]).size_bytes for row in rows[1:]]
    assert len(sizes) == len(image.manifest().layers)
    assert after.snapshot_bytes == {"overlayfs": sum(sizes)}
    assert after.total_bytes == after.content_bytes + sum(sizes)


def test_images_that_no_container_needs_are_pruned(ctr: Ctr, client: Client, busybox_multi_image: Image) -> None:
    name = busybox_multi_image.reference
    ctr("images", "tag", name, "x/other:1", "x/third:1")
    ctr("containers", "create", name, "one", "true")
    assert "requires --all" in ctr.run("images", "prune").stderr
    assert len(client.images.list()) == 3
    assert ctr("images", "prune", "--all") == ""
    assert [image.name for image in client.images.list()] == [name]
    ctr("containers", "rm", "one")
    assert client.images.prune() == [name]
    assert list(client.content.walk()) == []


def test_an_image_is_mounted_and_unmounted(
    ctr: Ctr, client: Client, busybox_multi_image: Image, tmp_path: Path
) -> None:
    target = tmp_path / "root"
    target.mkdir()
    name = busybox_multi_image.reference
    chain_id, shown = ctr("images", "mount", name, str(target)).split()
    assert (chain_id, shown) == (client.images.get(name).chain_id(), str(target))
    assert (target / "bin/busybox").exists()
    with pytest.raises(OSError, match="Read-only"):
        (target / "file").touch()
    ctr("images", "unmount", "--rm", str(target))
    assert list(target.iterdir()) == []
    ctr("images", "mount", "--rw", name, str(target))
    (target / "file").touch()
    ctr("images", "unmount", str(target))
    ctr("images", "mount", "--rw", name, str(target))  # the snapshot is still there
    assert (target / "file").exists()
    ctr("images", "unmount", "--rm", str(target))
    assert [info.kind for info in client.snapshots().list() if info.kind != "Committed"] == []
    assert ctr.run("images", "mount", name, str(tmp_path / "none")).returncode == 1


@pytest.mark.parametrize("flags", [(), ("--rw",), ("--snapshotter", "native"), ("--snapshotter", "erofs")])
def test_an_image_is_mounted_where_the_daemon_says(
    ctr: Ctr, client: Client, busybox_multi_image: Image, flags: tuple[str, ...]
) -> None:
    """As by ctr of containerd 2.2, for as long as its lease lasts. Source: cmd/ctr/commands/images/mount.go."""
    name = busybox_multi_image.reference
    before = {one.id for one in client.leases.list()}
    chain_id, path = ctr("images", "mount", *flags, name).split()
    assert chain_id == client.images.get(name).chain_id()
    assert os.path.exists(f"{path}/bin/busybox")
    if "--rw" in flags:
        Path(path, "file").touch()
    else:
        with pytest.raises(OSError, match="Read-only"):
            Path(path, "file").touch()
    [lease] = [one for one in client.leases.list() if one.id not in before]
    assert lease.id.startswith("ctr-images-mount-")
    assert "containerd.io/gc.expire" in lease.labels
    client.leases.delete(lease.id, synchronous=True)
    until(lambda: not os.path.exists(path), "it is still mounted")
    assert list(client.mounts.list()) == []
    assert [info.name for info in client.snapshots().list() if info.kind != "Committed"] == []


def test_programs_out_of_an_image(ctr: Ctr, client: Client, busybox_multi_image: Image, tmp_path: Path) -> None:
    name = busybox_multi_image.reference
    ctr("images", "tag", name, "x/opt:1")
    image = client.images.get("x/opt:1")
    installed = image.install(str(tmp_path))
    program = tmp_path / "bin/busybox"
    assert str(program) in installed
    assert subprocess.run([program, "echo", "hi"], capture_output=True, check=True).stdout == b"hi\n"
    assert {path.name for path in tmp_path.iterdir()} == {"bin"}
    assert not [path for path in (tmp_path / "bin").iterdir() if ".orlop-" in path.name]
    with pytest.raises(AlreadyExistsError, match="cannot replace bin/"):
        image.install(str(tmp_path))
    ctr("install", "--replace", "--path", str(tmp_path), name)
    with pytest.raises(NotFoundError, match="opt service not enabled"):
        image.install()


def test_a_runtime_says_what_it_is(ctr: Ctr) -> None:
    info = json.loads(ctr("plugins", "inspect-runtime", "--runc-binary", "runc"))
    assert info["Name"] == "io.containerd.orlop.v1"
    assert info["Version"]["Version"]
    assert info["Options"] == {"binary_name": "runc"}
    assert "mountOptions" in info["Features"]
    unknown = ctr.run("plugins", "inspect-runtime", "--runtime", "io.containerd.none.v9")
    assert 'runtime "io.containerd.none.v9" binary not installed' in unknown.stderr
    assert ctr("deprecations", "list") == ""
    assert ctr("deprecations", "ls", "--format", "json") == ""


def test_blobs_of_a_registry(ctr: Ctr, registry: Registry, client: Client, busybox_image: Image) -> None:
    reference = registry.push(busybox_image, "blobs")
    with open(busybox_image.archive, "rb") as file:
        [image] = client.import_(file)
    digests = [str(layer.digest) for layer in image.manifest().layers]
    done = subprocess.run(
        ctr.argv("content", "fetch-blob", "--plain-http", reference, *digests[:2]),
        capture_output=True,
        check=True,
        env=environment(),
    )
    assert done.stdout == b"".join(client.content.read(digest) for digest in digests[:2])
    assert "must specify digests" in ctr.run("content", "fetch-blob", "--plain-http", reference).stderr


def test_a_blob_is_asked_for_as_what_one_says_it_is(ctr: Ctr) -> None:
    blob = b"words"
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    asked: list[tuple[str, str | None]] = []

    class Blobs(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Accept"]))
            here = self.path == f"/v2/some/thing/blobs/{digest}"
            self.send_response(200 if here else 404)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(blob) if here else 0))
            self.end_headers()
            if here and self.command == "GET":
                self.wfile.write(blob)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_words: object) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Blobs) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            reference = f"127.0.0.1:{server.server_port}/some/thing"
            words = ("content", "fetch-blob", "--plain-http", "--media-type", "text/x-own", reference, digest)
            assert ctr(*words) == blob.decode()
        finally:
            server.shutdown()
            thread.join()
    assert asked[-1] == (f"/v2/some/thing/blobs/{digest}", "text/x-own, */*")


def test_a_shim_is_spoken_to(ctr: Ctr, client: Client, busybox_multi_image: Image) -> None:
    ctr("run", "-d", "--null-io", busybox_multi_image.reference, "one", "sleep", "1000")
    state = json.loads(ctr("shim", "--id", "one", "state"))
    assert (state["id"], state["pid"]) == ("one", client.task("one").pid)
    shown = ctr("shim", "--id", "one", "exec", "--exec-id", "e", "/bin/true")
    assert shown.startswith("exec running with pid ")
    client.task("one").process("e").wait()
    assert "shim ID (--id) or address (--shim-address) must be specified" in ctr.run("shim", "state").stderr


def test_a_shim_is_found_by_its_address(orlopd: Orlopd, ctr: Ctr, client: Client, busybox_multi_image: Image) -> None:
    """Flags of containerd 2.x: no container need be known, and the version of the task API can be chosen."""
    ctr("run", "-d", "--null-io", busybox_multi_image.reference, "one", "sleep", "1000")
    state = json.loads(ctr("shim", "--id", "one", "state"))
    home = orlopd.state / "io.containerd.runtime.v2.task" / ctr.namespace / "one"
    address = f"unix://{(home / 'address').read_text().removeprefix('unix://')}"
    for version in ((), ("--api-version", "2"), ("--api-version", "3")):
        assert json.loads(ctr("shim", "--shim-address", address, "state", "-t", "one", *version)) == state
    assert ctr.run("shim", "--id", "one", "state", "--api-version", "4").returncode
    assert "container id must be specified" in ctr.run("shim", "--shim-address", address, "state").stderr
    ctr("tasks", "kill", "-s", "KILL", "one")
    ctr("tasks", "delete", "one")


def test_stacks_are_logged_on_a_signal(new_orlopd: Callable[..., Orlopd], our_ctr: Bind, busybox_image: Image) -> None:
    """SIGUSR1 ends neither the daemon nor a supervisor, with or without tasks: both say what they are doing."""
    daemon = new_orlopd()
    ctr = our_ctr(daemon, "stacks")
    ctr("images", "import", busybox_image.archive)
    ctr("run", "-d", "--null-io", busybox_image.reference, "one", "sleep", "1000")
    address = daemon.state / "io.containerd.runtime.v2.task" / "stacks" / "one" / "address"
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(address.read_text().removeprefix("unix://"))
        [supervisor] = struct.unpack("i8x", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    for pid in (daemon.pid, supervisor):
        os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + 30

    def logs() -> str:
        return daemon.log + "".join(path.read_text() for path in daemon.state.glob("s/*.log"))

    while logs().count("thread MainThread") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "supervisor.py" in logs()
    assert os.path.exists(f"/proc/{supervisor}")
    ctr("tasks", "rm", "--force", "one")
    ctr("containers", "rm", "one")


class _Profiles(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_words: object) -> None:
        """Say nothing."""

    def address_string(self) -> str:
        return "a client"


def test_profiles_of_a_shim(orlopd: Orlopd, ctr: Ctr) -> None:
    """At the socket that a shim written in Go serves when it is started for debugging."""
    name = hashlib.sha256(f"{orlopd.address}/{ctr.namespace}/one/debug".encode()).hexdigest()
    path = Path("/run/containerd/s") / name
    made = [one for one in (path.parent, path.parent.parent) if not one.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    words = ("shim", "--id", "one", "pprof")
    try:
        assert f"debug socket {path}: no such file or directory" in ctr.run(*words, "heap").stderr
        with socketserver.UnixStreamServer(str(path), _Profiles) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                assert ctr(*words, "heap") == "/debug/pprof/heap?debug=0"
                assert ctr(*words, "goroutines") == "/debug/pprof/goroutine?debug=2"
                assert ctr(*words, "profile", "-s", "2s") == "/debug/pprof/profile?debug=0&seconds=2"
                assert ctr(*words, "trace", "--seconds", "1") == "/debug/pprof/trace?debug=0&seconds=1"
            finally:
                server.shutdown()
                thread.join()
    finally:
        path.unlink(missing_ok=True)
        for one in made:
            one.rmdir()
    assert "container id must be provided" in ctr.run("shim", "pprof", "heap").stderr


def test_imported_images_are_labelled(ctr: Ctr, client: Client, busybox_image: Image) -> None:
    for local in ((), ("--local",)):
        ctr("images", "import", "--no-unpack", *local, "--label", "a=b", "--label", f"c={local}", busybox_image.archive)
        assert client.images.get(busybox_image.reference).labels == {"a": "b", "c": str(local)}


def test_a_mounted_image_can_expire(ctr: Ctr, client: Client, busybox_multi_image: Image, tmp_path: Path) -> None:
    reference, target = busybox_multi_image.reference, str(tmp_path)
    ctr("images", "mount", "--sync-fs", "-x", "1h", reference, target)
    try:
        assert (tmp_path / "bin").is_dir()
        lease = next(one for one in client.leases.list() if one.id == target)
        assert "containerd.io/gc.expire" in lease.labels
        assert ("snapshots/overlayfs", target) in {(one.type, one.id) for one in client.leases.resources(target)}
        assert "containerd.io/gc.root" not in client.snapshots().stat(target).labels
    finally:
        ctr("images", "unmount", "--rm", target)
    assert target not in {one.id for one in client.leases.list()}
    with pytest.raises(NotFoundError):
        client.snapshots().stat(target)


def test_what_is_unpacked_can_be_asked_to_be_on_disk(ctr: Ctr, client: Client, busybox_image: Image) -> None:
    ctr("images", "import", "--no-unpack", busybox_image.archive)
    image = client.images.get(busybox_image.reference)
    assert not image.is_unpacked()
    assert ctr("run", "--rm", "--sync-fs", image.name, "one", "echo", "words") == "words\n"
    assert image.is_unpacked()
    assert image.chain_id() in ctr("snapshots", "unpack", "--sync-fs", image.target.digest)
