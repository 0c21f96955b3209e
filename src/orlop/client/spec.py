"""Making a container's spec: containerd's default for Linux, an image's configuration, and the caller's wishes.

What comes out means the same as what `ctr run` of containerd stores, option by option; a test compares both.

Source: containerd's pkg/oci/spec.go, spec_opts.go, spec_opts_linux.go and cmd/ctr/commands/run/run_unix.go.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from orlop.base.errdefs import InvalidArgumentError
from orlop.client.cdi import inject, is_name
from orlop.client.devices import gpu_hook, host_devices
from orlop.client.seccomp import default_profile
from orlop.client.users import Account, UserFiles
from orlop.oci.image import Image
from orlop.oci.spec import (
    CPU,
    BlockIO,
    Capabilities,
    DeviceCgroup,
    Hooks,
    IDMapping,
    IntelRdt,
    Linux,
    LinuxNamespace,
    Memory,
    Mount,
    Process,
    Resources,
    Rlimit,
    Root,
    Seccomp,
    Spec,
    User,
)

DEFAULT_CAPABILITIES: Final = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
# By number; a process that holds all is given those that the kernel knows.
_CAPABILITY_NAMES: Final = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
    "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL "
    "SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
ALL_CAPABILITIES: Final = tuple(f"CAP_{name}" for name in _CAPABILITY_NAMES.split())
MASKED_PATHS: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",  # how much power a neighbour takes tells secrets: CVE-2020-8694
    "/proc/scsi",
)
READONLY_PATHS: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
DEFAULT_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# (major, minor) of the character devices every container may use; None is any.
DEFAULT_DEVICES: Final[tuple[tuple[int, int | None], ...]] = (
    (1, 3),
    (1, 8),
    (1, 7),
    (5, 0),
    (1, 5),
    (1, 9),
    (5, 1),
    (136, None),
    (5, 2),
)
CPU_PERIOD_US: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecOptions:
    """What a caller may want different from the image and the defaults.

    Attributes:
        args: the whole command line; empty for the image's entrypoint and command.
        env: `NAME=value`, over the image's; a bare `NAME` takes the variable out of this list again.
        cwd: working directory; empty for the image's, else `/`.
        user: `name`, `uid`, with `:group` or without; empty for the image's, else root.
        tty: allocate a terminal.
        mounts: beyond the default ones, in order.
        net_host: stay in the host's Linux network namespace, with its hosts file and resolv.conf.
        read_only: the root file system.
        privileged: all capabilities and devices, nothing masked.
        memory_limit_bytes, cpus, cpu_shares, cpu_quota_us, cpu_period_us: 0 is no limit (`cpu_quota_us` -1).
        cgroup: path of the cgroup; None for `/<namespace>/<id>`, an empty string for none at all.
        with_namespaces: Linux namespaces to enter, `{"network": "/proc/1/ns/net"}`.
        devices: paths of device nodes of the host, or of directories of them.
        host_devices: of a privileged container: whether it gets all devices of the host.
        rlimit_nofile: open files, as (soft, hard); 0 each for containerd's default.
        uid_maps, gid_maps: `(container id, host id, size)`.
        remap_labels: let the snapshotter shift the ids of the files for a user namespace, by labels; without it the
            files are given to the mapped ids once, in a snapshot of their own that later containers share.
        seccomp: a profile; with `seccomp_default` containerd's default one for the process's capabilities.
        apparmor_default_profile: name under which containerd's default AppArmor profile is loaded and used.
        gpus: indices of NVIDIA GPUs that the hook of `nvidia-container-cli` brings in; None for no hook.
        block_io: of a block I/O class.
        rootfs: path of a root file system that no snapshotter manages.
        spec_file: an OCI spec to start from instead of the default.
    """

    args: Sequence[str] = ()
    env: Sequence[str] = ()
    cwd: str = ""
    user: str = ""
    tty: bool = False
    mounts: Sequence[Mount] = ()
    net_host: bool = False
    read_only: bool = False
    privileged: bool = False
    allow_new_privs: bool = False
    memory_limit_bytes: int = 0
    cpus: float = 0.0
    cpu_shares: int = 0
    cpu_quota_us: int = -1
    cpu_period_us: int = 0
    cpu_burst_us: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    cap_add: Sequence[str] = ()
    cap_drop: Sequence[str] = ()
    cgroup: str | None = None
    hostname: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    with_namespaces: Mapping[str, str] = field(default_factory=dict)
    devices: Sequence[str] = ()
    host_devices: bool = True
    rlimit_nofile: tuple[int, int] = (0, 0)
    rootfs_propagation: str = ""
    uid_maps: Sequence[tuple[int, int, int]] = ()
    gid_maps: Sequence[tuple[int, int, int]] = ()
    remap_labels: bool = False
    seccomp: Seccomp | None = None
    seccomp_default: bool = False
    apparmor_profile: str = ""
    apparmor_default_profile: str = ""
    gpus: Sequence[int] | None = None
    block_io: BlockIO | None = None
    rdt_class: str = ""
    rootfs: str = ""
    spec_file: str = ""


def default_spec(namespace: str, container_id: str) -> Spec:
    """The spec of a container that nobody wished anything for; without args it cannot be started."""
    return Spec(
        process=Process(
            cwd="/",
            no_new_privileges=True,
            capabilities=_capabilities(DEFAULT_CAPABILITIES),
            rlimits=[Rlimit(type="RLIMIT_NOFILE", hard=1024, soft=1024)],
        ),
        root=Root(path="rootfs"),
        mounts=_default_mounts(),
        linux=Linux(
            masked_paths=list(MASKED_PATHS),
            readonly_paths=list(READONLY_PATHS),
            cgroups_path="/" + "/".join(part for part in (namespace, container_id) if part),
            resources=Resources(devices=[DeviceCgroup(allow=False, access="rwm")]),
            namespaces=[LinuxNamespace(type=kind) for kind in ("pid", "ipc", "uts", "mount", "network")],
        ),
    )


def allow_default_devices(spec: Spec) -> None:
    """Let the container use null, zero, full, tty, random, urandom, console, the ptys and ptmx."""
    rules = _resources(spec).devices
    for major, minor in DEFAULT_DEVICES:
        rules.append(DeviceCgroup(allow=True, type="c", major=major, minor=minor, access="rwm"))


def make_spec(
    *,
    namespace: str,
    container_id: str,
    options: SpecOptions,
    image: Image | None = None,
    users: UserFiles | None = None,
) -> Spec:
    """The spec for a container.

    Args:
        image: the configuration that defaults come from.
        users: the root file system's passwd and group files, for names and supplementary groups.

    Raises:
        InvalidArgumentError: a wish that cannot be read; the text names it.
        NotFoundError: a user, group or device that is not there.
    """
    spec = default_spec(namespace, container_id)
    allow_default_devices(spec)
    process = _process(spec)
    own = replace_env([], options.env)
    spec.mounts += [_copy(mount) for mount in options.mounts]
    process.env = own
    if options.rootfs:
        spec.root = Root(path=os.path.abspath(options.rootfs))
    if image is not None:
        _image_defaults(spec, image, own, users)
    if options.args:
        process.args = list(options.args)
    if not process.args:
        raise InvalidArgumentError(f"container {container_id}: no command is given and its image has none")
    if options.cwd:
        process.cwd = options.cwd
    if options.user:
        set_user(process, options.user, users)
    if options.tty:
        process.terminal = True
        process.env.append("TERM=xterm")
    if options.read_only:
        _root(spec).readonly = True
    _privileges(spec, options)
    _host_network(spec, options)
    _limits(spec, options)
    _rest(spec, options)
    return spec


def replace_env(defaults: Iterable[str], overrides: Iterable[str]) -> list[str]:
    """Environment lists laid over each other: a known name keeps its place, a bare name takes its entry out."""
    found: dict[str, str] = {}
    for entry in defaults:
        found[entry.partition("=")[0]] = entry
    for entry in overrides:
        name, separator, _ = entry.partition("=")
        if separator:
            found[name] = entry
        else:
            found.pop(name, None)
    return list(found.values())


def set_user(process: Process, text: str, users: UserFiles | None) -> None:
    """Run as `text`, with the groups that the root file system's group file gives that user."""
    account: Account = (users or UserFiles()).resolve(text)
    process.user = User(uid=account.uid, gid=account.gid, additional_gids=list(account.groups))


