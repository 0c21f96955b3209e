"""The daemon's side of one shim, for tests: starts it, speaks to it, hears its events and cleans up after it."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from orlop.api.events import task_pb2 as events
from orlop.api.runtime.task.v2 import shim_pb2 as pb
from orlop.api.services.ttrpc.events.v1 import events_pb2 as forward_pb2
from orlop.api.types.task import task_pb2
from orlop.base.errdefs import OrlopError
from orlop.core.mount.perform import unmount_all
from orlop.core.runtime import binaries
from orlop.core.runtime.binaries import ShimBinary, ShimHost
from orlop.core.runtime.bundle import Bundle, Bundles
from orlop.core.runtime.shimlog import ShimLogs
from orlop.core.runtime.shims import Shim
from orlop.ttrpc.server import Method, Server, listen_unix

T = TypeVar("T")
M = TypeVar("M", bound=Message)

LIMIT_S: Final = 30.0
"""How long anything may take that a shim is waited for."""
_SPEC: Final = "types.containerd.io/opencontainers/runtime-spec/1/"
_APPLETS: Final = ("sh", "cat", "echo", "sleep", "stty", "true")


class Bench:
    """A context manager: the daemon's side of one shim, in a directory of its own, to be called without asyncio.

    Attributes:
        shim: the connection; there once `create` has started the program.
        events: topic without `/tasks/` and event, in order of arrival.
    """

    def __init__(self, directory: Path, program: Path, busybox: Path) -> None:
        self.namespace = f"contract-{os.urandom(4).hex()}"  # the OCI runtime's state is the host's
        self.bundles = Bundles(directory / "t", directory / "w")
        self.shim: Shim | None = None
        self.events: list[tuple[str, Any]] = []
        self._binary = ShimBinary(path=program)
        self._directory = directory
        self._busybox = busybox
        self._runner = asyncio.Runner()
        self._logs = ShimLogs()
        self._started: dict[int, Bundle] = {}
        self._readers: list[Reader] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._runner)
            self._rootfs = _make_rootfs(self._directory / "rootfs", self._busybox)
            address = self._directory / "d.sock"
            self._host = ShimHost(
                state=os.fspath(self._directory / "s"),
                address=os.fspath(address),
                ttrpc_address=f"{address}.ttrpc",
                publish_binary="/bin/true",
            )
            self.run(self._listen(f"{address}.ttrpc"))
            undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._clean_up()
        finally:
            self.run(self._close())
            self._runner.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it to its end on the bench's event loop."""
        return self._runner.run(coroutine)

    # ---- the program

    def start(self, bundle: Bundle) -> None:
        """Run the program's `start` in a bundle, and connect to what it answers."""

        async def inside() -> Shim:
            self._logs.open(bundle.path)
            bootstrap = await binaries.start(self._binary, self._host, bundle, b"")
            bundle.save(bootstrap, self._binary.path)
            made = Shim(self.namespace, bootstrap, self._binary)
            await made.connect(_ignore)
            return made

        if self.shim is not None:
            self.run(self.shim.close())
        self.shim = self.run(inside())
        self._started[self.connect(bundle.id).shim_pid] = bundle

    def connect_again(self, bundle: Bundle) -> None:
        """Drop the connection, and find the shim by its bundle as a daemon does that has been restarted."""
        assert self.shim is not None
        self.run(self.shim.close())
        bootstrap = bundle.bootstrap()
        assert bootstrap is not None, "the bundle does not say where its shim is"
        self.shim = Shim(self.namespace, bootstrap, self._binary)
        self.run(self.shim.connect(_ignore))

    def clean_up_after(self, bundle: Bundle) -> pb.DeleteResponse:
        """Run the program's `delete`, as for a shim that has died."""
        return self.run(binaries.delete(self._binary, self._host, bundle))

    # ---- calls

    def call(self, method: str, request: Message, reply: type[M]) -> M:
        assert self.shim is not None, "no shim has been started"
        return self.run(self.shim.call(method, request, reply, timeout_s=LIMIT_S))

    def connect(self, container: str) -> pb.ConnectResponse:
        return self.call("Connect", pb.ConnectRequest(id=container), pb.ConnectResponse)

    def create(self, container: str, *args: str, **request: Any) -> int:
        """Make a bundle, start the shim for it, create the task; init's pid.

        Who gives one of stdout and stderr gives both, but for a terminal: containerd's shim opens each.
        """
        bundle = self.bundle(container, *args, terminal=request.get("terminal", False))
        self.start(bundle)
        return self.create_in(bundle, **request)

    def create_in(self, bundle: Bundle, **request: Any) -> int:
        """Create the task of a bundle that `bundle` made; init's pid."""
        wanted = pb.CreateTaskRequest(id=bundle.id, bundle=os.fspath(bundle.path), **request)
        wanted.rootfs.add(type="bind", source=os.fspath(self._rootfs), options=["rbind", "rw"])
        return self.call("Create", wanted, pb.CreateTaskResponse).pid

    def launch(self, container: str, exec_id: str = "") -> int:
        """Start a process that has been created; its pid."""
        return self.call("Start", pb.StartRequest(id=container, exec_id=exec_id), pb.StartResponse).pid

    def state(self, container: str, exec_id: str = "") -> pb.StateResponse:
        return self.call("State", pb.StateRequest(id=container, exec_id=exec_id), pb.StateResponse)

    def wait(self, container: str, exec_id: str = "") -> int:
        """Wait for a process; its exit status."""
        return self.call("Wait", pb.WaitRequest(id=container, exec_id=exec_id), pb.WaitResponse).exit_status

    def kill(self, container: str, number: int = signal.SIGKILL, *, exec_id: str = "", everyone: bool = False) -> None:
        self.call("Kill", pb.KillRequest(id=container, signal=number, exec_id=exec_id, all=everyone), Empty)

    def delete(self, container: str, exec_id: str = "") -> pb.DeleteResponse:
        return self.call("Delete", pb.DeleteRequest(id=container, exec_id=exec_id), pb.DeleteResponse)

    def exec(self, container: str, exec_id: str, *args: str, **request: Any) -> None:
        """Add a process to a task; it is not started yet."""
        spec = AnyMessage(type_url=f"{_SPEC}Process", value=json.dumps(_process(args)).encode())
        self.call("Exec", pb.ExecProcessRequest(id=container, exec_id=exec_id, spec=spec, **request), Empty)

    def pids(self, container: str) -> list[int]:
        answer = self.call("Pids", pb.PidsRequest(id=container), pb.PidsResponse)
        return sorted(process.pid for process in answer.processes)

    # ---- things to work with

    def bundle(self, container: str, *args: str, terminal: bool = False) -> Bundle:
        """A bundle whose container runs `args`."""
        spec = _spec(args, f"/{self.namespace}-{container}", terminal=terminal)
        return self.bundles.create(self.namespace, container, f"{_SPEC}Spec", json.dumps(spec).encode())

    def fifo(self, name: str) -> Path:
        path = self._directory / name
        os.mkfifo(path, 0o700)
        return path

    def read(self, *paths: Path) -> list["Reader"]:
        """Begin to read FIFOs to their ends, as a client does before it has the task created."""

        async def begin() -> list[Reader]:
            return [Reader(path) for path in paths]

        readers = self.run(begin())
        self._readers += readers
        return readers

    def result(self, readers: Sequence["Reader"]) -> list[bytes]:
        """What `read` has read, once all has come."""
        self.until(lambda: all(one.ended for one in readers), "an output does not end")
        return [bytes(one.data) for one in readers]

    def topics(self, container: str, *until: str) -> list[str]:
        """Topics of a container's events in order, once all of `until` have come."""

        def seen() -> list[str]:
            return [topic for topic, event in self.events if event.container_id == container]

        self.until(lambda: set(until) <= set(seen()), f"events {until} did not come")
        return seen()

    def until(self, condition: Callable[[], object], text: str) -> None:
        """Wait for something that nobody tells; events arrive meanwhile.

        Raises:
            AssertionError: it did not come in time; has `text`.
        """
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, text
            self.run(asyncio.sleep(0.005))

    async def _listen(self, address: str) -> None:
        method = Method(client_streaming=False, server_streaming=False, handler=self._forward)
        self._server = Server({"containerd.services.events.ttrpc.v1.Events": {"Forward": method}})
        await self._server.serve(listen_unix(address))

    def _forward(self, _context: object, payload: bytes) -> bytes:
        envelope = forward_pb2.ForwardRequest.FromString(payload).envelope
        event = getattr(events, envelope.event.type_url.rpartition(".")[2]).FromString(envelope.event.value)
        assert envelope.namespace == self.namespace
        self.events.append((envelope.topic.removeprefix("/tasks/"), event))
        return b""

    def _clean_up(self) -> None:
        """Have shims that still live delete what they hold and end; then clean up after each as if it had died."""
        for pid, bundle in self._started.items():
            if running(pid) and bundle.path.exists():
                with contextlib.suppress(OrlopError):  # it may have ended at this moment
                    self.connect_again(bundle)
                    for one in self.bundles.found():
                        self._remove(one.id)
                    self.call("Shutdown", pb.ShutdownRequest(id=bundle.id, now=True), Empty)
        if self.shim is not None:
            self.run(self.shim.close())
        self.until(lambda: not any(map(running, self._started)), "a shim lives after Shutdown")
        for bundle in self._started.values():
            if bundle.path.exists():
                self.clean_up_after(bundle)
            unmount_all(os.fspath(bundle.rootfs))
        with contextlib.suppress(OSError):  # containerd's shim leaves an empty one for each namespace
            os.rmdir(f"/run/containerd/runc/{self.namespace}")

    def _remove(self, container: str) -> None:
        with contextlib.suppress(OrlopError):
            self.kill(container, everyone=True)
        with contextlib.suppress(OrlopError):
            if self.state(container).status != task_pb2.CREATED:
                self.wait(container)
            self.delete(container)

    async def _close(self) -> None:
        await self._server.close(timeout_s=0.1)
        self._logs.close()
        for reader in self._readers:
            reader.close()


