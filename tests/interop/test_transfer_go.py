"""Debian 13's ctr (containerd 1.7), a Go client of the transfer service, on orlopd and on its own containerd.

Its containerd reaches plain registries by no flag of the transfer service, so pulls and pushes are ours alone; imports
and tags are compared, with all that they leave.
"""

import asyncio
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed

from orlop import aio
from orlop.api.services.streaming.v1 import streaming_pb2 as streaming_api
from orlop.api.services.transfer.v1 import transfer_pb2 as api
from orlop.api.types.transfer import imagestore_pb2, importexport_pb2, progress_pb2, registry_pb2, streaming_pb2
from orlop.core.streaming.proxy import pack
from orlop.core.transfer.ends import ImageStore, OCIRegistry
from orlop.testing.registry import Registry
from tests.integration.test_transfer import legacy_image, opened, raw
from tools import containerd17 as packages
from tools import daemons
from tools.daemons import Containerd, Ctr
from tools.peers import PeerError

pytestmark = [pytest.mark.root, pytest.mark.interop]


def program(name):
    try:
        return packages.program(name)
    except PeerError as error:
        pytest.skip(str(error))


class Containerd17(Containerd):
    """Debian 13's containerd."""

    def command(self):
        return [packages.program("containerd"), *list(super().command())[1:]]


@pytest.fixture
def containerd17(short_directory: Path) -> Iterator[Containerd]:
    program("containerd")
    with Containerd17(Path(tempfile.mkdtemp(prefix="c17.", dir=short_directory))) as daemon:
        yield daemon


@pytest.fixture
def go17():
    path = program("ctr")
    return lambda daemon, namespace: Ctr(path, daemon.address, namespace)


@pytest.fixture
def ctr(go17, orlopd, namespace):
    bound = go17(orlopd, namespace)
    yield bound
    empty(bound)


def empty(ctr):
    for image in ctr("images", "ls", "-q").split():
        ctr("images", "rm", "--sync", image)
    assert ctr("content", "ls", "-q").split() == []
    assert ctr("leases", "ls", "-q").split() == []
    assert ctr("snapshots", "ls").splitlines()[1:] == []


def test_a_config_of_octets_becomes_what_containerd_makes_of_it(orlopd, containerd, go_ctr, namespace):
    """Debian 12's ctr makes the manifest itself, on containerd; the transfer service makes the same."""

    async def pulled() -> set[str]:
        async with Registry() as remote:
            _manifest, came = legacy_image(remote, "team/old", "1")
            reference = f"{remote.address}/team/old:1"
            ctr = go_ctr(containerd, namespace)
            await asyncio.to_thread(ctr, "images", "pull", "--plain-http", reference)
            async with aio.Client(str(orlopd.address), namespace, timeout_s=60) as client:
                await client.transfer(OCIRegistry(reference=reference), ImageStore(name=reference))
                image = await client.images.get(reference)
                theirs = ctr("images", "ls").splitlines()[1].split()[2]
                await image.delete(synchronous=True)
            ctr("images", "rm", "--sync", reference)
            return {came.digest, theirs, image.target.digest}

    assert len(asyncio.run(pulled())) == 2


def test_a_go_client_pulls_and_pushes(ctr, registry, busybox_image):
    reference = registry.push(busybox_image, "go")
    pull = ("images", "pull", "--local=false", "--plain-http", reference)
    shown = _shown(rf"{re.escape(reference)} *\tsaved", ctr, pull, ("images", "rm", "--sync", reference))
    assert re.search(r"└──manifest \([0-9a-f]{12}\) *\tcomplete", shown)
    assert re.search(r"├──config \([0-9a-f]{12}\) *\tcomplete", shown)
    assert len(set(re.findall(r"layer \(([0-9a-f]{12})\)", shown))) == 3
    assert "complete (4/4)" in ctr("images", "check")
    assert _shown(r".*layer \([0-9a-f]{12}\) *\talready exists", ctr, pull)
    pushed = f"{registry.host}/go-pushed:1"
    push = ("images", "push", "--local=false", "--plain-http", pushed, reference)
    assert _shown(rf"Pushing to OCI Registry \({re.escape(pushed)}\)", ctr, push)
    ctr("images", "pull", "--local=false", "--plain-http", pushed)
    digests = {line.split()[2] for line in ctr("images", "ls").splitlines()[1:]}
    assert len(digests) == 1


def _shown(pattern, ctr, command, undo=None):
    """What a command has shown, once a line of it matches: ctr leaves its progress stream when the transfer is
    answered, whatever it has read by then, so it may take more than one go."""
    deadline = time.monotonic() + 60
    while not re.search(f"^{pattern}", shown := ctr(*command), re.MULTILINE):
        assert time.monotonic() < deadline, shown
        if undo:
            ctr(*undo)
    return shown


def test_a_go_client_is_asked_who_it_is(ctr, secure_registry, busybox_image):
    reference = secure_registry.push(busybox_image, "go-secret")
    refused = ctr.run("images", "pull", "--local=false", "--plain-http", reference)
    assert refused.returncode == 1
    assert "rpc error: code = Unauthenticated" in refused.stderr
    ctr("images", "pull", "--local=false", "--plain-http", "-u", f"{daemons.USER}:{daemons.PASSWORD}", reference)
    assert "complete (4/4)" in ctr("images", "check")


def test_an_index_for_a_go_client(ctr, registry, busybox_multi_image):
    reference = registry.push(busybox_multi_image, "go-multi")
    ctr("images", "pull", "--local=false", "--plain-http", reference)
    one = len(ctr("content", "ls", "-q").split())
    ctr("images", "pull", "--local=false", "--plain-http", "--all-platforms", reference)
    assert len(ctr("content", "ls", "-q").split()) > one