def parse_mount(text: str) -> Mount:
    """`type=bind,src=/a,dst=/b,options=rbind:ro` as a mount. Raises InvalidArgumentError."""
    values: dict[str, str] = {}
    names = {"src": "source", "dst": "destination"}
    for part in text.split(","):
        name, separator, value = part.partition("=")
        name = names.get(name, name)
        if not separator or name not in ("type", "source", "destination", "options"):
            raise InvalidArgumentError(f"mount {text!r}: {part!r} is none of type=, src=, dst=, options=")
        values[name] = value
    if not values.get("destination"):
        raise InvalidArgumentError(f"mount {text!r} has no dst=")
    return Mount(
        destination=values["destination"],
        type=values.get("type", ""),
        source=values.get("source", ""),
        options=values["options"].split(":") if values.get("options") else [],
    )


def parse_id_map(text: str) -> tuple[int, int, int]:
    """`container-id:host-id:length`. Raises InvalidArgumentError."""
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isascii() and part.isdecimal() for part in parts):
        raise InvalidArgumentError(f"id map {text!r} is not of the form container-id:host-id:length")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _image_defaults(spec: Spec, image: Image, own: list[str], users: UserFiles | None) -> None:
    config = image.config
    process = _process(spec)
    process.env = replace_env(config.env or [DEFAULT_PATH], own)
    process.args = [*config.entrypoint, *config.cmd]
    process.cwd = config.working_dir or "/"
    if config.user:
        set_user(process, config.user, users)
    elif users is not None:
        process.user = User(uid=0, gid=0, additional_gids=list(users.groups_of("root", 0)))


