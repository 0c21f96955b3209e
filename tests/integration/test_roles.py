"""Sockets bound to a namespace and a role, under clients: ours and Debian's, over ttrpc and both gRPC doors."""

import contextlib
import json
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

import orlop
from orlop import ttrpc
from orlop.api.services.containers.v1 import containers_pb2
from orlop.api.services.diff.v1 import diff_pb2
from orlop.api.services.events.v1 import events_pb2
from orlop.api.services.leases.v1 import leases_pb2
from orlop.api.services.namespaces.v1 import namespaces_pb2
from orlop.api.services.snapshots.v1 import snapshots_pb2
from orlop.api.services.tasks.v1 import tasks_pb2
from orlop.api.types.mount_pb2 import Mount
from orlop.client.io import Capture, NullIO
from orlop.client.spec import default_spec
from orlop.oci import spec as oci
from orlop.ttrpc.client import Client
from tools import host
from tools.daemons import program

pytestmark = pytest.mark.root

# Any: the stubs want to be told what the serializers make, and there are none.
connect_grpc: Any = grpc.insecure_channel
SERVICES = "containerd.services"
TIMEOUT_S = 60
NAMESPACE = "roles-a"
OTHER = "roles-b"
DENIED, NOT_FOUND = 7, 5


@dataclass(frozen=True)
class Socket:
    """What the ctr fixtures take for a daemon."""

    address: str


class Refused(Exception):
    def __init__(self, code, text):
        super().__init__(f"{code} {text}")
        self.code, self.text = code, text


def config(directory, door):
    sockets = "".join(
        f"""
[sockets.{role}]
address = "{directory}/{role}.sock"
namespace = "{NAMESPACE}"
role = "{role}"
gid = 65534
mode = 0o660
fifo_directory = "{directory}/fifo"
"""
        for role in ("read", "run", "full")
    )
    return f'[grpc]\ndoor = "{door}"\n{sockets}'


@pytest.fixture(scope="module", params=["lean", "grpcio"])
def place(request, short_directory, grpcio):
    """A daemon with three sockets for one namespace; everything of this module's tests."""
    import tempfile

    from tools.daemons import Orlopd

    directory = Path(tempfile.mkdtemp(prefix="r.", dir=short_directory))
    with Orlopd(directory, config=config(directory, request.param)) as daemon:
        yield daemon


def socket(place, role):
    return Socket(f"{place.directory}/{role}.sock")


class Caller:
    """Unary calls over one of the doors."""

    def __init__(self, address, door):
        self.door = door
        self._stack = contextlib.ExitStack()
        if door == "grpc":
            self._channel = self._stack.enter_context(connect_grpc(f"unix:{address}"))
        else:
            self._client = self._stack.enter_context(Client.connect(f"{address}.ttrpc", timeout_s=TIMEOUT_S))

    def close(self):
        self._stack.close()

    def __call__(self, method, request, answer, **metadata):
        metadata = {name.replace("_", "-"): value for name, value in metadata.items()}
        service, _, name = method.rpartition("/")
        data = request.SerializeToString()
        if self.door == "grpc":
            call = self._channel.unary_unary(f"/{SERVICES}.{service}/{name}")
            try:
                return answer.FromString(call(data, metadata=list(metadata.items()), timeout=TIMEOUT_S))
            except grpc.RpcError as error:
                raise Refused(error.code().value[0], error.details()) from None
        try:
            found = self._client.call(f"{SERVICES}.{service}", name, data, metadata=metadata, timeout_s=TIMEOUT_S)
        except ttrpc.TtrpcError as error:
            raise Refused(error.code, error.message) from None
        return answer.FromString(found)


@pytest.fixture(params=["grpc", "ttrpc"])
def caller(request, place):
    opened = []

    def connect(role):
        opened.append(Caller(socket(place, role).address if role else place.address, request.param))
        return opened[-1]

    yield connect
    for one in opened:
        one.close()


def denied(call, *arguments, **metadata):
    with pytest.raises(Refused) as caught:
        call(*arguments, **metadata)
    assert caught.value.code == DENIED, caught.value
    return caught.value.text


