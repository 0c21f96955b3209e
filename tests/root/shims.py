"""A supervisor to test with: started as a daemon starts it, spoken to over ttrpc, its events received for real."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from orlop.api.events import task_pb2 as events_pb2
from orlop.api.runtime.task.v3 import shim_pb2 as pb
from orlop.api.services.ttrpc.events.v1 import events_pb2 as forward_pb2
from orlop.ttrpc.client import Client
from orlop.ttrpc.errors import TtrpcError
from orlop.ttrpc.server import Method, Server, listen_unix
from tools import daemons

TASK = "containerd.task.v3.Task"
LIMIT_S = 30.0
_APPLETS = ("sh", "true", "cat", "sleep", "echo", "wc", "ls", "id", "head", "stty", "dd", "yes", "env", "tty", "seq")
NAMESPACE = "ns"


class Events(threading.Thread):
    """The daemon's side of Events/Forward, which can go away and come back."""

    def __init__(self, path: Path) -> None:
        super().__init__(name="events", daemon=True)
        self._path = path
        self.envelopes: list[Any] = []
        self._arrived = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._ready = threading.Event()
        self.start()
        self._ready.wait(LIMIT_S)

    def run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        method = Method(client_streaming=False, server_streaming=False, handler=self._forward)
        server = Server({"containerd.services.events.ttrpc.v1.Events": {"Forward": method}})
        await server.serve(listen_unix(self._path))
        self._ready.set()
        await self._closing.wait()
        await server.close(timeout_s=0.1)
        self._path.unlink()

    def _forward(self, _context: object, payload: bytes) -> bytes:
        with self._arrived:
            self.envelopes.append(forward_pb2.ForwardRequest.FromString(payload).envelope)
            self._arrived.notify_all()
        return b""

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self.join(LIMIT_S)

    def topics(self, container: str) -> list[str]:
        """Topics of a container's events so far, in order of arrival, without `/tasks/`."""
        return [envelope.topic.removeprefix("/tasks/") for envelope, _event in self.of(container)]

    def of(self, container: str) -> list[tuple[Any, Any]]:
        found = []
        for envelope in list(self.envelopes):
            kind = envelope.event.type_url.rpartition(".")[2]
            event = getattr(events_pb2, kind).FromString(envelope.event.value)
            if event.container_id == container:
                found.append((envelope, event))
        return found

    def wait_for(self, container: str, *topics: str) -> list[str]:
        """Wait until all `topics` have come; returns all so far."""
        with self._arrived:
            done = self._arrived.wait_for(lambda: set(topics) <= set(self.topics(container)), LIMIT_S)
        assert done, f"events of {container}: {self.topics(container)}, wanted {topics}"
        return self.topics(container)


