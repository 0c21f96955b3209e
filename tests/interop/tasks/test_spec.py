"""The runtime spec: every field of it is carried to the container's processes."""

import json
import subprocess
from pathlib import Path

import pytest

from orlop.api.services.tasks.v1 import tasks_pb2 as pb
from orlop.api.types.runc.options.oci_pb2 import Options
from orlop.base.errdefs import UnknownError
from orlop.client.channel import drive
from orlop.client.tasks import DELETE_PROCESS, START
from tests.interop.tasks.room import Room, Spec
from tests.root.shims import until

MS_REC, MS_SHARED = 0x4000, 0x100000  # mount(2)

pytestmark = [pytest.mark.root, pytest.mark.interop]


def test_the_spec_arrives_byte_for_byte(room: Room, namespace: str) -> None:
    def change(spec: Spec) -> None:
        spec["process"]["apparmorProfile"] = ""
        spec["annotations"] = {"org.example": "ünï"}
        spec["linux"]["resources"]["unified"] = {}

    container = room.container("true", change=change)
    container.new_task()
    bundle = room.stand.daemon.state / "io.containerd.runtime.v2.task" / namespace / "c"
    assert (bundle / "config.json").read_bytes() == container.record.spec


def test_security_of_processes(room: Room) -> None:
    def change(spec: Spec) -> None:
        spec["process"]["noNewPrivileges"] = True
        spec["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 333, "hard": 444}]
        spec["process"]["oomScoreAdj"] = 321
        kept = ["CAP_CHOWN", "CAP_KILL"]
        spec["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), kept)
        spec["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99}],
        }

    look = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; ulimit -n; cat /proc/self/oom_score_adj"
    look += "; mkdir /x"
    wanted = "CapBnd:\t0000000000000021 CapEff:\t0000000000000021 NoNewPrivs:\t1 Seccomp:\t2 333 321"
    code, out, err = room.run("sh", "-c", look, change=change)
    assert (code, sorted(out.split("\n"))) == (1, sorted([*wanted.replace(" ", "\n").split("\n"), ""]))
    assert "mkdir" in err
    task = room.start("sleep", "1000", change=change)
    code, out = room.exec(
        task,
        "grep",
        "-E",
        "^(CapEff|Seccomp):",
        "/proc/self/status",
        capabilities={"effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"], "bounding": ["CAP_CHOWN"]},
    )
    assert (code, out) == (0, "CapEff:\t0000000000000001\nSeccomp:\t2\n")


def test_apparmor_is_refused_where_there_is_none(room: Room) -> None:
    if Path("/sys/module/apparmor/parameters/enabled").exists():
        pytest.skip("this kernel has AppArmor")

    def change(spec: Spec) -> None:
        spec["process"]["apparmorProfile"] = "docker-default"

    with pytest.raises(UnknownError, match=r"OCI runtime create failed: .*apparmor"):
        room.container("true", change=change).new_task()


def test_hooks_run_in_their_order(room: Room, tmp_path: Path) -> None:
    log = tmp_path / "hooks"
    hook = tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\nread state; echo "$1 $HOOK $(echo "$state" | grep -c \'"id":"c"\')" >> {log}\n')
    hook.chmod(0o755)
    kinds = ("createRuntime", "poststart", "poststop")

    def change(spec: Spec) -> None:
        spec["hooks"] = {kind: [{"path": str(hook), "args": ["hook", kind], "env": ["HOOK=x"]}] for kind in kinds}

    assert room.run("true", change=change)[0] == 0
    until(lambda: len(log.read_text().splitlines()) == 3, "hooks are missing")
    assert log.read_text().splitlines() == [f"{kind} x 1" for kind in kinds]


def test_a_hook_that_fails_fails_the_start(room: Room) -> None:
    def change(spec: Spec) -> None:
        spec["hooks"] = {"createRuntime": [{"path": "/bin/false"}]}

    container = room.container("true", change=change)
    with pytest.raises(UnknownError, match="hook"):
        container.new_task()
    assert room.client.tasks() == []


def test_propagation_of_the_root(room: Room) -> None:
    """What it leads to depends on how the host's own root is mounted; that it arrives, the runtime's state tells."""
    task = room.start("sleep", "1000", rootfs_propagation="rshared", options=Options(root=str(room.directory)))
    state = json.loads((room.directory / room.client.namespace / "c" / "state.json").read_text())
    assert state["config"]["rootPropagation"] == MS_REC | MS_SHARED
    assert task.status() == "RUNNING"
    with pytest.raises(UnknownError, match="bogus"):
        room.container("true", name="d", rootfs_propagation="bogus").new_task()


def test_mounts_with_mapped_ids_are_refused_where_the_runtime_would_not_map_them(room: Room, tmp_path: Path) -> None:
    def change(spec: Spec) -> None:
        mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
        spec["mounts"].append(
            {"destination": "/mnt", "type": "bind", "source": str(tmp_path), "options": ["rbind", "idmap"]}
            | {"uidMappings": mapping, "gidMappings": mapping}
        )

    features = json.loads(subprocess.run(["runc", "features"], capture_output=True, check=False).stdout or b"{}")
    if (features.get("linux") or {}).get("mountExtensions"):
        pytest.skip("this runc maps the ids of mounts")
    container = room.container("true", change=change)
    with pytest.raises(UnknownError, match="failed to validate OCI runtime features: idmap mounts not supported"):
        container.new_task()


def test_a_command_that_does_not_exist(room: Room) -> None:
    with pytest.raises(UnknownError, match="executable file not found"):
        room.container("nothing-of-that-name").new_task()
    assert room.client.tasks() == []
    task = room.start("sleep", "1000", name="d")
    task.exec("e", room.client.containers.get("d").exec_spec(["nothing-of-that-name"]))
    with pytest.raises(UnknownError, match="OCI runtime exec failed"):
        drive(room.client.session.call(START, pb.StartRequest(container_id="d", exec_id="e")))
    # Debian's shim leaves it created, ours says that it has ended; either way it can be deleted.
    drive(room.client.session.call(DELETE_PROCESS, pb.DeleteProcessRequest(container_id="d", exec_id="e")))
    assert room.exec(task, "echo", "still here") == (0, "still here\n")
