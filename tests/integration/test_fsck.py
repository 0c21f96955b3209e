"""`ctr fsck` on a real daemon that goes on meanwhile: each damage is made for real, found and mended.

One daemon serves all tests, each in a namespace of its own, so no test may leave damage behind: who looks at what is
found looks at all of it.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import orlop
from orlop.core.fsck import Finding
from orlop.core.mount.perform import temp_mount
from orlop.linux.btrfs import set_read_only
from orlop.linux.mount import MNT_DETACH, mount, mountinfo, umount2
from tests.root import shims
from tests.root.shims import until
from tools import daemons, filesystems, residue
from tools.daemons import COLLECT_ON_REQUEST, Ctr, Orlopd, Registry
from tools.host import lacks_peer
from tools.images import Image

SANDBOXES = "io.containerd.sandbox.controller.v1.shim"

pytestmark = [pytest.mark.root]


@pytest.fixture(scope="module")
def daemon(short_directory: Path) -> Iterator[Orlopd]:
    with Orlopd(short_directory / "fsck", config=COLLECT_ON_REQUEST) as one:
        yield one


class Stage:
    """A namespace with an image in it, on a daemon that is healthy before and after."""

    def __init__(self, daemon: Orlopd, ctr: Ctr, image: Image) -> None:
        self.daemon = daemon
        self.root = daemon.root
        self.ctr = ctr
        self.image = image
        self.client = orlop.Client(str(daemon.address), ctr.namespace, timeout_s=60)

    def fsck(self, *, repair: bool = False, quick: bool = False) -> list[Finding]:
        found = list(self.client.fsck(repair=repair, quick=quick))
        assert all(isinstance(one, Finding) for one in found), "\n".join(map(str, found))
        return found  # type: ignore[return-value]

    def bring(self) -> None:
        self.ctr("images", "import", self.image.archive)

    def layer_with(self, path: str, snapshotter: str) -> tuple[int, str]:
        """Number and name of the lowest layer that holds a file."""
        for number, name in self.rows(
            "SELECT coalesce(layer, number) AS bytes, name FROM snapshots"
            " WHERE namespace = ? AND snapshotter = ? AND kind = 3 ORDER BY bytes",
            self.ctr.namespace,
            snapshotter,
        ):
            if os.path.lexists(self.root / "snapshots" / snapshotter / str(number) / "fs" / path):
                return int(str(number)), str(name)
        raise AssertionError(f"no layer has {path}")

    def runs(self, *flags: str) -> None:
        name = f"after-{secrets.token_hex(4)}"
        assert self.ctr("run", "--rm", *flags, self.image.reference, name, "sh", "-c", "echo alive").strip() == "alive"

    def rows(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        with contextlib.closing(sqlite3.connect(f"file:{self.root}/meta.db?mode=ro", uri=True)) as connection:
            return connection.execute(statement, parameters).fetchall()

    def blob(self, digest: str) -> Path:
        return self.root / "content" / "blobs" / digest.replace(":", "/")

    def largest_blob(self) -> str:
        """The digest of the image's largest layer."""
        found = self.rows(
            "SELECT digest FROM content JOIN blobs USING (digest) WHERE namespace = ? ORDER BY blobs.size_bytes DESC",
            self.ctr.namespace,
        )
        return str(found[0][0])


@pytest.fixture
def own_stage(
    new_orlopd: Callable[..., Orlopd], our_ctr: Callable[..., Ctr], namespace: str, busybox_image: Image
) -> Iterator[Stage]:
    """One on a daemon that the test may kill."""
    daemon = new_orlopd()
    one = Stage(daemon, our_ctr(daemon, namespace), busybox_image)
    one.bring()
    yield one
    one.client.close()
    daemon.forget_cgroup(namespace)


@pytest.fixture
def stage(daemon: Orlopd, our_ctr: Callable[..., Ctr], namespace: str, busybox_image: Image) -> Iterator[Stage]:
    one = Stage(daemon, our_ctr(daemon, namespace), busybox_image)
    one.bring()
    assert one.fsck() == []
    yield one
    one.client.remove_namespace()
    daemon.forget_cgroup(namespace)
    assert one.fsck() == []
    one.client.close()


