"""A daemon whose bytes lie in another's content store: `[proxy_plugins]` of type `content`.

Beside real containerd where it can do the same: its proxy sends no namespace, so what is there must want none, and
neither daemon serves such a store. `bare` does.
"""

import asyncio
import contextlib
import functools
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

import orlop
from orlop.api.services.content.v1 import content_pb2 as api
from orlop.base.errdefs import AlreadyExistsError, DataLossError, OrlopError, UnavailableError
from orlop.base.labels import GC_ROOT
from orlop.plugins.proxy.channel import Connection, ServiceChannel
from tools.daemons import COLLECT_ON_REQUEST, Containerd, Ctr, Engine, Orlopd, Registry
from tools.images import Image

T = TypeVar("T")

pytestmark = [pytest.mark.root, pytest.mark.interop]

OFF = 'disabled_plugins = ["io.containerd.content.v1.content"]\n'


def proxied(address: object, more: str = "") -> str:
    return f'{OFF}{more}\n[proxy_plugins.far]\ntype = "content"\naddress = "{address}"\n'


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def client(daemon: Engine, namespace: str, *, timeout_s: float = 60) -> orlop.Client:
    return orlop.Client(str(daemon.address), namespace, timeout_s=timeout_s)


class There:
    """What lies in the other daemon, in the namespace that is ours there. Either daemon may have been restarted."""

    def __init__(self, daemon: Orlopd, far: Engine) -> None:
        with client(daemon, "default") as here:
            [plugin] = here.introspection.plugins(["type==io.containerd.content.v1,id==far"])
        assert not plugin.error
        assert plugin.exports["address"] == str(far.address)
        self.namespace = plugin.exports["namespace"]
        self.far = far

    def client(self) -> orlop.Client:
        return client(self.far, self.namespace)

    def digests(self) -> set[str]:
        with self.client() as one:
            return digests(one)

    def has_only(self, digest: str) -> bool:
        return self.digests() == {digest}

    def is_empty(self) -> bool:
        with self.client() as one:
            return not digests(one) and not one.content.ingests()


def digests(one: orlop.Client) -> set[str]:
    return {info.digest for info in one.content.walk()}


def import_(one: orlop.Client, image: Image) -> orlop.Image:
    with open(image.archive, "rb") as archive:
        [found] = one.import_(archive)
    return found


def remove_all(one: orlop.Client) -> None:
    for image in one.images.list():
        image.delete(synchronous=True)
    assert not digests(one)


@pytest.fixture(params=["orlopd", "containerd"])
def far(request: pytest.FixtureRequest, orlopd: Orlopd, containerd: Containerd) -> Engine:
    return orlopd if request.param == "orlopd" else containerd


def test_an_image_s_whole_life(
    far: Engine, new_orlopd: Callable[..., Orlopd], busybox_image: Image, registry: Registry, namespace: str
) -> None:
    daemon = new_orlopd(config=proxied(far.address))
    name = f"{registry.host}/{namespace}:1"
    plain = orlop.RegistryOptions(plain_http=True)
    there = There(daemon, far)
    with client(daemon, namespace) as here:
        imported = import_(here, busybox_image)
        until(lambda: there.digests() == digests(here))
        with there.client() as other:
            assert all(GC_ROOT in info.labels for info in other.content.walk())
        assert not (daemon.root / "content").exists()
        here.push(name, imported, registry=plain)
        before = digests(here)
        remove_all(here)
        until(lambda: not there.digests())
        pulled = here.pull(name, registry=plain)
        pulled.unpack()
        assert digests(here) <= before  # and what an archive has around an image is collected
        until(lambda: there.digests() == digests(here))
        output = orlop.Capture()
        options = orlop.SpecOptions(args=("echo", "hello"))
        with here.new_container("far", pulled, options) as container, container.new_task(output) as task:
            task.start()
            assert task.wait().code == 0
        assert bytes(output.stdout) == b"hello\n"
        exported = io.BytesIO()
        here.export(exported, [name])
        exported.seek(0)
        with tarfile.open(fileobj=exported) as tar:
            names = {f"sha256:{os.path.basename(one)}" for one in tar.getnames() if "sha256/" in one}
        assert names >= {found.target.digest for found in here.images.list()}
        remove_all(here)
        until(lambda: not there.digests())
        assert there.is_empty()
        assert not list(here.snapshots().walk())


