"""`ctr tasks`."""

import contextlib
from typing import TYPE_CHECKING

import click

from orlop.base.errdefs import NotFoundError, OrlopError
from orlop.cmd.cli import App, ExitCode, GoCommand, LazyGroup, fail_each, pass_app
from orlop.cmd.tabwriter import TabWriter

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as PackedAny

_HERE = "orlop.cmd.ctr"


@click.group(
    cls=LazyGroup,
    listing="list",
    aliases={"ls": "list", "del": "delete", "remove": "delete", "rm": "delete", "metric": "metrics"},
    lazy={"metrics": (f"{_HERE}.metrics:metrics", "Show one reading of a task's cgroup.")},
)
def tasks() -> None:
    """Manage tasks."""


@tasks.command("list", cls=GoCommand)
@click.option("--quiet", "-q", is_flag=True, help="Print only the ids.")
@pass_app
def list_(app: App, quiet: bool) -> None:
    """List tasks."""
    found = app.client.tasks()
    if quiet:
        for one in found:
            click.echo(one.id)
        return
    table = TabWriter(4, 8, 4)
    table.row("TASK", "PID", "STATUS")
    for one in found:
        table.line(f"{one.id}\t{one.pid}\t{one.status}")
    click.echo(str(table), nl=False)


@tasks.command(cls=GoCommand)
@click.argument("container_id", metavar="CONTAINER")
@click.option("--null-io", is_flag=True, help="No input, and output is lost.")
@click.option("--log-uri", default="", help="Send output there: file:///path or binary:///program.")
@click.option("--fifo-dir", default="", help="Directory for FIFOs.")
@click.option("--pid-file", default="", help="File to write the task's process id into.")
@click.option("--detach", "-d", is_flag=True, help="Leave once the task runs.")
@click.option("--no-pivot", is_flag=True, help="Do not use pivot_root.")
@pass_app
def start(
    app: App,
    container_id: str,
    null_io: bool,
    log_uri: str,
    fifo_dir: str,
    pid_file: str,
    detach: bool,
    no_pivot: bool,
) -> None:
    """Start a container that has been created. Exits with the status of its process."""
    from orlop.cmd.ctr.run import foreground, standard_io, write_pid

    container = app.client.containers.get(container_id)
    process = container.spec().process
    terminal = process is not None and process.terminal
    io = standard_io(terminal=terminal, null_io=null_io, log_uri=log_uri, fifo_dir=fifo_dir, detach=detach)
    task = container.new_task(io, options=_no_pivot() if no_pivot else None)
    try:
        write_pid(pid_file, task.pid)
        if detach:
            task.start()
            task.detach()
            return
        code = foreground(app, container, task, terminal=terminal and not (null_io or log_uri))
    except BaseException:
        with contextlib.suppress(OrlopError):  # the first error tells
            task.delete(force=True)
        raise
    if code:
        raise ExitCode(code)


def _no_pivot() -> "PackedAny":
    """The options of a task that must not pivot; as with containerd they take the place of the container's."""
    from orlop.api.types.runc.options.oci_pb2 import Options
    from orlop.client.events import pack

    return pack(Options(no_pivot_root=True))


@tasks.command(cls=GoCommand)
@click.option("--exec-id", default="", help="Process, instead of the task's own.")
@click.argument("container_id", metavar="CONTAINER")
@pass_app
def timings(app: App, container_id: str, exec_id: str) -> None:
    """Show where the time of a process's start and end has gone, whoever started it; of the last 64.

    Not containerd's.
    """
    from orlop.cmd.ctr.timings import table

    click.echo(table(app.client.timings.of(container_id, exec_id)), nl=False)


@tasks.command("exec", cls=GoCommand, go_flags_end=True)
@click.option("--cwd", default="", help="Working directory of the process.")
@click.option("--tty", "-t", is_flag=True, help="Give the process a terminal.")
@click.option("--detach", "-d", is_flag=True, help="Leave once the process runs.")
@click.option("--exec-id", default="", help="Id of the process; one is made by default.")
@click.option("--fifo-dir", default="", help="Directory for FIFOs.")
@click.option("--log-uri", default="", help="Send output there.")
@click.option("--user", "-u", default="", help="User, as name or uid, with :group or without.")
@click.option("--env", multiple=True, help="Environment variable, as FOO=bar.")
@click.option("--timings", is_flag=True, help="Show at the end, on standard error, where the time has gone.")
@click.argument("container_id", metavar="CONTAINER")
@click.argument("args", nargs=-1, required=True, metavar="COMMAND [ARG...]")
@pass_app
def exec_(
    app: App,
    container_id: str,
    args: tuple[str, ...],
    cwd: str,
    tty: bool,
    detach: bool,
    exec_id: str,
    fifo_dir: str,
    log_uri: str,
    user: str,
    env: tuple[str, ...],
    timings: bool,
) -> None:
    """Run another process in a container's task. Exits with its status."""
    import os

    from orlop.cmd.console import attend
    from orlop.cmd.ctr.run import standard_io
    from orlop.cmd.ctr.timings import shown_at_end

    exec_id = exec_id or f"exec-{os.urandom(4).hex()}"
    with shown_at_end(app, container_id, exec_id) if timings else contextlib.nullcontext():
        container = app.client.containers.get(container_id)
        task = container.task()
        spec = container.exec_spec(args, cwd=cwd, user=user, tty=tty, env=env)
        io = standard_io(terminal=tty, null_io=False, log_uri=log_uri, fifo_dir=fifo_dir, detach=detach)
        process = task.exec(exec_id, spec, io=io)
        try:
            if detach:
                process.start()
                process.detach()
                return
            code = attend(process, terminal=tty and not log_uri, started=process.start, persist=app.persist).code
            with contextlib.suppress(NotFoundError):  # the daemon deleted it and went away before it could say so
                app.persist(process.delete)
        except BaseException:
            with contextlib.suppress(OrlopError):  # the first error tells
                process.delete(force=True)
            raise
    if code:
        raise ExitCode(code)