def flip(path: Path) -> None:
    """Change one bit in the middle of a file and nothing else of it."""
    status = path.stat()
    with open(path, "r+b") as file:
        file.seek(status.st_size // 2)
        (byte,) = file.read(1)
        file.seek(status.st_size // 2)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "kind", "is_quick"),
    [(flip, "blob-corrupt", False), (cut, "blob-truncated", True), (Path.unlink, "blob-missing", True)],
)
def test_a_damaged_blob_is_found_and_comes_anew(
    stage: Stage, damage: Callable[[Path], None], kind: str, is_quick: bool
) -> None:
    digest = stage.largest_blob()
    damage(stage.blob(digest))
    (found,) = stage.fsck()
    assert (found.kind, found.object, found.namespaces) == (kind, digest, (stage.ctr.namespace,))
    assert [one.kind for one in stage.fsck(quick=True)] == ([kind] if is_quick else [])

    assert [one.kind for one in stage.fsck(repair=True)] == [kind]
    # Its record stays, and who reads it is told.
    assert stage.client.content.info(digest).digest == digest
    with pytest.raises(orlop.errdefs.DataLossError, match=f"content {digest}: there is a record of it"):
        b"".join(stage.client.content.chunks(digest))
    assert [one.kind for one in stage.fsck()] == ["blob-missing"]

    stage.bring()
    assert stage.fsck() == []
    stage.runs()


def test_a_pull_brings_a_lost_layer_though_it_is_unpacked(
    stage: Stage, registry: Registry, busybox_image: Image
) -> None:
    reference = registry.push(busybox_image, "lost-layer")
    stage.ctr("pull", reference)
    digest = stage.largest_blob()
    flip(stage.blob(digest))
    (found,) = stage.fsck(repair=True)
    assert " from 127.0.0.1/lost-layer: " in found.mends
    stage.ctr("pull", reference)
    assert stage.fsck() == []


def test_the_command_that_fsck_names_brings_a_lost_blob(
    stage: Stage, registry: Registry, busybox_image: Image, busybox_multi_image: Image
) -> None:
    """For each image that needs it and is in a registry; what was pulled for another platform is so again."""
    here = registry.push(busybox_image, "named")
    elsewhere = registry.push(busybox_multi_image, "named-for-many")
    platform = ("--platform", "linux/s390x")
    stage.ctr("images", "pull", here)
    stage.ctr("images", "pull", "--no-unpack", *platform, elsewhere)
    stage.ctr("images", "tag", here, here + "-too", "no-registry-s")
    wanted = {here: ([here, here + "-too"], ()), elsewhere: ([elsewhere], platform)}
    for reference, (names, flags) in wanted.items():
        image = stage.client.images.get(reference, platform=flags[-1] if flags else None)
        digest = image.manifest().layers[0].digest
        stage.blob(digest).unlink()
        done = stage.ctr.run("fsck", "--repair")
        assert done.returncode == 1
        commands = [line.split() for line in done.stdout.splitlines() if line.startswith("  ")]
        words = ["--address", str(stage.daemon.address), "--namespace", stage.ctr.namespace, "images", "pull"]
        assert [one[1:] for one in commands] == [[*words, *flags, name] for name in names]
        (told,) = json.loads(f"[{stage.ctr.run('fsck', '--quick', '--json').stdout}]")
        assert [one.split() for one in told["commands"]] == commands
        command = [str(stage.ctr.path), *commands[0][1:], *(["--no-unpack"] if flags else [])]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        assert stage.fsck() == []


def test_a_foreign_client_brings_a_lost_blob(
    stage: Stage, go_ctr: Callable[..., Ctr], registry: Registry, busybox_image: Image
) -> None:
    reference = registry.push(busybox_image, "lost-blob")
    ctr = go_ctr(stage.daemon, stage.ctr.namespace)
    ctr("content", "fetch", "--plain-http", reference)
    stage.blob(stage.largest_blob()).unlink()
    assert [one.kind for one in stage.fsck()] == ["blob-missing"]
    ctr("content", "fetch", "--plain-http", reference)
    assert stage.fsck() == []


@pytest.mark.parametrize("damage", [Path.unlink, cut])
def test_a_pull_by_a_foreign_client_heals_without_a_check(
    stage: Stage, go_ctr: Callable[..., Ctr], registry: Registry, busybox_image: Image, damage: Callable[[Path], None]
) -> None:
    """Debian's ctr, of a namespace of its own: what it names is another's, and its bytes have gone."""
    reference = registry.push(busybox_image, "lost-all")
    ctr = go_ctr(stage.daemon, stage.ctr.namespace)
    other = go_ctr(stage.daemon, f"{stage.ctr.namespace}-other")
    try:
        ctr("images", "pull", "--plain-http", reference)
        for puller in (ctr, other):
            digests = [str(digest) for (digest,) in stage.rows("SELECT digest FROM blobs")]
            for digest in digests:
                damage(stage.blob(digest))
            with pytest.raises(orlop.errdefs.DataLossError, match=f"content {digests[0]}: "):
                b"".join(stage.client.content.chunks(digests[0]))
            puller("images", "pull", "--plain-http", reference)
            stage.client.images.get(reference).unpack(snapshotter="native" if puller is ctr else "erofs")
            stage.bring()  # the archive has more around the image
            assert stage.fsck() == []
        stage.runs()
    finally:
        with orlop.Client(str(stage.daemon.address), other.namespace, timeout_s=60) as client:
            client.remove_namespace()


def test_bytes_without_a_row_are_thrown_away(stage: Stage) -> None:
    blob = stage.blob(f"sha256:{secrets.token_hex(32)}")
    blob.write_bytes(b"nobody's")
    ingest = stage.root / "content" / "ingest" / secrets.token_hex(16)
    ingest.mkdir()
    (ingest / "ref").write_text(f"{stage.ctr.namespace}/a-ref")
    (ingest / "data").write_bytes(b"half")
    snapshot = stage.root / "snapshots" / "overlayfs" / "987654321"
    (snapshot / "fs").mkdir(parents=True)
    kinds = {
        "blob-orphan": f"sha256:{blob.name}",
        "ingest-orphan": str(ingest),
        "snapshot-orphan": str(snapshot),
    }
    assert {one.kind: one.object for one in stage.fsck(quick=True)} == kinds
    assert all(path.exists() for path in (blob, ingest, snapshot))
    mended = stage.fsck(quick=True, repair=True)
    assert {one.kind: one.object for one in mended} == kinds
    assert all(one.mended for one in mended)
    assert not any(path.exists() for path in (blob, ingest, snapshot))
    assert stage.fsck(quick=True) == []


def damage_mode(path: Path) -> None:
    path.chmod(0o600)


def damage_by_more(path: Path) -> None:
    path.with_name("not-ours").write_text("new")


@pytest.mark.parametrize(
    ("snapshotter", "damages"),
    [("overlayfs", (flip, cut, Path.unlink, damage_mode, damage_by_more)), ("native", (flip, damage_by_more))],
)
def test_a_damaged_layer_is_unpacked_again(
    stage: Stage, snapshotter: str, damages: Sequence[Callable[[Path], None]]
) -> None:
    stage.client.images.get(stage.image.reference).unpack(snapshotter=snapshotter)
    number, name = stage.layer_with("bin/busybox", snapshotter)
    homes = stage.root / "snapshots" / snapshotter
    for damage in damages:
        damage(homes / str(number) / "fs" / "bin" / "busybox")
        assert stage.fsck(quick=True) == []
        (found,) = [one for one in stage.client.fsck() if isinstance(one, Finding)]
        assert (found.kind, found.object, found.mended) == ("layer-changed", f"{snapshotter}/{name}", False)
        assert found.wrong.startswith("bin")
        (found,) = stage.fsck(repair=True)
        assert (found.kind, found.object, found.mended) == ("layer-changed", f"{snapshotter}/{name}", True)
    assert stage.fsck() == []
    stage.runs("--snapshotter", snapshotter)
    assert [path.name for path in homes.iterdir() if path.name.startswith(".")] == []


def test_a_damaged_image_of_a_layer_is_made_again(stage: Stage) -> None:
    stage.client.images.get(stage.image.reference).unpack(snapshotter="erofs")
    stage.runs("--snapshotter", "erofs")  # so that it is mounted, too
    image = max((stage.root / "snapshots" / "erofs").glob("*/layer.erofs"), key=lambda path: path.stat().st_size)
    for damage in (flip, cut, Path.unlink):
        damage(image)
        (found,) = [one for one in stage.client.fsck() if isinstance(one, Finding)]
        assert (found.kind, found.mended) == ("layer-changed", False)
        (found,) = stage.fsck(repair=True)
        assert (found.kind, found.mended) == ("layer-changed", True)
    assert stage.fsck() == []
    stage.runs("--snapshotter", "erofs")


def test_a_damaged_subvolume_is_made_again(
    short_directory: Path, our_ctr: Callable[..., Ctr], busybox_image: Image, namespace: str
) -> None:
    home = Path(tempfile.mkdtemp(prefix="b.", dir=short_directory))
    with filesystems.mounted(home, "btrfs", 400 << 20) as directory, Orlopd(directory / "orlopd") as daemon:
        stage = Stage(daemon, our_ctr(daemon, namespace), busybox_image)
        stage.bring()
        stage.client.images.get(stage.image.reference).unpack(snapshotter="btrfs")
        assert stage.fsck() == []
        ((number, name), *_) = stage.rows(
            "SELECT number, name FROM snapshots WHERE snapshotter = 'btrfs' AND kind = 3 ORDER BY number"
        )
        subvolume = daemon.root / "snapshots" / "btrfs" / str(number)
        set_read_only(os.fspath(subvolume), False)
        flip(subvolume / "bin" / "busybox")
        set_read_only(os.fspath(subvolume), True)
        (found,) = [one for one in stage.client.fsck() if isinstance(one, Finding)]
        assert (found.kind, found.object) == ("layer-changed", f"btrfs/{name}")
        (found,) = stage.fsck(repair=True)
        assert (found.kind, found.mended) == ("layer-changed", True)
        assert stage.fsck() == []
        stage.runs("--snapshotter", "btrfs")
        stage.client.close()
        daemon.forget_cgroup(namespace)
    home.rmdir()


def test_a_container_that_runs_keeps_the_files_below_it(stage: Stage) -> None:
    stage.ctr("run", "-d", stage.image.reference, "runs", "sleep", "1000")
    number, _ = stage.layer_with("bin/busybox", "overlayfs")
    home = stage.root / "snapshots" / "overlayfs" / str(number)
    damage_by_more(home / "fs" / "bin" / "busybox")
    (found,) = stage.fsck(repair=True)
    assert (found.kind, found.mended) == ("layer-changed", True)
    assert stage.ctr("tasks", "exec", "--exec-id", "look", "runs", "busybox", "echo", "still here") == "still here\n"
    assert len(list(home.glob(".replaced-*"))) == 1
    assert stage.fsck() == []
    stage.runs()
    stage.ctr("tasks", "delete", "--force", "runs")
    stage.ctr("containers", "delete", "runs")
    (found,) = stage.fsck(repair=True)
    assert (found.kind, found.mended) == ("layer-replaced", True)
    assert list(home.glob(".replaced-*")) == []


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_a_layer_without_files_is_unpacked_again(stage: Stage, snapshotter: str) -> None:
    stage.client.images.get(stage.image.reference).unpack(snapshotter=snapshotter)
    number, name = stage.layer_with("bin/busybox", snapshotter)
    home = stage.root / "snapshots" / snapshotter / str(number)
    subprocess.run(["rm", "-r", home], check=True)
    found = stage.fsck(quick=True)
    assert [(one.kind, one.object) for one in found] == [("snapshot-missing", f"{snapshotter}/{name}")]
    found = stage.fsck(quick=True, repair=True)
    assert [(one.kind, one.mended) for one in found] == [("snapshot-missing", True)]
    assert stage.fsck() == []
    stage.runs("--snapshotter", snapshotter)


def test_an_ingest_that_is_being_written_is_nobodys_orphan(stage: Stage) -> None:
    with stage.client.content.writer("half-written") as writer:
        writer.write(b"half")
        assert stage.fsck() == []
    assert stage.fsck() == []
    stage.client.content.abort("half-written")


def test_an_active_snapshot_without_files_is_made_again(stage: Stage) -> None:
    store = stage.client.snapshots()
    store.prepare("gone", labels={"containerd.io/gc.root": "now"})
    ((number,),) = stage.rows("SELECT number FROM snapshots WHERE namespace = ? AND name = 'gone'", stage.ctr.namespace)
    home = stage.root / "snapshots" / "overlayfs" / str(number)
    subprocess.run(["rm", "-r", home], check=True)
    (found,) = stage.fsck(quick=True)
    assert (found.kind, found.object, found.mended) == ("snapshot-missing", "overlayfs/gone", False)
    (found,) = stage.fsck(quick=True, repair=True)
    assert found.mended
    assert (home / "fs").is_dir()
    assert stage.fsck() == []


def prepared(stage: Stage, name: str) -> Path:
    """The directory of a new active snapshot on top of the image."""
    top = stage.client.images.get(stage.image.reference).unpack()
    stage.client.snapshots().prepare(name, parent=top, labels={"containerd.io/gc.root": "now"})
    ((number,),) = stage.rows(
        "SELECT number FROM snapshots WHERE namespace = ? AND name = ?", stage.ctr.namespace, name
    )
    return stage.root / "snapshots" / "overlayfs" / str(number)


@pytest.mark.parametrize(("lost", "words"), [("work", "made again, empty"), ("fs", "what was written to it is lost")])
def test_a_directory_of_an_active_snapshot_is_made_again(stage: Stage, lost: str, words: str) -> None:
    home = prepared(stage, "lacking")
    (home / "fs" / "written").write_text("by a container")
    subprocess.run(["rm", "-r", home / lost], check=True)
    found = stage.fsck(quick=True)
    assert [(one.kind, one.object, one.mended) for one in found] == [
        ("snapshot-incomplete", "overlayfs/lacking", False)
    ]
    assert found[0].wrong == f"it has no directory {lost}"
    (found_again,) = stage.fsck(quick=True, repair=True)
    assert found_again.mended
    assert words in found_again.mends
    assert (home / lost).stat().st_mode & 0o7777 == (0o755 if lost == "fs" else 0o700)
    assert (home / "fs" / "written").exists() is (lost == "work")
    assert stage.fsck() == []
    mounts = stage.client.snapshots().mounts("lacking")
    with temp_mount(mounts) as target:
        assert (Path(target) / "bin" / "busybox").exists()
        (Path(target) / "more").write_text("it can be written to")


def test_a_directory_that_a_container_writes_to_is_not_made_again(stage: Stage) -> None:
    stage.ctr("run", "-d", stage.image.reference, "runs", "sleep", "1000")
    ((number,),) = stage.rows("SELECT number FROM snapshots WHERE namespace = ? AND name = 'runs'", stage.ctr.namespace)
    home = stage.root / "snapshots" / "overlayfs" / str(number)
    (home / "fs").rename(home / "aside")
    (found,) = stage.fsck(quick=True, repair=True)
    assert (found.kind, found.object, found.mended) == ("snapshot-incomplete", "overlayfs/runs", False)
    assert found.mends.startswith("ending who has it mounted")
    stage.ctr("tasks", "exec", "--exec-id", "write", "runs", "touch", "/written")
    (home / "aside").rename(home / "fs")
    assert (home / "fs" / "written").exists()
    assert stage.fsck() == []
    stage.ctr("tasks", "delete", "--force", "runs")


def test_a_layer_that_no_image_knows_is_not_rebuilt_until_one_does(stage: Stage) -> None:
    number, name = stage.layer_with("bin/busybox", "overlayfs")
    stage.client.snapshots().label(name, {"containerd.io/gc.root": "now"})
    for image in stage.client.images.list():
        image.delete(synchronous=True)
    subprocess.run(["rm", "-r", stage.root / "snapshots" / "overlayfs" / str(number) / "fs"], check=True)
    for repair in (False, True):
        (found,) = stage.fsck(repair=repair)
        assert (found.kind, found.object, found.mended) == ("snapshot-missing", f"overlayfs/{name}", False)
        assert found.mends.startswith("no image here says which blob it was unpacked from: pulling or importing one")
    assert stage.client.snapshots().exists(name)  # nothing was removed
    stage.ctr("images", "import", "--no-unpack", stage.image.archive)
    (found,) = stage.fsck(repair=True)
    assert (found.kind, found.object, found.mended) == ("snapshot-missing", f"overlayfs/{name}", True)
    assert stage.fsck() == []
    stage.runs()


class Host:
    """What a test makes on the host in a daemon's name."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.namespace = stage.ctr.namespace
        self.tasks = stage.daemon.state / "io.containerd.runtime.v2.task"
        self.work = stage.root / "io.containerd.runtime.v2.task"
        self.runtime = next(name for name in ("runc", "crun") if shutil.which(name))

    def mount(self, path: Path) -> Path:
        path.mkdir(parents=True)
        mount("tmpfs", os.fspath(path), "tmpfs")
        return path

    def runtime_state(self, name: str) -> Path:
        """A container that no supervisor knows: made by the OCI runtime alone, its process waiting to be started."""
        bundle = self.stage.root / f"made-{name}"
        (bundle / "rootfs").mkdir(parents=True)
        number, _ = self.stage.layer_with("bin/busybox", "overlayfs")
        program = self.stage.root / "snapshots" / "overlayfs" / str(number) / "fs" / "bin" / "busybox"
        shutil.copy(program, bundle / "rootfs" / "busybox")
        subprocess.run([self.runtime, "spec"], cwd=bundle, check=True)
        spec = json.loads((bundle / "config.json").read_text())
        spec["process"]["args"] = ["/busybox", "sleep", "1000"]
        spec["process"]["terminal"] = False
        spec["linux"]["cgroupsPath"] = f"/{self.namespace}/{name}"
        (bundle / "config.json").write_text(json.dumps(spec))
        root = self.stage.daemon.state / self.runtime / self.namespace
        subprocess.run(
            [self.runtime, "--root", root, "create", "--bundle", bundle, name],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        shutil.rmtree(bundle)
        return root / name


def test_what_is_left_on_the_host_is_taken_away(stage: Stage) -> None:
    host = Host(stage)
    stage.ctr("run", "-d", stage.image.reference, "runs", "sleep", "1000")
    bundle = host.tasks / host.namespace / "no-task"
    mounted = host.mount(bundle / "rootfs")
    work = host.work / host.namespace / "no-bundle"
    work.mkdir()
    pod = stage.daemon.state / SANDBOXES / host.namespace / "no-sandbox"
    pod_mount = host.mount(pod / "rootfs")
    pod_work = stage.root / SANDBOXES / host.namespace / "no-pod-bundle"
    pod_work.mkdir(parents=True)
    activation = host.mount(stage.daemon.state / "io.containerd.mount-manager.v1.bolt" / "t" / "987654" / "0").parent
    temporary = host.mount(stage.root / "snapshots" / "orlop-mount-left")
    state = host.runtime_state("no-task-either")
    cgroups = [Path(path) for path in residue.cgroups() if path.endswith(f"/{host.namespace}/runs")]
    orphans = [path.with_name("an-orphan") for path in cgroups]
    for path in orphans:
        path.mkdir()
    socket_path = stage.daemon.state / "s" / secrets.token_hex(16)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(socket_path))
    keeper = subprocess.Popen(
        ["orlop-keeper ended", "1000"],
        executable=shutil.which("sleep"),
        env={"ORLOP_BUNDLE": f"{host.tasks}/{host.namespace}/ended"},
    )
    mounts, bundles = [activation, temporary], [bundle, pod]
    wanted = {
        "runtime-orphan": str(state),
        "cgroup-orphan": f"/{host.namespace}/an-orphan",
        "keeper-orphan": f"process {keeper.pid}",
        "supervisor-orphan": str(socket_path),
    }
    found = stage.fsck(quick=True)
    several = {"mount-orphan": mounts, "bundle-orphan": bundles, "work-orphan": [work, pod_work]}
    for kind, paths in several.items():
        assert sorted(one.object for one in found if one.kind == kind) == sorted(map(str, paths))
    assert {one.kind: one.object for one in found if one.kind not in several} == wanted
    assert not any(one.mended for one in found)

    found = stage.fsck(quick=True, repair=True)
    assert len(found) == len(wanted) + 6
    assert [str(one) for one in found if not one.mended] == []
    assert keeper.wait() == -signal.SIGKILL
    removed = (*bundles, work, pod_work, *mounts, state, socket_path, *orphans)
    assert not any(path.exists() for path in removed)
    assert not any(map(os.path.ismount, (mounted, pod_mount)))
    assert stage.fsck() == []
    assert [line.split()[2] for line in stage.ctr("tasks", "ls").splitlines()[1:]] == ["RUNNING"]
    stage.ctr("tasks", "delete", "--force", "runs")


def test_a_supervisor_that_is_being_started_is_nobodys_orphan(stage: Stage) -> None:
    """It holds the lock before it listens."""
    path = stage.daemon.state / "s" / secrets.token_hex(16)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert stage.fsck(quick=True, repair=True) == []
        assert path.exists()
    assert [one.object for one in stage.fsck(quick=True, repair=True)] == [str(path)]
    assert not path.exists()


def test_a_task_that_the_daemon_has_lost_is_taken_over(own_stage: Stage) -> None:
    """Its bundle was out of sight when the daemon started; its supervisor holds it."""
    stage = own_stage
    stage.ctr("run", "-d", stage.image.reference, "lost", "sleep", "1000")
    bundle = stage.daemon.state / "io.containerd.runtime.v2.task" / stage.ctr.namespace / "lost"
    aside = stage.daemon.state / "aside"
    stage.client.close()  # the next call opens a new connection
    stage.daemon.kill()
    bundle.rename(aside)
    work = stage.root / "io.containerd.runtime.v2.task" / stage.ctr.namespace / "lost"
    stage.daemon.start()
    assert stage.ctr("tasks", "ls", "-q") == ""
    aside.rename(bundle)
    work.mkdir(exist_ok=True)
    (found,) = stage.fsck(quick=True, repair=True)
    assert (found.kind, found.mended) == ("bundle-orphan", True)
    assert found.mends.startswith("taken over")
    assert stage.ctr("tasks", "exec", "--exec-id", "look", "lost", "echo", "alive") == "alive\n"
    assert stage.fsck() == []
    stage.ctr("tasks", "delete", "--force", "lost")


def test_a_sandbox_that_the_daemon_has_lost_is_taken_over(own_stage: Stage) -> None:
    stage = own_stage
    stage.client.sandboxes.create("pod", b"{}").start()
    bundle = stage.daemon.state / SANDBOXES / stage.ctr.namespace / "pod"
    aside = stage.daemon.state / "aside"
    stage.client.close()
    stage.daemon.kill()
    bundle.rename(aside)
    stage.daemon.start()
    assert stage.client.sandboxes.get("pod").status().state == ""
    aside.rename(bundle)
    (found,) = [one for one in stage.fsck(quick=True, repair=True) if one.kind != "work-orphan"]
    assert (found.kind, found.object, found.mended) == ("bundle-orphan", str(bundle), True)
    assert found.mends.startswith("taken over")
    sandbox = stage.client.sandboxes.get("pod")
    assert sandbox.status().state == "SANDBOX_READY"
    bundle.rename(aside)
    (found,) = stage.fsck(repair=True)
    assert (found.kind, found.object) == ("sandbox-without-bundle", f"{stage.ctr.namespace}/pod")
    aside.rename(bundle)
    assert stage.fsck() == []
    sandbox.stop()
    sandbox.delete()
    assert stage.fsck() == []


def test_a_foreign_shim_s_socket_is_taken_away(stage: Stage) -> None:
    if reason := lacks_peer("containerd-shim-runc-v2"):
        pytest.skip(reason)
    shim = daemons.program("containerd-shim-runc-v2")
    stage.ctr("run", "-d", "--runtime", shim, stage.image.reference, "foreign", "sleep", "1000")
    bundle = stage.daemon.state / "io.containerd.runtime.v2.task" / stage.ctr.namespace / "foreign"
    path = Path((bundle / "address").read_text().removeprefix("unix://"))
    assert stage.fsck() == []
    for pid in [int(one.name) for one in Path("/proc").glob("[0-9]*") if is_shim(one, stage)]:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not bundle.exists(), "the bundle is left")
    assert path.is_socket()
    (found,) = stage.fsck(quick=True)
    assert (found.kind, found.object, found.namespaces) == ("shim-socket-orphan", str(path), (stage.ctr.namespace,))
    (found,) = stage.fsck(quick=True, repair=True)
    assert found.mended
    assert not path.exists()
    assert stage.fsck() == []


def is_shim(process: Path, stage: Stage) -> bool:
    try:
        line = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"containerd-shim-runc-v2" in line[0] and os.fsencode(stage.ctr.namespace) in line


def test_an_empty_cgroup_that_a_container_asked_for_is_taken_away(stage: Stage) -> None:
    """Elsewhere than the daemon's own; what is beside it is somebody's."""
    top = f"orlop-test-{secrets.token_hex(4)}"
    stage.ctr("containers", "create", "--cgroup", f"/{top}/left", stage.image.reference, "left")
    made = [point / top for point in hierarchies()]
    try:
        for path in made:
            path.mkdir()
            (path / "left").mkdir()
            (path / "beside").mkdir()
        (found,) = stage.fsck(quick=True)
        assert (found.kind, found.object, found.mended) == ("cgroup-orphan", f"/{top}/left", False)
        (path / "left" / "somebody-s").mkdir()
        (found,) = stage.fsck(quick=True, repair=True)
        assert not found.mended
        assert (path / "left" / "somebody-s").exists()
        (path / "left" / "somebody-s").rmdir()
        (found,) = stage.fsck(quick=True, repair=True)
        assert found.mended
        assert not any((path / "left").exists() for path in made)
        assert all((path / "beside").exists() for path in made)
        assert stage.fsck(quick=True) == []
    finally:
        for path in made:
            for below, _directories, _files in os.walk(path, topdown=False):
                os.rmdir(below)


def hierarchies() -> list[Path]:
    return [Path(one.mount_point) for one in mountinfo() if one.fs_type in ("cgroup", "cgroup2")]


def test_what_runs_without_a_task_is_ended_if_it_is_ours(own_stage: Stage) -> None:
    """Its bundle, its runtime's state and its supervisor are gone, as after somebody emptied /run."""
    stage = own_stage
    stage.ctr("run", "-d", stage.image.reference, "stray", "sleep", "1000")
    stray = stage.client.task("stray").state().pid
    stage.client.close()
    stage.daemon.kill()
    for pid in shims.supervisors(stage.daemon.address):
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: not shims.running(pid), "the supervisor lives")  # type: ignore[misc]
    bundle = stage.daemon.state / "io.containerd.runtime.v2.task" / stage.ctr.namespace / "stray"
    umount2(bundle / "rootfs", MNT_DETACH)
    states = [stage.daemon.state / runtime / stage.ctr.namespace / "stray" for runtime in ("runc", "crun")]
    for path in (bundle, *(one for one in states if one.exists())):
        shutil.rmtree(path)
    stage.daemon.start()
    top = next(point for point in hierarchies() if (point / stage.ctr.namespace / "stray").exists())
    own, other = (top / stage.ctr.namespace / name for name in ("stray", "another-daemon-s"))
    with cgroup(other), sleeping() as beside, sleeping() as within:
        (other / "cgroup.procs").write_text(str(beside.pid))
        (found,) = strays(stage)
        assert (found.object, found.mended) == (f"/{stage.ctr.namespace}/stray", False)
        assert f"in it run process {stray}" in found.wrong
        (own / "cgroup.procs").write_text(str(within.pid))
        (found,) = strays(stage, repair=True)
        assert not found.mended
        assert f"process {within.pid} may be somebody else's" in found.mends
        assert shims.running(stray)
        (top / "cgroup.procs").write_text(str(within.pid))
        (found,) = strays(stage, repair=True)
        assert found.mended
        assert not shims.running(stray)
        assert not any((point / stage.ctr.namespace / "stray").exists() for point in hierarchies())
        assert strays(stage, repair=True) == []
        assert beside.poll() is None
    assert stage.fsck(repair=True) == []