@pytest.mark.parametrize("program", ["go_ctr", "our_ctr"])
def test_a_containers_life_over_a_run_socket(place, request, program, busybox_image):
    ctr = request.getfixturevalue(program)(socket(place, "run"), NAMESPACE)
    fifos = ("--fifo-dir", f"{place.directory}/fifo")
    ctr("images", "import", busybox_image.archive)
    assert ctr("run", "--rm", *fifos, busybox_image.reference, "hello", "echo", "hello") == "hello\n"
    ctr("run", "--detach", *fifos, busybox_image.reference, "sleeper", "sleep", "1000")
    assert ctr("tasks", "exec", *fifos, "--exec-id", "one", "sleeper", "echo", "inside") == "inside\n"
    assert "sleeper" in request.getfixturevalue(program)(socket(place, "read"), NAMESPACE)("tasks", "ls")
    refused = request.getfixturevalue(program)(socket(place, "read"), NAMESPACE).run("tasks", "kill", "sleeper")
    assert refused.returncode != 0
    assert "this method is not allowed" in refused.stderr
    ctr("tasks", "rm", "--force", "sleeper")
    ctr("containers", "rm", "sleeper")
    ctr("images", "rm", "--sync", busybox_image.reference)


STRONGER = {
    "privileged": ("--privileged", "spec."),
    "host network": ("--net-host", "spec."),
    "a directory of the host": ("--mount=type=bind,src=/etc,dst=/host,options=rbind:ro", "spec.mounts["),
    "a device": ("--device=/dev/loop-control", "spec.linux.resources.devices["),
    "another pid namespace": ("--with-ns=pid:/proc/1/ns/pid", "spec.linux.namespaces["),
    "a foreign cgroup": ("--cgroup=/system.slice", "spec.linux.cgroupsPath"),
    "an annotation": ("--annotation=run.oci.handler=wasm", "spec.annotations"),
    "a runtime by path": ("--runtime=/bin/sh", "container.runtime.name"),
    "a capability": ("--cap-add=CAP_SYS_ADMIN", "spec.process.capabilities."),
}


@pytest.mark.parametrize("what", STRONGER)
def test_a_stronger_container_is_refused(place, go_ctr, our_ctr, busybox_image, what):
    flag, field = STRONGER[what]
    ctr = our_ctr(socket(place, "run"), NAMESPACE)
    ctr("images", "import", busybox_image.archive)
    refused = ctr.run("containers", "create", flag, busybox_image.reference, "strong", "true")
    assert refused.returncode != 0
    assert "role run: " in refused.stderr
    assert field in refused.stderr
    assert "strong" not in ctr("containers", "ls")


def test_a_logging_program_is_refused(place, our_ctr, busybox_image):
    ctr = our_ctr(socket(place, "run"), NAMESPACE)
    ctr("images", "import", busybox_image.archive)
    for uri in ("binary:///bin/touch?x=y", f"file://{place.directory}/out"):
        refused = ctr.run("run", "--rm", "--log-uri", uri, busybox_image.reference, "logs", "true")
        assert refused.returncode != 0
        assert "role run: stdout: must be a FIFO below" in refused.stderr
    assert not Path(f"{place.directory}/out").exists()


def test_a_container_made_on_roots_socket_is_judged_when_its_task_is_made(place, our_ctr, busybox_image):
    ours, roots = our_ctr(socket(place, "run"), NAMESPACE), our_ctr(place, NAMESPACE)
    roots("images", "import", busybox_image.archive)
    roots("containers", "create", "--privileged", busybox_image.reference, "root-made", "true")
    try:
        refused = ours.run("tasks", "start", "--null-io", "root-made")
        assert refused.returncode != 0
        assert "role run: spec." in refused.stderr
    finally:
        roots("containers", "rm", "root-made")


def test_who_may_connect_is_the_files_mode_and_group(place):
    for role in ("read", "run", "full"):
        for path in (f"{place.directory}/{role}.sock", f"{place.directory}/{role}.sock.ttrpc"):
            found = os.stat(path)
            assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o660, 0, 65534)
    assert stat.S_IMODE(os.stat(f"{place.directory}/fifo").st_mode) == 0o1770