STORE = pack(imagestore_pb2.ImageStore(name="x"))
REGISTRY = pack(registry_pb2.OCIRegistry(reference="127.0.0.1:1/x:1"))
IMPORT = pack(importexport_pb2.ImageImportStream(stream="absent"))
EXPORT = pack(importexport_pb2.ImageExportStream(stream="absent"))
ASKING = registry_pb2.RegistryResolver(auth_stream="absent")
REQUESTS = {
    "absent progress": (STORE, STORE),
    "unknown type": (Packed(type_url="a.b.C"), STORE),
    "no source": (Packed(), STORE),
    "garbled": (Packed(type_url=STORE.type_url, value=b"\xff"), STORE),
    "absent import": (IMPORT, STORE),
    "absent export": (STORE, EXPORT),
    "absent credentials": (pack(registry_pb2.OCIRegistry(reference="127.0.0.1:1/x:1", resolver=ASKING)), STORE),
    "registry to registry": (REGISTRY, REGISTRY),
    "registry to archive": (REGISTRY, EXPORT),
    "archive to registry": (IMPORT, REGISTRY),
    "tag what is not there": (STORE, STORE),
    "tag nothing": (pack(imagestore_pb2.ImageStore()), STORE),
    "push what is not there": (STORE, REGISTRY),
    "another message": (pack(progress_pb2.Progress(event="x")), STORE),
}
FIRST = {
    "nothing": None,
    "another message": pack(streaming_pb2.Data(data=b"x")),
    "garbled": Packed(type_url=pack(streaming_api.StreamInit()).type_url, value=b"\xff"),
    "a name that is taken": pack(streaming_api.StreamInit(id="taken")),
}


def test_answers_are_the_same(orlopd, containerd17, namespace):
    """Codes and texts; where a stream is not there, we say which."""
    answers = [asyncio.run(_answers(daemon, namespace)) for daemon in (containerd17, orlopd)]
    theirs, ours = ({name: (code, text) for name, code, text in found} for found in answers)
    for name, (code, said) in theirs.items():
        text = said.replace("\xa0", " ")  # Go varies the blank, so that nobody relies on the text
        if (code, text) == ("NOT_FOUND", "not found"):
            assert ours[name] == ("NOT_FOUND", "stream absent: not found"), name
        else:
            assert ours[name] == (code, text), name


async def _answers(daemon, namespace):
    found = []
    async with asyncio.timeout(60), raw(daemon, namespace) as (stream, transfer):
        holder = await opened(stream(), "taken")
        for name, first in FIRST.items():
            begun = stream()
            if first is None:
                await begun.done_writing()
            else:
                await begun.write(first)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await begun.read()
            found.append((f"stream: {name}", caught.value.code().name, caught.value.details()))
        for name, (source, destination) in REQUESTS.items():
            options = api.TransferOptions(progress_stream="absent" if name == "absent progress" else "")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await transfer(api.TransferRequest(source=source, destination=destination, options=options))
            found.append((name, caught.value.code().name, caught.value.details()))
        holder.cancel()
    return found


STEPS = (
    ("images", "import", "--local=false", "{archive}"),
    ("images", "import", "--local=false", "--digests", "--base-name", "foo/bar", "{archive}"),
    ("images", "import", "--local=false", "--index-name", "the/index:1", "{archive}"),
    ("images", "import", "--local=false", "--base-name", "orlop.test/busybox", "{archive}"),
    ("images", "tag", "--local=false", "orlop.test/busybox:latest", "new/x:1", "new/y:1"),
    ("images", "tag", "--local=false", "orlop.test/busybox:latest", "new/x:1"),
    ("images", "tag", "--local=false", "nope", "new/x:1"),
    ("images", "pull", "--local=false", "not//a/reference"),
    ("images", "pull", "--local=false", "127.0.0.1:1/none:1"),
)


def test_imports_and_tags_are_the_same(go17, orlopd, containerd17, namespace, busybox_image):
    clients = [go17(containerd17, namespace), go17(orlopd, namespace)]
    for step in STEPS:
        words = [word.format(archive=busybox_image.archive) for word in step]
        theirs, ours = (ctr.run(*words) for ctr in clients)
        assert theirs.returncode == ours.returncode, step
        if step[1] != "pull":  # our errors name phase and reason in our own words
            assert theirs.stderr == ours.stderr, step
        # Which lines ctr shows is not compared: it stops reading its progress when the transfer is answered.
        for ctr, done in zip(clients, (theirs, ours), strict=True):
            saved = re.findall(r"^(\S+) *\tsaved", done.stdout, re.MULTILINE)
            names = ctr("images", "ls", "-q").split()
            assert all(any(name.startswith(one) for name in names) for one in saved), step  # it cuts long ones
        listed = [re.sub(r"\s+", " ", ctr("images", "ls")) for ctr in clients]
        assert listed[0] == listed[1], step
        kept = [_kept(ctr) for ctr in clients]
        assert kept[0] == kept[1], step
        assert [ctr("leases", "ls", "-q") for ctr in clients] == ["", ""]
    for ctr in clients:
        empty(ctr)


def _kept(ctr):
    """Digests, sizes and labels of all content that something keeps."""
    ctr("leases", "create", "--id", "sweep")
    ctr("leases", "delete", "--sync", "sweep")
    lines = [re.split("\t+", line) for line in ctr("content", "ls").splitlines()[1:]]
    return sorted((digest, size, sorted(labels.split(","))) for digest, size, _age, labels in lines)
