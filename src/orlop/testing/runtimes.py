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

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from google.protobuf.empty_pb2 import Empty

from orlop.api.runtime.task.v2 import shim_pb2 as pb
from orlop.api.types.task import task_pb2
from orlop.base.errdefs import NotFoundError, OrlopError
from orlop.testing.shims import Bench, running


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
