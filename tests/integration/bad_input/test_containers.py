"""Containers that cannot run, and stdio that is none: the reason in the OCI runtime's own words, and nothing left."""

import contextlib
import json
import os
import re
from collections.abc import Callable
from typing import Any

import pytest

import orlop
from orlop.base import errdefs
from orlop.base.errdefs import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    OrlopError,
)
from tests.integration.bad_input.pulling import refuses

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


def attempt(client: orlop.Client, prepared: str, **options: Any) -> None:
    """Create, start and remove; whatever fails, the container is removed again."""
    runtime = options.pop("runtime", None)
    change = options.pop("change", None)
    more = {"runtime": runtime} if runtime else {}
    with client.new_container("bad", prepared, orlop.SpecOptions(**options), **more) as container:
        if change is not None:
            _change_spec(client, change)
        with container.new_task() as task:
            task.start()
            task.wait()
            task.delete()


def _change_spec(client: orlop.Client, change: Callable[[dict[str, Any]], object]) -> None:
    from google.protobuf.field_mask_pb2 import FieldMask

    from orlop.api.services.containers.v1 import containers_pb2 as pb
    from orlop.client.channel import Rpc

    service = "containerd.services.containers.v1.Containers"
    get = Rpc(service, "Get", pb.GetContainerRequest, pb.GetContainerResponse)
    update = Rpc(service, "Update", pb.UpdateContainerRequest, pb.UpdateContainerResponse)
    container = client.call(get, pb.GetContainerRequest(id="bad")).container
    spec = json.loads(container.spec.value)
    changed = change(spec)
    container.spec.value = changed if isinstance(changed, bytes) else json.dumps(spec).encode()
    client.call(update, pb.UpdateContainerRequest(container=container, update_mask=FieldMask(paths=["spec"])))


@pytest.mark.parametrize(
    "runtime",
    [
        "io.containerd.none.v1",
        "nonsense",
        "/no/such/shim",
        "/etc/passwd",
        "../../bin/sh",
        "/bin/../bin/true",
        "io.containerd.runc.v99",
    ],
)
def test_an_unknown_runtime(client, prepared, runtime):
    with pytest.raises(OrlopError, match=re.escape(runtime).replace("/bin/\\.\\./bin", ".*")) as caught:
        attempt(client, prepared, args=("true",), runtime=runtime)
    assert caught.value.code in (2, 13)  # 13: the program is there and is no shim


def test_a_command_that_does_not_exist(client, prepared):
    with refuses(
        InvalidArgumentError if False else errdefs.UnknownError, r'"/no/such/program".*no such file or directory'
    ):
        attempt(client, prepared, args=("/no/such/program",))


