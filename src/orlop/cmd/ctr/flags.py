"""The flags of `ctr run` and `ctr containers create`, and what they wish of a spec and of the runtime.

Source: cmd/ctr/commands/commands.go, commands_unix.go and run/run_unix.go of containerd 2.3.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from orlop.base.errdefs import InvalidArgumentError
from orlop.client.containers import DEFAULT_RUNTIME
from orlop.cmd.ctr.images import snapshotter_option
from orlop.cmd.units import parse_labels

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as PackedAny

    from orlop.client.spec import SpecOptions
    from orlop.oci.spec import BlockIO, Seccomp

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
    click.option("--sandbox", default="", help="Create the container in the given sandbox."),
    click.option("--tty", "-t", is_flag=True, help="Give the process a terminal."),
    click.option("--with-ns", multiple=True, help="Linux namespace to join, as network:/proc/1/ns/net."),
    click.option("--pid-file", default="", help="File to write the task's process id into."),
    click.option("--gpus", multiple=True, type=int, help="Index of an NVIDIA GPU to add."),
    click.option("--allow-new-privs", is_flag=True, help="Leave NoNewPrivileges off."),
    click.option("--memory-limit", type=int, default=0, help="Memory limit in bytes."),
    click.option("--device", "devices", multiple=True, help="Device node, or directory of them, to add."),
    click.option("--cap-add", multiple=True, help="Capability to add."),
    click.option("--cap-drop", multiple=True, help="Capability to drop."),
    click.option("--seccomp", is_flag=True, help="Use the default seccomp profile, or that of --seccomp-profile."),
    click.option("--seccomp-profile", default="", help="File with a seccomp profile in the spec's JSON."),
    click.option("--apparmor-default-profile", default="", help="Load the default AppArmor profile by this name."),
    click.option("--apparmor-profile", default="", help="Existing AppArmor profile to use."),
    click.option("--blockio-config-file", default="", help="File with classes of block I/O, in JSON."),
    click.option("--blockio-class", default="", help="Class of block I/O, out of that file."),
    click.option("--rdt-class", default="", help="RDT class to join."),
    click.option("--rootfs", "is_rootfs", is_flag=True, help="IMAGE is the path of a root file system."),
    click.option("--no-pivot", is_flag=True, help="Do not use pivot_root."),
    click.option("--cpu-quota", type=int, default=-1, help="CFS quota in microseconds."),
    click.option("--cpu-period", type=int, default=0, help="CFS period in microseconds."),
    click.option("--cpu-burst", type=int, default=0, help="CFS burst in microseconds."),
    click.option("--rootfs-propagation", default="", help="Propagation of the root file system's mount."),
    click.option("--hostname", default="", help="Host name."),
    click.option("--user", "-u", default="", help="User, as name or uid, with :group or without."),
    click.option("--platform", help="The image for this platform."),
    click.option("--cgroup", default=None, help="Path of the cgroup; empty for none."),
    click.option("--runc-binary", default="", help="OCI runtime to use."),
    click.option("--runc-root", default="", help="State directory of the OCI runtime."),
    click.option("--runc-systemd-cgroup", is_flag=True, help="Let systemd manage the cgroup."),
)

run_options = _options(
    click.option("--privileged-without-host-devices", is_flag=True, help="With --privileged: none of the devices."),
    click.option("--uidmap", "uid_maps", multiple=True, help="container-uid:host-uid:length, in a user namespace."),
    click.option("--gidmap", "gid_maps", multiple=True, help="container-gid:host-gid:length, in a user namespace."),
    click.option("--remap-labels", is_flag=True, help="Let the snapshotter map the ids of the files, by labels."),
    click.option("--cpus", type=float, default=0.0, help="CFS quota in processors."),
    click.option("--cpu-shares", type=int, default=1024, show_default=True, help="CPU shares."),
    click.option("--cpuset-cpus", default="", help="Processors to run on, as 1-2,4."),
    click.option("--cpuset-mems", default="", help="Memory nodes to use, as 1-2,4."),
    click.option("--rlimit-nofile", default="", help="Limit of open files, as soft:hard."),
)
# What the flags above say where a command has none of them.
_RUN_DEFAULTS: Final[dict[str, Any]] = {
    "privileged_without_host_devices": False,
    "uid_maps": (),
    "gid_maps": (),
    "remap_labels": False,
    "cpus": 0.0,
    "cpu_shares": 0,
    "cpuset_cpus": "",
    "cpuset_mems": "",
    "rlimit_nofile": "",
}


def spec_options(flags: dict[str, Any], args: list[str], *, rootfs: str) -> "SpecOptions":
    """What the flags wish of a spec."""
    from orlop.client.spec import SpecOptions, parse_id_map, parse_mount

    flags = _RUN_DEFAULTS | flags
    _check(flags)
    return SpecOptions(
        args=args,
        env=[*(line for path in flags["env_file"] for line in _env_lines(path)), *flags["env"]],
        cwd=flags["cwd"],
        user=flags["user"],
        tty=flags["tty"],
        mounts=[parse_mount(text) for text in flags["mounts"]],
        net_host=flags["net_host"],
        read_only=flags["read_only"],
        privileged=flags["privileged"],
        host_devices=not flags["privileged_without_host_devices"],
        allow_new_privs=flags["allow_new_privs"],
        memory_limit_bytes=flags["memory_limit"],
        cpus=flags["cpus"],
        cpu_shares=flags["cpu_shares"],
        cpu_quota_us=flags["cpu_quota"],
        cpu_period_us=flags["cpu_period"],
        cpu_burst_us=flags["cpu_burst"],
        cpuset_cpus=flags["cpuset_cpus"],
        cpuset_mems=flags["cpuset_mems"],
        cap_add=flags["cap_add"],
        cap_drop=flags["cap_drop"],
        cgroup=flags["cgroup"],
        hostname=flags["hostname"],
        annotations={**_annotations(flags["annotations"]), **parse_labels(flags["labels"])},
        with_namespaces=dict(_namespace(text) for text in flags["with_ns"]),
        devices=flags["devices"],
        rlimit_nofile=_nofile(flags["rlimit_nofile"]),
        rootfs_propagation=flags["rootfs_propagation"],
        uid_maps=[parse_id_map(text) for text in flags["uid_maps"]],
        gid_maps=[parse_id_map(text) for text in flags["gid_maps"]],
        remap_labels=flags["remap_labels"],
        seccomp=_seccomp(flags["seccomp_profile"]),
        seccomp_default=flags["seccomp"] and not flags["seccomp_profile"],
        apparmor_profile=flags["apparmor_profile"],
        apparmor_default_profile=flags["apparmor_default_profile"],
        gpus=flags["gpus"] or None,
        block_io=_block_io(flags["blockio_config_file"], flags["blockio_class"]),
        rdt_class=flags["rdt_class"],
        rootfs=rootfs,
        spec_file=flags["spec_file"],
    )


def runtime_options(flags: dict[str, Any]) -> "PackedAny | None":
    """The runtime's options: runc's, or for another shim the path of its configuration."""
    from orlop.client.events import pack
    from orlop.client.spec import parse_id_map

    flags = _RUN_DEFAULTS | flags
    if flags["runtime"] != DEFAULT_RUNTIME:
        if flags["runc_binary"] or flags["runc_systemd_cgroup"]:
            raise InvalidArgumentError(
                f'specifying runc-binary and runc-systemd-cgroup is only supported for "{DEFAULT_RUNTIME}" runtime'
            )
        if flags["runtime_config_path"]:
            from orlop.api.types.runtimeoptions.v1 import api_pb2

            return pack(api_pb2.Options(config_path=flags["runtime_config_path"]))
        if not flags["runtime"].startswith("io.containerd.orlop."):
            return None
    if flags["runc_systemd_cgroup"] and not flags["cgroup"]:
        raise InvalidArgumentError(
            'option --runc-systemd-cgroup requires --cgroup to be set, e.g. "machine.slice:foo:deadbeef"'
        )
    from orlop.api.types.runc.options import oci_pb2

    return pack(
        oci_pb2.Options(
            no_pivot_root=flags["no_pivot"],
            binary_name=flags["runc_binary"],
            root=flags["runc_root"],
            systemd_cgroup=flags["runc_systemd_cgroup"],
            # Who the streams belong to: the root of the user namespace.
            io_uid=parse_id_map(flags["uid_maps"][0])[1] if flags["uid_maps"] else 0,
            io_gid=parse_id_map(flags["gid_maps"][0])[1] if flags["gid_maps"] else 0,
        )
    )


def _check(flags: dict[str, Any]) -> None:
    """Raise for flags that exclude or need each other, in containerd's words."""
    if flags["privileged_without_host_devices"] and not flags["privileged"]:
        raise InvalidArgumentError("can't use 'privileged-without-host-devices' without 'privileged' specified")
    if flags["seccomp_profile"] and not flags["seccomp"]:
        raise InvalidArgumentError("seccomp must be set to true, if using a custom seccomp-profile")
    if flags["apparmor_profile"] and flags["apparmor_default_profile"]:
        raise InvalidArgumentError("apparmor-profile conflicts with apparmor-default-profile")
    if flags["cpus"] > 0 and (flags["cpu_quota"] != -1 or flags["cpu_period"]):
        raise InvalidArgumentError("cpus and quota/period should be used separately")
    if bool(flags["uid_maps"]) != bool(flags["gid_maps"]):
        raise InvalidArgumentError("a user namespace needs both --uidmap and --gidmap")


