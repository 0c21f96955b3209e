"""What the supervisor says of a container's resources, and which OCI runtime it chooses."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.api.cgroups.v1 import metrics_pb2 as v1
from orlop.api.cgroups.v2 import metrics_pb2 as v2
from orlop.api.runtime.task.v3 import shim_pb2 as pb
from orlop.api.types.runc.options import oci_pb2
from orlop.linux.mount import mountinfo
from tests.root.shims import Shim, failure, opened, until

pytestmark = pytest.mark.root

# A mount namespace in which a hybrid host looks like a pure v1 one, so that crun works there.
WITHOUT_HYBRID = (
    "unshare",
    "--mount",
    "sh",
    "-c",
    'if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi; exec "$@"',
    "sh",
)


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    with opened(tmp_path) as one:
        yield one


def controllers(pid: int) -> set[str]:
    with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
        return {name for line in file for name in line.split(":")[1].split(",")}


def test_metrics(shim: Shim):
    limits = {"resources": {"memory": {"limit": 64 << 20}, "pids": {"limit": 33}}}
    pid = shim.run("c", ["/bin/sh", "-c", "seq 1 20000 > /dev/x; sleep 100"], linux=limits)
    until(lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes() or children(pid), "no sleep")
    answer = shim.call("Stats", pb.StatsRequest(id="c"), pb.StatsResponse)
    if "memory" in controllers(pid):
        assert answer.stats.type_url == "io.containerd.cgroups.v1.Metrics"
        old = v1.Metrics.FromString(answer.stats.value)
        assert old.memory.usage.limit == 64 << 20
        assert old.memory.usage.usage > 0
        assert old.memory.total_rss + old.memory.total_cache > 0
        assert old.pids.limit == 33
        assert old.pids.current >= 1
        assert old.cpu.usage.total > 0
        assert sum(old.cpu.usage.per_cpu) > 0
    else:
        assert answer.stats.type_url == "io.containerd.cgroups.v2.Metrics"
        new = v2.Metrics.FromString(answer.stats.value)
        assert (new.memory.usage_limit, new.pids.limit) == (64 << 20, 33)
        assert new.cpu.usage_usec > 0


def children(pid: int) -> bool:
    return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def test_metrics_of_what_has_gone(shim: Shim):
    shim.create("c", ["/bin/true"])
    shim.task_start("c")
    shim.wait("c")
    shim.delete("c")
    assert failure(lambda: shim.call("Stats", pb.StatsRequest(id="c"), None)) == (5, "container not created: not found")


def test_out_of_memory_is_told(shim: Shim):
    limits = {"resources": {"memory": {"limit": 16 << 20, "swap": 16 << 20}}}
    hog = "exec dd if=/dev/zero of=/dev/null bs=64M count=1"
    mounts = [{"destination": "/dev/zero", "type": "bind", "source": "/dev/zero", "options": ["bind"]}]
    shim.run("c", ["/bin/sh", "-c", hog], linux=limits, mounts=mounts)
    assert shim.wait("c") == 137
    topics = shim.events.wait_for("c", "exit")
    assert "oom" in topics
    assert topics.index("oom") < topics.index("exit")


def test_a_score_that_may_not_be_lowered_is_clamped(tmp_path: Path):
    """By a supervisor that lacks CAP_SYS_RESOURCE, as in a container; one that has it does as it is told."""
    with opened(tmp_path, prefix=("setpriv", "--bounding-set", "-sys_resource")) as shim:
        low = shim.run("low", ["/bin/sleep", "100"], oomScoreAdj=-999)
        high = shim.run("high", ["/bin/sleep", "100"], oomScoreAdj=700)
        assert score(low) == score(shim.pid)
        assert score(high) == 700


def score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def test_runc_is_chosen_where_crun_does_not_work(shim: Shim):
    shim.run("c", ["/bin/true"])
    shim.wait("c")
    chosen = json.loads((shim.state / "runtime.json").read_text())
    if shutil.which("crun") is None:
        assert chosen["why"] == "the only one that is installed"
    elif os.path.ismount("/sys/fs/cgroup/unified"):
        assert chosen["chosen"].endswith("/runc")
        assert "hybrid" in chosen["why"]
    assert f"OCI runtime {chosen['chosen']} ({chosen['why']})" in shim.log()


@pytest.mark.skipif(shutil.which("crun") is None, reason="crun is not installed")
def test_crun_is_chosen_where_it_works(tmp_path: Path):
    with opened(tmp_path, prefix=WITHOUT_HYBRID) as shim:
        shim.run("c", ["/bin/sh", "-c", "exit 3"])
        chosen = json.loads((shim.state / "runtime.json").read_text())
        assert (chosen["chosen"], chosen["why"]) == ("/usr/bin/crun", "/usr/bin/crun: works here")
        assert shim.wait("c") == 3
        shim.run("e", ["/bin/sleep", "100"])
        shim.exec("e", "x", ["/bin/sh", "-c", "exit 4"])
        shim.task_start("e", "x")
        assert shim.wait("e", "x") == 4
        code, message = failure(lambda: shim.create("n", ["/bin/none"]))
        assert (code, "/bin/none" in message, message.startswith("OCI runtime create failed")) == (2, True, True)
        assert not (shim.bundles / "n/orlop/init.json").exists()
        assert (shim.state / "crun/ns/e").exists()
        config = shim.bundle("new", ["/bin/true"]) / "config.json"
        newer = json.loads(config.read_text()) | {"ociVersion": "9.0.0"}
        config.write_text(json.dumps(newer))
        wanted = pb.CreateTaskRequest(id="new", bundle=str(shim.bundles / "new"))
        wanted.rootfs.add(type="bind", source=str(shim.rootfs), options=["rbind"])
        shim.call("Create", wanted, None)
        # crun up to 1.8 at least refuses a version that it does not know; later ones and runc do not look
        assert any((shim.state / name / "ns/new").exists() for name in ("runc", "crun"))
        assert list((shim.state / "s").glob("orlop-probe*")) == []


def test_configuration_names_the_runtime(tmp_path: Path):
    with opened(tmp_path, env={"ORLOP_RUNTIME": "no-such"}) as shim:
        code, message = failure(lambda: shim.create("c", ["/bin/true"]))
        assert (code, "no-such" in message) == (5, True)


def test_a_runtime_that_dies_while_it_makes_a_container_leaves_no_cgroup(shim: Shim, tmp_path: Path):
    """It knows nothing of the container then, so that its own removal has nothing to remove."""
    runc, runtime = shutil.which("runc", path=shim.env["PATH"]), tmp_path / "runtime"
    parents = sorted({one.mount_point for one in mountinfo() if one.fs_type in ("cgroup", "cgroup2")})
    made = [Path(parent) / f"orlop-test-{os.getpid()}-c" for parent in parents]
    script = f'case " $* " in *" create "*) mkdir {" ".join(map(str, made))}; kill -9 $$;; esac; exec {runc} "$@"'
    runtime.write_text(f"#!/bin/sh\n{script}\n")
    runtime.chmod(0o755)
    options = oci_pb2.Options(binary_name=str(runtime))
    packed = {"type_url": options.DESCRIPTOR.full_name, "value": options.SerializeToString()}
    code, message = failure(lambda: shim.create("c", ["/bin/true"], request={"options": packed}))
    assert (code, "killed by signal 9" in message) == (2, True)
    assert not any(one.exists() for one in made)
