"""The runtime-spec's config.json as typed structs, as far as it is generated or read here.

Structs are mutable: a spec is made by editing. What is not typed must survive editing all the same (fields of a newer
spec, `windows`, `vm`, `zos`): `SpecDocument` keeps the JSON that was read beside the struct, and writing lays the one
over the other. A spec made from nothing is written by `encode`.

Reading is tolerant: unknown fields are passed over and null counts as absent. Writing leaves out what is empty, except
the fields that the schema requires.

Source: runtime-spec's config.md, config-linux.md and specs-go/config.go.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import msgspec
from msgspec import Struct, field

from orlop.base.errdefs import InvalidArgumentError

MAX_SPEC_SIZE: Final = 16 << 20
"""Bytes; what a gRPC message may have, for a spec arrives in one."""

VERSION: Final = "1.1.0"
"""The version of the runtime-spec that specs made here name: crun 1.8 refuses any newer one."""

TYPE_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
"""Of a spec in a protobuf Any; the value is its JSON."""

PROCESS_TYPE_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/Process"

T = TypeVar("T")

if TYPE_CHECKING:
    Text = str
    Flag = bool
    Int = int
    Texts = list[str]
    TextMap = dict[str, str]
    Ints = list[int]
    Many = list
    Named = dict[str, T]
else:
    # As in `image`: null is taken while reading and becomes the empty value in __post_init__.
    Text = str | None
    Flag = bool | None
    Int = int | None
    Texts = list[str] | None
    TextMap = dict[str, str] | None
    Ints = list[int] | None

    class Many:
        def __class_getitem__(cls, item: type) -> object:
            return list[item] | None

    class Named:
        def __class_getitem__(cls, item: type) -> object:
            return dict[str, item] | None


S = TypeVar("S", bound=Struct)


def _always(default: Any) -> Any:
    """A field that is optional while reading and written even when it has its default."""
    # Any: stands for a field of any type, as dataclasses.field does.
    return field(default_factory=lambda: default)


class _Part(Struct, kw_only=True, omit_defaults=True):
    def __post_init__(self) -> None:
        for name, default in _nullable_fields(type(self)):
            if getattr(self, name) is None:
                setattr(self, name, default())


class IDMapping(_Part, kw_only=True, rename="camel"):
    """A range of ids of a user namespace: `size` ids from `container_id` inside are those from `host_id` outside."""

    container_id: int = msgspec.field(name="containerID", default_factory=int)
    host_id: int = msgspec.field(name="hostID", default_factory=int)
    size: int = _always(0)


class User(_Part, kw_only=True, rename="camel"):
    """Whom a process runs as; `username` is for Windows."""

    uid: Int = _always(0)
    gid: Int = _always(0)
    umask: int | None = None
    additional_gids: Ints = field(default_factory=list)
    username: Text = ""


class Box(_Part, kw_only=True):
    """Size of a terminal in characters."""

    height: int = _always(0)
    width: int = _always(0)


class Capabilities(_Part, kw_only=True):
    """Capability names (`CAP_CHOWN`) by set."""

    bounding: Texts = field(default_factory=list)
    effective: Texts = field(default_factory=list)
    inheritable: Texts = field(default_factory=list)
    permitted: Texts = field(default_factory=list)
    ambient: Texts = field(default_factory=list)


class Rlimit(_Part, kw_only=True):
    """A limit of setrlimit(2) by name (`RLIMIT_NOFILE`)."""

    type: str
    hard: int = _always(0)
    soft: int = _always(0)


class IOPriority(_Part, kw_only=True):
    """ioprio_set(2): class `IOPRIO_CLASS_BE` and a priority from 0 to 7."""

    class_: Text = msgspec.field(name="class", default_factory=str)
    priority: int = _always(0)


class Scheduler(_Part, kw_only=True, rename="camel"):
    """sched_setattr(2); times in nanoseconds."""

    policy: Text = _always("")
    nice: int = 0
    priority: int = 0
    flags: Texts = field(default_factory=list)
    runtime: int = 0
    deadline: int = 0
    period: int = 0


class CPUAffinity(_Part, kw_only=True):
    """CPUs of an exec before and after it enters the cgroup."""

    initial: Text = ""
    final: Text = ""


class Process(_Part, kw_only=True, rename="camel"):
    """What runs in a container: the init process, or an exec."""

    terminal: Flag = False
    console_size: Box | None = None
    user: User = field(default_factory=User)
    args: Texts = field(default_factory=list)
    command_line: Text = ""
    env: Texts = field(default_factory=list)
    cwd: Text = _always("/")
    capabilities: Capabilities | None = None
    rlimits: Many[Rlimit] = field(default_factory=list)
    no_new_privileges: Flag = False
    apparmor_profile: Text = ""
    oom_score_adj: int | None = None
    scheduler: Scheduler | None = None
    selinux_label: Text = ""
    io_priority: IOPriority | None = msgspec.field(name="ioPriority", default=None)
    exec_cpu_affinity: CPUAffinity | None = msgspec.field(name="execCPUAffinity", default=None)


class Root(_Part, kw_only=True):
    """The root file system; a relative path is seen from the bundle."""

    path: str = _always("rootfs")
    readonly: Flag = False


class Mount(_Part, kw_only=True, rename="camel"):
    """A mount inside the container, beyond the root file system."""

    destination: str
    type: Text = ""
    source: Text = ""
    options: Texts = field(default_factory=list)
    uid_mappings: Many[IDMapping] = field(default_factory=list)
    gid_mappings: Many[IDMapping] = field(default_factory=list)


class Hook(_Part, kw_only=True):
    """A program run at a stage of the container's life; `timeout` in seconds."""

    path: str
    args: Texts = field(default_factory=list)
    env: Texts = field(default_factory=list)
    timeout: int | None = None


