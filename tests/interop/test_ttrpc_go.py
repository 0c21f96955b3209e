"""Our ttrpc against Go's (v1.1, in Debian's containerd-shim-runc-v2), both ways.

The shim is started as containerd starts it, in a bundle, and driven by our clients through a container's life; its
event publisher calls our server. Its socket lies where every containerd shim's does: /run/containerd/s.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orlop.api.events import task_pb2 as events
from orlop.api.runtime.task.v2 import shim_pb2 as shim
from orlop.api.services.ttrpc.events.v1 import events_pb2
from orlop.api.types.runc.options import oci_pb2
from orlop.ttrpc import aio, wire
from orlop.ttrpc.client import Client
from orlop.ttrpc.errors import (
    DEADLINE_EXCEEDED,
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    TtrpcError,
)
from orlop.ttrpc.server import Context, Method, Server, listen_unix
from tools import host, peers
from tools.daemons import containerd_version

pytestmark = [pytest.mark.root, pytest.mark.interop]

TASK = "containerd.task.v2.Task"
NAMESPACE = "orlop-ttrpc"
NOT_FOUND = 5


class Events:
    """Our server of containerd's ttrpc events service, in a thread; `received` holds (topic, namespace, event)."""

    def __init__(self, path: Path) -> None:
        self.received: list[tuple[str, str, bytes]] = []
        self.contexts: list[Context] = []
        self._changed = threading.Condition()
        self._path = path
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self._thread.start()
        assert self._ready.wait(30)

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        forward = Method(False, False, self._forward)
        async with Server({"containerd.services.events.ttrpc.v1.Events": {"Forward": forward}}) as server:
            await server.serve(listen_unix(self._path))
            self._ready.set()
            await self._stop.wait()

    def _forward(self, context: Context, payload: bytes) -> bytes:
        envelope = events_pb2.ForwardRequest.FromString(payload).envelope
        with self._changed:
            self.contexts.append(context)
            self.received.append((envelope.topic, envelope.namespace, envelope.event.value))
            self._changed.notify_all()
        return b""

    def wait_for(self, topic: str) -> bytes:
        """The event of the first envelope of `topic`."""
        with self._changed:
            found = self._changed.wait_for(lambda: [event for name, _, event in self.received if name == topic], 30)
            return found[0]

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)