def _privileges(spec: Spec, options: SpecOptions) -> None:
    process = _process(spec)
    linux = _linux(spec)
    if options.privileged:
        process.capabilities = _capabilities(_current_capabilities())
        linux.masked_paths = []
        linux.readonly_paths = []
        for mount in spec.mounts:
            if mount.type in ("sysfs", "cgroup"):
                mount.options = ["rw" if option == "ro" else option for option in mount.options]
        process.selinux_label = ""
        process.apparmor_profile = ""
        linux.seccomp = None
        if options.host_devices:
            _resources(spec).devices = [DeviceCgroup(allow=True, access="rwm")]
            linux.devices += host_devices("/dev")
    if options.allow_new_privs:
        process.no_new_privileges = False
    if options.cap_add or options.cap_drop:
        capabilities = process.capabilities or Capabilities()
        for names in (capabilities.bounding, capabilities.effective, capabilities.permitted):
            names += [name for name in map(capability, options.cap_add) if name not in names]
            dropped = [capability(name) for name in options.cap_drop]
            names[:] = [name for name in names if name not in dropped]
        process.capabilities = capabilities
    if options.seccomp is not None:
        linux.seccomp = options.seccomp
    elif options.seccomp_default:
        linux.seccomp = default_profile(process.capabilities.bounding if process.capabilities else ())
    if options.apparmor_default_profile or options.apparmor_profile:
        process.apparmor_profile = options.apparmor_default_profile or options.apparmor_profile


def _host_network(spec: Spec, options: SpecOptions) -> None:
    linux = _linux(spec)
    if options.net_host:
        linux.namespaces = [one for one in linux.namespaces if one.type != "network"]
        for path in ("/etc/hosts", "/etc/resolv.conf"):
            spec.mounts.append(Mount(destination=path, type="bind", source=path, options=["rbind", "ro"]))
        _process(spec).env = replace_env(_process(spec).env, [f"HOSTNAME={os.uname().nodename}"])
    for kind, path in options.with_namespaces.items():
        if kind not in ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"):
            raise InvalidArgumentError(f"the Linux namespace type specified in --with-ns is not valid: {kind}")
        known = next((one for one in linux.namespaces if one.type == kind), None)
        if known is None:
            linux.namespaces.append(LinuxNamespace(type=kind, path=path))
        else:
            known.path = path


def _limits(spec: Spec, options: SpecOptions) -> None:
    resources = _resources(spec)
    cpu = CPU()
    if options.cpus > 0:
        cpu.quota, cpu.period = int(options.cpus * CPU_PERIOD_US), CPU_PERIOD_US
    if options.cpu_shares > 0:
        cpu.shares = options.cpu_shares
    if options.cpu_quota_us > -1:
        cpu.quota = options.cpu_quota_us
    if options.cpu_period_us > 0:
        cpu.period = options.cpu_period_us
    if options.cpu_burst_us > 0:
        cpu.burst = options.cpu_burst_us
    cpu.cpus, cpu.mems = options.cpuset_cpus, options.cpuset_mems
    if cpu != CPU():
        resources.cpu = cpu
    if options.memory_limit_bytes:
        resources.memory = Memory(limit=options.memory_limit_bytes)
    if options.block_io is not None:
        resources.block_io = options.block_io
    if any(options.rlimit_nofile):
        soft, hard = options.rlimit_nofile
        limit = Rlimit(type="RLIMIT_NOFILE", hard=hard, soft=soft)
        others = [one for one in _process(spec).rlimits if one.type != limit.type]
        _process(spec).rlimits = [*others, limit]