class Shim:
    """One supervisor's directory: state, bundles, FIFOs, the daemon's socket for events."""

    def __init__(
        self,
        directory: Path,
        *,
        env: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        executable: Path | None = None,
    ) -> None:
        self.directory = directory
        self.prefix = prefix
        self.executable = executable or daemons.our_program("containerd-shim-orlop-v1")
        self.state = directory / "st"
        self.bundles = directory / "t" / NAMESPACE
        self.bundles.mkdir(parents=True)
        self.bundles.chmod(0o711)
        self.env = daemons.environment(
            {"ORLOP_STATE": str(self.state), "TTRPC_ADDRESS": str(directory / "e.sock"), **(env or {})}
        )
        self.events = Events(directory / "e.sock")
        self.rootfs = make_rootfs(directory / "rootfs")
        self.address = ""
        self._client: Client | None = None

    # ---- the program

    def program(self, *words: str, cwd: Path, **more: Any) -> subprocess.CompletedProcess[bytes]:
        argv = [
            *self.prefix,
            str(self.executable),
            "-namespace",
            NAMESPACE,
            "-address",
            "/d.sock",
        ]
        kwargs: dict[str, Any] = {"env": self.env, "stdin": subprocess.DEVNULL, "timeout": LIMIT_S} | more
        return subprocess.run([*argv, *words], cwd=cwd, capture_output=True, check=False, **kwargs)

    def start(self, container: str = "c") -> str:
        """Run the `start` command in a container's bundle; the address of the supervisor."""
        done = self.program("-id", container, "start", cwd=self.bundles / container)
        assert done.returncode == 0, done
        assert done.stderr == b""
        self.address = done.stdout.decode()
        return self.address

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client.connect(self.address)
        return self._client

    def disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def pid(self) -> int:
        return self.connect("").shim_pid

    def kill(self) -> None:
        """SIGKILL the supervisor, and wait until it has gone."""
        pid = self.pid
        self.disconnect()
        os.kill(pid, signal.SIGKILL)
        until(lambda: not running(pid), f"supervisor {pid} lives")

    def log(self) -> str:
        return "".join(path.read_text() for path in self.state.glob("s/*.log"))

    def close(self) -> None:
        """Kill and delete everything that is left, and let the supervisor end."""
        try:
            if self.address:
                with contextlib.suppress(TtrpcError):
                    pid = self.pid
                    for bundle in self.bundles.iterdir():
                        self._remove(bundle.name)
                    self.call("Shutdown", pb.ShutdownRequest(now=True), None)
                    until(lambda: not running(pid), f"supervisor {pid} lives")
        finally:
            self.disconnect()
            self.events.close()

    def _remove(self, container: str) -> None:
        with contextlib.suppress(TtrpcError):
            self.task_kill(container, everyone=True)
        with contextlib.suppress(TtrpcError):
            if self.task_state(container).status != 1:
                self.wait(container)
            self.delete(container)

    # ---- calls

    def call(self, method: str, request: Message, answer: type[Any] | None, *, service: str = TASK) -> Any:
        data = self.client.call(service, method, request.SerializeToString(), timeout_s=LIMIT_S)
        return answer.FromString(data) if answer else None

    def connect(self, container: str) -> pb.ConnectResponse:
        return self.call("Connect", pb.ConnectRequest(id=container), pb.ConnectResponse)

    def task_start(self, container: str, exec_id: str = "") -> int:
        return self.call("Start", pb.StartRequest(id=container, exec_id=exec_id), pb.StartResponse).pid

    def task_state(self, container: str, exec_id: str = "") -> pb.StateResponse:
        return self.call("State", pb.StateRequest(id=container, exec_id=exec_id), pb.StateResponse)

    def task_kill(self, container: str, signum: int = 9, *, exec_id: str = "", everyone: bool = False) -> None:
        self.call("Kill", pb.KillRequest(id=container, signal=signum, exec_id=exec_id, all=everyone), None)

    def wait(self, container: str, exec_id: str = "") -> int:
        return self.call("Wait", pb.WaitRequest(id=container, exec_id=exec_id), pb.WaitResponse).exit_status

    def delete(self, container: str, exec_id: str = "") -> pb.DeleteResponse:
        return self.call("Delete", pb.DeleteRequest(id=container, exec_id=exec_id), pb.DeleteResponse)

    def close_stdin(self, container: str, exec_id: str = "") -> None:
        self.call("CloseIO", pb.CloseIORequest(id=container, exec_id=exec_id, stdin=True), None)

    # ---- containers

    def bundle(self, container: str, args: Sequence[str], **process: Any) -> Path:
        """A bundle whose spec runs `args`; further fields of `process` as given, `linux` fields under `linux`."""
        bundle = self.bundles / container
        bundle.mkdir(mode=0o711, exist_ok=True)
        (bundle / "config.json").write_text(json.dumps(spec(args, f"/orlop-test-{os.getpid()}-{container}", process)))
        return bundle

    def fifo(self, name: str) -> Path:
        path = self.directory / name
        os.mkfifo(path, 0o700)
        return path

    def create(self, container: str, args: Sequence[str], *, request: dict[str, Any] | None = None, **spec: Any) -> int:
        """Make a bundle, start the supervisor if need be, create the task. Returns init's pid."""
        bundle = self.bundle(container, args, **spec)
        if not self.address:
            self.start(container)
        wanted = pb.CreateTaskRequest(id=container, bundle=str(bundle), **(request or {}))
        wanted.rootfs.add(type="bind", source=str(self.rootfs), options=["rbind", "rw"])
        return self.call("Create", wanted, pb.CreateTaskResponse).pid

    def run(self, container: str, args: Sequence[str], *, request: dict[str, Any] | None = None, **spec: Any) -> int:
        self.create(container, args, request=request, **spec)
        return self.task_start(container)

    def exec(self, container: str, exec_id: str, args: Sequence[str], **request: Any) -> None:
        process = {"args": list(args), "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
        process |= request.pop("process", {})
        wanted = pb.ExecProcessRequest(id=container, exec_id=exec_id, **request)
        wanted.spec.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process"
        wanted.spec.value = json.dumps(process).encode()
        self.call("Exec", wanted, None)


class Reader(threading.Thread):
    """Reads a FIFO to its end, as a client does."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.data = b""
        self.start()

    def run(self) -> None:
        import select

        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while True:
            # Before the first writer, a FIFO reads as ended although poll says nothing.
            if not poll.poll(LIMIT_S * 1000):
                break
            try:
                chunk = os.read(self._fd, 65536)
            except BlockingIOError:
                continue
            if not chunk:
                break
            self.data += chunk
        os.close(self._fd)

    def result(self) -> bytes:
        self.join(LIMIT_S)
        assert not self.is_alive()
        return self.data


def spec(args: Sequence[str], cgroup: str, process: dict[str, Any]) -> dict[str, Any]:
    """A runtime-spec document."""
    linux = process.pop("linux", {})
    mounts = process.pop("mounts", [])
    return {
        "ociVersion": "1.0.2",
        "process": {"args": list(args), "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}} | process,
        "root": {"path": "rootfs"},
        "hostname": "orlop",
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
            "cgroupsPath": cgroup,
        }
        | linux,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666", "mode=0620"],
            },
            *mounts,
        ],
    }


def make_rootfs(path: Path) -> Path:
    """A root file system that consists of busybox."""
    (path / "bin").mkdir(parents=True)
    for name in ("proc", "dev", "tmp", "sys"):
        (path / name).mkdir()
    shutil.copy(daemons.program("busybox"), path / "bin" / "busybox")
    for name in _APPLETS:
        (path / "bin" / name).symlink_to("busybox")
    return path


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def supervisors(address: Path | str) -> list[int]:
    """Supervisors that serve the daemon at `address`."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                words = Path(f"/proc/{name}/cmdline").read_text().split("\0")
            except OSError:
                continue
            if "orlop.cmd.shim" in words and str(address) in words and running(int(name)):
                found.append(int(name))
    return found


def until(condition: Callable[[], object], text: str) -> None:
    """Wait for something that nobody tells."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, text
        time.sleep(0.005)


def failure(work: Callable[[], object]) -> tuple[int, str]:
    """Code and message of the error that `work` ends with."""
    try:
        work()
    except TtrpcError as error:
        return error.code, error.message
    raise AssertionError("no error")


@contextlib.contextmanager
def opened(directory: Path, **more: Any) -> Iterator[Shim]:
    """A supervisor for one test."""
    shim = Shim(directory, **more)
    try:
        yield shim
    finally:
        shim.close()
