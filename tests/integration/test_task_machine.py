"""Tasks against a small model: calls in any order, with the daemon and the supervisor killed in between.

The model knows states only. A call that it does not allow must fail and change nothing; whatever is killed, the tasks
that `Tasks.List` shows are those of the model, with its states, pids and exit codes.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import orlop
from orlop.base.errdefs import NotFoundError, OrlopError
from tests.root.shims import running, supervisors, until
from tools.daemons import Orlopd
from tools.images import Image

pytestmark = pytest.mark.root

CONTAINERS = ("a", "b")
SCRIPT = ["sh", "-c", "trap 'exit 7' TERM; echo > /ready; sleep 1000 & wait"]
TERM, KILL = int(signal.SIGTERM), int(signal.SIGKILL)
CODE = {TERM: 7, KILL: 137}
containers = st.sampled_from(CONTAINERS)


class Model:
    """What is known of one container's task."""

    def __init__(self) -> None:
        self.state = ""  # no task
        self.pid = 0
        self.code = 0
        self.exec = ""  # state of its exec
        self.exec_code = 0

    def stop(self, code: int) -> None:
        self.state, self.code = "STOPPED", code
        if self.exec == "RUNNING":
            self.exec, self.exec_code = "STOPPED", KILL + 128


class TaskMachine(RuleBasedStateMachine):
    """One run; `daemon` is shared by all, which leave it empty."""

    daemon: ClassVar[Orlopd]
    namespace: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.models = {name: Model() for name in CONTAINERS}
        self.client = self.connect()

    def connect(self) -> orlop.Client:
        return orlop.Client(str(self.daemon.address), self.namespace, timeout_s=60)

    def teardown(self) -> None:
        for state in self.client.tasks():
            self.client.task(state.container_id).delete(force=True)
        self.client.close()

    def attempt(self, allowed: bool, call: Callable[[], object]) -> bool:
        """Make a call; whether it was allowed, which it is held to."""
        try:
            call()
        except OrlopError:
            assert not allowed
            return False
        assert allowed
        return True

    # ---- init

    @rule(name=containers)
    def create(self, name: str) -> None:
        model = self.models[name]
        if self.attempt(model.state == "", lambda: self.client.containers.get(name).new_task()):
            model.state, model.exec = "CREATED", ""
            model.pid = self.client.task(name).state().pid

    @rule(name=containers)
    def start(self, name: str) -> None:
        model = self.models[name]
        if not model.state:
            return
        ready = Path(f"/proc/{model.pid}/root/ready")
        if model.state == "CREATED":
            ready.unlink(missing_ok=True)
        if self.attempt(model.state == "CREATED", self.client.task(name).start):
            until(ready.exists, f"{name} does not begin")
            model.state = "RUNNING"

    @rule(name=containers, number=st.sampled_from([TERM, KILL]), everyone=st.booleans())
    def kill(self, name: str, number: int, everyone: bool) -> None:
        model = self.models[name]
        if not model.state or (number == TERM and (everyone or model.state in ("CREATED", "PAUSED"))):
            return  # what they do then is the kernel's affair, and not told at once
        if model.state == "STOPPED" and everyone:
            return  # there may be something left to be killed, which the runtime is asked to do
        if self.attempt(model.state != "STOPPED", lambda: self.client.task(name).kill(number, everyone=everyone)):
            assert self.client.task(name).wait().code == CODE[number]
            model.stop(CODE[number])

    @rule(name=containers)
    def pause(self, name: str) -> None:
        model = self.models[name]
        if model.state and self.attempt(model.state == "RUNNING", self.client.task(name).pause):
            model.state = "PAUSED"

    @rule(name=containers)
    def resume(self, name: str) -> None:
        model = self.models[name]
        if model.state and self.attempt(model.state == "PAUSED", self.client.task(name).resume):
            model.state = "RUNNING"

    @rule(name=containers)
    def delete(self, name: str) -> None:
        model = self.models[name]
        if model.state == "STOPPED":
            assert self.client.task(name).delete().code == model.code
            model.state = ""
        elif model.state:
            with pytest.raises(OrlopError):
                self.client.task(name).delete()

    # ---- its exec

    @rule(name=containers)
    def add_exec(self, name: str) -> None:
        model = self.models[name]
        if not model.state:
            return
        spec = self.client.containers.get(name).exec_spec(["sleep", "1000"])
        allowed = not model.exec and model.state in ("CREATED", "RUNNING")
        if self.attempt(allowed, lambda: self.client.task(name).exec("e", spec)):
            model.exec = "CREATED"

    @rule(name=containers)
    def start_exec(self, name: str) -> None:
        model = self.models[name]
        if not model.exec or model.state not in ("RUNNING", "STOPPED"):
            return
        allowed = model.exec == "CREATED" and model.state == "RUNNING"
        if self.attempt(allowed, self.client.task(name).process("e").start):
            model.exec = "RUNNING"

    @rule(name=containers)
    def kill_exec(self, name: str) -> None:
        model = self.models[name]
        if not model.exec or model.state == "PAUSED":
            return
        process = self.client.task(name).process("e")
        if self.attempt(model.exec == "RUNNING", lambda: process.kill(KILL)):
            assert process.wait().code == KILL + 128
            model.exec, model.exec_code = "STOPPED", KILL + 128

    @rule(name=containers)
    def delete_exec(self, name: str) -> None:
        model = self.models[name]
        if model.exec == "STOPPED":
            assert self.client.task(name).process("e").delete().code == model.exec_code
            model.exec = ""

    # ---- faults

    @rule()
    def kill_the_supervisor(self) -> None:
        for pid in supervisors(self.daemon.address):
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: not running(pid), "the supervisor lives")  # type: ignore[misc]

    @rule(supervisor=st.booleans())
    def kill_the_daemon(self, supervisor: bool) -> None:
        self.client.close()
        self.daemon.kill()
        if supervisor:
            self.kill_the_supervisor()
        self.daemon.start()
        self.client = self.connect()

    # ---- what must be

    @invariant()
    def states_are_those_of_the_model(self) -> None:
        found = {state.container_id: (str(state.status), state.pid) for state in self.client.tasks()}
        assert found == {name: (model.state, model.pid) for name, model in self.models.items() if model.state}
        for name, model in self.models.items():
            if model.state == "STOPPED":
                assert self.client.task(name).state().exit_status == model.code
            if not model.state:
                continue
            try:
                state = self.client.task(name).process("e").state()
            except NotFoundError:
                assert not model.exec
            else:
                assert (str(state.status), state.exit_status) == (
                    model.exec,
                    model.exec_code if model.exec == "STOPPED" else 0,
                )


def test_any_order_of_calls_and_crashes(new_orlopd: Callable[..., Orlopd], busybox_image: Image) -> None:
    daemon, namespace = new_orlopd(), f"machine-{os.getpid()}"

    class Bound(TaskMachine):
        pass

    Bound.daemon, Bound.namespace = daemon, namespace
    with orlop.Client(str(daemon.address), namespace, timeout_s=60) as client:
        with open(busybox_image.archive, "rb") as archive:
            [image] = client.import_(archive)
        for name in CONTAINERS:
            client.new_container(name, image, orlop.SpecOptions(args=SCRIPT))
    run_state_machine_as_test(
        Bound,
        settings=settings(
            max_examples=12,
            stateful_step_count=20,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    with orlop.Client(str(daemon.address), namespace, timeout_s=60) as client:
        for name in CONTAINERS:
            client.containers.get(name).delete()
    daemon.forget_cgroup(namespace)
