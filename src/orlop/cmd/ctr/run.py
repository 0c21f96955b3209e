"""`ctr run` and `ctr containers create`."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from orlop.base.errdefs import InvalidArgumentError, NotFoundError, OrlopError
from orlop.cmd.cli import App, ExitCode, GoCommand, pass_app
from orlop.cmd.ctr.flags import container_options, run_options, runtime_options, spec_options
from orlop.cmd.ctr.timings import shown_at_end
from orlop.cmd.units import parse_labels

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as PackedAny

    from orlop.client.io import ProcessIO
    from orlop.client.sync import Container, Task


@click.command(cls=GoCommand, go_flags_end=True)
@container_options
@click.argument("words", nargs=-1, metavar="IMAGE|ROOTFS CONTAINER [COMMAND] [ARG...]")
@pass_app
def create(app: App, /, words: tuple[str, ...], **flags: Any) -> None:
    """Create a container without running it.

    With --config there is no IMAGE: the spec names its root file system.
    """
    _create(app, words, flags)


@click.command(cls=GoCommand, go_flags_end=True)
@click.option("--rm", "remove", is_flag=True, help="Remove the container when it has ended.")
@click.option("--null-io", is_flag=True, help="No input, and output is lost.")
@click.option("--log-uri", default="", help="Send output there: file:///path or binary:///program.")
@click.option("--detach", "-d", is_flag=True, help="Leave once the task runs.")
@click.option("--fifo-dir", default="", help="Directory for FIFOs.")
@click.option("--cni", is_flag=True, help="Connect the container to the host's CNI network.")
@click.option("--checkpoint", default="", help="Digest or image of a checkpoint to restore the task from.")
@click.option("--sync-fs", is_flag=True, help="An image that is unpacked for this is on disk before it is run.")
@click.option("--timings", is_flag=True, help="Show at the end, on standard error, where the time has gone.")
@run_options
@container_options
@click.argument("words", nargs=-1, metavar="IMAGE|ROOTFS CONTAINER [COMMAND] [ARG...]")
@pass_app
def run(
    app: App,
    /,
    words: tuple[str, ...],
    remove: bool,
    detach: bool,
    null_io: bool,
    log_uri: str,
    fifo_dir: str,
    cni: bool,
    checkpoint: str,
    sync_fs: bool,
    timings: bool,
    **flags: Any,
) -> None:
    """Run a container. Exits with the status of its process.

    With --config there is no IMAGE: the spec names its root file system.

    Signals are passed on to the process. A daemon that goes away is waited for: the container does not need it.
    """
    if remove and detach:
        raise InvalidArgumentError("flags --detach and --rm cannot be specified together")
    if cni and flags["net_host"]:
        raise InvalidArgumentError("--cni and --net-host exclude each other")
    with contextlib.ExitStack() as undo:
        shown = undo.enter_context(shown_at_end(app)) if timings else None
        container = _create(app, words, flags, extensions=_connected() if cni else None, sync=sync_fs)
        if shown is not None:
            shown.container_id = container.id
        if remove:
            undo.callback(_remove, app, container)
        terminal = _has_terminal(container)
        io = standard_io(terminal=terminal, null_io=null_io, log_uri=log_uri, fifo_dir=fifo_dir, detach=detach)
        task = container.new_task(io, checkpoint=_checkpoint(app, checkpoint))
        with _task_undone(app, container, task):
            write_pid(flags["pid_file"], task.pid)
            if cni:
                _connect(app, container, task)
            if detach:
                task.start()
                task.detach()
                return
            code = foreground(app, container, task, terminal=terminal and not (null_io or log_uri))
    if code:
        raise ExitCode(code)


def foreground(app: App, container: "Container", task: "Task", *, terminal: bool) -> int:
    """Start a task, sit before it, delete it, and return its exit status, also over a restart of the daemon."""
    from orlop.cmd.console import attend

    code = attend(task, terminal=terminal, started=task.start, persist=app.persist).code
    with contextlib.suppress(NotFoundError):  # the daemon deleted it and went away before it could say so
        app.persist(task.delete)
    disconnect(app, container)
    return code


def disconnect(app: App, container: "Container") -> None:
    """Take a container's network down if it has one of CNI's."""
    from orlop.client.cni import Cni, full_id, is_connected

    if not is_connected(container.record.extensions):
        return
    try:
        Cni().remove(full_id(app.namespace, container.id))
    except OrlopError as error:
        app.warn(f"the network of container {container.id} is not taken down: {error}")


def standard_io(*, terminal: bool, null_io: bool, log_uri: str, fifo_dir: str, detach: bool) -> "ProcessIO":
    """The streams that `--null-io`, `--log-uri` and `--detach` ask for."""
    from orlop.client.io import LogIO, NullIO, inherit

    if null_io:
        if terminal:
            raise InvalidArgumentError("tty and null-io cannot be used together")
        return NullIO()
    if log_uri:
        return LogIO(log_uri, terminal=terminal)
    return inherit(terminal=terminal, directory=fifo_dir, feed=not detach)


def write_pid(path: str, pid: int) -> None:
    """Write a process id into a file, at once or not at all."""
    if not path:
        return
    beside = f"{path}.{os.getpid()}"
    with open(beside, "w", encoding="ascii") as file:
        file.write(str(pid))
    os.replace(beside, path)


def _connected() -> "Mapping[str, PackedAny]":
    """The extension that says that the container's network has to be taken down."""
    from google.protobuf.any_pb2 import Any as PackedAny

    from orlop.client.cni import EXTENSION, EXTENSION_TYPE, extension_value

    return {EXTENSION: PackedAny(type_url=EXTENSION_TYPE, value=extension_value())}