class Reader:
    """Reads a FIFO on the running event loop until its last writer has gone."""

    def __init__(self, path: Path) -> None:
        self.data = bytearray()
        self.ended = False
        # Without waiting for a writer: until the first one comes the kernel says that there is nothing to read.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._read)

    def close(self) -> None:
        if not self.ended:
            self.ended = True
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)

    def _read(self) -> None:
        chunk = os.read(self._descriptor, 65536)
        self.data += chunk
        if not chunk:
            self.close()


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


async def _ignore(_shim: Shim) -> None:
    """A connection that breaks is seen by the next call."""


def _process(args: Sequence[str], *, terminal: bool = False) -> dict[str, Any]:
    return {
        "args": list(args),
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0},
        "terminal": terminal,
    }


def _spec(args: Sequence[str], cgroup: str, *, terminal: bool) -> dict[str, Any]:
    """A runtime-spec document."""
    devpts = {"destination": "/dev/pts", "type": "devpts", "source": "devpts"}
    return {
        "ociVersion": "1.0.2",
        "process": _process(args, terminal=terminal),
        "root": {"path": "rootfs"},
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            devpts | {"options": ["newinstance", "ptmxmode=0666", "mode=0620"]},
        ],
    }


def _make_rootfs(path: Path, busybox: Path) -> Path:
    """A root file system that consists of busybox."""
    for name in ("bin", "proc", "dev"):
        (path / name).mkdir(parents=True)
    shutil.copy(busybox, path / "bin" / "busybox")
    for name in _APPLETS:
        (path / "bin" / name).symlink_to("busybox")
    return path