class Hooks(_Part, kw_only=True, rename="camel"):
    prestart: Many[Hook] = field(default_factory=list)
    create_runtime: Many[Hook] = field(default_factory=list)
    create_container: Many[Hook] = field(default_factory=list)
    start_container: Many[Hook] = field(default_factory=list)
    poststart: Many[Hook] = field(default_factory=list)
    poststop: Many[Hook] = field(default_factory=list)


class LinuxNamespace(_Part, kw_only=True):
    """A Linux namespace to make, or with `path` to enter: pid, network, mount, ipc, uts, user, cgroup, time."""

    type: str
    path: Text = ""


class Device(_Part, kw_only=True, rename="camel"):
    """A device node to make; `type` is c, b, u or p."""

    path: str
    type: str
    major: int = _always(0)
    minor: int = _always(0)
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None


class DeviceCgroup(_Part, kw_only=True):
    """A rule of the device controller; a number that is None means any."""

    allow: bool = _always(False)
    type: Text = ""
    major: int | None = None
    minor: int | None = None
    access: Text = ""


class Memory(_Part, kw_only=True, rename="camel"):
    """Limits in bytes; -1 is none."""

    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None
    kernel: int | None = None
    kernel_tcp: int | None = msgspec.field(name="kernelTCP", default=None)
    swappiness: int | None = None
    disable_oom_killer: bool | None = msgspec.field(name="disableOOMKiller", default=None)
    use_hierarchy: bool | None = None
    check_before_update: bool | None = None


class CPU(_Part, kw_only=True, rename="camel"):
    """Times in microseconds."""

    shares: int | None = None
    quota: int | None = None
    burst: int | None = None
    period: int | None = None
    realtime_runtime: int | None = None
    realtime_period: int | None = None
    cpus: Text = ""
    mems: Text = ""
    idle: int | None = None


class Pids(_Part, kw_only=True):
    limit: int | None = None


class WeightDevice(_Part, kw_only=True, rename="camel"):
    major: int = _always(0)
    minor: int = _always(0)
    weight: int | None = None
    leaf_weight: int | None = None


class ThrottleDevice(_Part, kw_only=True):
    major: int = _always(0)
    minor: int = _always(0)
    rate: int = _always(0)