def _connect(app: App, container: "Container", task: "Task") -> None:
    from orlop.client.cni import Cni, full_id

    Cni().setup(full_id(app.namespace, container.id), f"/proc/{task.pid}/ns/net")


@contextlib.contextmanager
def _task_undone(app: App, container: "Container", task: "Task") -> Iterator[None]:
    """Kill and delete a task when something goes wrong while we sit before it."""
    try:
        yield
    except BaseException:
        disconnect(app, container)
        with contextlib.suppress(OrlopError):  # the first error tells
            task.delete(force=True)
        raise


def _remove(app: App, container: "Container") -> None:
    def whole() -> None:
        with contextlib.suppress(NotFoundError):
            container.task().delete(force=True)
        container.delete()

    try:
        app.persist(whole)
    except OrlopError as error:
        app.warn(f"failed to delete container {container.id}: {error}")


def _create(
    app: App,
    words: tuple[str, ...],
    flags: dict[str, Any],
    *,
    extensions: "Mapping[str, PackedAny] | None" = None,
    sync: bool = False,
) -> "Container":
    spec_file = flags["spec_file"]
    if spec_file:
        if not words:
            raise InvalidArgumentError("container id must be provided")
        image, container_id, *args = "", *words
    else:
        if not words:
            raise InvalidArgumentError("image ref must be provided")
        if len(words) < 2:
            raise InvalidArgumentError("container id must be provided")
        image, container_id, *args = words
    options = spec_options(flags, args, rootfs=image if flags["is_rootfs"] else "")
    packed = runtime_options(flags)
    found = None
    if not spec_file and not flags["is_rootfs"]:
        found = app.client.images.get(image, platform=flags["platform"])
        if sync:
            found.unpack(snapshotter=flags["snapshotter"], sync=True)
    return app.client.new_container(
        container_id,
        found,
        options,
        runtime=flags["runtime"],
        runtime_options=packed,
        snapshotter=flags["snapshotter"],
        snapshot_labels=parse_labels(flags["snapshot_labels"]),
        labels=parse_labels(flags["labels"]),
        extensions=extensions,
        sandbox=flags["sandbox"],
    )


def _has_terminal(container: "Container") -> bool:
    process = container.spec().process
    return process is not None and process.terminal


def _checkpoint(app: App, text: str) -> str:
    """The digest of the checkpoint that is meant: one itself, or that of an image that `tasks checkpoint` made."""
    if not text or text.startswith("sha256:"):
        return text
    return app.client.images.get(text).checkpoint_digest()
