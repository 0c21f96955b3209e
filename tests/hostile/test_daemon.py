"""The corpus against a running daemon, through its doors: an error each, no crash, nothing outside, little memory.

What must hold after every test here stands in `daemon`'s fixture: the process is the same, no handler failed by
something that nobody meant, its memory has never been above 300 MB, and no file is where none belongs.

Not bounded is what whole messages of 16 MB take while many are sent at once over grpcio's door: it offers no limit.
"""

import contextlib
import hashlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest

import orlop
from orlop.base.errdefs import AlreadyExistsError, InvalidArgumentError, OrlopError
from orlop.oci import media_types
from orlop.oci.digest import Digest
from orlop.oci.image import Descriptor
from orlop.ttrpc.client import Client as Ttrpc
from tests.hostile import doors, generators
from tests.hostile.generators import corpus
from tools.daemons import Orlopd

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

MESSAGES_EACH = 8
KEPT = {"containerd.io/gc.root": "1"}
COUNTS = {"ttrpc": 150, "http2": 150, "archive": 120}


@pytest.fixture(scope="module", params=["grpcio", "lean"])
def shared(request: pytest.FixtureRequest, short_directory: Path) -> Iterator[Orlopd]:
    neighbour = short_directory / "hostile-neighbour"
    neighbour.mkdir(exist_ok=True)
    (neighbour / "secret").write_text("secret")
    with Orlopd(short_directory / "hostile", config=f'[grpc]\ndoor = "{request.param}"\n') as running:
        with grpc.insecure_channel(f"unix:{running.address}") as channel:
            grpc.channel_ready_future(channel).result(20)  # grpcio keeps some descriptors from its first use on
        yield running
    assert (neighbour / "secret").read_text() == "secret"
    assert os.listdir(neighbour) == ["secret"]


@pytest.fixture
def daemon(shared: Orlopd) -> Iterator[Orlopd]:
    with doors.unharmed(shared):
        yield shared


def test_messages_of_every_method_over_ttrpc(daemon: Orlopd) -> None:
    count = 0
    for method in doors.methods():
        with Ttrpc.connect(f"{daemon.address}.ttrpc", timeout_s=20) as client:
            for request in doors.requests(method, MESSAGES_EACH):
                doors.call_ttrpc(client, method, request)
                count += 1
    assert count > 500


def test_messages_of_every_method_over_grpc(daemon: Orlopd) -> None:
    with grpc.insecure_channel(f"unix:{daemon.address}") as channel:
        for method in doors.methods():
            for request in doors.requests(method, MESSAGES_EACH):
                doors.call_grpc(channel, method, request)


@pytest.mark.parametrize(("kind", "suffix"), [("ttrpc", ".ttrpc"), ("http2", "")])
def test_frames(daemon: Orlopd, kind: str, suffix: str) -> None:
    for blob in corpus(kind, COUNTS[kind]):
        doors.send(f"{daemon.address}{suffix}", blob)


@pytest.mark.parametrize("suffix", [".ttrpc", ""])
def test_many_connections_that_say_half_of_something(daemon: Orlopd, suffix: str) -> None:
    beginnings = {".ttrpc": b"\0\0\1\0\0\0\0\1\1\0half", "": generators.PREFACE[:20]}
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            peer = stack.enter_context(socket.socket(socket.AF_UNIX))
            peer.connect(f"{daemon.address}{suffix}")
            peer.sendall(beginnings[suffix])
        with orlop.Client(str(daemon.address), "default", timeout_s=30) as client:
            client.namespaces.list()


def test_a_flood_of_answers_that_nobody_reads(daemon: Orlopd) -> None:
    """A peer that asks and asks and never reads must not fill the daemon with answers."""
    from orlop.ttrpc import wire

    request = wire.encode_request("containerd.services.version.v1.Version", "Version", b"")
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(f"{daemon.address}.ttrpc")
        peer.setblocking(False)
        sent = 0
        with contextlib.suppress(OSError):
            for stream in range(1, 2_000_000, 2):
                frame = wire.frame(stream, wire.REQUEST, 0, request)
                if peer.send(frame) < len(frame):
                    break
                sent += 1
        assert sent > 0
        with orlop.Client(str(daemon.address), "default", timeout_s=30) as client:
            client.version()