class BlockIO(_Part, kw_only=True, rename="camel"):
    weight: int | None = None
    leaf_weight: int | None = None
    weight_device: Many[WeightDevice] = field(default_factory=list)
    throttle_read_bps_device: Many[ThrottleDevice] = field(default_factory=list)
    throttle_write_bps_device: Many[ThrottleDevice] = field(default_factory=list)
    throttle_read_iops_device: Many[ThrottleDevice] = msgspec.field(name="throttleReadIOPSDevice", default_factory=list)
    throttle_write_iops_device: Many[ThrottleDevice] = msgspec.field(
        name="throttleWriteIOPSDevice", default_factory=list
    )


class HugepageLimit(_Part, kw_only=True, rename="camel"):
    page_size: str
    limit: int = _always(0)


class InterfacePriority(_Part, kw_only=True):
    name: str
    priority: int = _always(0)


class Network(_Part, kw_only=True):
    class_id: int | None = msgspec.field(name="classID", default=None)
    priorities: Many[InterfacePriority] = field(default_factory=list)


class Rdma(_Part, kw_only=True, rename="camel"):
    hca_handles: int | None = None
    hca_objects: int | None = None


class Resources(_Part, kw_only=True, rename="camel"):
    """What the container may use; also the payload of Tasks.Update."""

    devices: Many[DeviceCgroup] = field(default_factory=list)
    memory: Memory | None = None
    cpu: CPU | None = None
    pids: Pids | None = None
    block_io: BlockIO | None = msgspec.field(name="blockIO", default=None)
    hugepage_limits: Many[HugepageLimit] = field(default_factory=list)
    network: Network | None = None
    rdma: Named[Rdma] = field(default_factory=dict)
    unified: TextMap = field(default_factory=dict)


class SeccompArg(_Part, kw_only=True, rename="camel"):
    index: int
    value: int
    value_two: int = 0
    op: str


class SeccompSyscall(_Part, kw_only=True, rename="camel"):
    names: list[str]
    action: str
    errno_ret: int | None = None
    args: Many[SeccompArg] = field(default_factory=list)


class Seccomp(_Part, kw_only=True, rename="camel"):
    default_action: str
    default_errno_ret: int | None = None
    architectures: Texts = field(default_factory=list)
    flags: Texts = field(default_factory=list)
    listener_path: Text = ""
    listener_metadata: Text = ""
    syscalls: Many[SeccompSyscall] = field(default_factory=list)


class IntelRdt(_Part, kw_only=True, rename="camel"):
    clos_id: Text = msgspec.field(name="closID", default="")
    l3_cache_schema: Text = msgspec.field(name="l3CacheSchema", default="")
    mem_bw_schema: Text = msgspec.field(name="memBwSchema", default="")
    enable_cmt: Flag = msgspec.field(name="enableCMT", default=False)
    enable_mbm: Flag = msgspec.field(name="enableMBM", default=False)


class Personality(_Part, kw_only=True):
    domain: str
    flags: Texts = field(default_factory=list)


class TimeOffset(_Part, kw_only=True):
    secs: int = 0
    nanosecs: int = 0


class Linux(_Part, kw_only=True, rename="camel"):
    uid_mappings: Many[IDMapping] = field(default_factory=list)
    gid_mappings: Many[IDMapping] = field(default_factory=list)
    sysctl: TextMap = field(default_factory=dict)
    resources: Resources | None = None
    cgroups_path: Text = ""
    namespaces: Many[LinuxNamespace] = field(default_factory=list)
    devices: Many[Device] = field(default_factory=list)
    seccomp: Seccomp | None = None
    rootfs_propagation: Text = ""
    masked_paths: Texts = field(default_factory=list)
    readonly_paths: Texts = field(default_factory=list)
    mount_label: Text = ""
    intel_rdt: IntelRdt | None = None
    personality: Personality | None = None
    time_offsets: Named[TimeOffset] = field(default_factory=dict)


class Spec(_Part, kw_only=True, rename="camel"):
    """A container's config.json."""

    oci_version: Text = _always(VERSION)
    process: Process | None = None
    root: Root | None = None
    hostname: Text = ""
    domainname: Text = ""
    mounts: Many[Mount] = field(default_factory=list)
    hooks: Hooks | None = None
    annotations: TextMap = field(default_factory=dict)
    linux: Linux | None = None