SPECS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no process": (lambda spec: spec.pop("process"), "process"),
    "no arguments": (lambda spec: spec["process"].update(args=[]), "args"),
    "a relative cwd": (lambda spec: spec["process"].update(cwd="here"), "[Cc]wd"),
    "an unknown namespace": (
        lambda spec: spec["linux"]["namespaces"].append({"type": "nonsense"}),
        "nonsense|namespace",
    ),
    "a mount source that is not there": (
        lambda spec: spec["mounts"].append({"destination": "/x", "source": "/no/such", "options": ["bind"]}),
        "/no/such",
    ),
    "an unknown capability": (
        lambda spec: spec["process"].update(rlimits=[{"type": "RLIMIT_NONSENSE", "hard": 1, "soft": 1}]),
        "NONSENSE",
    ),
    "not json": (lambda _spec: b"{", "json|JSON|spec|parse|unexpected"),
    "null": (lambda _spec: b"null", "spec|null|root|process|version"),
    "a number": (lambda _spec: b"17", "spec|17|number|unmarshal"),
    "nested without end": (lambda _spec: b'{"a":' * 100_000, "spec|depth|nest|parse|unexpected|EOF"),
    "wrong types": (lambda spec: spec.update(process="text"), "process|unmarshal|string"),
    "a hook that is not there": (
        lambda spec: spec.update(hooks={"createRuntime": [{"path": "/no/such/hook"}]}),
        "/no/such/hook|hook",
    ),
    "a user namespace without mappings": (
        lambda spec: spec["linux"]["namespaces"].append({"type": "user"}),
        "mapping|user",
    ),
    "a device that cannot be": (
        lambda spec: spec["linux"].update(devices=[{"path": "/dev/x", "type": "z", "major": 1, "minor": 1}]),
        "device|z",
    ),
    "a cgroup path that climbs": (
        lambda spec: spec["linux"].update(cgroupsPath="../../../../bad\0path"),
        "cgroup|path",
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_that_runc_refuses(client, prepared, name):
    change, text = SPECS[name]
    with pytest.raises(OrlopError, match=text) as caught:
        attempt(client, prepared, args=("true",), change=change)
    assert caught.value.code in (2, 3, 9, 13)


def test_a_container_whose_snapshot_is_not_there(client, prepared):
    with pytest.raises(OrlopError, match="bad"):  # noqa: PT012 - whichever step it is that says so
        with client.new_container("bad", prepared, orlop.SpecOptions(args=("true",))) as container:
            client.snapshots().remove("bad")
            with container.new_task() as task:
                task.start()


def test_a_task_twice_and_things_that_are_not_there(client, prepared):
    with client.new_container("bad", prepared, orlop.SpecOptions(args=("sleep", "1000"))) as container:
        with refuses(AlreadyExistsError, '"bad"'):
            client.new_container("bad", prepared)
        with container.new_task() as task:
            with refuses(AlreadyExistsError, "bad"):
                container.new_task()
            task.start()
            with refuses(NotFoundError, "none"):
                client.task("none")
            with pytest.raises(OrlopError, match="exec"):
                task.exec("../e", container.exec_spec(["true"]))
            with pytest.raises(OrlopError, match="no such file"):
                with task.exec("e", container.exec_spec(["/no/such"])) as process:
                    process.start()
            task.kill("KILL")
            task.wait()
            task.delete()


@pytest.mark.parametrize("kind", ["missing", "directory", "link", "uri", "long", "newline", "relative"])
def test_stdio_paths_that_are_no_fifos(client, prepared, tmp_path, kind):
    from orlop.api.services.tasks.v1 import tasks_pb2 as pb
    from orlop.client.channel import Rpc

    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.symlink(victim, tmp_path / "link")
    path = {
        "missing": str(tmp_path / "missing"),
        "directory": str(tmp_path),
        "link": str(tmp_path / "link"),
        "uri": "nonsense://x",
        "long": "/" + "x" * 5000,
        "newline": "/tmp/a\nb",
        "relative": "victim",
    }[kind]
    create = Rpc("containerd.services.tasks.v1.Tasks", "Create", pb.CreateTaskRequest, pb.CreateTaskResponse)
    with client.new_container("bad", prepared, orlop.SpecOptions(args=("echo", "overwritten"))) as container:
        mounts = client.snapshots().mounts("bad")
        request = pb.CreateTaskRequest(container_id=container.id, stdout=path)
        for mount in mounts:
            request.rootfs.add(type=mount.type, source=mount.source, options=mount.options)
        with pytest.raises(OrlopError, match=r"stdout|stdio|STDIO"):
            client.call(create, request)
    assert victim.read_text() == "precious"


def test_a_file_as_stdout_is_appended_to(client, prepared, tmp_path):
    """A plain file is allowed, as containerd allows it; it is not cut."""
    path = tmp_path / "log"
    path.write_text("before\n")
    with client.new_container("bad", prepared, orlop.SpecOptions(args=("echo", "after"))) as container:
        with container.new_task(orlop.LogIO(str(path))) as task:
            task.start()
            task.wait()
            task.delete()
    assert path.read_text() == "before\nafter\n"


EXEC_SPECS = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[1]",
    "no utf-8": b'{"args": ["\xff"]}',
    "nested without end": b'{"a":' * 100_000,
    "wrong types": b'{"args": 5, "cwd": "/"}',
    "no arguments": b'{"args": [], "cwd": "/"}',
    "a relative cwd": b'{"args": ["true"], "cwd": "here"}',
    "a user that is none": b'{"args": ["true"], "cwd": "/", "user": {"uid": -1}}',
}


def test_exec_specs_that_cannot_run(client, prepared):
    """Refused, by us or by the OCI runtime; the task and its supervisor go on."""
    from google.protobuf.any_pb2 import Any as AnyMessage

    from orlop.api.services.tasks.v1 import tasks_pb2 as pb
    from orlop.client.channel import Rpc

    service = "containerd.services.tasks.v1.Tasks"
    exec_ = Rpc(service, "Exec", pb.ExecProcessRequest, pb.ExecProcessRequest)
    start = Rpc(service, "Start", pb.StartRequest, pb.StartResponse)
    delete = Rpc(service, "DeleteProcess", pb.DeleteProcessRequest, pb.DeleteResponse)
    outcomes = {}
    with client.new_container("bad", prepared, orlop.SpecOptions(args=("sleep", "1000"))) as container:
        with container.new_task() as task:
            task.start()
            for number, (name, value) in enumerate(EXEC_SPECS.items()):
                spec = AnyMessage(type_url="types.containerd.io/opencontainers/runtime-spec/1/Process", value=value)
                request = pb.ExecProcessRequest(container_id="bad", exec_id=f"e{number}", spec=spec)
                try:
                    client.call(exec_, request)
                    client.call(start, pb.StartRequest(container_id="bad", exec_id=f"e{number}"))
                    outcomes[name] = 0
                except OrlopError as error:
                    outcomes[name] = error.code
                with contextlib.suppress(NotFoundError):
                    client.call(delete, pb.DeleteProcessRequest(container_id="bad", exec_id=f"e{number}"))
            with task.exec("fine", container.exec_spec(["true"])) as process:
                process.start()
                assert process.wait().code == 0
            task.kill("KILL")
            task.wait()
            task.delete()
    assert set(outcomes.values()) <= {2, 3}, outcomes