@pytest.mark.parametrize("policy", ["shared", "isolated"])
def test_namespaces_share_bytes_by_rows_only(
    far: Engine, new_orlopd: Callable[..., Orlopd], namespace: str, policy: str
) -> None:
    more = f'[plugins."io.containerd.metadata.v1.bolt"]\ncontent_sharing_policy = "{policy}"\n'
    daemon = new_orlopd(config=proxied(far.address, more))
    data = os.urandom(100_000)
    there = There(daemon, far)
    with client(daemon, f"{namespace}-a") as a, client(daemon, f"{namespace}-b") as b:
        digest = a.content.write("r", data, labels={GC_ROOT: "x"})
        assert not digests(b)
        with b.content.writer("r", size=len(data), expected=digest) as writer:
            assert writer.offset == (len(data) if policy == "shared" else 0)
            writer.write(data[writer.offset :])
            writer.commit(labels={GC_ROOT: "x"})
        assert len(there.digests()) == 1
        a.content.delete(digest)
        assert b.content.read(digest) == data
        b.content.delete(digest)
        until(lambda: not there.digests())


def test_what_others_have_there_is_theirs(far: Engine, new_orlopd: Callable[..., Orlopd], namespace: str) -> None:
    """Our sweep and our deletions touch what lies in our namespace there, and nothing else."""
    data = os.urandom(1000)
    with client(far, namespace) as theirs:
        digest = theirs.content.write("theirs", data, labels={GC_ROOT: "x"})
        daemon = new_orlopd(config=proxied(far.address))
        there = There(daemon, far)
        with there.client() as other:
            orphan = other.content.write("orphan", b"orphan", labels={GC_ROOT: "x"})
        with client(daemon, namespace) as here:
            assert here.content.write("ours", data, labels={GC_ROOT: "x"}) == digest
        daemon.kill()
        daemon.start()  # which sweeps
        until(lambda: orphan not in there.digests())
        assert there.digests() == {digest}
        with client(daemon, namespace) as here:
            here.content.delete(digest)
        until(there.is_empty)
        assert theirs.content.read(digest) == data
        theirs.content.delete(digest)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, 10)], ids=["gone", "cut"])
def test_what_the_other_daemon_has_lost_is_taken_again(
    far: Engine, new_orlopd: Callable[..., Orlopd], namespace: str, damage: Callable[[Path], None]
) -> None:
    data = os.urandom(100_000)
    daemon = new_orlopd(config=proxied(far.address))
    there = There(daemon, far)
    with client(daemon, namespace) as here:
        digest = here.content.write("kept", data, labels={GC_ROOT: "x"})
        [path] = far.root.glob(f"**/blobs/sha256/{digest.removeprefix('sha256:')}")
        damage(path)
        with here.content.writer("again", size=len(data), expected=digest) as writer:
            assert writer.offset == 0
            writer.write(data)
            with there.client() as other:  # containerd's collector removes the file that was cut
                other.leases.delete(other.leases.create().id, synchronous=True)
            with pytest.raises(AlreadyExistsError):
                writer.commit()
        assert here.content.read(digest) == data
        damage(path)
        with pytest.raises(DataLossError, match=f"content {digest}: "):
            here.content.read(digest)
        here.content.delete(digest)
        until(there.is_empty)


@pytest.mark.parametrize("which", ["new_orlopd", "new_containerd"])
def test_the_other_daemon_is_killed_in_the_middle(
    request: pytest.FixtureRequest,
    new_orlopd: Callable[..., Orlopd],
    busybox_image: Image,
    namespace: str,
    which: str,
) -> None:
    data = os.urandom(3 << 20)
    far: Engine = request.getfixturevalue(which)()
    daemon = new_orlopd(config=proxied(far.address))
    there = There(daemon, far)
    with client(daemon, namespace) as here:
        kept = here.content.write("kept", data[:1000], labels={GC_ROOT: "x"})
        with here.content.writer("r", size=len(data)) as writer:
            writer.write(data[: 1 << 20])
            far.kill()
            with pytest.raises(UnavailableError, match=f"proxy plug-in far at {far.address}: Write: "):
                writer.write(data[1 << 20 :])
        for call in (
            lambda: here.content.read(kept),
            lambda: here.content.write("more", b"more"),
            lambda: here.content.status("r"),
        ):
            with pytest.raises(UnavailableError, match=f"proxy plug-in far at {far.address}: "):
                call()
        # Rows are here: they are seen, and go, while nobody answers there.
        assert here.content.info(kept).size_bytes == 1000
        assert digests(here) == {kept}
        here.content.delete(kept)
        far.start()
        with patiently(lambda: here.content.writer("r", size=len(data))) as writer:
            writer.write(data[writer.offset :])
            digest = writer.commit(labels={GC_ROOT: "x"})
        assert b"".join(here.content.chunks(digest)) == data
        until(lambda: there.digests() == {digest})
        far.kill()
        far.start()
        patiently(lambda: import_(here, busybox_image)).unpack()
        here.content.delete(digest)
        remove_all(here)
        until(there.is_empty)


