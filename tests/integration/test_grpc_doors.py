"""Both gRPC doors of a whole daemon under clients that are not ours: grpc-go in Debian's ctr, and grpcio."""

import contextlib
import hashlib
import itertools
import os
import select
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest

from orlop.api.services.content.v1 import content_pb2
from orlop.api.services.version.v1 import version_pb2
from orlop.core.version import VERSION

pytestmark = pytest.mark.root

# Any: the stubs want to be told what the serializers make, and there are none.
connect: Any = grpc.insecure_channel
VERSION_PATH = "/containerd.services.version.v1.Version/Version"
CONTENT = "/containerd.services.content.v1.Content"


@pytest.fixture(params=["lean", "grpcio"])
def daemon(request, grpcio):
    return request.getfixturevalue(f"{request.param}_orlopd")


def bundle(*parts):
    """What a client of the given service's messages sends: encoded one by one."""
    return iter([part.SerializeToString() for part in parts])


def test_a_containers_life_through_grpc_go(daemon, go_ctr, busybox_image, namespace):
    ctr = go_ctr(daemon, namespace)
    ctr("images", "import", busybox_image.archive)
    assert ctr("run", "--rm", busybox_image.reference, "hello", "echo", "hello") == "hello\n"
    ctr("run", "--detach", busybox_image.reference, "sleeper", "sleep", "1000")
    assert ctr("tasks", "exec", "--exec-id", "one", "sleeper", "echo", "inside") == "inside\n"
    failed = ctr.run("run", "--rm", busybox_image.reference, "sleeper", "true")
    assert failed.returncode == 1
    assert '"sleeper": already exists' in failed.stderr
    ctr("tasks", "rm", "--force", "sleeper")
    ctr("containers", "rm", "sleeper")
    ctr("images", "rm", "--sync", busybox_image.reference)


def test_content_of_many_messages_both_ways(daemon, namespace):
    data = bytes(range(256)) * (5 << 12)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    metadata = [("containerd-namespace", namespace)]
    writes = [
        content_pb2.WriteContentRequest(action=content_pb2.WRITE, ref="r", offset=at, data=data[at : at + (1 << 20)])
        for at in range(0, len(data), 1 << 20)
    ]
    commit = content_pb2.WriteContentRequest(action=content_pb2.COMMIT, ref="r", offset=len(data), expected=digest)
    with connect(f"unix:{daemon.address}") as channel:
        answers = list(
            channel.stream_stream(f"{CONTENT}/Write")(bundle(*writes, commit), metadata=metadata, timeout=60)
        )
        assert content_pb2.WriteContentResponse.FromString(answers[-1]).digest == digest
        request = content_pb2.ReadContentRequest(digest=digest).SerializeToString()
        parts = channel.unary_stream(f"{CONTENT}/Read")(request, metadata=metadata, timeout=60)
        assert b"".join(content_pb2.ReadContentResponse.FromString(part).data for part in parts) == data
        request = content_pb2.DeleteContentRequest(digest=digest).SerializeToString()
        channel.unary_unary(f"{CONTENT}/Delete")(request, metadata=metadata, timeout=60)
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.unary_stream(f"{CONTENT}/Read")(request, metadata=metadata, timeout=60))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_events_reach_grpc_go(daemon, go_ctr, namespace):
    ctr = go_ctr(daemon, namespace)
    ctr("namespaces", "create", namespace)
    events = ctr.popen("events")
    try:
        # The subscription stands some time after the program has started, so do something until it hears.
        heard = b""
        for number in itertools.count():
            if b"/namespaces/update" in heard:
                break
            ctr("namespaces", "label", namespace, f"number={number}")
            assert events.poll() is None
            heard += _available(events)
    finally:
        events.kill()
        events.communicate()
    ctr("namespaces", "rm", namespace)


def _available(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], 0.1)
    return os.read(process.stdout.fileno(), 1 << 16) if ready else b""


def test_the_lean_door_needs_no_grpcio(lean_orlopd, grpcio_orlopd, go_ctr):
    go_ctr(lean_orlopd)("version")
    assert "cygrpc" in Path(f"/proc/{grpcio_orlopd.pid}/maps").read_text()
    assert "cygrpc" not in Path(f"/proc/{lean_orlopd.pid}/maps").read_text()


@pytest.mark.parametrize("door", ["lean", "grpcio"])
@pytest.mark.parametrize(("limit", "works"), [(0, True), (20_000, True), (4, False)])
def test_limits_of_messages(new_orlopd, grpcio, door, limit, works):
    sizes = f"max_recv_message_size = {limit}\nmax_send_message_size = {limit}\n"
    daemon = new_orlopd(config=f'[grpc]\ndoor = "{door}"\n{sizes}')
    with connect(f"unix:{daemon.address}") as channel:
        try:
            channel.unary_unary(VERSION_PATH)(b"", timeout=60)
            code = grpc.StatusCode.OK
        except grpc.RpcError as error:
            code = error.code()
    assert code is (grpc.StatusCode.OK if works else grpc.StatusCode.RESOURCE_EXHAUSTED)


def test_an_unknown_door_is_refused(new_orlopd):
    with pytest.raises(Exception, match='door "revolving": must be one of lean, grpcio'):
        new_orlopd(config='[grpc]\ndoor = "revolving"\n')


@pytest.mark.parametrize("door", ["lean", "grpcio"])
def test_the_daemons_end_is_unavailable_to_those_who_wait(new_orlopd, grpcio, door):
    daemon = new_orlopd(config=f'[grpc]\ndoor = "{door}"\n')
    with connect(f"unix:{daemon.address}") as channel:
        subscribed = channel.unary_stream("/containerd.services.events.v1.Events/Subscribe")(b"", timeout=60)
        channel.unary_unary(VERSION_PATH)(b"", timeout=60)
        assert daemon.stop() == 0
        with pytest.raises(grpc.RpcError) as caught:
            next(subscribed)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        daemon.start()
        answer = channel.unary_unary(VERSION_PATH)(b"", wait_for_ready=True, timeout=60)
        assert version_pb2.VersionResponse.FromString(answer).version == VERSION


@pytest.mark.parametrize(("door", "uid"), [("lean", os.geteuid()), ("grpcio", None)])
def test_the_lean_door_shows_who_calls(request, grpcio, go_ctr, namespace, door, uid):
    daemon = request.getfixturevalue(f"{door}_orlopd")
    ctr = go_ctr(daemon, namespace)
    ctr("leases", "create", "--id", namespace)
    with contextlib.closing(sqlite3.connect(f"file:{daemon.root}/meta.db?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT owner_uid FROM leases WHERE namespace = ?", (namespace,)).fetchall()
    assert rows == [(uid,)]
    ctr("leases", "delete", namespace)