@pytest.mark.parametrize("role", ["read", "run", "full"])
def test_another_namespace_is_neither_named_nor_seen(caller, role):
    root, own = caller(""), caller(role)
    lease = leases_pb2.CreateRequest(id=f"other-{role}-{own.door}")
    root("leases.v1.Leases/Create", lease, leases_pb2.CreateResponse, containerd_namespace=OTHER)
    # `default` is every client's, and is refused like any other.
    listing = ("leases.v1.Leases/List", leases_pb2.ListRequest(), leases_pb2.ListResponse)
    for name in (OTHER, "default"):
        assert "header containerd-namespace" in denied(own, *listing, containerd_namespace=name)
        if own.door == "ttrpc":
            assert "header containerd-namespace" in denied(own, *listing, containerd_namespace_ttrpc=name)
    seen = own(*listing)
    assert lease.id not in [one.id for one in seen.leases]
    root(
        "leases.v1.Leases/Delete",
        leases_pb2.DeleteRequest(id=lease.id),
        events_pb2.PublishRequest,
        containerd_namespace=OTHER,
    )
    names = own(
        "namespaces.v1.Namespaces/List", namespaces_pb2.ListNamespacesRequest(), namespaces_pb2.ListNamespacesResponse
    )
    assert {one.name for one in names.namespaces} <= {NAMESPACE}
    get = namespaces_pb2.GetNamespaceRequest(name=OTHER)
    assert "another namespace" in denied(own, "namespaces.v1.Namespaces/Get", get, namespaces_pb2.GetNamespaceResponse)


def test_events_of_others_are_not_heard(place, our_ctr, caller):
    root = caller("")
    with contextlib.ExitStack() as stack:
        channel = stack.enter_context(connect_grpc(f"unix:{socket(place, 'read').address}"))
        stream = channel.unary_stream(f"/{SERVICES}.events.v1.Events/Subscribe")
        from orlop.api.types.event_pb2 import Envelope

        answers = stream(events_pb2.SubscribeRequest(filters=['namespace!=""']).SerializeToString(), timeout=TIMEOUT_S)
        publish = events_pb2.PublishRequest(topic="/roles/test")
        publish.event.type_url = "nothing"
        import itertools
        import queue
        import threading

        heard: queue.Queue = queue.Queue()

        def listen():
            with contextlib.suppress(grpc.RpcError):
                for data in answers:
                    heard.put(Envelope.FromString(data))

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            for _ in itertools.count():
                root("events.v1.Events/Publish", publish, events_pb2.PublishRequest, containerd_namespace=OTHER)
                root("events.v1.Events/Publish", publish, events_pb2.PublishRequest, containerd_namespace=NAMESPACE)
                with contextlib.suppress(queue.Empty):
                    first = heard.get(timeout=0.1)
                    break
        finally:
            answers.cancel()
            thread.join()
    found = [first, *heard.queue]
    assert {one.namespace for one in found} == {NAMESPACE}