def _rest(spec: Spec, options: SpecOptions) -> None:
    linux = _linux(spec)
    if options.annotations:
        spec.annotations = dict(options.annotations)
    if options.hostname:
        spec.hostname = options.hostname
    if options.cgroup is not None:
        linux.cgroups_path = options.cgroup
    if options.rootfs_propagation:
        linux.rootfs_propagation = options.rootfs_propagation
    if options.rdt_class:
        linux.intel_rdt = IntelRdt(clos_id=options.rdt_class)
    if options.uid_maps or options.gid_maps:
        linux.namespaces.append(LinuxNamespace(type="user"))
        linux.uid_mappings = [_id_map(one) for one in options.uid_maps]
        linux.gid_mappings = [_id_map(one) for one in options.gid_maps]
    if options.gpus is not None:
        spec.hooks = spec.hooks or Hooks()
        spec.hooks.create_runtime.append(gpu_hook(options.gpus))
    for path in options.devices:
        if is_name(path):
            continue
        for device in host_devices(path):
            linux.devices.append(device)
            _resources(spec).devices.append(
                DeviceCgroup(allow=True, type=device.type, major=device.major, minor=device.minor, access="rwm")
            )
    named = [name for name in options.devices if is_name(name)]
    if named:
        inject(spec, named)


def capability(name: str) -> str:
    """A capability's name with `CAP_`, in capitals. Raises InvalidArgumentError for one that does not exist."""
    full = name.upper() if name.upper().startswith("CAP_") else f"CAP_{name.upper()}"
    if full not in ALL_CAPABILITIES:
        raise InvalidArgumentError(f"unknown capability {name!r}")
    return full


def _current_capabilities() -> list[str]:
    """What this process holds: no runtime can give more."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        bits = next((int(line.split()[1], 16) for line in status if line.startswith("CapEff:")), 0)
    return [name for number, name in enumerate(ALL_CAPABILITIES) if bits >> number & 1]


def _capabilities(names: Sequence[str]) -> Capabilities:
    return Capabilities(bounding=list(names), effective=list(names), permitted=list(names))


def _default_mounts() -> list[Mount]:
    dev = ["nosuid", "strictatime", "mode=755", "size=65536k"]
    locked = ["nosuid", "noexec", "nodev"]
    return [
        Mount(destination="/proc", type="proc", source="proc", options=list(locked)),
        Mount(destination="/dev", type="tmpfs", source="tmpfs", options=list(dev)),
        Mount(
            destination="/dev/pts",
            type="devpts",
            source="devpts",
            options=["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        Mount(destination="/dev/shm", type="tmpfs", source="shm", options=[*locked, "mode=1777", "size=65536k"]),
        Mount(destination="/dev/mqueue", type="mqueue", source="mqueue", options=list(locked)),
        Mount(destination="/sys", type="sysfs", source="sysfs", options=[*locked, "ro"]),
        Mount(destination="/run", type="tmpfs", source="tmpfs", options=list(dev)),
    ]


def _id_map(values: tuple[int, int, int]) -> IDMapping:
    return IDMapping(container_id=values[0], host_id=values[1], size=values[2])


def _copy(mount: Mount) -> Mount:
    return Mount(destination=mount.destination, type=mount.type, source=mount.source, options=list(mount.options))


def _process(spec: Spec) -> Process:
    if spec.process is None:
        spec.process = Process()
    return spec.process


def _root(spec: Spec) -> Root:
    if spec.root is None:
        spec.root = Root()
    return spec.root


def _linux(spec: Spec) -> Linux:
    if spec.linux is None:
        spec.linux = Linux()
    return spec.linux


def _resources(spec: Spec) -> Resources:
    linux = _linux(spec)
    if linux.resources is None:
        linux.resources = Resources()
    return linux.resources


def spec_json(spec: Spec) -> dict[str, Any]:
    """A spec as plain JSON data, for those who show or compare it."""
    # Any: JSON.
    import json

    from orlop.oci.spec import encode

    value: dict[str, Any] = json.loads(encode(spec))
    return value
