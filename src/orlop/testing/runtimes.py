"""What every shim must do, as tests that its author can run.

    from orlop.testing.runtimes import ShimContract

    class TestMine(ShimContract):
        def program(self) -> Path:
            return Path("/usr/local/bin/containerd-shim-mine-v1")

Run with pytest, as root: containers are real, and so is the OCI runtime that the shim finds on PATH. The shim is
started, spoken to and cleaned up after by the code that the daemon has for it, so a shim that passes serves orlopd, and
nothing is asked of it that containerd's own shim (containerd-shim-runc-v2) does not do. The root file system needs a
static busybox.

Source: core/runtime/v2/README.md and api/runtime/task/v3/shim.proto of containerd.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Self, TypeVar

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from orlop.api.events import task_pb2 as events
from orlop.api.runtime.task.v2 import shim_pb2 as pb
from orlop.api.services.ttrpc.events.v1 import events_pb2 as forward_pb2
from orlop.api.types.task import task_pb2
from orlop.base.errdefs import NotFoundError, OrlopError
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
                    for one in self.bundles:
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


class ShimContract:
    """The suite. Subclass it, define `program`, and let pytest find it.

    Attributes:
        pauses: whether a task can be paused; it cannot be everywhere.
        has_execs: whether a task can be given further processes.
    """

    pauses: ClassVar[bool] = True
    has_execs: ClassVar[bool] = True

    def program(self) -> Path:
        """The shim's program, as a daemon starts it."""
        raise NotImplementedError

    def busybox(self) -> Path:
        """A static busybox for the container."""
        found = shutil.which("busybox")
        if found is None:
            pytest.skip("the container's root needs busybox, which is not on PATH")
        return Path(found)

    @pytest.fixture
    def bench(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
        # A short name: a socket's path ends at 108 bytes.
        with Bench(tmp_path_factory.mktemp("s"), self.program(), self.busybox()) as made:
            yield made

    @pytest.fixture
    def sleeper(self, bench: Bench) -> int:
        """The pid of a task `c` that runs until it is killed."""
        bench.create("c", "sleep", "1000")
        return bench.launch("c")

    def needs_execs(self) -> None:
        if not self.has_execs:
            pytest.skip("this shim has no further processes in a task")

    # ---- a life

    def test_a_task_from_creation_to_deletion(self, bench: Bench) -> None:
        pid = bench.create("c", "sh", "-c", "exit 7")
        created = bench.state("c")
        assert (created.status, created.pid, created.id) == (task_pb2.CREATED, pid, "c")
        assert running(pid)
        assert bench.launch("c") == pid
        assert bench.wait("c") == 7
        stopped = bench.state("c")
        assert (stopped.status, stopped.exit_status) == (task_pb2.STOPPED, 7)
        deleted = bench.delete("c")
        assert (deleted.pid, deleted.exit_status, deleted.exited_at) == (pid, 7, stopped.exited_at)
        with pytest.raises(NotFoundError):
            bench.state("c")
        assert not bench.bundles.get(bench.namespace, "c").is_mounted()

    def test_its_events_tell_that_life_in_order(self, bench: Bench) -> None:
        pid = bench.create("c", "true")
        bench.launch("c")
        bench.wait("c")
        bench.delete("c")
        assert bench.topics("c", "delete") == ["create", "start", "exit", "delete"]
        (_, created), (_, started), (_, exited), (_, deleted) = bench.events
        assert (created.pid, started.pid, deleted.pid) == (pid, pid, pid)
        assert created.bundle == str(bench.bundles.get(bench.namespace, "c").path)
        assert (exited.id, exited.pid, exited.exit_status) == ("c", pid, 0)
        assert exited.exited_at == deleted.exited_at

    def test_the_shortest_tasks_end_too(self, bench: Bench) -> None:
        for number in range(4):
            bench.create(f"c{number}", "sh", "-c", f"exit {number}")
            bench.launch(f"c{number}")
            assert bench.wait(f"c{number}") == number
            bench.delete(f"c{number}")
            assert bench.topics(f"c{number}", "delete") == ["create", "start", "exit", "delete"]

    def test_a_name_can_be_used_again(self, bench: Bench) -> None:
        for code in (3, 4):
            bench.create("c", "sh", "-c", f"exit {code}")
            bench.launch("c")
            assert bench.wait("c") == code
            assert bench.delete("c").exit_status == code

    def test_a_task_that_was_never_started_is_deleted(self, bench: Bench) -> None:
        pid = bench.create("c", "sleep", "1000")
        bench.kill("c")
        bench.wait("c")
        bench.delete("c")
        assert not running(pid)

    def test_what_cannot_be_run_leaves_nothing(self, bench: Bench) -> None:
        bundle = bench.bundle("c", "/no/such/program")
        bench.start(bundle)

        def attempt() -> None:
            bench.create_in(bundle)
            bench.launch("c")

        with pytest.raises(OrlopError):
            attempt()
        with contextlib.suppress(OrlopError):  # there may be none
            bench.delete("c")
        assert not bundle.is_mounted()

    # ---- streams

    def test_output_arrives_whole_and_ends(self, bench: Bench) -> None:
        out, err = bench.fifo("out"), bench.fifo("err")
        reading = bench.read(out, err)
        script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo problem >&2"
        bench.create("c", "sh", "-c", script, stdout=os.fspath(out), stderr=os.fspath(err))
        bench.launch("c")
        assert bench.wait("c") == 0
        bench.delete("c")
        whole, problem = bench.result(reading)
        assert whole.split(b"\n")[:-1] == [b"line %d" % number for number in range(2000)]
        assert problem == b"problem\n"

    def test_input_is_passed_on_until_it_is_closed(self, bench: Bench) -> None:
        into, out, err = bench.fifo("in"), bench.fifo("out"), bench.fifo("err")
        reading = bench.read(out, err)
        keep = os.open(into, os.O_RDWR)  # a client that stays: its end alone is no end
        try:
            bench.create("c", "cat", stdin=os.fspath(into), stdout=os.fspath(out), stderr=os.fspath(err))
            bench.launch("c")
            os.write(keep, b"what was said\n")
            bench.call("CloseIO", pb.CloseIORequest(id="c", stdin=True), Empty)
        finally:
            os.close(keep)
        assert bench.wait("c") == 0
        bench.delete("c")
        assert bench.result(reading) == [b"what was said\n", b""]

    def test_a_terminal_has_the_size_that_it_is_given(self, bench: Bench) -> None:
        out = bench.fifo("out")
        reading = bench.read(out)
        bench.create(
            "c", "sh", "-c", "while [ ! -e /go ]; do sleep 0.02; done; stty size", stdout=os.fspath(out), terminal=True
        )
        pid = bench.launch("c")
        bench.call("ResizePty", pb.ResizePtyRequest(id="c", width=101, height=43), Empty)
        Path(f"/proc/{pid}/root/go").touch()
        assert bench.wait("c") == 0
        bench.delete("c")
        assert bench.result(reading)[0].split() == [b"43", b"101"]

    # ---- signals and states

    def test_signals_reach_init(self, bench: Bench, sleeper: int) -> None:
        assert bench.state("c").status == task_pb2.RUNNING
        bench.kill("c", signal.SIGKILL)
        assert bench.wait("c") == 128 + signal.SIGKILL
        assert not running(sleeper)
        with pytest.raises(NotFoundError):
            bench.kill("c", signal.SIGTERM)

    def test_what_runs_is_not_deleted(self, bench: Bench, sleeper: int) -> None:
        with pytest.raises(OrlopError):
            bench.delete("c")
        assert running(sleeper)
        assert bench.state("c").status == task_pb2.RUNNING

    def test_nobodys_names_are_not_found(self, bench: Bench, sleeper: int) -> None:
        for attempt in (
            lambda: bench.state("c", "none"),
            lambda: bench.launch("c", "none"),
            lambda: bench.delete("c", "none"),
            lambda: bench.kill("c", exec_id="none"),
        ):
            with pytest.raises(NotFoundError):
                attempt()

    def test_it_is_paused_and_goes_on(self, bench: Bench, sleeper: int) -> None:
        if not self.pauses:
            pytest.skip("this shim does not pause")
        bench.call("Pause", pb.PauseRequest(id="c"), Empty)
        assert bench.state("c").status == task_pb2.PAUSED
        bench.call("Resume", pb.ResumeRequest(id="c"), Empty)
        assert bench.state("c").status == task_pb2.RUNNING
        assert bench.topics("c", "resumed")[-2:] == ["paused", "resumed"]

    def test_its_use_of_the_host_is_told(self, bench: Bench, sleeper: int) -> None:
        assert sleeper in bench.pids("c")
        assert bench.call("Stats", pb.StatsRequest(id="c"), pb.StatsResponse).stats.type_url

    # ---- further processes

    def test_an_exec_has_a_life_of_its_own(self, bench: Bench, sleeper: int) -> None:
        self.needs_execs()
        out, err = bench.fifo("out"), bench.fifo("err")
        reading = bench.read(out, err)
        bench.exec("c", "e", "sh", "-c", "echo here; exit 5", stdout=os.fspath(out), stderr=os.fspath(err))
        pid = bench.launch("c", "e")
        assert bench.wait("c", "e") == 5
        state = bench.state("c", "e")
        assert (state.status, state.pid, state.exit_status) == (task_pb2.STOPPED, pid, 5)
        deleted = bench.delete("c", "e")
        assert (deleted.pid, deleted.exit_status) == (pid, 5)
        assert bench.result(reading) == [b"here\n", b""]
        assert bench.state("c").status == task_pb2.RUNNING
        with pytest.raises(NotFoundError):
            bench.state("c", "e")
        assert bench.topics("c", "exit") == ["create", "start", "exec-added", "exec-started", "exit"]
        assert (bench.events[-1][1].id, bench.events[-1][1].pid) == ("e", pid)

    def test_an_exec_is_killed_alone(self, bench: Bench, sleeper: int) -> None:
        self.needs_execs()
        bench.exec("c", "e", "sleep", "1000")
        pid = bench.launch("c", "e")
        assert {sleeper, pid} <= set(bench.pids("c"))
        bench.kill("c", exec_id="e")
        assert bench.wait("c", "e") == 128 + signal.SIGKILL
        assert running(sleeper)

    def test_killing_all_reaches_every_process(self, bench: Bench, sleeper: int) -> None:
        self.needs_execs()
        bench.exec("c", "e", "sleep", "1000")
        bench.launch("c", "e")
        bench.kill("c", everyone=True)
        assert bench.wait("c", "e") == bench.wait("c") == 128 + signal.SIGKILL

    # ---- the shim itself

    def test_it_says_who_it_is(self, bench: Bench, sleeper: int) -> None:
        answer = bench.connect("c")
        assert answer.task_pid == sleeper
        assert running(answer.shim_pid)
        assert answer.shim_pid != sleeper
        assert (bench.connect("none").shim_pid, bench.connect("none").task_pid) == (answer.shim_pid, 0)

    def test_two_tasks_do_not_see_each_other(self, bench: Bench) -> None:
        first = bench.bundle("one", "sleep", "1000")
        bench.start(first)
        bench.create_in(first)
        bench.launch("one")
        bench.create("two", "sh", "-c", "exit 9")
        bench.launch("two")
        assert bench.wait("two") == 9
        bench.delete("two")
        bench.connect_again(first)
        assert bench.state("one").status == task_pb2.RUNNING

    def test_a_daemon_that_comes_back_finds_it(self, bench: Bench, sleeper: int) -> None:
        bench.connect_again(bench.bundles.get(bench.namespace, "c"))
        assert (bench.state("c").status, bench.state("c").pid) == (task_pb2.RUNNING, sleeper)
        bench.kill("c")
        assert bench.wait("c") == 128 + signal.SIGKILL
        assert bench.delete("c").pid == sleeper

    def test_its_program_cleans_up_after_one_that_died(self, bench: Bench, sleeper: int) -> None:
        bundle = bench.bundles.get(bench.namespace, "c")
        pid = bench.connect("c").shim_pid
        os.kill(pid, signal.SIGKILL)
        bench.until(lambda: not running(pid), "the shim lives")
        answer = bench.clean_up_after(bundle)
        assert answer.exit_status == 128 + signal.SIGKILL
        bench.until(lambda: not running(sleeper), "the container lives")
        assert not bundle.is_mounted()

    def test_it_ends_when_it_is_told_to_and_holds_nothing(self, bench: Bench, sleeper: int) -> None:
        pid = bench.connect("c").shim_pid
        bench.kill("c")
        bench.wait("c")
        bench.delete("c")
        with contextlib.suppress(OrlopError):  # it may end before it answers
            bench.call("Shutdown", pb.ShutdownRequest(id="c", now=True), Empty)
        bench.until(lambda: not running(pid), "the shim lives")


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