@pytest.mark.usefixtures("grpcio")
def test_a_message_that_cannot_be_sent_means_that_nobody_is_there(new_orlopd: Callable[..., Orlopd]) -> None:
    """grpcio calls it INTERNAL if it is sent before it has been heard that the other side has gone."""
    far = new_orlopd()
    connection = Connection(api.DESCRIPTOR.services_by_name["Content"], "far", str(far.address))

    async def main() -> None:
        async with ServiceChannel(connection, namespace="default").duplex("Write") as talk:
            await talk.ask(api.WriteContentRequest(action=api.WRITE, ref="r", data=b"first"))
            far.kill()  # the event loop hears nothing of it
            await talk.ask(api.WriteContentRequest(action=api.WRITE, offset=5, data=bytes(2 << 20)))

    async def close() -> None:
        try:
            with pytest.raises(UnavailableError, match=f"proxy plug-in far at {far.address}: Write: "):
                await main()
        finally:
            await connection.close()

    asyncio.run(close())


def patiently(work: Callable[[], T]) -> T:
    """Do it, once there is nobody any more who has not noticed that the other side is there again."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return work()
        except UnavailableError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_blob_that_goes_away_while_it_is_unpacked_is_the_reason(
    new_orlopd: Callable[..., Orlopd], busybox_image: Image, namespace: str
) -> None:
    far = new_orlopd()
    daemon = new_orlopd(config=proxied(far.address))
    with client(daemon, namespace) as here:
        image = import_(here, busybox_image)
        far.kill()
        with pytest.raises(UnavailableError, match="proxy plug-in far at"):
            image.unpack()
        far.start()
        patiently(image.unpack)
        remove_all(here)


def test_one_that_is_stuck_holds_up_who_needs_it_and_nobody_else(
    new_orlopd: Callable[..., Orlopd], namespace: str
) -> None:
    far = new_orlopd()
    daemon = new_orlopd(config=proxied(far.address))
    with client(daemon, namespace) as here:
        digest = here.content.write("kept", b"kept", labels={GC_ROOT: "x"})
    os.kill(far.pid, signal.SIGSTOP)
    try:
        failures: list[OrlopError] = []

        def read() -> None:
            with client(daemon, namespace) as waiting:
                try:
                    waiting.content.read(digest)
                except OrlopError as error:
                    failures.append(error)

        reading = threading.Thread(target=read)
        reading.start()
        with client(daemon, namespace) as here:
            assert digests(here) == {digest}
            here.images.list()
            here.content.delete(digest)  # whose bytes go when they can
            assert not digests(here)
            assert not failures
        assert daemon.stop() == 0
        reading.join()
        assert isinstance(failures[0], UnavailableError)
    finally:
        os.kill(far.pid, signal.SIGCONT)
    daemon.start()
    until(There(daemon, far).is_empty)


def test_our_daemon_is_killed_at_any_time(
    containerd: Containerd, new_orlopd: Callable[..., Orlopd], busybox_image: Image
) -> None:
    """Imports and deletions, and SIGKILL somewhere in them: bytes without rows are swept, rows have their bytes."""
    far = containerd
    daemon = new_orlopd(config=proxied(far.address))
    dice = random.Random(7)
    there = There(daemon, far)
    for turn in range(4):
        namespace = "ab"[turn % 2]

        def work(namespace: str = namespace) -> None:
            with contextlib.suppress(OrlopError), client(daemon, namespace, timeout_s=20) as here:
                import_(here, busybox_image)
                for image in here.images.list():
                    image.delete(synchronous=True)
                import_(here, busybox_image)

        working = threading.Thread(target=work)
        working.start()
        time.sleep(dice.uniform(0.02, 0.4))  # no race is waited for: any moment will do
        daemon.kill()
        working.join()
        daemon.start()
    with client(daemon, "a") as a, client(daemon, "b") as b:
        for here in (a, b):
            import_(here, busybox_image).unpack()
        for here in (a, b):
            for info in here.content.walk():
                assert len(b"".join(here.content.chunks(info.digest))) == info.size_bytes
            for ingest in here.content.ingests():
                with contextlib.suppress(OrlopError):
                    here.content.abort(ingest.ref)
            for lease in here.leases.list():
                here.leases.delete(lease.id)
            here.leases.delete(here.leases.create("sweep").id, synchronous=True)
        until(lambda: there.digests() == digests(a) | digests(b))
        for here in (a, b):
            remove_all(here)
        until(there.is_empty)


class Points:
    """Fail points of a daemon; see `orlop.base.failpoints`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(mode=0o700)

    def arm(self, name: str, action: str) -> None:
        self.disarm()
        (self.directory / "new").write_text(f"{name} {action}")
        (self.directory / "new").rename(self.directory / "armed")

    def disarm(self) -> None:
        for name in ("armed", "turns", "done", "passed"):
            (self.directory / name).unlink(missing_ok=True)

    def struck(self) -> bool:
        return (self.directory / "done").exists()


