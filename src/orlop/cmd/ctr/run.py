"""`ctr run` and `ctr containers create`."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from orlop.base.errdefs import InvalidArgumentError, NotFoundError, OrlopError
from orlop.client.containers import DEFAULT_RUNTIME
from orlop.cmd.cli import App, ExitCode, GoCommand, pass_app
from orlop.cmd.ctr.images import snapshotter_option
from orlop.cmd.units import parse_labels

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as PackedAny

    from orlop.client.io import ProcessIO
    from orlop.client.spec import SpecOptions
    from orlop.client.sync import Container, Task

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _options(*declared: Decorator) -> Decorator:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(declared):
            function = option(function)
        return function

    return decorate


container_options = _options(
    snapshotter_option,
    click.option("--snapshotter-label", "snapshot_labels", multiple=True, help="Labels for the container's snapshot."),
    click.option("--config", "-c", "spec_file", default="", help="Spec file to use instead of one made here."),
    click.option("--cwd", default="", help="Working directory of the process."),
    click.option("--env", multiple=True, help="Environment variable, as FOO=bar."),
    click.option("--env-file", multiple=True, help="File of environment variables, one a line."),
    click.option("--label", "labels", multiple=True, help="Label, as foo=bar."),
    click.option("--annotation", "annotations", multiple=True, help="OCI annotation, as foo=bar."),
    click.option("--mount", "mounts", multiple=True, help="Mount, as type=bind,src=/tmp,dst=/host,options=rbind:ro."),
    click.option("--net-host", is_flag=True, help="Stay in the host's network namespace."),
    click.option("--privileged", is_flag=True, help="All capabilities and devices, nothing masked."),
    click.option("--read-only", "--readonly", is_flag=True, help="Read-only root file system."),
    click.option("--runtime", default=DEFAULT_RUNTIME, show_default=True, help="Runtime name, or path of a shim."),
    click.option("--runtime-config-path", default="", help="Configuration file for the runtime."),
    click.option("--tty", "-t", is_flag=True, help="Give the process a terminal."),
    click.option("--with-ns", multiple=True, help="Linux namespace to join, as network:/proc/1/ns/net."),
    click.option("--pid-file", default="", help="File to write the task's process id into."),
    click.option("--allow-new-privs", is_flag=True, help="Leave NoNewPrivileges off."),
    click.option("--memory-limit", type=int, default=0, help="Memory limit in bytes."),
    click.option("--device", "devices", multiple=True, help="Device node, or directory of them, to add."),
    click.option("--cap-add", multiple=True, help="Capability to add."),
    click.option("--cap-drop", multiple=True, help="Capability to drop."),
    click.option("--seccomp", is_flag=True, help="Use a seccomp profile; needs --seccomp-profile."),
    click.option("--seccomp-profile", default="", help="File with a seccomp profile in the spec's JSON."),
    click.option("--apparmor-profile", default="", help="Existing AppArmor profile to use."),
    click.option("--rdt-class", default="", help="RDT class to join."),
    click.option("--rootfs", "is_rootfs", is_flag=True, help="IMAGE is the path of a root file system."),
    click.option("--no-pivot", is_flag=True, help="Do not use pivot_root."),
    click.option("--cpu-quota", type=int, default=-1, help="CFS quota in microseconds."),
    click.option("--cpu-period", type=int, default=0, help="CFS period in microseconds."),
    click.option("--rootfs-propagation", default="", help="Propagation of the root file system's mount."),
    click.option("--hostname", default="", help="Host name."),
    click.option("--user", "-u", default="", help="User, as name or uid, with :group or without."),
    click.option("--rlimit-nofile", type=int, default=0, help="Limit of open files."),
    click.option("--platform", help="The image for this platform."),
    click.option("--runc-binary", default="", help="OCI runtime to use."),
    click.option("--runc-root", default="", help="State directory of the OCI runtime."),
    click.option("--runc-systemd-cgroup", is_flag=True, help="Let systemd manage the cgroup."),
)


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
@container_options
@click.option("--rm", "remove", is_flag=True, help="Remove the container when it has ended.")
@click.option("--null-io", is_flag=True, help="No input, and output is lost.")
@click.option("--log-uri", default="", help="Send output there: file:///path or binary:///program.")
@click.option("--detach", "-d", is_flag=True, help="Leave once the task runs.")
@click.option("--fifo-dir", default="", help="Directory for FIFOs.")
@click.option("--cgroup", default=None, help="Path of the cgroup; empty for none.")
@click.option("--uidmap", "uid_maps", multiple=True, help="container-uid:host-uid:length, in a user namespace.")
@click.option("--gidmap", "gid_maps", multiple=True, help="container-gid:host-gid:length, in a user namespace.")
@click.option("--cpus", type=float, default=0.0, help="CFS quota in processors.")
@click.option("--cpu-shares", type=int, default=1024, show_default=True, help="CPU shares.")
@click.option("--checkpoint", default="", help="Digest or image of a checkpoint to restore the task from.")
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
    checkpoint: str,
    **flags: Any,
) -> None:
    """Run a container. Exits with the status of its process.

    With --config there is no IMAGE: the spec names its root file system.
    """
    if remove and detach:
        raise click.UsageError("flags --detach and --rm cannot be specified together")
    container = _create(app, words, flags)
    with contextlib.ExitStack() as undo:
        if remove:
            undo.callback(_remove, app, container)
        terminal = _has_terminal(container)
        io = standard_io(terminal=terminal, null_io=null_io, log_uri=log_uri, fifo_dir=fifo_dir, detach=detach)
        task = container.new_task(io, checkpoint=_checkpoint(app, checkpoint))
        with _task_undone(task):
            write_pid(flags["pid_file"], task.pid)
            if detach:
                task.start()
                task.detach()
                return
            code = foreground(task, terminal=terminal and not (null_io or log_uri))
    if code:
        raise ExitCode(code)


def foreground(task: "Task", *, terminal: bool) -> int:
    """Start a task, sit before it, delete it, and return its exit status."""
    from orlop.cmd.console import attend

    attend(task, terminal=terminal, started=task.start)
    return task.delete().code


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


@contextlib.contextmanager
def _task_undone(task: "Task") -> Iterator[None]:
    """Kill and delete a task when something goes wrong while we sit before it."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OrlopError):  # the first error tells
            task.delete(force=True)
        raise