def test_mounts_must_be_a_snapshots_of_the_namespace(caller):
    own, root = caller("run"), caller("")
    prepare = snapshots_pb2.PrepareSnapshotRequest(
        snapshotter="native", key=f"own-{own.door}", labels={"containerd.io/gc.root": "yes"}
    )
    mine = own("snapshots.v1.Snapshots/Prepare", prepare, snapshots_pb2.PrepareSnapshotResponse).mounts
    theirs = root(
        "snapshots.v1.Snapshots/Prepare", prepare, snapshots_pb2.PrepareSnapshotResponse, containerd_namespace=OTHER
    ).mounts
    host = [Mount(type="bind", source="/etc", options=["rbind", "ro"])]
    changed = [Mount(type=mine[0].type, source=mine[0].source, options=[*mine[0].options, "suid"])]
    try:
        for mounts in (theirs, host, changed, []):
            diff = diff_pb2.DiffRequest(right=mounts, ref="x")
            assert "role run: right: " in denied(own, "diff.v1.Diff/Diff", diff, diff_pb2.DiffResponse)
            diff = diff_pb2.DiffRequest(left=mounts or host, right=mine, ref="x")
            assert "role run: left: " in denied(own, "diff.v1.Diff/Diff", diff, diff_pb2.DiffResponse)
            apply = diff_pb2.ApplyRequest(mounts=mounts)
            assert "role run: mounts: " in denied(own, "diff.v1.Diff/Apply", apply, diff_pb2.ApplyResponse)
            create = tasks_pb2.CreateTaskRequest(container_id="none", rootfs=mounts)
            assert "role run: rootfs: " in denied(own, "tasks.v1.Tasks/Create", create, tasks_pb2.CreateTaskResponse)
        assert own(
            "diff.v1.Diff/Diff", diff_pb2.DiffRequest(right=mine, ref=f"d{own.door}"), diff_pb2.DiffResponse
        ).diff.size
        create = tasks_pb2.CreateTaskRequest(container_id="none", rootfs=mine)
        with pytest.raises(Refused) as caught:
            own("tasks.v1.Tasks/Create", create, tasks_pb2.CreateTaskResponse)
        assert caught.value.code == NOT_FOUND
    finally:
        remove = snapshots_pb2.RemoveSnapshotRequest(snapshotter="native", key=prepare.key)
        own("snapshots.v1.Snapshots/Remove", remove, events_pb2.PublishRequest)
        root("snapshots.v1.Snapshots/Remove", remove, events_pb2.PublishRequest, containerd_namespace=OTHER)
    # What was a snapshot's is none any more.
    diff = diff_pb2.DiffRequest(right=mine, ref="x")
    assert "role run: right: " in denied(own, "diff.v1.Diff/Diff", diff, diff_pb2.DiffResponse)


def test_fifos_of_others_and_links_are_refused(place, caller):
    own = caller("run")
    fifos = Path(place.directory) / "fifo"
    foreign = Path(place.directory) / f"foreign-{own.door}"
    os.mkfifo(foreign)
    inside = fifos / f"d-{own.door}"
    inside.mkdir()
    os.mkfifo(inside / "good")
    (inside / "link").symlink_to(foreign)
    (inside / "up").symlink_to(place.directory)
    (inside / "file").write_text("")
    bad = [foreign, inside / "link", inside / "up" / foreign.name, inside / "file", f"{fifos}/../{foreign.name}", fifos]
    for path in bad:
        for name in ("stdin", "stdout", "stderr"):
            create = tasks_pb2.CreateTaskRequest(container_id="none")
            setattr(create, name, str(path))
            text = denied(own, "tasks.v1.Tasks/Create", create, tasks_pb2.CreateTaskResponse)
            assert f"role run: {name}: must be a FIFO below {fifos}" in text
    create = tasks_pb2.CreateTaskRequest(container_id="none", stdout=str(inside / "good"))
    assert "role run: rootfs: " in denied(own, "tasks.v1.Tasks/Create", create, tasks_pb2.CreateTaskResponse)


@pytest.fixture
def foreign(new_orlopd, short_directory):
    """A daemon whose `run` socket allows a runtime that Debian's shim serves."""
    if reason := host.lacks_peer("containerd-shim-runc-v2"):
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="f.", dir=short_directory))
    shim = program("containerd-shim-runc-v2")
    config = f"""
[runtimes]
"foreign.v1" = "{shim}"
[sockets.run]
address = "{directory}/run.sock"
namespace = "{NAMESPACE}"
role = "run"
fifo_directory = "{directory}/fifo"
runtimes = ["foreign.v1"]
"""
    return new_orlopd(config=config), directory


