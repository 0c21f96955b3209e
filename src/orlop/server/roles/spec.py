"""What the role `run` accepts of OCI specs: only what is listed here, so that a field which is new is refused.

Accepted is what makes a container as strong as the default one and no stronger: Linux namespaces of its own, the
default capabilities and devices at most, no file of the host, a cgroup below its own namespace's. A rule judges one
JSON value and raises; objects are dictionaries of rules by the exact name of the key.

What an OCI runtime reads must be what was judged here: so the text is JSON in UTF-8 without a key twice, of which a
reader might take the first.
"""

import json
import posixpath
import re
import resource
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeAlias

from orlop.base.errdefs import PermissionDeniedError
from orlop.base.quoting import quote

# Any: whatever JSON holds.
Rule: TypeAlias = Callable[[Any, str], None]

# A text that takes longer to read would hold up the event loop.
MAX_BYTES: Final = 256 << 10
SHOWN: Final = 128

# The capabilities of a container by default. Source: defaultUnixCaps in containerd's pkg/oci/spec.go.
CAPABILITIES: Final = frozenset(
    f"CAP_{name}"
    for name in (
        *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP"),
        *("NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
    )
)
NAMESPACES: Final = frozenset({"pid", "ipc", "uts", "mount", "network"})
# /proc and /sys show and change the whole host but for these. Source: populateDefaultUnixSpec in pkg/oci/spec.go.
MASKED: Final = frozenset(
    {
        *("/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list"),
        *("/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"),
    }
)
READ_ONLY: Final = frozenset({"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"})
# Character devices by major and minor number: null, zero, full, tty, random, urandom, console, ptmx, all of pts.
DEVICES: Final = frozenset(
    {(1, 3), (1, 5), (1, 7), (5, 0), (1, 8), (1, 9), (5, 1), (5, 2), (136, None)},
)
_PLAIN: Final = frozenset({"nosuid", "noexec", "nodev", "relatime"})
# By type of file system: where it may lie (None: anywhere outside /proc and /sys), and its options, those it must have.
MOUNTS: Final[Mapping[str, tuple[str | None, frozenset[str], frozenset[str]]]] = {
    "proc": ("/proc", _PLAIN, frozenset()),
    "sysfs": ("/sys", _PLAIN | {"ro"}, frozenset({"ro"})),
    "cgroup": ("/sys/fs/cgroup", _PLAIN | {"ro"}, frozenset({"ro"})),
    "devpts": ("/dev/pts", _PLAIN | {"newinstance", "ptmxmode=", "mode=", "gid="}, frozenset({"newinstance"})),
    "mqueue": ("/dev/mqueue", _PLAIN, frozenset()),
    "tmpfs": (
        None,
        _PLAIN | {"ro", "rw", "strictatime", "mode=", "size=", "uid=", "gid=", "nr_inodes="},
        frozenset(),
    ),
}
_VALUE: Final = re.compile(r"[0-9]+[kmg%]?", re.ASCII)
_WORD: Final = re.compile(r"[a-z0-9_]*", re.ASCII)


def refuse(where: str, reason: str) -> NoReturn:
    """Raise the error that the role's refusals are: it names the field."""
    raise PermissionDeniedError(f"role run: {where[:SHOWN]}: {reason[: 2 * SHOWN]}")


def check_spec(data: bytes, namespace: str, container_id: str) -> None:
    """Judge the spec of the container `container_id`.

    Raises:
        PermissionDeniedError: it has a field, or a value in one, that is not listed.
    """
    whole = _object(
        {
            "ociVersion": _text,
            "hostname": _text,
            "domainname": _text,
            "root": _object({"path": _one_of({"rootfs"}), "readonly": _flag}, required=("path",)),
            "process": _process,
            "mounts": _each(_mount),
            "linux": _object(
                {
                    "namespaces": _namespaces,
                    "cgroupsPath": _one_of({f"/{namespace}/{container_id}"}),
                    "resources": _object(
                        {**_RESOURCES, "devices": _devices},
                        required=("devices",),
                    ),
                    "maskedPaths": _all_of(MASKED),
                    "readonlyPaths": _all_of(READ_ONLY),
                    "rootfsPropagation": _one_of({"", "private", "rprivate"}),
                    "seccomp": _SECCOMP,
                },
                required=("namespaces", "cgroupsPath", "resources", "maskedPaths", "readonlyPaths"),
            ),
        },
        required=("root", "process", "linux"),
    )
    whole(_parsed(data, "spec"), "spec")


def check_process(data: bytes) -> None:
    """Judge the process of an exec.

    Raises:
        PermissionDeniedError: as `check_spec`.
    """
    _process(_parsed(data, "spec"), "spec")


def check_resources(data: bytes) -> None:
    """Judge new limits of a running task: those of a spec, but for devices.

    Raises:
        PermissionDeniedError: as `check_spec`.
    """
    _object(_RESOURCES)(_parsed(data, "resources"), "resources")


def _parsed(data: bytes, where: str) -> Any:
    if len(data) > MAX_BYTES:
        refuse(where, f"more than {MAX_BYTES} bytes")
    try:
        return json.loads(data.decode(), object_pairs_hook=_pairs, parse_constant=_constant)
    except PermissionDeniedError as error:
        refuse(where, error.text)
    except (ValueError, RecursionError):
        refuse(where, "must be JSON")


def _pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise PermissionDeniedError("a key is there twice")
    return found


def _constant(name: str) -> NoReturn:
    raise ValueError(name)


# -- rules -----------------------------------------------------------------------------------------------------------


def _object(rules: Mapping[str, Rule], required: Iterable[str] = ()) -> Rule:
    """An object of these keys at most; null stands for what is not there, as in Go."""

    def judge(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            refuse(where, "must be an object")
        for key, one in value.items():
            if key not in rules:
                refuse(f"{where}.{key}", "this field is not allowed")
            if one is not None:
                rules[key](one, f"{where}.{key}")
        for key in required:
            if value.get(key) is None:
                refuse(f"{where}.{key}", "must be there")

    return judge


def _each(rule: Rule) -> Rule:
    def judge(value: Any, where: str) -> None:
        if not isinstance(value, list):
            refuse(where, "must be a list")
        for number, one in enumerate(value):
            rule(one, f"{where}[{number}]")

    return judge


def _text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        refuse(where, "must be text")


def _number(value: Any, where: str) -> None:
    if type(value) is not int:  # not isinstance: true is a number to Python
        refuse(where, "must be a whole number")


def _flag(value: Any, where: str) -> None:
    if not isinstance(value, bool):
        refuse(where, "must be true or false")


def _one_of(words: Iterable[str]) -> Rule:
    allowed = frozenset(words)

    def judge(value: Any, where: str) -> None:
        _text(value, where)
        if value not in allowed:
            choice = ", ".join(quote(word) for word in sorted(allowed))
            refuse(where, f"{quote(value[:SHOWN])} is not allowed, only {choice}")

    return judge


def _all_of(words: frozenset[str]) -> Rule:
    """A list of texts, these among them."""

    def judge(value: Any, where: str) -> None:
        _each(_text)(value, where)
        if missing := words.difference(value):
            refuse(where, f"must have {min(missing)}")

    return judge


def _not_negative(value: Any, where: str) -> None:
    _number(value, where)
    if value < 0:
        refuse(where, "must not be negative")


def _cwd(value: Any, where: str) -> None:
    _text(value, where)
    # A runtime that leaks a descriptor of the host would be left through it (CVE-2024-21626).
    if posixpath.normpath(f"/{value}").lstrip("/").split("/")[0] in ("proc", "sys"):
        refuse(where, f"{quote(value[:SHOWN])} is not allowed")


def _rlimit(value: Any, where: str) -> None:
    _object({"type": _text, "hard": _number, "soft": _number}, required=("type",))(value, where)
    kind = getattr(resource, value["type"], None) if value["type"].startswith("RLIMIT_") else None
    if not isinstance(kind, int):
        refuse(f"{where}.type", f"{quote(value['type'][:SHOWN])} is not allowed")
    own = resource.getrlimit(kind)[1]
    for name in ("hard", "soft"):
        asked = value.get(name) or 0
        if own != resource.RLIM_INFINITY and not 0 <= asked <= own:
            refuse(f"{where}.{name}", f"must be {own} at most")


def _namespaces(value: Any, where: str) -> None:
    own = _object({"type": _one_of(NAMESPACES | {"cgroup"}), "path": _one_of({""})}, required=("type",))
    _each(own)(value, where)
    if missing := NAMESPACES.difference(one["type"] for one in value):
        refuse(where, f"must have one of type {min(missing)}: the host's is not allowed")


def _devices(value: Any, where: str) -> None:
    """First all is denied, for a new cgroup allows all; then only devices that are in every container."""
    rule = _object(
        {"allow": _flag, "type": _one_of({"", "a", "b", "c", "u", "p"}), "major": _number, "minor": _number}
        | {"access": _text}
    )
    _each(rule)(value, where)
    if not value or {key: one for key, one in value[0].items() if one is not None} != {"allow": False, "access": "rwm"}:
        refuse(f"{where}[0]", "must deny all")
    for number, one in enumerate(value):
        allowed = one.get("type") == "c" and (one.get("major"), one.get("minor")) in DEVICES
        if one.get("allow") and not allowed:
            refuse(f"{where}[{number}]", "this device is not allowed")


def _mount(value: Any, where: str) -> None:
    shape = _object(
        {"destination": _text, "type": _one_of(MOUNTS), "source": _text, "options": _each(_text)},
        required=("destination", "type"),
    )
    shape(value, where)
    destination, kind = value["destination"], value["type"]
    place, options, needed = MOUNTS[kind]
    if (
        not destination.startswith("/")
        or destination.startswith("//")
        or posixpath.normpath(destination) != destination
    ):
        refuse(f"{where}.destination", "must be a plain absolute path")
    top = destination.split("/")[1]
    if destination != place if place is not None else top in ("", "proc", "sys"):
        refuse(f"{where}.destination", f"{quote(destination[:SHOWN])} is not allowed for {kind}")
    if _WORD.fullmatch(value.get("source") or "") is None:
        refuse(f"{where}.source", "nothing of the host is allowed")
    given = value.get("options") or []
    for option in given:
        name, separator, number = option.partition("=")
        if f"{name}{separator}" not in options or (separator and _VALUE.fullmatch(number) is None):
            refuse(f"{where}.options", f"{quote(option[:SHOWN])} is not allowed for {kind}")
    if missing := needed.difference(given):
        refuse(f"{where}.options", f"must have {min(missing)}")


_CAPABILITIES: Final = _each(_one_of(CAPABILITIES))
_process: Final = _object(
    {
        "terminal": _flag,
        "consoleSize": _object({"height": _number, "width": _number}),
        "user": _object({"uid": _number, "gid": _number, "umask": _number, "additionalGids": _each(_number)}),
        "args": _each(_text),
        "env": _each(_text),
        "cwd": _cwd,
        "capabilities": _object(
            dict.fromkeys(("bounding", "effective", "inheritable", "permitted", "ambient"), _CAPABILITIES)
        ),
        "rlimits": _each(_rlimit),
        "noNewPrivileges": _flag,
        "oomScoreAdj": _not_negative,
    },
    required=("cwd",),
)
_RESOURCES: Final[Mapping[str, Rule]] = {
    "memory": _object(
        dict.fromkeys(("limit", "reservation", "swap", "swappiness"), _number) | {"checkBeforeUpdate": _flag}
    ),
    "cpu": _object(
        dict.fromkeys(("shares", "quota", "burst", "period", "idle"), _number) | {"cpus": _text, "mems": _text}
    ),
    "pids": _object({"limit": _number}),
}
_ACTION: Final = _one_of(
    f"SCMP_ACT_{name}" for name in ("ALLOW", "ERRNO", "KILL", "KILL_PROCESS", "KILL_THREAD", "TRAP", "LOG")
)
_SECCOMP: Final = _object(
    {
        "defaultAction": _ACTION,
        "defaultErrnoRet": _number,
        "architectures": _each(_text),
        "flags": _each(_one_of({"SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"})),
        "syscalls": _each(
            _object(
                {
                    "names": _each(_text),
                    "action": _ACTION,
                    "errnoRet": _number,
                    "args": _each(
                        _object({"index": _number, "value": _number, "valueTwo": _number, "op": _text}),
                    ),
                }
            )
        ),
    }
)