class Shim:
    """A containerd-shim-runc-v2 for one bundle."""

    def __init__(self, directory: Path, events_path: Path, command: list[str]) -> None:
        program = peers.locate("containerd-shim-runc-v2")
        assert program is not None
        self.id = "c" + hashlib.sha256(os.fsencode(directory)).hexdigest()[:10]
        self.bundle = directory / self.id
        self.runtime_root = directory / "runc"
        (self.bundle / "rootfs" / "bin").mkdir(parents=True)
        busybox = peers.locate("busybox")
        assert busybox is not None
        target = self.bundle / "rootfs" / "bin" / "busybox"
        target.write_bytes(busybox.read_bytes())
        target.chmod(0o755)
        (self.bundle / "config.json").write_text(json.dumps(_spec(self.id, command)))
        # The shim's log is a FIFO of the daemon's, without a reader of which the shim ends at once.
        os.mkfifo(self.bundle / "log")
        self._log = os.open(self.bundle / "log", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._command = [str(program), "-namespace", NAMESPACE, "-address", str(directory / "containerd.sock")]
        self._command += ["-publish-binary", "/bin/false", "-id", self.id]
        self._environment = {
            **_environment(),
            "TTRPC_ADDRESS": str(events_path),
            "GRPC_ADDRESS": str(directory / "containerd.sock"),
            "MAX_SHIM_VERSION": "2",
            "XDG_RUNTIME_DIR": str(directory),
        }
        self.address = self._start()
        with Client.connect(self.address) as client:
            connected = client.call(TASK, "Connect", shim.ConnectRequest(id=self.id).SerializeToString(), timeout_s=30)
        self.pid = shim.ConnectResponse.FromString(connected).shim_pid

    def _start(self) -> str:
        result = subprocess.run(
            [*self._command, "start"], cwd=self.bundle, env=self._environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert result.returncode == 0, f"{self._command}: {result.stdout}{result.stderr}"
        return result.stdout

    def create(self, **more: Any) -> bytes:
        """The request that makes the container."""
        request = shim.CreateTaskRequest(id=self.id, bundle=str(self.bundle), **more)
        request.options.Pack(oci_pb2.Options(root=str(self.runtime_root)), type_url_prefix="")
        request.options.type_url = "containerd.runc.v1.Options"
        return request.SerializeToString()

    def of(self, kind: Callable[..., Any], **more: Any) -> bytes:
        """A request about this container, serialized."""
        data: bytes = kind(id=self.id, **more).SerializeToString()
        return data

    def remove(self) -> None:
        """Whatever the test left: the container, the shim, its socket."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.close(self._log)
        runc = ["runc", "--root", str(self.runtime_root / NAMESPACE), "delete", "--force", self.id]
        subprocess.run(runc, env=_environment(), capture_output=True, timeout=60, check=False)
        Path(self.address.removeprefix("unix://")).unlink(missing_ok=True)
        for directory in (Path("/run/containerd/s"), Path("/run/containerd")):
            with contextlib.suppress(OSError):  # somebody else's sockets lie there too
                directory.rmdir()


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}


def _spec(identifier: str, command: list[str]) -> dict[str, Any]:
    return {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/busybox", *command], "cwd": "/", "env": ["PATH=/bin"]},
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "cgroupsPath": f"/orlop-ttrpc-{identifier}",
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
        },
    }


@pytest.fixture
def forwarded(tmp_path: Path) -> Iterator[Events]:
    server = Events(tmp_path / "events.ttrpc")
    yield server
    server.stop()


@pytest.fixture
def start(tmp_path: Path, forwarded: Events) -> Iterator[Callable[..., Shim]]:
    """Start one shim for a container that runs busybox with the given words."""
    reason = host.lacks_peer("busybox")
    if host.find("runc") is None:
        reason = "runc is not on PATH: run `make setup`, or `apt-get install --no-remove runc`"
    if reason:
        pytest.skip(reason)
    started: list[Shim] = []

    def run(*command: str) -> Shim:
        started.append(Shim(tmp_path, tmp_path / "events.ttrpc", list(command)))
        return started[-1]

    yield run
    for one in started:
        one.remove()


@contextlib.contextmanager
def not_found() -> Iterator[None]:
    try:
        yield
    except TtrpcError as error:
        if error.code != NOT_FOUND:
            raise


def fails(code: int, text: str) -> "pytest.RaisesExc[TtrpcError]":
    return pytest.RaisesExc(TtrpcError, match=text, check=lambda error: error.code == code)


def test_life_of_a_container_and_its_events(start: Callable[..., Shim], forwarded: Events):
    """The blocking client drives the shim; the shim's publisher calls our server."""
    it = start("sh", "-c", "exit 7")
    with Client.connect(
        it.address, offer=wire.RAISED_LIMIT, metadata={"containerd-namespace-ttrpc": NAMESPACE}
    ) as client:
        pid = shim.CreateTaskResponse.FromString(client.call(TASK, "Create", it.create(), timeout_s=60)).pid
        state = shim.StateResponse.FromString(client.call(TASK, "State", it.of(shim.StateRequest)))
        assert (state.id, state.pid, state.bundle) == (it.id, pid, str(it.bundle))
        exits: list[int] = []

        def wait() -> None:
            answer = client.call(TASK, "Wait", it.of(shim.WaitRequest))
            exits.append(shim.WaitResponse.FromString(answer).exit_status)

        waiter = threading.Thread(target=wait)
        waiter.start()
        started = client.call(TASK, "Start", it.of(shim.StartRequest), timeout_s=60)
        assert shim.StartResponse.FromString(started).pid == pid
        waiter.join(60)
        assert exits == [7]
        deleted = shim.DeleteResponse.FromString(client.call(TASK, "Delete", it.of(shim.DeleteRequest), timeout_s=60))
        assert (deleted.pid, deleted.exit_status) == (pid, 7)

        assert events.TaskCreate.FromString(forwarded.wait_for("/tasks/create")).pid == pid
        assert events.TaskStart.FromString(forwarded.wait_for("/tasks/start")).container_id == it.id
        assert events.TaskExit.FromString(forwarded.wait_for("/tasks/exit")).exit_status == 7
        assert events.TaskDelete.FromString(forwarded.wait_for("/tasks/delete")).exit_status == 7
        assert {namespace for _topic, namespace, _event in forwarded.received} == {NAMESPACE}
        for context in forwarded.contexts:
            # The publisher names the namespace in its metadata and gives every call a deadline.
            assert context.metadata["containerd-namespace-ttrpc"] == NAMESPACE
            assert context.deadline is not None
            assert context.peer.pid == it.pid

        assert client.message_limit == 4 << 20, "a Go server does not know our extension"
        # The shim answers and then ends, or ends before it has answered.
        with contextlib.suppress(TtrpcError):
            client.call(TASK, "Shutdown", it.of(shim.ShutdownRequest), timeout_s=30)
        with fails(UNAVAILABLE, f"connection to {it.address} lost"):
            while True:
                with not_found():
                    client.call(TASK, "State", it.of(shim.StateRequest), timeout_s=30)


def test_asyncio_client_and_gos_manners(start: Callable[..., Shim]):
    it = start("sleep", "1000")

    async def main() -> None:
        async with await aio.Client.connect(it.address) as client:
            with fails(NOT_FOUND, "not found|not created"):
                await client.call(TASK, "State", it.of(shim.StateRequest))
            await client.call(TASK, "Create", it.create(), timeout_s=60)
            await client.call(TASK, "Start", it.of(shim.StartRequest), timeout_s=60)

            with fails(UNIMPLEMENTED, "^service acme.Nope$"):
                await client.call("acme.Nope", "State", b"")
            with fails(UNIMPLEMENTED, "^method Nope$"):
                await client.call(TASK, "Nope", b"")
            with fails(RESOURCE_EXHAUSTED, "exceed maximum message size of 4194304"):
                await client.call(TASK, "State", bytes(5 << 20))
            # v1.1 knows no streams: it takes the request for a unary one and refuses the method. v1.2 ends the shim.
            if containerd_version() <= (1, 6):
                stream = client.stream(TASK, "Nope", client_streaming=True, server_streaming=True)
                await stream.send(b"ignored")
                with fails(UNIMPLEMENTED, "^method Nope$"):
                    await stream.receive()

            waiting = asyncio.create_task(client.call(TASK, "Wait", it.of(shim.WaitRequest)))
            with fails(DEADLINE_EXCEEDED, "context deadline exceeded"):
                await client.call(TASK, "Wait", it.of(shim.WaitRequest), timeout_s=0.05)
            states = await asyncio.gather(*(client.call(TASK, "State", it.of(shim.StateRequest)) for _ in range(50)))
            assert len({shim.StateResponse.FromString(state).pid for state in states}) == 1
            await client.call(TASK, "Kill", it.of(shim.KillRequest, signal=9), timeout_s=60)
            assert shim.WaitResponse.FromString(await waiting).exit_status == 137
            await client.call(TASK, "Delete", it.of(shim.DeleteRequest), timeout_s=60)

            os.kill(it.pid, signal.SIGKILL)
            assert (await client.wait_closed()).startswith(f"connection to {it.address} lost")
            with fails(UNAVAILABLE, it.address):
                await client.call(TASK, "State", it.of(shim.StateRequest))

    asyncio.run(main())


def test_what_go_says_to_broken_frames(start: Callable[..., Shim]):
    """The texts and numbers that our own server repeats."""
    it = start("true")
    with Client.connect(it.address) as client:
        # By hand on the same connection: an even stream, a stream number below the last, a message beyond the limit.
        channel = client._channel
        sock = channel._sock
        replies: dict[int, tuple[int, str]] = {}
        sock.setblocking(True)

        def receive(size: int) -> bytes:
            found = b""
            while len(found) < size:
                part = bytearray(size - len(found))
                count = sock.recv_into(memoryview(part))
                assert count, "the shim has hung up"
                found += part[:count]
            return found

        def exchange(data: bytes, answered: int) -> None:
            """Send, and read answers up to that of one stream."""
            view = memoryview(data)
            while view:
                view = view[sock.send(view) :]
            while answered not in replies:
                length, stream, _kind, _flags = wire.HEADER.unpack(receive(10))
                status, _payload = wire.decode_response(receive(length))
                assert status is not None
                replies[stream] = (status.code, status.message)

        nope = wire.encode_request("acme.Nope", "X", b"")
        exchange(wire.frame(5, wire.REQUEST, 0, nope), 5)
        assert replies[5] == (UNIMPLEMENTED, "service acme.Nope")
        exchange(wire.frame(3, wire.REQUEST, 0, nope), 3)  # v1.1 means to refuse this, and does not; v1.2 does
        assert replies[3] in {
            (UNIMPLEMENTED, "service acme.Nope"),
            (INVALID_ARGUMENT, "StreamID cannot be re-used and must increment"),
        }
        exchange(wire.frame(4, wire.REQUEST, 0, nope), 4)
        assert replies[4] == (INVALID_ARGUMENT, "StreamID must be odd for client initiated streams")
        oversize = (4 << 20) + 1
        exchange(wire.HEADER.pack(oversize, 7, wire.REQUEST, 0) + bytes(oversize), 7)
        assert replies[7] == (RESOURCE_EXHAUSTED, "message length 4194305 exceed maximum message size of 4194304")
        # Kinds it does not know are ignored, ours among them; v1.2 minds the number of the stream that they come on.
        unknown = wire.frame(9, wire.CANCEL, 0, b"") + wire.settings(1 << 23)
        exchange(unknown + wire.frame(9, wire.REQUEST, 0, nope), 9)
        assert replies[9][0] in (UNIMPLEMENTED, INVALID_ARGUMENT)
        sock.setblocking(False)