def _remove(app: App, container: "Container") -> None:
    with contextlib.suppress(NotFoundError):
        container.task().delete(force=True)
    try:
        container.delete()
    except OrlopError as error:
        app.warn(f"failed to delete container {container.id}: {error}")


def _create(app: App, words: tuple[str, ...], flags: dict[str, Any]) -> "Container":
    spec_file = flags["spec_file"]
    if spec_file:
        if not words:
            raise click.UsageError("with spec config file, only container id should be provided")
        image, container_id, *args = "", *words
    else:
        if not words:
            raise click.UsageError("image ref must be provided")
        if len(words) < 2:
            raise click.UsageError("container id must be provided")
        image, container_id, *args = words
    options = spec_options(flags, args, rootfs=image if flags["is_rootfs"] else "")
    found = None
    if not spec_file and not flags["is_rootfs"]:
        found = app.client.images.get(image, platform=flags["platform"])
    return app.client.new_container(
        container_id,
        found,
        options,
        runtime=flags["runtime"],
        runtime_options=runtime_options(flags),
        snapshotter=flags["snapshotter"],
        snapshot_labels=parse_labels(flags["snapshot_labels"]),
        labels=parse_labels(flags["labels"]),
    )


def spec_options(flags: dict[str, Any], args: list[str], *, rootfs: str) -> "SpecOptions":
    """What the flags wish of a spec."""
    from orlop.client.spec import SpecOptions, parse_id_map, parse_mount

    env = [line for path in flags["env_file"] for line in _env_lines(path)]
    namespaces = {}
    for text in flags["with_ns"]:
        kind, separator, path = text.partition(":")
        if not separator:
            raise InvalidArgumentError(f"joining a Linux namespace needs <type>:<path>, not {text!r}")
        namespaces[kind] = path
    return SpecOptions(
        args=args,
        env=[*env, *flags["env"]],
        cwd=flags["cwd"],
        user=flags["user"],
        tty=flags["tty"],
        mounts=[parse_mount(text) for text in flags["mounts"]],
        net_host=flags["net_host"],
        read_only=flags["read_only"],
        privileged=flags["privileged"],
        allow_new_privs=flags["allow_new_privs"],
        memory_limit_bytes=flags["memory_limit"],
        cpus=flags.get("cpus", 0.0),
        cpu_shares=flags.get("cpu_shares", 0),
        cpu_quota_us=flags["cpu_quota"],
        cpu_period_us=flags["cpu_period"],
        cap_add=flags["cap_add"],
        cap_drop=flags["cap_drop"],
        cgroup=flags.get("cgroup"),
        hostname=flags["hostname"],
        annotations={**parse_labels(flags["labels"]), **parse_labels(flags["annotations"])},
        with_namespaces=namespaces,
        devices=flags["devices"],
        rlimit_nofile=flags["rlimit_nofile"],
        rootfs_propagation=flags["rootfs_propagation"],
        uid_maps=[parse_id_map(text) for text in flags.get("uid_maps", ())],
        gid_maps=[parse_id_map(text) for text in flags.get("gid_maps", ())],
        seccomp=_seccomp(flags["seccomp"], flags["seccomp_profile"]),
        apparmor_profile=flags["apparmor_profile"],
        rdt_class=flags["rdt_class"],
        rootfs=rootfs,
        spec_file=flags["spec_file"],
    )


