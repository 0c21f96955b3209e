"""`ctr shim`: speak with a shim over its own socket, past the daemon."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from orlop.base.errdefs import InvalidArgumentError, NotFoundError, UnimplementedError, from_status
from orlop.cmd.cli import App, GoCommand, LazyGroup, pass_app, print_json
from orlop.cmd.ctr.pprof import add_profiles

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from orlop.ttrpc.client import Client

_SERVICES: Final = {"3": "containerd.task.v3.Task", "2": "containerd.task.v2.Task"}
_SOCKETS: Final = "/run/containerd/s"
"""Where shims written in Go have theirs, whatever the daemon. Source: SocketAddress in containerd's pkg/shim."""

_versions = click.option(
    "--api-version", type=click.Choice(list(_SERVICES)), help="Of the shim's task API; by default the newest it has."
)


@click.group(cls=LazyGroup)
@click.option("--id", "container_id", default="", help="Container.")
@click.option(
    "--shim-address",
    "--socket",
    "-s",
    "socket",
    default="",
    help="The shim's socket; found by the container's bundle by default.",
)
@click.pass_context
def shim(context: click.Context, container_id: str, socket: str) -> None:
    """Speak with a shim directly; for finding out what is wrong."""
    context.meta["orlop.shim"] = (container_id, socket.removeprefix("unix://"))


def _chosen() -> tuple[str, str]:
    container_id, socket = click.get_current_context().meta["orlop.shim"]
    if not container_id and not socket:
        raise InvalidArgumentError("shim ID (--id) or address (--shim-address) must be specified")
    return container_id, socket


def _task(given: str, container_id: str) -> str:
    """The task that is meant: the one that is named, or that of the container."""
    if not given and not container_id:
        raise InvalidArgumentError("container id must be specified with --id")
    return given or container_id


def _socket(app: App, container_id: str) -> str:
    """The address in the container's bundle: beside the daemon's socket, as daemons lay their state out by default."""
    import os

    from orlop.client.connect import socket_path

    home = os.path.dirname(socket_path(app.address))
    below = os.path.join("io.containerd.runtime.v2.task", app.namespace, container_id, "address")
    for path in (os.path.join(home, below), os.path.join(home, "state", below), f"/run/containerd/{below}"):
        with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
            return file.read().strip()
    raise NotFoundError(f"the address of the shim of container {container_id}", hint="give it with --socket")


@contextlib.contextmanager
def _connected(app: App) -> Iterator[tuple["Client", str]]:
    from orlop.ttrpc.client import Client
    from orlop.ttrpc.errors import TtrpcError

    container_id, socket = _chosen()
    try:
        with Client.connect(socket or _socket(app, container_id)) as client:
            yield client, container_id
    except TtrpcError as error:
        raise from_status(error.code, error.message) from None


def _call(
    client: "Client", app: App, method: str, request: "Message", response: Any, version: str | None = None
) -> Any:
    """Call a method of the shim's task API, whose messages are alike in its versions; the newest it has by default."""
    # Any: the response's generated class and its instance.
    from orlop.client.channel import NAMESPACE_HEADER
    from orlop.ttrpc.errors import TtrpcError

    data, metadata = request.SerializeToString(), {NAMESPACE_HEADER: app.namespace}
    services = [_SERVICES[version]] if version else list(_SERVICES.values())
    for service in services[:-1]:
        try:
            return response.FromString(client.call(service, method, data, metadata=metadata, timeout_s=60))
        except TtrpcError as error:
            if error.code != UnimplementedError.code:
                raise
    return response.FromString(client.call(services[-1], method, data, metadata=metadata, timeout_s=60))


@shim.command(cls=GoCommand)
@click.option("--task-id", "-t", default="", help="Task; that of the container by default.")
@_versions
@pass_app
def state(app: App, task_id: str, api_version: str | None) -> None:
    """Print the state of the task's init process as JSON."""
    from orlop.api.runtime.task.v2 import shim_pb2 as pb
    from orlop.cmd.gojson import to_json

    with _connected(app) as (client, container_id):
        request = pb.StateRequest(id=_task(task_id, container_id))
        print_json(to_json(_call(client, app, "State", request, pb.StateResponse, api_version)), indent=2)


@shim.command(cls=GoCommand)
@click.option("--bundle", default="", help="Bundle directory.")
@click.option("--runtime", default="", hidden=True, help="Of 2017; the shim knows its runtime.")
@click.option("--stdin", default="", help="FIFO or URI for input.")
@click.option("--stdout", default="", help="FIFO or URI for output.")
@click.option("--stderr", default="", help="FIFO or URI for errors.")
@click.option("--tty", "-t", is_flag=True, help="Give the process a terminal.")
@click.option("--attach", "-a", is_flag=True, hidden=True, help="Of 2017; tasks attach serves.")
@pass_app
def create(app: App, bundle: str, runtime: str, stdin: str, stdout: str, stderr: str, tty: bool, attach: bool) -> None:
    """Create a task from a bundle, and print its process id."""
    from orlop.api.runtime.task.v2 import shim_pb2 as pb

    with _connected(app) as (client, container_id):
        request = pb.CreateTaskRequest(
            id=_task("", container_id), bundle=bundle, stdin=stdin, stdout=stdout, stderr=stderr, terminal=tty
        )
        click.echo(_call(client, app, "Create", request, pb.CreateTaskResponse).pid)