@contextlib.contextmanager
def cgroup(path: Path) -> Iterator[None]:
    path.mkdir()
    try:
        yield
    finally:
        residue.patiently_rmdir(os.fspath(path))


@contextlib.contextmanager
def sleeping() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            yield process
        finally:
            process.kill()


def strays(stage: Stage, *, repair: bool = False) -> list[Finding]:
    """Keepers may be found beside."""
    return [one for one in stage.fsck(quick=True, repair=repair) if one.kind == "cgroup-populated"]


def test_after_a_kill_the_daemon_checks_what_was_being_written(own_stage: Stage) -> None:
    """As if the kill had come before a sync: a layer lost its end, a blob that came last is torn, an ingest is longer
    than what of it was on disk in an earlier boot.
    """
    stage = own_stage
    number, name = stage.layer_with("bin/busybox", "overlayfs")
    last = stage.client.content.write("last", b"the last blob", labels={"containerd.io/gc.root": "now"})
    with stage.client.content.writer("half-written") as writer:
        writer.write(b"half of it, and more")
    (ingest,) = (stage.root / "content" / "ingest").iterdir()
    stage.client.close()
    stage.daemon.kill()
    with contextlib.closing(sqlite3.connect(stage.root / "meta.db")) as connection, connection:
        connection.execute("UPDATE snapshots SET synced_at = NULL WHERE kind = 3")
        connection.execute("UPDATE layers SET synced_at = NULL")
    (ingest / "synced").write_text("the-boot-before 4\n")
    cut(stage.root / "snapshots" / "overlayfs" / str(number) / "fs" / "bin" / "busybox")
    flip(stage.blob(last))
    stage.daemon.start()
    until(lambda: "checked what was being written" in stage.daemon.log, "the daemon does not check")
    log = stage.daemon.log
    assert "the last daemon did not stop cleanly" in log
    assert f"kind=layer-changed object=overlayfs/{name}" in log
    assert f"kind=blob-corrupt object={last}" in log
    assert "cut an ingest to what was on disk" in log
    assert (ingest / "data").read_bytes() == b"half"
    assert [one.kind for one in stage.fsck()] == ["blob-missing"]
    stage.client.content.write("last", b"the last blob")
    assert stage.fsck() == []
    stage.runs()