def _namespace(text: str) -> tuple[str, str]:
    kind, separator, path = text.partition(":")
    if not separator:
        raise InvalidArgumentError("joining a Linux namespace using --with-ns requires the format 'nstype:path'")
    return kind, path


def _annotations(texts: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise InvalidArgumentError(f"invalid key=value format annotation: {text}")
        found[name] = value
    return found


def _nofile(text: str) -> tuple[int, int]:
    if not text:
        return (0, 0)
    soft, separator, hard = text.partition(":")
    numbers = (soft, hard if separator else soft)
    if not all(one.isascii() and one.isdecimal() for one in numbers):
        raise InvalidArgumentError(f"failed to parse rlimit-nofile {text!r}: it is not of the form soft:hard")
    return int(numbers[0]), int(numbers[1])


def _seccomp(path: str) -> "Seccomp | None":
    if not path:
        return None
    from orlop.oci.spec import Seccomp, decode_part

    with open(path, "rb") as file:
        return decode_part(file.read(), Seccomp, what=f"cannot load seccomp profile {path}")


def _block_io(path: str, name: str) -> "BlockIO | None":
    if not path and not name:
        return None
    from orlop.client.blockio import load, parameters

    classes = load(path) if path else {}
    return parameters(classes, name) if name else None


def _env_lines(path: str) -> list[str]:
    with open(path, encoding="utf-8") as file:
        lines = [line.rstrip("\n") for line in file]
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