@tasks.command(cls=GoCommand)
@click.argument("container_id", metavar="CONTAINER")
@pass_app
def attach(app: App, container_id: str) -> None:
    """Sit before a running task: its output here, our input and signals there. Exits with its status."""
    from orlop.client.io import FifoIO
    from orlop.cmd.console import attend
    from orlop.cmd.ctr.run import disconnect

    container = app.client.containers.get(container_id)
    state = container.task().state()
    if not state.streams.stdout.startswith("/"):
        from orlop.base.errdefs import FailedPreconditionError

        raise FailedPreconditionError(
            f"task {container_id} cannot be attached to: its output goes to {state.streams.stdout or 'nowhere'}"
        )
    terminal = state.streams.terminal
    io = FifoIO(stdin=0, stdout=1, stderr=2, terminal=terminal, paths=state.streams)
    io.open(container_id)
    task = container.task(io)
    task.attach()
    code = attend(task, terminal=terminal, persist=app.persist).code
    with contextlib.suppress(NotFoundError):  # the daemon deleted it and went away before it could say so
        app.persist(task.delete)
    disconnect(app, container)
    if code:
        raise ExitCode(code)


@tasks.command(cls=GoCommand)
@click.argument("container_id", metavar="CONTAINER")
@click.option("--signal", "-s", default="", help="Signal to send; the image's stop signal, else SIGTERM.")
@click.option("--exec-id", default="", help="Process to send it to.")
@click.option("--all", "-a", "everyone", is_flag=True, help="Send it to all processes of the container.")
@click.option("--pid", hidden=True, help="Of 2017; exec ids serve.")
@pass_app
def kill(app: App, container_id: str, signal: str, exec_id: str, everyone: bool, pid: str | None) -> None:
    """Send a signal to a task."""
    from orlop.client.containers import STOP_SIGNAL_LABEL

    if everyone and exec_id:
        raise click.UsageError("use --exec-id or --all, not both")
    container = app.client.containers.get(container_id)
    wanted = signal or container.labels.get(STOP_SIGNAL_LABEL) or "SIGTERM"
    task = container.task()
    if exec_id:
        task.process(exec_id).kill(wanted)
    else:
        task.kill(wanted, everyone=everyone)


@tasks.command(cls=GoCommand)
@click.argument("container_id", metavar="CONTAINER")
@pass_app
def pause(app: App, container_id: str) -> None:
    """Freeze a task."""
    app.client.task(container_id).pause()


@tasks.command(cls=GoCommand)
@click.argument("container_id", metavar="CONTAINER")
@pass_app
def resume(app: App, container_id: str) -> None:
    """Let a frozen task go on."""
    app.client.task(container_id).resume()


@tasks.command(cls=GoCommand)
@click.argument("container_id", metavar="CONTAINER")
@pass_app
def ps(app: App, container_id: str) -> None:
    """List the processes of a task."""
    table = TabWriter(1, 8, 4)
    table.line("PID\tINFO")
    for pid, exec_id in app.client.task(container_id).processes():
        shown = f'exec_id:"{exec_id}"' if exec_id else "-"
        table.line(f"{pid}\t{shown}")
    click.echo(str(table), nl=False)


@tasks.command(cls=GoCommand)
@click.argument("ids", nargs=-1, required=True, metavar="CONTAINER...")
@click.option("--force", "-f", is_flag=True, help="Kill what still runs.")
@click.option("--exec-id", default="", help="Process to delete, instead of the task.")
@pass_app
def delete(app: App, ids: tuple[str, ...], force: bool, exec_id: str) -> None:
    """Delete tasks that have stopped. With --exec-id, the process's status is the exit status here."""
    from orlop.cmd.ctr.run import disconnect

    if exec_id:
        code = app.client.task(ids[0]).process(exec_id).delete(force=force).code
        if code:
            raise ExitCode(code)
        return
    errors = []
    for container_id in ids:
        try:
            container = app.client.containers.get(container_id)
            ended = container.task().delete(force=force)
            disconnect(app, container)
        except OrlopError as error:
            errors.append(f"unable to delete {container_id}: {error}" if len(ids) > 1 else str(error))
            continue
        if ended.code:
            app.warn(f"task {container_id} exit with non-zero exit code {ended.code}")
    fail_each(app, errors)


@tasks.command(cls=GoCommand)
@click.argument("container_id", metavar="CONTAINER")
@click.option("--exit", "stop", is_flag=True, help="Stop the task afterwards.")
@click.option("--image-path", default="", help="Keep CRIU's files there.")
@click.option("--work-path", default="", help="For CRIU's work files and logs.")
@pass_app
def checkpoint(app: App, container_id: str, stop: bool, image_path: str, work_path: str) -> None:
    """Checkpoint a task with CRIU, as an image whose name is printed, or into a directory."""
    task = app.client.task(container_id)
    if image_path:
        task.checkpoint(stop=stop, image_path=image_path, work_path=work_path)
        return
    click.echo(task.checkpoint_image(stop=stop, work_path=work_path).name)