def test_archives_through_apply(daemon: Orlopd) -> None:
    outcomes = []
    with orlop.Client(str(daemon.address), "hostile", timeout_s=60) as client:
        snapshots = client.snapshots("overlayfs")
        snapshots.prepare("below", labels=KEPT)
        snapshots.commit("base", "below", labels=KEPT)
        for number, blob in enumerate(corpus("archive", COUNTS["archive"])):
            layer = Descriptor(media_type=media_types.OCI_LAYER, digest=Digest.of(blob), size=len(blob))
            with contextlib.suppress(AlreadyExistsError):
                client.content.write(f"layer{number}", blob, expected=layer.digest, labels=KEPT)
            mounts = snapshots.prepare(f"k{number}", "base" if number % 2 else "", labels=KEPT)
            try:
                client.diff.apply(layer, mounts)
                outcomes.append(0)
            except OrlopError as error:
                outcomes.append(error.code)
            snapshots.remove(f"k{number}")
            client.content.delete(layer.digest)
        snapshots.remove("base")
    assert outcomes.count(InvalidArgumentError.code) > len(outcomes) // 2
    assert set(outcomes) <= {0, 3, 8}, outcomes


def test_documents_as_images(daemon: Orlopd) -> None:
    """Hostile manifests and indexes in the store, named by images; the collector and clients walk over them."""
    with orlop.Client(str(daemon.address), "hostile", timeout_s=60) as client:
        for number in range(60):
            kind = ("manifest", "index", "config")[number % 3]
            blob = next(corpus(kind, 1, start=1_000_000 + number))
            if not blob:
                continue
            digest = Digest.of(blob)
            with contextlib.suppress(AlreadyExistsError):
                client.content.write(f"doc{number}", blob, expected=digest)
            media_type = media_types.OCI_INDEX if kind == "index" else media_types.OCI_MANIFEST
            target = Descriptor(media_type=media_type, digest=digest, size=len(blob))
            image = client.images.create(f"example.org/hostile:{number}", target)
            for look in (image.check, image.config, image.platforms, image.unpack, image.size):
                with contextlib.suppress(OrlopError):
                    look()
            image.delete(synchronous=number % 10 == 0)
        with contextlib.suppress(OrlopError):
            for info in list(client.content.walk()):
                client.content.delete(info.digest)


def test_filters_are_cheap_whatever_they_ask(daemon: Orlopd) -> None:
    """An expression that would remember a set of states for each character; once it took seconds and 60 MB."""
    label = "".join(Random(1).choice("ab") for _ in range(4000))
    with orlop.Client(str(daemon.address), "hostile", timeout_s=30) as client:
        client.namespaces.list()
        client.leases.create("labelled", labels={"x": label})
        for number in range(12):
            client.leases.list([f"labels.x~=/(a|b)*a(a|b){{150}}{number}c/"])
        client.leases.delete("labelled")


def test_specs_and_labels_as_containers(daemon: Orlopd) -> None:
    from orlop.api.services.containers.v1 import containers_pb2 as pb
    from orlop.api.services.tasks.v1 import tasks_pb2 as tasks
    from orlop.client.channel import Rpc

    service = "containerd.services.containers.v1.Containers"
    create = Rpc(service, "Create", pb.CreateContainerRequest, pb.CreateContainerResponse)
    delete = Rpc(service, "Delete", pb.DeleteContainerRequest, pb.DeleteContainerRequest)
    start = Rpc("containerd.services.tasks.v1.Tasks", "Create", tasks.CreateTaskRequest, tasks.CreateTaskResponse)
    outcomes = []
    with orlop.Client(str(daemon.address), "hostile", timeout_s=60) as client:
        for number, blob in enumerate(corpus("spec", 40)):
            container = pb.Container(
                id=f"c{number}", labels={"containerd.io/restart.status": "running"} if number % 4 == 0 else {}
            )
            container.runtime.name = "io.containerd.runc.v2"
            container.spec.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
            container.spec.value = blob
            client.call(create, pb.CreateContainerRequest(container=container))
            try:
                client.call(start, tasks.CreateTaskRequest(container_id=container.id))
                outcomes.append(0)
                client.task(container.id).delete(force=True)
            except OrlopError as error:
                outcomes.append(error.code)
            client.call(delete, pb.DeleteContainerRequest(id=container.id))
    assert 0 not in outcomes  # there is no root file system
    assert 13 not in outcomes, outcomes