def test_after_a_clean_stop_nothing_is_checked(own_stage: Stage) -> None:
    own_stage.client.close()
    own_stage.daemon.stop()
    own_stage.daemon.start()
    assert "did not stop cleanly" not in own_stage.daemon.log


def test_what_is_not_ours_is_told_and_left(stage: Stage) -> None:
    path = stage.root / "content" / "blobs" / "sha256" / "notes.txt"
    path.write_text("not a blob")
    try:
        (found,) = stage.fsck(quick=True, repair=True)
        assert (found.kind, found.object, found.mended) == ("foreign-file", str(path), False)
        assert path.exists()
    finally:
        path.unlink()


def test_the_command_says_what_it_found(stage: Stage) -> None:
    def fsck(*flags: str, ctr: Ctr = stage.ctr) -> tuple[int, str]:
        done = ctr.run("fsck", *flags)
        return done.returncode, done.stdout

    assert fsck() == (0, "all is well\n")
    digest = stage.largest_blob()
    flip(stage.blob(digest))
    assert fsck("--quick") == (0, "all is well\n")
    status, words = fsck()
    assert status == 1
    assert words.startswith(f"blob-corrupt {digest} ({stage.ctr.namespace}): its bytes have the digest sha256:")
    assert words.endswith("\n1 found, 0 mended, 1 left\n")
    status, words = fsck("--json", "--repair")
    assert (status, json.loads(words)["kind"]) == (1, "blob-corrupt")
    orphan = stage.blob(f"sha256:{secrets.token_hex(32)}")
    orphan.write_bytes(b"nobody's")
    stage.bring()
    status, words = fsck("--repair")
    assert (status, words.splitlines()[-1]) == (0, "1 found, 1 mended, 0 left")
    assert fsck("--quick", "--deep")[0] == 2
    assert fsck(ctr=Ctr(stage.ctr.path, "/nowhere.sock"))[0] == 2