WRITING = ("content.ingest.written", "content.commit.renamed", "metadata.batch.committed", "content.commit.recorded")
DELETING = ("metadata.batch.applied", "trash.take.renamed", "metadata.batch.committed")


def write(daemon: Orlopd, namespace: str, data: bytes) -> str:
    with client(daemon, namespace) as here:
        return here.content.write("r", data, labels={GC_ROOT: "x"})


def failing(failures: list[OrlopError], daemon: Orlopd, namespace: str, data: bytes) -> None:
    try:
        write(daemon, namespace, data)
    except OrlopError as error:
        failures.append(error)


def read(daemon: Orlopd, namespace: str, digest: str) -> bytes:
    with client(daemon, namespace) as here:
        return b"".join(here.content.chunks(digest))


@pytest.mark.parametrize("dies", ["here", "there"])
def test_one_of_both_dies_at_each_step_of_a_write_there(
    new_orlopd: Callable[..., Orlopd], short_directory: Path, namespace: str, dies: str
) -> None:
    """The other side stands still at a step; then it is killed, or we are. Whoever writes again gets there."""
    points = Points(short_directory / f"points-{dies}")
    far = new_orlopd(env={"ORLOP_FAILPOINTS": str(points.directory)})
    daemon = new_orlopd(config=proxied(far.address))
    there = There(daemon, far)
    for at, point in enumerate(WRITING):
        data = b"%d " % at * 50_000
        points.arm(point, "hold")
        failures: list[OrlopError] = []
        thread = threading.Thread(target=failing, args=(failures, daemon, namespace, data))
        thread.start()
        until(points.struck)
        (far if dies == "there" else daemon).kill()
        points.disarm()
        (far if dies == "there" else daemon).start()
        thread.join()
        assert len(failures) == 1, point
        assert isinstance(failures[0], UnavailableError), point
        digest = patiently(functools.partial(write, daemon, namespace, data))
        assert read(daemon, namespace, digest) == data
        with client(daemon, namespace) as here:
            assert not here.content.ingests()
            here.content.delete(digest)
        until(there.is_empty)


@pytest.mark.parametrize("dies", ["here", "there"])
def test_one_of_both_dies_at_each_step_of_a_deletion_there(
    new_orlopd: Callable[..., Orlopd], short_directory: Path, namespace: str, dies: str
) -> None:
    """It is not known what became of the deletion; whoever writes the same bytes afterwards has them."""
    points = Points(short_directory / f"undone-{dies}")
    far = new_orlopd(env={"ORLOP_FAILPOINTS": str(points.directory)}, config=COLLECT_ON_REQUEST)
    daemon = new_orlopd(config=proxied(far.address))
    there = There(daemon, far)
    data = b"bytes" * 1000
    for point in DELETING:
        digest = patiently(lambda: write(daemon, namespace, data))
        points.arm(point, "hold")
        with client(daemon, namespace) as here:
            here.content.delete(digest)
        until(points.struck)
        if dies == "here":
            daemon.kill()
            daemon.start()
        else:
            far.kill()
        points.disarm()
        if dies == "there":
            far.start()
        patiently(lambda: write(daemon, f"{namespace}-other", data))
        with client(daemon, f"{namespace}-other") as other:
            # Another deletion and its answer: what was asked for before has been done, if it is.
            other.content.delete(write(daemon, f"{namespace}-other", b"more"))
            until(functools.partial(there.has_only, digest))
            assert read(daemon, f"{namespace}-other", digest) == data
            other.content.delete(digest)
        until(there.is_empty)


