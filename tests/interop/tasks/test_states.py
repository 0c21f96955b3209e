"""What may be done to a task in which state: every call in every state is answered as containerd answers it."""

import contextlib
import json
import re
import signal
from collections.abc import Mapping

import pytest
from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.message import Message

import orlop
from orlop.api.services.tasks.v1 import tasks_pb2 as pb
from orlop.api.types.runc.options.oci_pb2 import CheckpointOptions
from orlop.base.errdefs import NotFoundError, OrlopError
from orlop.client import tasks
from orlop.client.channel import Rpc, drive
from tests.interop.tasks.conftest import ORACLE, STANDS, Stand, connected
from tests.interop.tasks.differences import ANSWERS, OF_1_6
from tools.daemons import containerd_version
from tools.images import Image

pytestmark = [pytest.mark.root, pytest.mark.interop]

STATES = ("created", "running", "paused", "stopped", "killed while paused", "deleted", "without a container")
ID = "c"
KILL = int(signal.SIGKILL)
SLEEP = json.dumps({"args": ["sleep", "1000"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}})
PROCESS = PackedAny(type_url="types.containerd.io/opencontainers/runtime-spec/1/Process", value=SLEEP.encode())
RESOURCES = PackedAny(
    type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", value=b'{"pids": {"limit": 100}}'
)
DUMP = CheckpointOptions(image_path="/proc/nowhere")
DUMPED = PackedAny(type_url=DUMP.DESCRIPTOR.full_name, value=DUMP.SerializeToString())

# In this order; what succeeds and is not among the looks leads to a container made anew for the next one.
CALLS: Mapping[str, tuple[Rpc, Message]] = {
    "state": (tasks.GET, pb.GetRequest(container_id=ID)),
    "state of an exec": (tasks.GET, pb.GetRequest(container_id=ID, exec_id="added")),
    "state of no exec": (tasks.GET, pb.GetRequest(container_id=ID, exec_id="none")),
    "pids": (tasks.PIDS, pb.ListPidsRequest(container_id=ID)),
    "resize": (tasks.RESIZE, pb.ResizePtyRequest(container_id=ID, width=80, height=24)),
    "resize an exec": (tasks.RESIZE, pb.ResizePtyRequest(container_id=ID, exec_id="added", width=80, height=24)),
    "resize no exec": (tasks.RESIZE, pb.ResizePtyRequest(container_id=ID, exec_id="none", width=80, height=24)),
    "close stdin": (tasks.CLOSE_IO, pb.CloseIORequest(container_id=ID, stdin=True)),
    "close stdin of an exec": (tasks.CLOSE_IO, pb.CloseIORequest(container_id=ID, exec_id="added", stdin=True)),
    "close stdin of no exec": (tasks.CLOSE_IO, pb.CloseIORequest(container_id=ID, exec_id="none", stdin=True)),
    "wait for no exec": (tasks.WAIT, pb.WaitRequest(container_id=ID, exec_id="none")),
    "create": (tasks.CREATE, pb.CreateTaskRequest(container_id=ID)),
    "start": (tasks.START, pb.StartRequest(container_id=ID)),
    "start an exec": (tasks.START, pb.StartRequest(container_id=ID, exec_id="added")),
    "start no exec": (tasks.START, pb.StartRequest(container_id=ID, exec_id="none")),
    "pause": (tasks.PAUSE, pb.PauseTaskRequest(container_id=ID)),
    "resume": (tasks.RESUME, pb.ResumeTaskRequest(container_id=ID)),
    "update": (tasks.UPDATE, pb.UpdateTaskRequest(container_id=ID, resources=RESOURCES)),
    "checkpoint": (tasks.CHECKPOINT, pb.CheckpointTaskRequest(container_id=ID, options=DUMPED)),
    "exec without an id": (tasks.EXEC, pb.ExecProcessRequest(container_id=ID, spec=PROCESS)),
    "exec of a bad id": (tasks.EXEC, pb.ExecProcessRequest(container_id=ID, exec_id="a/b", spec=PROCESS)),
    "exec of the same id": (tasks.EXEC, pb.ExecProcessRequest(container_id=ID, exec_id="added", spec=PROCESS)),
    "exec": (tasks.EXEC, pb.ExecProcessRequest(container_id=ID, exec_id="e", spec=PROCESS)),
    "delete no exec": (tasks.DELETE_PROCESS, pb.DeleteProcessRequest(container_id=ID, exec_id="none")),
    "delete an exec": (tasks.DELETE_PROCESS, pb.DeleteProcessRequest(container_id=ID, exec_id="added")),
    "kill an exec": (tasks.KILL, pb.KillRequest(container_id=ID, exec_id="added", signal=KILL)),
    "kill no exec": (tasks.KILL, pb.KillRequest(container_id=ID, exec_id="none", signal=KILL)),
    "kill by 0": (tasks.KILL, pb.KillRequest(container_id=ID)),
    "kill by URG": (tasks.KILL, pb.KillRequest(container_id=ID, signal=int(signal.SIGURG))),
    "kill by 200": (tasks.KILL, pb.KillRequest(container_id=ID, signal=200)),
    "kill": (tasks.KILL, pb.KillRequest(container_id=ID, signal=KILL)),
    "kill all": (tasks.KILL, pb.KillRequest(container_id=ID, signal=KILL, all=True)),
    "delete": (tasks.DELETE, pb.DeleteTaskRequest(container_id=ID)),
}
LOOKS = frozenset(name for name in CALLS if name.startswith(("state", "pids", "resize", "close", "kill by")))

