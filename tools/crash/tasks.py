"""Operations on tasks and sandboxes: daemon, supervisor or both are killed, and no container minds.

Beside the one that something is done to there is a bystander, which runs through all of it as the same process.
"""

from __future__ import annotations

import contextlib
from typing import Final

import orlop
from orlop.base.errdefs import AlreadyExistsError, FailedPreconditionError, NotFoundError, UnknownError
from tools.crash.layers import unpacked_image
from tools.crash.operations import Operation
from tools.crash.stage import Stage, until

UNKNOWN: Final = 255
"""What a process has ended with that nobody saw end: neither its supervisor nor the daemon lived."""
RUNS: Final = ["sleep", "1000"]
ENDS: Final = ["sh", "-c", "exit 5"]


def status(client: orlop.Client, name: str, *expected: str) -> None:
    status = client.task(name).status()
    assert status in expected, f"task {name} is {status}, and not {' or '.join(expected)}"


def bystander(stage: Stage, *, runs: bool = True, container: bool = True) -> None:
    """An image, a container that runs, and one that is to be played with."""
    unpacked_image(stage)
    if runs:
        _run_bystander(stage)
    if container:
        _container(stage, RUNS)


def _run_bystander(stage: Stage) -> None:
    with stage.client() as client:
        client.new_container("b", stage.image.reference, orlop.SpecOptions(args=RUNS)).new_task().start()
        pid = client.task("b").state().pid
    stage.promise("bystander", lambda client: _same(client, pid))


def _same(client: orlop.Client, pid: int) -> None:
    status(client, "b", "RUNNING")
    assert client.task("b").state().pid == pid


def _container(stage: Stage, args: list[str]) -> None:
    with stage.client() as client:
        client.new_container("c", stage.image.reference, orlop.SpecOptions(args=args))


def _alone(stage: Stage) -> None:
    """No supervisor is there yet."""
    unpacked_image(stage)
    _container(stage, RUNS)


def create(stage: Stage) -> None:
    with stage.client() as client:
        try:
            client.task("c")
        except NotFoundError:
            client.containers.get("c").new_task()
    stage.promise("task", lambda client: status(client, "c", "CREATED"))


def _created(stage: Stage) -> None:
    bystander(stage)
    create(stage)


def _start(stage: Stage) -> None:
    stage.withdraw("task")
    with stage.client() as client:
        task = client.task("c")
        try:
            task.start()
        except UnknownError:
            if task.status() != "RUNNING":
                raise
    stage.promise("task", lambda client: status(client, "c", "RUNNING"))


def _running(stage: Stage) -> None:
    _created(stage)
    _start(stage)


def _exec(stage: Stage) -> None:
    """Another process in it, from its beginning to its end."""
    with stage.client() as client:
        task = client.task("c")
        try:
            process = task.exec("e", client.containers.get("c").exec_spec(ENDS))
        except AlreadyExistsError:
            process = task.process("e")
        if process.status() == "CREATED":
            process.start()
        until(lambda: process.status() == "STOPPED", "the exec does not end")
        code = process.delete().code
        assert code in (5, UNKNOWN), f"the exec has ended with {code}"
    stage.promise("exec is gone", _has_no_exec)


def _has_no_exec(client: orlop.Client) -> None:
    try:
        status = client.task("c").process("e").status()
    except NotFoundError:
        return
    raise AssertionError(f"exec e is {status}")


def _kill(stage: Stage) -> None:
    stage.withdraw("task")
    with stage.client() as client:
        task = client.task("c")
        with contextlib.suppress(NotFoundError):
            task.kill("KILL")
        until(lambda: task.status() == "STOPPED", "the task does not end")
    stage.promise("task", _is_killed)


def _is_killed(client: orlop.Client) -> None:
    status(client, "c", "STOPPED")
    code = client.task("c").wait().code
    assert code in (137, UNKNOWN), f"the task was killed and has ended with {code}"