def test_two_stores_at_once_are_refused_as_containerd_does(new_orlopd: Callable[..., Orlopd], orlopd: Orlopd) -> None:
    """containerd's metadata plug-in takes the single one (GetSingle, since 2.0; before, any)."""
    daemon = new_orlopd(config=proxied(orlopd.address).replace(OFF, ""))
    with client(daemon, "default") as here:
        plugins = {(one.type, one.id): str(one.error or "") for one in here.introspection.plugins()}
        assert not plugins["io.containerd.content.v1", "far"]
        assert (
            "multiple plugins registered for io.containerd.content.v1: content, far"
            in (plugins["io.containerd.grpc.v1", "content"])
        )


# -- beside containerd, over a store that knows no namespaces ----------------------------------------------------------

BARE = """
import asyncio, sys
from pathlib import Path
from orlop.api.services.content.v1 import content_pb2 as api
from orlop.base.rpc import NAMESPACE_HEADER, Service, bind
from orlop.core.metadata import Database
from orlop.core.metadata.trash import Trash
from orlop.plugins.content.local import LocalStore
from orlop.plugins.services.content import Content
from orlop.server.doors.lean import LeanDoor
import dataclasses

def bare(service):
    def within(handler):
        def handle(call, request):
            return handler(dataclasses.replace(call, metadata={NAMESPACE_HEADER: "bare"}), request)
        return handle
    methods = {name: dataclasses.replace(one, handler=within(one.handler)) for name, one in service.methods.items()}
    return dataclasses.replace(service, methods=methods)

async def main(root):
    root.mkdir()
    with Database(root / "meta.db") as db, Trash(root, db) as trash:
        store = LocalStore(root / "content", db, trash)
        service = bare(bind(api.DESCRIPTOR.services_by_name["Content"], Content(store)))
        async with LeanDoor(root / "sock", [service], uid=0, gid=0, max_receive=16 << 20, max_send=16 << 20):
            print("ready", flush=True)
            await asyncio.Event().wait()

asyncio.run(main(Path(sys.argv[1])))
"""


@contextlib.contextmanager
def bare(root: Path) -> Iterator[Path]:
    """The address of a content store without namespaces."""
    with subprocess.Popen([sys.executable, "-c", BARE, root], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield root / "sock"
        finally:
            process.kill()


def test_an_image_s_life_over_a_bare_store_is_as_in_containerd(
    short_directory: Path,
    new_orlopd: Callable[..., Orlopd],
    new_containerd: Callable[..., Containerd],
    go_ctr: Callable[..., Ctr],
    busybox_image: Image,
    tmp_path: Path,
) -> None:
    seen = []
    for which in ("orlopd", "containerd"):
        with bare(short_directory / f"bare-{which}") as address:
            daemon: Engine
            if which == "orlopd":
                daemon = new_orlopd(config=proxied(address, COLLECT_ON_REQUEST))
            else:
                more = proxied(address, COLLECT_ON_REQUEST).removeprefix(OFF)
                daemon = new_containerd(config=more, off=["io.containerd.content.v1.content"])
            seen.append(_life(go_ctr(daemon, f"life-{which}"), address, busybox_image, tmp_path / which))
    assert seen[0] == seen[1]


def _life(ctr: Ctr, address: Path, image: Image, archive: Path) -> list[object]:
    there = _Bare(address)
    return [
        ctr("images", "import", "--no-unpack", str(image.archive)),
        ctr("images", "ls", "-q"),
        sorted(line.split()[0] for line in ctr("content", "ls").splitlines()[1:]),
        there.digests(),
        ctr("images", "export", str(archive), image.reference),
        _names(archive),
        ctr("images", "rm", "--sync", image.reference),
        ctr("content", "ls", "-q"),
        there.settled(),
    ]


def _names(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return sorted(tar.getnames())


class _Bare:
    def __init__(self, address: Path) -> None:
        self.address = address

    def digests(self) -> list[str]:
        with orlop.Client(str(self.address), "any", transport="grpc", timeout_s=60) as client:
            return sorted(info.digest for info in client.content.walk())

    def settled(self) -> list[str]:
        until(lambda: not self.digests())
        return self.digests()
