"""What the role `run` accepts of specs: a test for each row of its tables, and each way out that was thought of."""

import copy
import json
import resource

import pytest

from orlop.base.errdefs import PermissionDeniedError
from orlop.oci import spec as oci
from orlop.server.roles import spec

NAMESPACE, CONTAINER = "tenant", "web"


def good():
    """The spec that ctr makes, as Debian's does."""
    return {
        "ociVersion": "1.0.2-dev",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
            "args": ["sleep", "1000"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": ["CAP_CHOWN", "CAP_KILL"],
                "effective": ["CAP_CHOWN"],
                "permitted": ["CAP_CHOWN"],
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs"},
        "hostname": "web",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": None},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "ro"]},
        ],
        "linux": {
            "resources": {
                "devices": [
                    {"allow": False, "access": "rwm"},
                    {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                    {"allow": True, "type": "c", "major": 136, "access": "rwm"},
                ],
                "cpu": {"shares": 1024},
                "memory": {"limit": 1 << 26},
                "pids": {"limit": 10},
            },
            "cgroupsPath": "/tenant/web",
            "namespaces": [{"type": name} for name in ("pid", "ipc", "uts", "mount", "network")],
            "maskedPaths": [*spec.MASKED, "/proc/more"],
            "readonlyPaths": [*spec.READ_ONLY],
        },
    }


def judge(value):
    spec.check_spec(json.dumps(value).encode(), NAMESPACE, CONTAINER)


def changed(path, value):
    """The good spec with one value put at `path`, a dotted one; `...` removes what is there."""
    whole = copy.deepcopy(good())
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = whole
    for part in way:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
    if value is ...:
        del place[last]
    elif isinstance(place, list) and last == len(place):
        place.append(value)
    else:
        place[last] = value
    return whole


def refused(value):
    with pytest.raises(PermissionDeniedError) as caught:
        judge(value)
    return caught.value.text


def test_what_ctr_makes_is_accepted():
    judge(good())


def test_what_our_client_makes_is_accepted():
    from orlop.client.spec import default_spec

    made = default_spec(namespace=NAMESPACE, container_id=CONTAINER)
    spec.check_spec(oci.encode(made), NAMESPACE, CONTAINER)


MOUNT = {"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]}

BAD = {
    # fields that are not listed
    "hooks": ("hooks", {"prestart": [{"path": "/bin/sh"}]}, "spec.hooks"),
    "hooks in other case": ("Hooks", {"prestart": []}, "spec.Hooks"),
    "annotations": ("annotations", {"run.oci.hooks.stdout": "/x"}, "spec.annotations"),
    "another system": ("windows", {}, "spec.windows"),
    "what does not exist yet": ("linux.future", True, "spec.linux.future"),
    "devices": ("linux.devices", [{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}], "spec.linux.devices"),
    "sysctl": ("linux.sysctl", {"kernel.core_pattern": "|/x"}, "spec.linux.sysctl"),
    "uid mappings": ("linux.uidMappings", [{"hostID": 0}], "spec.linux.uidMappings"),
    "gid mappings": ("linux.gidMappings", [{"hostID": 0}], "spec.linux.gidMappings"),
    "rdt": ("linux.intelRdt", {"closID": "x"}, "spec.linux.intelRdt"),
    "mount label": ("linux.mountLabel", "x", "spec.linux.mountLabel"),
    "personality": ("linux.personality", {"domain": "LINUX32"}, "spec.linux.personality"),
    "network resources": ("linux.resources.network", {"classID": 1}, "spec.linux.resources.network"),
    "unified": ("linux.resources.unified", {"memory.max": "max"}, "spec.linux.resources.unified"),
    "block io": ("linux.resources.blockIO", {"weight": 1000}, "spec.linux.resources.blockIO"),
    "no oom killer": ("linux.resources.memory.disableOOMKiller", True, "spec.linux.resources.memory.disableOOMKiller"),
    "real time": ("linux.resources.cpu.realtimeRuntime", 1, "spec.linux.resources.cpu.realtimeRuntime"),
    "apparmor": ("process.apparmorProfile", "unconfined", "spec.process.apparmorProfile"),
    "selinux": ("process.selinuxLabel", "x", "spec.process.selinuxLabel"),
    "scheduler": ("process.scheduler", {"policy": "SCHED_FIFO"}, "spec.process.scheduler"),
    "io priority": ("process.ioPriority", {"class": "IOPRIO_CLASS_RT"}, "spec.process.ioPriority"),
    "cpu affinity": ("process.execCPUAffinity", {"initial": "0"}, "spec.process.execCPUAffinity"),
    "seccomp listener": ("linux.seccomp.listenerPath", "/run/x", "spec.linux.seccomp.listenerPath"),
    # values
    "another root": ("root.path", "/", "spec.root.path"),
    "no root": ("root", ..., "spec.root"),
    "no process": ("process", ..., "spec.process"),
    "no linux": ("linux", None, "spec.linux"),
    "a foreign cgroup": ("linux.cgroupsPath", "/other/web", "spec.linux.cgroupsPath"),
    "another container's cgroup": ("linux.cgroupsPath", "/tenant/db", "spec.linux.cgroupsPath"),
    "a climbing cgroup": ("linux.cgroupsPath", "/tenant/web/../../other/x", "spec.linux.cgroupsPath"),
    "a systemd cgroup": ("linux.cgroupsPath", "system.slice:x:y", "spec.linux.cgroupsPath"),
    "the default cgroup": ("linux.cgroupsPath", ..., "spec.linux.cgroupsPath"),
    "an empty cgroup": ("linux.cgroupsPath", "", "spec.linux.cgroupsPath"),
    "a capability": ("process.capabilities.ambient", ["CAP_SYS_ADMIN"], "spec.process.capabilities.ambient[0]"),
    "a low oom score": ("process.oomScoreAdj", -1000, "spec.process.oomScoreAdj"),
    "a leaked descriptor": ("process.cwd", "/proc/self/fd/8", "spec.process.cwd"),
    "a leaked descriptor behind dots": ("process.cwd", "/x/../proc/self/fd/8", "spec.process.cwd"),
    "a relative leaked descriptor": ("process.cwd", "proc/self/fd/8", "spec.process.cwd"),
    "an unknown rlimit": ("process.rlimits.0.type", "RLIMIT_FUTURE", "spec.process.rlimits[0].type"),
    "no rlimit": ("process.rlimits.0.type", "getrlimit", "spec.process.rlimits[0].type"),
    "the host's network": ("linux.namespaces.4", ..., "spec.linux.namespaces"),
    "the host's pids": ("linux.namespaces.0", ..., "spec.linux.namespaces"),
    "another's ipc": ("linux.namespaces.1.path", "/proc/1/ns/ipc", "spec.linux.namespaces[1].path"),
    "a user namespace": ("linux.namespaces.5", {"type": "user"}, "spec.linux.namespaces[5].type"),
    "a time namespace": ("linux.namespaces.5", {"type": "time"}, "spec.linux.namespaces[5].type"),
    "no device rules": ("linux.resources.devices", ..., "spec.linux.resources.devices"),
    "empty device rules": ("linux.resources.devices", [], "spec.linux.resources.devices[0]"),
    "all devices": ("linux.resources.devices.1", {"allow": True, "access": "rwm"}, "spec.linux.resources.devices[1]"),
    "a narrow first denial": (
        "linux.resources.devices.0",
        {"allow": False, "type": "b", "access": "rwm"},
        "spec.linux.resources.devices[0]",
    ),
    "a half denial": ("linux.resources.devices.0.access", "r", "spec.linux.resources.devices[0]"),
    "a disk": (
        "linux.resources.devices.3",
        {"allow": True, "type": "b", "major": 8, "minor": 0, "access": "r"},
        "spec.linux.resources.devices[3]",
    ),
    "a disk that looks like null": (
        "linux.resources.devices.3",
        {"allow": True, "type": "b", "major": 1, "minor": 3, "access": "r"},
        "spec.linux.resources.devices[3]",
    ),
    "memory": (
        "linux.resources.devices.3",
        {"allow": True, "type": "c", "major": 1, "minor": 1, "access": "r"},
        "spec.linux.resources.devices[3]",
    ),
    "all of a major number": (
        "linux.resources.devices.3",
        {"allow": True, "type": "c", "major": 1, "access": "r"},
        "spec.linux.resources.devices[3]",
    ),
    "a truth for a number": (
        "linux.resources.devices.3",
        {"allow": True, "type": "c", "major": True, "minor": 3},
        "spec.linux.resources.devices[3].major",
    ),
    "no masked paths": ("linux.maskedPaths", ..., "spec.linux.maskedPaths"),
    "fewer masked paths": ("linux.maskedPaths", sorted(spec.MASKED - {"/proc/kcore"}), "spec.linux.maskedPaths"),
    "no read-only paths": ("linux.readonlyPaths", [], "spec.linux.readonlyPaths"),
    "fewer read-only paths": ("linux.readonlyPaths", ["/proc/sys"], "spec.linux.readonlyPaths"),
    "shared propagation": ("linux.rootfsPropagation", "rshared", "spec.linux.rootfsPropagation"),
    "slave propagation": ("linux.rootfsPropagation", "slave", "spec.linux.rootfsPropagation"),
    "notify": ("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY", "spec.linux.seccomp.defaultAction"),
    "trace": ("linux.seccomp.syscalls", [{"action": "SCMP_ACT_TRACE"}], "spec.linux.seccomp.syscalls[0].action"),
    # mounts
    "a bind": ("mounts.5", {**MOUNT, "type": "bind", "source": "/etc"}, "spec.mounts[5].type"),
    "a bind of no type": ("mounts.5", {"destination": "/d", "source": "/etc", "options": ["bind"]}, "spec.mounts[5]"),
    "a bind by option": ("mounts.5", {**MOUNT, "options": ["rbind"]}, "spec.mounts[5].options"),
    "a source of the host": ("mounts.5", {**MOUNT, "source": "/etc"}, "spec.mounts[5].source"),
    "a disk's file system": ("mounts.5", {**MOUNT, "type": "ext4"}, "spec.mounts[5].type"),
    "an overlay": ("mounts.5", {**MOUNT, "type": "overlay"}, "spec.mounts[5].type"),
    "mapped ids": ("mounts.5", {**MOUNT, "uidMappings": []}, "spec.mounts[5].uidMappings"),
    "an idmap": ("mounts.5", {**MOUNT, "options": ["idmap"]}, "spec.mounts[5].options"),
    "shared": ("mounts.5", {**MOUNT, "options": ["rshared"]}, "spec.mounts[5].options"),
    "an odd value": ("mounts.5", {**MOUNT, "options": ["size=1m,suid"]}, "spec.mounts[5].options"),
    "proc elsewhere": ("mounts.0.destination", "/proc2", "spec.mounts[0].destination"),
    "sys elsewhere": ("mounts.4.destination", "/sys2", "spec.mounts[4].destination"),
    "sys to be written": ("mounts.4.options", ["nosuid"], "spec.mounts[4].options"),
    "sys to be written after all": ("mounts.4.options", ["ro", "rw"], "spec.mounts[4].options"),
    "the host's ptys": ("mounts.2.options", ["gid=5"], "spec.mounts[2].options"),
    "a tmpfs over proc": ("mounts.5", {**MOUNT, "destination": "/proc/sys"}, "spec.mounts[5].destination"),
    "a tmpfs over sys": ("mounts.5", {**MOUNT, "destination": "/sys"}, "spec.mounts[5].destination"),
    "a tmpfs over all": ("mounts.5", {**MOUNT, "destination": "/"}, "spec.mounts[5].destination"),
    "a relative place": ("mounts.5", {**MOUNT, "destination": "data"}, "spec.mounts[5].destination"),
    "a climbing place": ("mounts.5", {**MOUNT, "destination": "/a/../proc"}, "spec.mounts[5].destination"),
    "two slashes": ("mounts.5", {**MOUNT, "destination": "//proc"}, "spec.mounts[5].destination"),
    "cgroup to be written": (
        "mounts.5",
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]},
        "spec.mounts[5].options",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_the_field_that_is_refused_is_named(what):
    path, value, field = BAD[what]
    assert refused(changed(path, value)).startswith(f"role run: {field}")


def test_only_listed_fields_of_the_specification_are_accepted():
    """Each field that the specification has is put there: those that pass are the ones that are listed."""
    listed = {"ociVersion", "hostname", "domainname", "root", "process", "mounts", "linux"}
    for name in fields(oci.Spec) - listed:
        assert refused(changed(name, {})).startswith(f"role run: spec.{name}")
    listed = {"namespaces", "cgroupsPath", "resources", "maskedPaths", "readonlyPaths", "rootfsPropagation", "seccomp"}
    for name in fields(oci.Linux) - listed:
        assert refused(changed(f"linux.{name}", {})).startswith(f"role run: spec.linux.{name}")
    for name in fields(oci.Resources) - {"devices", "memory", "cpu", "pids"}:
        assert refused(changed(f"linux.resources.{name}", {})).startswith(f"role run: spec.linux.resources.{name}")
    listed = {"terminal", "consoleSize", "user", "args", "env", "cwd", "capabilities", "rlimits"}
    listed |= {"noNewPrivileges", "oomScoreAdj"}
    for name in fields(oci.Process) - listed:
        assert refused(changed(f"process.{name}", {})).startswith(f"role run: spec.process.{name}")


def fields(cls):
    import msgspec

    return {one.encode_name for one in msgspec.structs.fields(cls)}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "must be JSON"),
        (b"[]", "must be an object"),
        (b"null", "must be an object"),
        (b'{"root": {"path": "rootfs", "path": "/"}}', "a key is there twice"),
        (b'{"root": NaN}', "must be JSON"),
        (json.dumps(good()).encode("utf-16"), "must be JSON"),
        (b"\xff" + json.dumps(good()).encode(), "must be JSON"),
        (b"[" * 100_000, "must be JSON"),
        (b" " * (spec.MAX_BYTES + 1), "more than"),
    ],
)
def test_what_runtimes_might_read_otherwise_is_refused(data, reason):
    with pytest.raises(PermissionDeniedError, match=reason):
        spec.check_spec(data, NAMESPACE, CONTAINER)


def test_an_execs_process_and_new_limits_are_judged_too():
    spec.check_process(json.dumps(good()["process"]).encode())
    with pytest.raises(PermissionDeniedError, match=r"role run: spec\.capabilities\.bounding\[0\]"):
        spec.check_process(b'{"cwd": "/", "capabilities": {"bounding": ["CAP_SYS_PTRACE"]}}')
    spec.check_resources(b'{"memory": {"limit": 1000000}, "pids": {"limit": 5}}')
    for field in ("devices", "unified", "network"):
        with pytest.raises(PermissionDeniedError, match=rf"role run: resources\.{field}"):
            spec.check_resources(json.dumps({field: []}).encode())


def test_limits_above_the_daemons_own_are_refused(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (10, 1000))
    assert refused(good()) == "role run: spec.process.rlimits[0].hard: must be 1000 at most"
    with pytest.raises(PermissionDeniedError):
        judge(changed("process.rlimits.0.hard", -1))