def test_the_corpus_is_large_and_distinct() -> None:
    from tests.hostile import test_parsers, test_registries

    marks: set[bytes] = set()
    for counts in (test_parsers.COUNTS, {"ttrpc": COUNTS["ttrpc"], "http2": COUNTS["http2"]}):
        for kind, count in counts.items():
            marks |= {kind.encode() + hashlib.sha256(blob).digest() for blob in corpus(kind, count)}
    for method in doors.methods():
        marks |= {method.full_name.encode() + request for request in doors.requests(method, MESSAGES_EACH)}
    assert len(marks) + test_registries.COUNT >= 5000


def test_sessions_of_content_writing(daemon: Orlopd) -> None:
    """Any order of any messages: each is answered or refused, and never by an error that nobody meant."""
    from orlop.api.services.content.v1 import content_pb2 as pb

    name = "/containerd.services.content.v1.Content/Write"
    codes = set()
    with grpc.insecure_channel(f"unix:{daemon.address}") as channel:
        write: Any = channel.stream_stream(
            name, pb.WriteContentRequest.SerializeToString, pb.WriteContentResponse.FromString
        )
        for seed in range(200):
            rng = Random(f"write {seed}")
            messages = [write_request(rng) for _ in range(rng.randrange(1, 6))]
            try:
                for _ in write(iter(messages), metadata=list(doors.METADATA.items()), timeout=10):
                    pass
            except grpc.RpcError as error:
                codes.add(error.code())
        with orlop.Client(str(daemon.address), "hostile", timeout_s=30) as client:
            for status in client.content.ingests():
                client.content.abort(status.ref)
            assert client.content.ingests() == []
    assert not codes & {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert len(codes) > 2


def write_request(rng: Random) -> Any:
    from orlop.api.services.content.v1 import content_pb2 as pb

    data = rng.choice([b"", b"x", b"hello", bytes(100_000)])
    return pb.WriteContentRequest(
        action=rng.choice([pb.STAT, pb.WRITE, pb.WRITE, pb.COMMIT]),
        ref=rng.choice(["", "a", "a", "b", "../x", "r" * 5000, "n\0"]),
        total=rng.choice([0, 0, 5, -1, 1 << 62, 100_000]),
        expected=rng.choice(["", "", str(Digest.of(b"hello")), "sha256:x", "../../x", "sha512:" + "0" * 128]),
        offset=rng.choice([0, 0, 1, 5, -1, 1 << 62]),
        data=data,
        labels={"k": "v" * rng.choice([1, 5000])} if rng.random() < 0.2 else {},
    )


def test_large_messages_that_nobody_ends(daemon: Orlopd) -> None:
    """A hundred peers that send four megabytes but the last byte: what they hold together is bounded."""
    size = (4 << 20) - 100
    beginning = struct.pack(">IIBB", size, 1, 1, 0) + bytes(size - 1)
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            peer = stack.enter_context(socket.socket(socket.AF_UNIX))
            peer.connect(f"{daemon.address}.ttrpc")
            peer.setblocking(False)
            with contextlib.suppress(OSError):
                sent = 0
                while sent < len(beginning):  # until the daemon reads no further
                    sent += peer.send(beginning[sent : sent + (1 << 16)])
        with orlop.Client(str(daemon.address), "hostile", timeout_s=30) as client:
            client.namespaces.list()