Answers = dict[str, tuple[int, str]]
_oracle: dict[str, Answers] = {}


def answers(client: orlop.Client, stand: Stand, state: str) -> Answers:
    """How each call ends: code and text of its error."""
    found: Answers = {}
    there = False
    for name, (rpc, request) in CALLS.items():
        if not there:
            bring(client, stand, state)
        try:
            drive(client.session.call(rpc, request))
        except OrlopError as error:
            found[name] = error.code, plain(str(error), client.namespace)
            there = True
        else:
            found[name] = 0, ""
            there = name in LOOKS
        if not there:
            take_away(client)
    take_away(client)
    return found


def plain(text: str, namespace: str) -> str:
    """What does not differ from one stand to the next for its own reasons. Our supervisor names the container, too."""
    text = text.replace(namespace, "NS").removesuffix(": unknown")  # 1.6 names this class as well, 2.x does not
    return re.sub(r"/\S+/(?=NS/c)", "", re.sub(f'failed: container "{ID}": ', "failed: ", text))


def bring(client: orlop.Client, stand: Stand, state: str) -> None:
    """Make a container and lead it into a state; while it may it is given an exec that is not started."""
    image = client.images.list()[0].name
    container = client.new_container(ID, image, orlop.SpecOptions(args=["sleep", "1000"]), runtime=stand.runtime)
    task = container.new_task()
    task.exec("added", SLEEP.encode())
    if state != "created":
        task.start()
    if state in ("paused", "killed while paused"):
        task.pause()
    if state not in ("created", "running", "paused"):
        task.kill("KILL")
        task.wait()
    if state in ("deleted", "without a container"):
        task.delete()
    if state == "without a container":
        container.delete()


def take_away(client: orlop.Client) -> None:
    try:
        container = client.containers.get(ID)
    except NotFoundError:
        return
    with contextlib.suppress(NotFoundError):
        container.task().delete(force=True)
    container.delete()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", STANDS[:-1])
def test_every_call(name: str, state: str, stands: Mapping[str, Stand], namespace: str, busybox_image: Image) -> None:
    if state not in _oracle:
        with connected(stands[ORACLE], namespace, busybox_image) as client:
            _oracle[state] = answers(client, stands[ORACLE], state)
    with connected(stands[name], namespace, busybox_image) as client:
        ours = answers(client, stands[name], state)
    theirs = _oracle[state]
    differing = {call: (ours[call], theirs[call]) for call in CALLS if ours[call] != theirs[call]}
    expected = {call for who, where, call in ANSWERS if who in (name, "*") and where in (state, "*")}
    if containerd_version() > (1, 6):
        expected -= OF_1_6
    surprising = {call: pair for call, pair in differing.items() if call not in expected}
    assert not surprising, "\n".join(f"{call}: {ours} and not {theirs}" for call, (ours, theirs) in surprising.items())
    assert expected <= differing.keys()