def _stopped(stage: Stage) -> None:
    _running(stage)
    _kill(stage)


def _delete(stage: Stage) -> None:
    stage.withdraw("task")
    with stage.client() as client:
        with contextlib.suppress(NotFoundError):
            client.task("c").delete(force=True)
        client.containers.get("c").new_task().delete(force=True)  # its name is free
    stage.promise("task is gone", _has_no_task)


def _has_no_task(client: orlop.Client) -> None:
    assert "c" not in [one.container_id for one in client.tasks()]


def _run(stage: Stage) -> None:
    """From the beginning to the end."""
    with stage.client() as client:
        container = client.containers.get("c")
        try:
            task = client.task("c")
        except NotFoundError:
            task = container.new_task()
        if task.status() == "CREATED":
            task.start()
        until(lambda: task.status() == "STOPPED", "the task does not end")
        code = task.delete().code
        assert code in (5, UNKNOWN), f"the task has ended with {code}"
    stage.promise("task is gone", _has_no_task)


def _short(stage: Stage) -> None:
    unpacked_image(stage)
    _container(stage, ENDS)


# -- sandboxes --------------------------------------------------------------------------------------------------------


def _create_sandbox(stage: Stage) -> None:
    with stage.client() as client:
        with contextlib.suppress(AlreadyExistsError):
            client.sandboxes.create("s")
    stage.promise("sandbox", lambda client: client.sandboxes.get("s").status())


def _start_sandbox(stage: Stage) -> None:
    with stage.client() as client:
        sandbox = client.sandboxes.get("s")
        try:
            sandbox.start()
        except FailedPreconditionError:
            pass  # it was started before
        except UnknownError as error:
            if "unable to find sandbox" not in str(error):
                raise
            sandbox.delete()  # as a start has failed, there is a record of it and nothing else
            client.sandboxes.create("s").start()
    stage.promise("started", _is_ready)


def _is_ready(client: orlop.Client) -> None:
    state = client.sandboxes.get("s").status().state
    assert state == "SANDBOX_READY", f"the sandbox is {state}"


def _sandbox(stage: Stage) -> None:
    bystander(stage)
    _create_sandbox(stage)


def _started_sandbox(stage: Stage) -> None:
    _sandbox(stage)
    _start_sandbox(stage)


def _delete_sandbox(stage: Stage) -> None:
    """Stop it, and delete it."""
    stage.withdraw("sandbox", "started")
    with stage.client() as client, contextlib.suppress(NotFoundError):
        sandbox = client.sandboxes.get("s")
        with contextlib.suppress(NotFoundError):  # its shim has no such any more
            sandbox.stop()
        sandbox.delete()
    stage.promise("no sandbox", _has_no_sandbox)


def _has_no_sandbox(client: orlop.Client) -> None:
    assert not client.sandboxes.list()


OPERATIONS: Final = (
    Operation(name="first task", store="tasks", prepare=_alone, perform=create, tasks=True),
    Operation(name="create task", store="tasks", prepare=bystander, perform=create, tasks=True),
    Operation(name="start task", store="tasks", prepare=_created, perform=_start, tasks=True),
    Operation(name="exec", store="tasks", prepare=_running, perform=_exec, tasks=True),
    Operation(name="kill task", store="tasks", prepare=_running, perform=_kill, tasks=True),
    Operation(name="delete task", store="tasks", prepare=_stopped, perform=_delete, tasks=True),
    Operation(name="delete running task", store="tasks", prepare=_running, perform=_delete, tasks=True),
    Operation(name="run to the end", store="tasks", prepare=_short, perform=_run, tasks=True),
    Operation(name="create sandbox", store="sandboxes", prepare=bystander, perform=_create_sandbox, tasks=True),
    Operation(name="start sandbox", store="sandboxes", prepare=_sandbox, perform=_start_sandbox, tasks=True),
    Operation(name="delete sandbox", store="sandboxes", prepare=_started_sandbox, perform=_delete_sandbox, tasks=True),
)