@shim.command(cls=GoCommand)
@click.argument("task", default="")
@pass_app
def start(app: App, task: str) -> None:
    """Start the task."""
    from orlop.api.runtime.task.v2 import shim_pb2 as pb

    with _connected(app) as (client, container_id):
        _call(client, app, "Start", pb.StartRequest(id=_task(task, container_id)), pb.StartResponse)


@shim.command(cls=GoCommand)
@click.argument("task", default="")
@pass_app
def delete(app: App, task: str) -> None:
    """Delete the task, and print how it ended."""
    from orlop.api.runtime.task.v2 import shim_pb2 as pb

    with _connected(app) as (client, container_id):
        answer = _call(client, app, "Delete", pb.DeleteRequest(id=_task(task, container_id)), pb.DeleteResponse)
        click.echo(f"container deleted and returned exit status {answer.exit_status}")


@shim.command(cls=GoCommand)
@_versions
@pass_app
def shutdown(app: App, api_version: str | None) -> None:
    """Let the shim end if it has no task left."""
    from google.protobuf.empty_pb2 import Empty

    from orlop.api.runtime.task.v2 import shim_pb2 as pb

    with _connected(app) as (client, container_id):
        _call(client, app, "Shutdown", pb.ShutdownRequest(id=container_id), Empty, api_version)


@shim.group(cls=LazyGroup)
@click.pass_context
def pprof(context: click.Context) -> None:
    """Profiles of a shim written in Go that runs with its debug socket. Our supervisor has none."""
    context.obj = lambda: _debug_socket(context.find_object(App), context.meta["orlop.shim"][0])


def _debug_socket(app: App | None, container_id: str) -> str:
    import hashlib
    import os

    from orlop.client.connect import socket_path

    if app is None or not container_id:
        raise InvalidArgumentError("container id must be provided")
    place = os.path.join(socket_path(app.address), app.namespace, container_id, "debug")
    return os.path.join(_SOCKETS, hashlib.sha256(place.encode()).hexdigest())


add_profiles(pprof)


@shim.command("exec", cls=GoCommand, go_flags_end=True)
@click.option("--exec-id", default="", help="Id of the process.")
@click.option("--spec", "spec_file", default="", help="File with the process's JSON.")
@click.option("--cwd", default="/", help="Working directory.")
@click.option("--env", "-e", multiple=True, help="Environment variable.")
@click.option("--stdin", default="", help="FIFO or URI for input.")
@click.option("--stdout", default="", help="FIFO or URI for output.")
@click.option("--stderr", default="", help="FIFO or URI for errors.")
@click.option("--tty", "-t", is_flag=True, help="Give the process a terminal.")
@click.option("--attach", "-a", is_flag=True, hidden=True, help="Of 2017.")
@click.argument("args", nargs=-1)
@pass_app
def exec_(
    app: App,
    exec_id: str,
    spec_file: str,
    cwd: str,
    env: tuple[str, ...],
    stdin: str,
    stdout: str,
    stderr: str,
    tty: bool,
    attach: bool,
    args: tuple[str, ...],
) -> None:
    """Run another process in the task, and print its process id.

    With --spec the argument is the process's id, else its command line.
    """
    import os

    from google.protobuf.any_pb2 import Any as PackedAny
    from google.protobuf.empty_pb2 import Empty

    from orlop.api.runtime.task.v2 import shim_pb2 as pb
    from orlop.oci.spec import PROCESS_TYPE_URL, Process, encode

    if spec_file:
        with open(spec_file, "rb") as file:
            spec = file.read()
        exec_id = exec_id or (args[0] if args else "")
    else:
        spec = encode(Process(args=list(args), cwd=cwd, env=list(env), terminal=tty))
    name = exec_id or f"exec-{os.urandom(4).hex()}"
    with _connected(app) as (client, container_id):
        request = pb.ExecProcessRequest(
            id=_task("", container_id),
            exec_id=name,
            terminal=tty,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            spec=PackedAny(type_url=PROCESS_TYPE_URL, value=spec),
        )
        _call(client, app, "Exec", request, Empty)
        started = _call(client, app, "Start", pb.StartRequest(id=container_id, exec_id=name), pb.StartResponse)
        click.echo(f"exec running with pid {started.pid}")