class SpecDocument:
    """A spec that was read, to be changed and written back with all that is not typed here.

    Change `spec` in place. `dump` keeps, of each JSON object that was read, the keys that its struct does not have; an
    object in a list keeps them while its typed part is unchanged, wherever in the list it moves.
    """

    def __init__(self, raw: dict[str, Any], spec: Spec) -> None:
        # Any: the values of a JSON object.
        self._raw = raw
        self.spec = spec

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Read a config.json.

        Raises:
            InvalidArgumentError: as `decode`.
        """
        spec = decode(data)
        raw = msgspec.json.decode(data)
        return cls(raw, spec)

    def dump(self) -> bytes:
        """The JSON of the spec as it is now."""
        return msgspec.json.encode(_laid_over(self._raw, self.spec))


def decode(data: bytes, *, what: str = "spec") -> Spec:
    """Read a config.json.

    Raises:
        InvalidArgumentError: it is no JSON, has wrong types, or is larger than 16 MiB.
    """
    return decode_part(data, Spec, what=what)


def decode_part(data: bytes, kind: type[S], *, what: str) -> S:
    """Read a part that travels alone, such as an exec's `Process` or an update's `Resources`.

    Raises:
        InvalidArgumentError: as `decode`.
    """
    if len(data) > MAX_SPEC_SIZE:
        raise InvalidArgumentError(f"{what}: {len(data)} bytes, more than the allowed {MAX_SPEC_SIZE}")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{what}: {error}") from error


def encode(part: Struct) -> bytes:
    """Write a spec, or a part of one."""
    return msgspec.json.encode(part)


@functools.lru_cache(maxsize=128)
def _nullable_fields(kind: type[Struct]) -> tuple[tuple[str, Callable[[], Any]], ...]:
    found: list[tuple[str, Callable[[], Any]]] = []
    for info in msgspec.structs.fields(kind):
        if info.default_factory is not msgspec.NODEFAULT:
            found.append((info.name, info.default_factory))
        elif info.default is not msgspec.NODEFAULT and info.default is not None:
            found.append((info.name, functools.partial(_same, info.default)))
    return tuple(found)


def _same(value: Any) -> Any:
    return value


def _laid_over(raw: Any, value: Any) -> Any:
    """`value` as plain JSON data, with the keys of `raw` that its struct does not know."""
    # Any: plain JSON on both sides.
    if isinstance(value, Struct):
        return _struct_over(raw if isinstance(raw, dict) else {}, value)
    if isinstance(value, list):
        return _list_over(raw if isinstance(raw, list) else [], value)
    if isinstance(value, dict):
        known = raw if isinstance(raw, dict) else {}
        return {key: _laid_over(known.get(key), item) for key, item in value.items()}
    return value


def _struct_over(raw: dict[str, Any], value: Struct) -> dict[str, Any]:
    written = msgspec.to_builtins(value)
    infos = msgspec.structs.fields(type(value))
    typed = {info.encode_name for info in infos}
    merged = {
        info.encode_name: _laid_over(raw.get(info.encode_name), getattr(value, info.name))
        for info in infos
        if info.encode_name in written
    }
    return merged | {key: item for key, item in raw.items() if key not in typed}


def _list_over(raw: list[Any], values: list[Any]) -> list[Any]:
    if not values or not isinstance(values[0], Struct):
        return values
    left: list[Any] = list(raw)
    return [_laid_over(_take(left, value), value) for value in values]


def _take(left: list[Any], value: Struct) -> Any:
    """Find what `value` was read from, one with the same typed part, and use it up."""
    for index, candidate in enumerate(left):
        if candidate is not None and _reads_as(candidate, value):
            left[index] = None
            return candidate
    return None


def _reads_as(candidate: Any, value: Struct) -> bool:
    try:
        return bool(msgspec.convert(candidate, type(value)) == value)
    except msgspec.ValidationError:
        return False