def test_a_foreign_shim_is_given_no_paths_of_tenants(foreign, busybox_image):
    """It would open them with root's rights, wherever they lead by then; through root's socket it is given them."""
    daemon, directory = foreign
    fifo = directory / "fifo" / "out"
    os.mkfifo(fifo)
    with orlop.Client(f"{directory}/run.sock", NAMESPACE, timeout_s=60) as client:
        with open(busybox_image.archive, "rb") as opened:
            [image] = client.import_(opened)
        options = orlop.SpecOptions(args=("sleep", "1000"))
        with client.new_container("c", image.name, options, runtime="foreign.v1") as container:
            rootfs = [
                Mount(type=m.type, source=m.source, target=m.target, options=m.options) for m in container.mounts()
            ]
            with contextlib.closing(Caller(f"{directory}/run.sock", "ttrpc")) as own:
                for name in ("stdin", "stdout", "stderr"):
                    create = tasks_pb2.CreateTaskRequest(container_id="c", rootfs=rootfs)
                    setattr(create, name, str(fifo))
                    text = denied(own, "tasks.v1.Tasks/Create", create, tasks_pb2.CreateTaskResponse)
                    assert f"role run: {name}: the shim of this runtime opens it by its path" in text
                with container.new_task(NullIO()) as task:
                    task.start()
                    spec = container.exec_spec(("true",))
                    execute = tasks_pb2.ExecProcessRequest(container_id="c", exec_id="e", stdout=str(fifo))
                    execute.spec.type_url, execute.spec.value = oci.PROCESS_TYPE_URL, spec
                    text = denied(own, "tasks.v1.Tasks/Exec", execute, Empty)
                    assert "role run: stdout: the shim of this runtime opens it by its path" in text
                    with task.exec("e", spec, io=NullIO()) as process:
                        process.start()
                        assert process.wait().code == 0
                    task.kill("SIGKILL")
                    task.wait()
            roots = orlop.Client(str(daemon.address), NAMESPACE, timeout_s=60)
            output = Capture(directory=str(directory))
            with roots, roots.containers.get("c").new_task(output) as task:
                task.kill("SIGKILL")
                task.wait()
        image.delete(synchronous=True)


def test_an_update_is_judged_like_a_creation(caller):
    own = caller("run")
    container = containers_pb2.Container(id="updated")
    container.runtime.name = "io.containerd.runc.v2"
    container.spec.type_url = oci.TYPE_URL
    container.spec.value = oci.encode(default_spec(NAMESPACE, container.id))
    own(
        "containers.v1.Containers/Create",
        containers_pb2.CreateContainerRequest(container=container),
        containers_pb2.CreateContainerResponse,
    )
    try:
        for changes, field in (
            ({"labels": {"containerd.io/restart.status": "running"}}, "container.labels.containerd.io/restart.status"),
            ({"sandbox": "x"}, "container.sandbox"),
            ({"spec": {"type_url": "x", "value": json.dumps({"hooks": {}}).encode()}}, "spec.hooks"),
            ({"spec": {"type_url": "x", "value": b'{"a": 1, "a": 2}'}}, "spec: a key is there twice"),
            ({"extensions": {"x": {"type_url": "x"}}}, "container.extensions"),
            ({"runtime": {"name": "/bin/sh"}}, "container.runtime.name"),
            (
                {"runtime": {"name": "io.containerd.runc.v2", "options": {"type_url": "x", "value": b"x"}}},
                "container.runtime.options",
            ),
        ):
            request = containers_pb2.UpdateContainerRequest(container=containers_pb2.Container(id="updated", **changes))
            text = denied(own, "containers.v1.Containers/Update", request, containers_pb2.UpdateContainerResponse)
            assert f"role run: {field}" in text
    finally:
        own(
            "containers.v1.Containers/Delete",
            containers_pb2.DeleteContainerRequest(id="updated"),
            events_pb2.PublishRequest,
        )


def test_a_socket_that_cannot_be_is_refused_at_the_start(new_orlopd):
    for text, expected in (
        ('role = "king"', 'sockets.bad: role "king": must be one of read, run, full'),
        ('role = "run"\nnamespace = "a b"', "sockets.bad: namespace: "),
        ('role = "run"\nnamespace = "a"\nmode = 0o1777', "sockets.bad: mode 0o1777"),
        ('role = "run"\nnamespace = "a"\nfifo_directory = "/"', 'sockets.bad: fifo_directory "/"'),
    ):
        with pytest.raises(Exception, match=expected):
            new_orlopd(config=f'[sockets.bad]\naddress = "/run/none.sock"\n{text}\n')
