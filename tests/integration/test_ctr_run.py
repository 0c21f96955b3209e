"""`ctr run` beyond the plain life: a daemon that goes away, signals, user namespaces, profiles, limits."""

import json
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path

import pytest

import orlop
from orlop.api.types.runc.options.oci_pb2 import Options
from orlop.cmd.ctr.tasks import _no_pivot
from tools.daemons import Ctr, Orlopd, environment
from tools.images import Image

pytestmark = [pytest.mark.root, pytest.mark.interop]
Bind = Callable[..., Ctr]


@pytest.fixture
def ctr(orlopd: Orlopd, our_ctr: Bind, namespace: str, busybox_image: Image) -> Iterator[Ctr]:
    one = our_ctr(orlopd, namespace)
    one("images", "import", busybox_image.archive)
    yield one
    _tidy(one)
    orlopd.forget_cgroup(namespace)


def _tidy(ctr: Ctr) -> None:
    for container in ctr("containers", "ls", "-q").split():
        ctr("tasks", "rm", "-f", container, check=False)
        ctr("containers", "rm", container, check=False)
    for image in ctr("images", "ls", "-q").split():
        ctr("images", "rm", "--sync", image)


def _spec(ctr: Ctr, image: Image, *flags: str) -> dict:
    ctr("containers", "create", *flags, image.reference, "spec", "true")
    spec: dict = json.loads(ctr("containers", "info", "--spec", "spec"))
    ctr("containers", "rm", "spec")
    return spec


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_daemon_that_goes_away_costs_neither_output_nor_status(
    new_orlopd: Callable[..., Orlopd], our_ctr: Bind, namespace: str, busybox_image: Image, tmp_path: Path, how: str
) -> None:
    daemon = new_orlopd()
    ctr = our_ctr(daemon, namespace)
    ctr("images", "import", busybox_image.archive)
    gate = tmp_path / "gate"
    gate.mkdir()
    command = "echo before; while [ ! -e /gate/open ]; do sleep 0.05; done; echo after; exit 7"
    process = ctr.popen(
        *("run", "--rm", "--mount", f"type=bind,src={gate},dst=/gate,options=rbind:ro"),
        *(busybox_image.reference, "one", "sh", "-c", command),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"before\n"
    getattr(daemon, how)()
    (gate / "open").touch()
    daemon.start()
    output, errors = process.communicate(timeout=60)
    assert (output, errors, process.returncode) == (b"after\n", b"", 7)
    assert ctr("containers", "ls", "-q") == ""
    assert ctr("tasks", "ls", "-q") == ""
    _tidy(ctr)


def test_signals_reach_the_process(ctr: Ctr, busybox_image: Image) -> None:
    command = 'trap "echo got; exit 9" INT; echo up; while :; do sleep 0.05; done'
    process = ctr.popen("run", "--rm", busybox_image.reference, "one", "sh", "-c", command)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == (b"got\n", 9)


def test_a_terminal_is_ours_in_size_and_keys(ctr: Ctr, busybox_image: Image) -> None:
    ours, theirs = pty.openpty()

    def resize(lines: int, columns: int) -> None:
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    resize(33, 99)
    # A signal interrupts busybox's read, which then fails.
    command = 'trap "stty size" WINCH; stty size; until [ "$line" = end ]; do read line && echo "<$line>"; done; exit 4'
    process = subprocess.Popen(
        ["setsid", "--ctty", *ctr.argv("run", "--rm", "-t", busybox_image.reference, "one", "sh", "-c", command)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(),
    )
    try:
        seen = b""

        def until(words: bytes) -> None:
            nonlocal seen
            while words not in seen:
                seen += os.read(ours, 4096)

        until(b"33 99")
        os.write(ours, b"one\r")
        until(b"<one>")
        resize(44, 88)
        until(b"44 88")
        os.write(ours, b"end\r")
        assert process.wait(60) == 4
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_files_belong_to_the_user_namespace(ctr: Ctr, busybox_image: Image) -> None:
    maps = ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536")
    command = "stat -c '%u %g %n' /etc/passwd /bin/busybox; cat /proc/self/uid_map; touch /mine && echo written"
    shown = ctr("run", "--rm", *maps, busybox_image.reference, "one", "sh", "-c", command)
    assert shown.split("\n")[:2] == ["0 0 /etc/passwd", "0 0 /bin/busybox"]
    assert shown.split()[6:] == ["0", "100000", "65536", "written"]
    parents = []
    for name in ("two", "three"):
        ctr("run", "-d", "--null-io", *maps, busybox_image.reference, name, "true")
        parents.append(json.loads(ctr("snapshots", "info", name))["Parent"])
    assert parents[0].endswith("-100000-200000")
    assert parents[1] == parents[0]
    unmapped = ctr.run(
        *("run", "--rm", "--uidmap", "5:100000:10", "--gidmap", "0:0:10", busybox_image.reference, "four", "true")
    )
    assert unmapped.returncode == 1
    assert "id 0 of root is not mapped" in unmapped.stderr


def test_a_snapshotter_is_asked_by_labels(ctr: Ctr, busybox_image: Image) -> None:
    flags = ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", "--remap-labels")
    ctr.run("run", "-d", "--null-io", *flags, busybox_image.reference, "one", "true")
    info = ctr.run("snapshots", "info", "one")
    if info.returncode == 0:  # where this host's overlayfs cannot be id-mapped the snapshotter refuses
        labels = json.loads(info.stdout)["Labels"]
        assert labels["containerd.io/snapshot/uidmapping"] == "0:100000:65536"
        assert labels["containerd.io/snapshot/gidmapping"] == "0:200000:65536"


def test_the_default_seccomp_profile_holds(ctr: Ctr, busybox_image: Image) -> None:
    run = ("run", "--rm", "--seccomp", "--cap-add", "CAP_SYS_TIME")
    assert "Seccomp:\t2" in ctr(*run, busybox_image.reference, "one", "cat", "/proc/self/status")
    refused = ctr.run("run", "--rm", "--seccomp", busybox_image.reference, "one", "unshare", "-U", "true")
    assert refused.returncode != 0
    allowed = ctr.run(
        *("run", "--rm", "--seccomp", "--cap-add", "CAP_SYS_ADMIN", busybox_image.reference, "one", "unshare", "-m"),
        "true",
    )
    assert allowed.returncode == 0


def test_what_the_flags_put_into_the_spec(ctr: Ctr, busybox_image: Image, tmp_path: Path) -> None:
    classes = tmp_path / "classes.yaml"
    classes.write_text("Classes:\n  slow:\n  - Weight: 50\n")
    flags = ("--cpu-burst", "1000", "--blockio-config-file", str(classes), "--blockio-class", "slow")
    spec = _spec(ctr, busybox_image, *flags, "--seccomp", "--hostname", "box", "--rdt-class", "gold")
    resources = spec["linux"]["resources"]
    assert resources["cpu"] == {"burst": 1000}
    assert resources["blockIO"] == {"weight": 50}
    assert spec["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert (spec["hostname"], spec["linux"]["intelRdt"]) == ("box", {"closID": "gold"})
    ctr(
        "run",
        "-d",
        "--null-io",
        "--cpuset-cpus",
        "0",
        "--rlimit-nofile",
        "100:200",
        busybox_image.reference,
        "one",
        "true",
    )
    spec = json.loads(ctr("containers", "info", "--spec", "one"))
    assert spec["linux"]["resources"]["cpu"] == {"shares": 1024, "cpus": "0"}
    assert spec["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "hard": 200, "soft": 100}]
    unknown = ctr.run("containers", "create", "--blockio-class", "none", busybox_image.reference, "spec", "true")
    assert "no OCI BlockIO parameters for class 'none'" in unknown.stderr


def test_what_this_host_cannot_is_told(ctr: Ctr, busybox_image: Image) -> None:
    gpus = ctr.run("containers", "create", "--gpus", "0", busybox_image.reference, "one", "true")
    assert "GPUs need nvidia-container-cli, which is not on PATH" in gpus.stderr
    cdi = ctr.run("containers", "create", "--device", "vendor.com/net=nic0", busybox_image.reference, "one", "true")
    assert "CDI device injection failed: unresolvable CDI devices vendor.com/net=nic0" in cdi.stderr
    if not Path("/sys/kernel/security/apparmor/profiles").exists():
        armour = ctr.run(
            *(
                "containers",
                "create",
                "--apparmor-default-profile",
                "orlop-test",
                busybox_image.reference,
                "one",
                "true",
            )
        )
        assert "this host has no AppArmor" in armour.stderr
    assert ctr("containers", "ls", "-q") == ""
    assert len([line for line in ctr("snapshots", "ls").splitlines() if line.startswith("one")]) == 0


def test_a_task_can_do_without_pivot_root(ctr: Ctr, busybox_image: Image) -> None:
    assert Options.FromString(_no_pivot().value) == Options(no_pivot_root=True)
    ctr("containers", "create", busybox_image.reference, "one", "sh", "-c", "echo $(ls -d /etc); exit 3")
    done = ctr.run("tasks", "start", "--no-pivot", "one")
    assert (done.returncode, done.stdout) == (3, "/etc\n")


def test_a_deletion_is_answered_late_where_it_is_to_be(
    new_orlopd: Callable[..., Orlopd], namespace: str, busybox_image: Image
) -> None:
    daemon = new_orlopd(config="version = 3\nearly_deletion = false\n")
    with orlop.Client(str(daemon.address), namespace) as client, open(busybox_image.archive, "rb") as archive:
        [image] = client.import_(archive)
        image.unpack()
        for number in range(5):
            with client.new_container(f"c{number}", image.name, orlop.SpecOptions(args=("true",))) as container:
                task = container.new_task()
                task.start()
                task.wait()
                task.delete()
                assert os.listdir(daemon.state / "runc" / namespace) == []
        assert list(daemon.state.glob("s/*.gone/*")) == []