def runtime_options(flags: dict[str, Any]) -> "PackedAny":
    """The runtime's options: runc's, or for another shim the path of its configuration."""
    from orlop.client.events import pack

    if flags["runtime_config_path"]:
        from orlop.api.types.runtimeoptions.v1 import api_pb2

        return pack(api_pb2.Options(config_path=flags["runtime_config_path"]))
    from orlop.api.types.runc.options import oci_pb2

    return pack(
        oci_pb2.Options(
            no_pivot_root=flags["no_pivot"],
            binary_name=flags["runc_binary"],
            root=flags["runc_root"],
            systemd_cgroup=flags["runc_systemd_cgroup"],
        )
    )


def _seccomp(wanted: bool, path: str) -> Any:
    # Any: Seccomp of orlop.oci.spec, whose import only a run with a profile pays.
    if path and not wanted:
        raise InvalidArgumentError("seccomp must be set to true, if using a custom seccomp-profile")
    if not wanted:
        return None
    from orlop.oci.spec import Seccomp, decode_part

    if not path:
        raise InvalidArgumentError(
            "no default seccomp profile is built in", hint="give one with --seccomp-profile FILE"
        )
    with open(path, "rb") as file:
        return decode_part(file.read(), Seccomp, what=f"seccomp profile {path}")


def _env_lines(path: str) -> list[str]:
    with open(path, encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _has_terminal(container: "Container") -> bool:
    process = container.spec().process
    return process is not None and process.terminal


def _checkpoint(app: App, text: str) -> str:
    """The digest of the checkpoint that is meant: one itself, or that of an image that `tasks checkpoint` made."""
    if not text or text.startswith("sha256:"):
        return text
    from orlop.oci.image import decode_index
    from orlop.oci.media_types import CHECKPOINT

    target = app.client.images.get(text).target
    for one in decode_index(app.client.content.read(target.digest), what=f"checkpoint {text}").manifests:
        if one.media_type == CHECKPOINT:
            return str(one.digest)
    raise NotFoundError(f"a checkpoint in image {text}")
