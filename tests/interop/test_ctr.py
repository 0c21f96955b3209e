"""Debian's unmodified `ctr`, the same commands against Debian's containerd and against orlopd: the same answers."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.interop.compare import compare

pytestmark = [pytest.mark.root, pytest.mark.interop]

SCENARIOS = {
    "version": ["version --help", "info --no-such-flag"],
    "namespaces": [
        "namespaces create {ns}a mylabel=bar",
        "namespaces create {ns}a",
        "namespaces create bad/name",
        "namespaces create {ns}b",
        "namespaces label {ns}b a=b c=d",
        "namespaces label {ns}b a=",
        "namespaces label {ns}none a=b",
        "namespaces rm {ns}a",
        "namespaces rm {ns}a",
        "namespaces rm {ns}b {ns}none",
    ],
    "images": [
        "images ls",
        "images import --digests=true --no-unpack {archive}",
        "images ls",
        "images ls -q",
        "images check",
        "images check --quiet",
        "images tag {image} example.org/other:1",
        "images tag --force=false {image} example.org/other:1",
        "images tag --force {image} example.org/other:1",
        "images tag example.org/none:1 example.org/x:1",
        "images label example.org/other:1 colour=blue",
        "images ls labels.colour==blue",
        "images ls name~=other",
        "images ls name==example.org/none:1",
        "images ls name=",
        "images label --replace-all example.org/other:1 taste=salt",
        "images ls -q labels.colour==blue",
        "images export --platform linux/amd64 {scratch}/out.tar {image}",
        "images export {scratch}/out2.tar example.org/none:1",
        "images rm example.org/other:1 {image}",
        "images rm --sync example.org/other:1",
        "images ls",
    ],
    "pull": [
        "images pull --plain-http --snapshotter overlayfs {registry}/busybox:latest",
        "images ls",
        "snapshots ls",
        "snapshots tree",
        "content ls -q",
        "images check",
        "images pull --plain-http {registry}/busybox:nope",
        "images pull --plain-http {registry}/none:latest",
        "images pull --plain-http --platform linux/s390x {registry}/busybox:latest",
        "images pull not//a/reference:latest",
        "images push --plain-http {registry}/copied-{who}:1 {registry}/busybox:latest",
        "content fetch --plain-http {registry}/busybox:latest",
        "images usage {registry}/busybox:latest",
        "images rm --sync {registry}/busybox:latest",
        "snapshots ls",
        "content ls -q",
    ],
    "content": [
        "content ls",
        "content ingest one <<< hello",
        "content ls -q",
        "content get sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        "content ingest --expected-digest sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
        " two <<< hello",
        "content ingest --expected-digest sha256:0000000000000000000000000000000000000000000000000000000000000000"
        " three <<< hello",
        "content ingest --expected-size 9 four <<< hello",
        "content ingest --expected-digest nonsense five <<< hello",
        "content get sha256:0000000000000000000000000000000000000000000000000000000000000000",
        "content get nonsense",
        "content label sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824 k=v",
        "content ls -q labels.k==v",
        "content active",
        "content rm sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        "content rm sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        "content ls",
    ],
    "snapshots": [
        "snapshots ls",
        "snapshots prepare base",
        "snapshots prepare base",
        "snapshots mounts /mnt base",
        "snapshots info base",
        "snapshots commit layer base",
        "snapshots commit layer base",
        "snapshots prepare --target {scratch} active layer",
        "snapshots view look layer",
        "snapshots mounts /mnt active",
        "snapshots mounts /mnt look",
        "snapshots mounts /mnt layer",
        "snapshots ls",
        "snapshots tree",
        "snapshots usage layer",
        "snapshots usage -b none",
        "snapshots label layer a=b",
        "snapshots info layer",
        "snapshots info none",
        "snapshots remove layer",
        "snapshots prepare child none",
        "snapshots commit x look",
        "snapshots rm look active",
        "snapshots rm layer",
        "snapshots rm layer",
        "snapshots --snapshotter none ls",
        "snapshots --snapshotter none prepare x",
        "snapshots ls",
    ],
    "leases": [
        "leases ls",
        "leases create --id one --expires 0 a=b",
        "leases create --id one",
        "leases ls",
        "leases ls -q",
        "leases ls id==one",
        "leases rm one",
        "leases rm none",
        "leases rm --sync none",
        "leases ls",
    ],
    "containers": [
        "containers create {image} one",
        "containers create {image} one",
        "containers create example.org/none:1 two",
        "containers create {image} bad/id",
        "containers ls",
        "containers ls -q",
        "containers label one a=b",
        "containers label none a=b",
        "containers ls -q labels.a==b",
        "containers info none",
        "containers rm one",
        "containers rm one",
        "containers ls",
    ],
    "run": [
        "run --rm {image} one echo hello",
        "run --rm {image} one sh -c 'echo out; echo err >&2; exit 42'",
        "run --rm --env A=b --env C= --cwd /tmp {image} one sh -c 'echo $A $C; pwd'",
        "run --rm --read-only {image} one touch /x",
        "run --rm --mount type=bind,src={scratch},dst=/mnt,options=rbind:ro {image} one ls /mnt",
        "run --rm --mount type=tmpfs,dst=/t,options=size=1m {image} one sh -c 'mount | grep \" /t \"'",
        "run --rm --net-host {image} one hostname",
        "run --rm --memory-limit 50000000 {image} one true",
        "run --rm --cpus 0.5 {image} one true",
        "run --rm --privileged {image} one true",
        "run --rm --null-io {image} one echo nothing",
        "run --rm {image} one /no/such/program",
        "run {image} one true",
        "run {image} one true",
        "run example.org/none:1 two true",
        "run --rm --runtime io.containerd.none.v9 {image} two true",
        "run --rm --runtime /no/such/shim {image} two true",
        "run --rm --snapshotter none {image} two true",
        "run --rm --mount type=bind,src=/no/such/dir,dst=/mnt,options=rbind:ro {image} two true",
        "tasks ls",
        "containers ls",
        "tasks rm one",
        "containers rm one two",
        "snapshots ls",
        "containers ls",
    ],
    "tasks": [
        "tasks ls",
        "run --detach --null-io {image} one sh -c 'trap \"exit 3\" TERM; while :; do sleep 0.05; done'",
        "tasks ls",
        "tasks exec --exec-id e1 one echo hello",
        "tasks exec --exec-id e1 one sh -c 'exit 5'",
        "tasks exec --exec-id e1 one /no/such/program",
        "tasks exec --exec-id 'bad id' one true",
        "tasks exec --exec-id e1 --cwd /tmp --user 1000 one sh -c 'pwd; id -u'",
        "tasks start one",
        "tasks rm one",
        "tasks pause one",
        "tasks ls",
        "tasks pause one",
        "tasks exec --exec-id e2 one true",
        "tasks resume one",
        "tasks resume one",
        "tasks ls",
        "containers rm one",
        "tasks kill one",
        "tasks kill --signal NOSUCH one",
        "tasks kill none",
        "tasks exec --exec-id e3 none true",
        "tasks rm none",
        "tasks pause none",
        "tasks metrics none",
        "tasks ps none",
    ],
}


def _import(go_ctr, daemon, namespace, image):
    go_ctr(daemon, namespace)("images", "import", image.archive)


@pytest.fixture
def both(containerd, orlopd, go_ctr, namespace):
    # Namespaces of their own: the cgroup of a container is named after its namespace and its id.
    clients = {
        "containerd": (go_ctr(containerd, f"{namespace}-c"), containerd),
        "orlopd": (go_ctr(orlopd, f"{namespace}-o"), orlopd),
    }
    yield clients
    for ctr, _ in clients.values():
        for task in ctr("tasks", "ls", "-q").split():
            ctr("tasks", "rm", "--force", task, check=False)
        for container in ctr("containers", "ls", "-q").split():
            ctr("containers", "rm", container, check=False)
        for image in ctr("images", "ls", "-q").split():
            ctr("images", "rm", "--sync", image, check=False)


def _places(both, tmp_path, image, registry):
    places = {}
    for who, (ctr, _) in both.items():
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        (scratch / "a-file").touch()
        places[who] = {
            "ns": ctr.namespace,
            "who": who,
            "scratch": str(scratch),
            "archive": str(image.archive),
            "image": image.reference,
            "registry": registry.host if registry is not None else "",
        }
    return places


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "pull"])
def test_answers_are_the_same(name, both, tmp_path, busybox_image):
    if name in {"containers", "run", "tasks"}:
        for ctr, _ in both.values():
            ctr("images", "import", busybox_image.archive)
    places = _places(both, tmp_path, busybox_image, None)
    problems = compare(name, SCENARIOS[name], both, places)
    assert not problems, "\n\n".join(problems)


def test_pulling_and_pushing_is_the_same(both, tmp_path, busybox_image, registry):
    registry.push(busybox_image, "busybox")
    places = _places(both, tmp_path, busybox_image, registry)
    problems = compare("pull", SCENARIOS["pull"], both, places)
    assert not problems, "\n\n".join(problems)


def test_a_container_is_described_the_same(both, busybox_image):
    described = {}
    for who, (ctr, _) in both.items():
        ctr("images", "import", busybox_image.archive)
        ctr("containers", "create", "--env", "A=b", "--label", "x=y", busybox_image.reference, "one", "sleep", "9")
        described[who] = json.loads(ctr("containers", "info", "one"))
        ctr("containers", "rm", "one")
    for who, table in described.items():
        for key in ("CreatedAt", "UpdatedAt"):
            assert re.match(r"20\d\d-", table.pop(key))
        assert table["Spec"]["linux"].pop("cgroupsPath") == f"/{both[who][0].namespace}/one"
    assert described["orlopd"] == described["containerd"]


def test_events_of_a_life_come_in_the_same_order(both, busybox_image):
    seen = {}
    for who, (ctr, _) in both.items():
        ctr("images", "import", busybox_image.archive)
        listener = subprocess.Popen(ctr.argv("events"), stdout=subprocess.PIPE, text=True)
        try:
            assert listener.stdout is not None
            _wait_for_subscription(ctr, listener.stdout)
            ctr("run", "--rm", busybox_image.reference, "one", "true")
            topics = []
            while "/containers/delete" not in topics:
                fields = listener.stdout.readline().split()
                if fields[4] == ctr.namespace:
                    topics.append(fields[5])
            seen[who] = [topic for topic in topics if not topic.startswith(("/leases", "/namespaces"))]
        finally:
            listener.kill()
            listener.communicate()
    assert seen["orlopd"] == seen["containerd"]
    tasks = [topic for topic in seen["orlopd"] if topic.startswith("/tasks/")]
    assert tasks == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


def _wait_for_subscription(ctr, stdout):
    """Make events until the listener has printed one: only then is it known to be subscribed."""
    os.set_blocking(stdout.fileno(), False)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        ctr("namespaces", "label", ctr.namespace, f"poke=x{time.monotonic_ns()}")
        if stdout.readline():
            break
    os.set_blocking(stdout.fileno(), True)


def test_everything_about_a_running_task(both, busybox_image, tmp_path):
    """What a daemon answers about a task that cannot be compared byte by byte: numbers and process ids."""
    for who, (ctr, _) in both.items():
        ctr("images", "import", busybox_image.archive)
        pid_file = tmp_path / f"{who}.pid"
        ctr("run", "--detach", "--null-io", "--pid-file", pid_file, busybox_image.reference, "one", "sleep", "1000")
        pid = int(pid_file.read_text())
        _until(lambda pid=pid: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")  # runc's init until it execs
        assert [line.split() for line in ctr("tasks", "ls").splitlines()][1:] == [["one", str(pid), "RUNNING"]]
        assert str(pid) in ctr("tasks", "ps", "one")
        ctr("tasks", "kill", "--signal", "SIGKILL", "one")
        _until(lambda ctr=ctr: "STOPPED" in ctr("tasks", "ls"))
        removed = ctr.run("tasks", "rm", "one")
        assert removed.returncode == 0
        assert "137" in removed.stderr
        ctr("containers", "rm", "one")


def _until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_metrics_are_answered(orlopd, go_ctr, namespace, busybox_image):
    """Debian's containerd cannot answer on a hybrid host; ours must on every one."""
    ctr = go_ctr(orlopd, namespace)
    ctr("images", "import", busybox_image.archive)
    ctr("run", "--detach", "--null-io", busybox_image.reference, "one", "sleep", "1000")
    table = ctr("tasks", "metrics", "one")
    assert re.search(r"memory\.\S+ +[1-9]\d+", table), table
    assert re.search(r"pids\.current +1\b", table), table
    ctr("tasks", "rm", "--force", "one")
    ctr("containers", "rm", "one")
    ctr("images", "rm", "--sync", busybox_image.reference)
