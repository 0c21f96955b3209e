"""`ctr run --cni` with Debian's CNI plug-ins, in a Linux network namespace of the test's own."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.base.errdefs import NotFoundError, UnknownError
from orlop.client.cni import Cni, full_id
from tools import daemons, peers
from tools.daemons import Ctr, Orlopd
from tools.images import Image

pytestmark = [pytest.mark.root, pytest.mark.interop]

SUBNET = "10.199.7.0/24"


class Within(Ctr):
    """Our ctr in another Linux network namespace, with a CNI configuration of its own."""

    prefix: tuple[str, ...] = ()

    def argv(self, *arguments: str | Path) -> list[str]:
        return [*self.prefix, *super().argv(*arguments)]


class Place:
    """A network namespace to play in, and the directories of CNI."""

    def __init__(self, pid: int, directory: Path) -> None:
        self.netns = f"/proc/{pid}/ns/net"
        self.conf = directory / "net.d"
        self.cache = directory / "cache"
        self.data = directory / "ipam"
        self.plugins = peers.PEERS / "usr/lib/cni"
        self.conf.mkdir()

    @property
    def prefix(self) -> tuple[str, ...]:
        variables = {"NETCONFPATH": self.conf, "CNI_PATH": self.plugins, "CNI_CACHE_DIR": self.cache}
        return ("nsenter", f"--net={self.netns}", "env", *(f"{name}={value}" for name, value in variables.items()))

    def configure(self, name: str = "play", bridge: str = "play0") -> None:
        ipam = {
            "type": "host-local",
            "dataDir": str(self.data),
            "ranges": [[{"subnet": SUBNET}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        plugin = {"type": "bridge", "bridge": bridge, "isGateway": True, "ipam": ipam}
        conf = {"cniVersion": "1.0.0", "name": name, "plugins": [plugin]}
        (self.conf / "10-play.conflist").write_text(json.dumps(conf))

    def run(self, *command: str) -> str:
        done = subprocess.run([*self.prefix, *command], capture_output=True, text=True, check=True)
        return done.stdout

    def left(self) -> list[str]:
        """What is left of networks: records, addresses, ends of links."""
        kept = [path.name for path in self.cache.glob("results/*")]
        kept += [path.name for path in self.data.glob("*/10.*")]
        links = json.loads(self.run("ip", "-json", "link"))
        return kept + [link["ifname"] for link in links if link["ifname"].startswith("veth")]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    if peers.locate("bridge") is None:
        pytest.skip("peers lack CNI's plug-ins: run `make peers`")
    holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 1000"], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        yield Place(holder.pid, tmp_path)
    finally:
        holder.kill()
        holder.communicate()


@pytest.fixture
def ctr(orlopd: Orlopd, namespace: str, place: Place, busybox_image: Image) -> Iterator[Ctr]:
    one = Within(daemons.our_program("ctr"), orlopd.address, namespace)
    one.prefix = place.prefix
    one("images", "import", busybox_image.archive)
    yield one
    for container in one("containers", "ls", "-q").split():
        one("tasks", "rm", "-f", container, check=False)
        one("containers", "rm", container, check=False)
    one("images", "rm", "--sync", busybox_image.reference)
    orlopd.forget_cgroup(namespace)


def test_a_container_has_the_network_while_it_runs(ctr: Ctr, place: Place, busybox_image: Image) -> None:
    place.configure()
    shown = ctr("run", "--rm", "--cni", busybox_image.reference, "one", "ip", "addr", "show", "eth0")
    assert "inet 10.199.7.2/24" in shown
    assert place.left() == []
    reached = ctr("run", "--rm", "--cni", busybox_image.reference, "one", "ping", "-c", "1", "10.199.7.1")
    assert "1 packets received" in reached
    assert place.left() == []


def test_a_detached_container_keeps_it_until_its_task_is_deleted(ctr: Ctr, place: Place, busybox_image: Image) -> None:
    place.configure()
    ctr("run", "-d", "--cni", "--null-io", busybox_image.reference, "one", "sleep", "1000")
    ctr("run", "-d", "--cni", "--null-io", busybox_image.reference, "two", "sleep", "1000")
    cni = Cni(str(place.conf), [str(place.plugins)], str(place.cache))
    [one] = cni.attachments(full_id(ctr.namespace, "one"))
    [two] = cni.attachments(full_id(ctr.namespace, "two"))
    assert (one.network, one.interface, one.addresses) == ("play", "eth0", ("10.199.7.2/24",))
    assert two.addresses == ("10.199.7.3/24",)
    assert "1 packets received" in ctr("tasks", "exec", "one", "ping", "-c", "1", "10.199.7.3")
    assert json.loads(ctr("containers", "info", "one"))["Extensions"].keys() == {"ctr.cni-containerd.metadata"}
    ctr("tasks", "rm", "-f", "one")
    assert cni.attachments(full_id(ctr.namespace, "one")) == []
    assert [name for name in place.left() if not name.startswith("veth")] != []
    # The configuration may have changed: what was set up is undone as it was done.
    place.configure(name="other", bridge="other0")
    ctr("tasks", "rm", "-f", "two")
    ctr("containers", "rm", "one", "two")
    assert place.left() == []


def test_a_crashed_ctr_leaves_what_deleting_takes_away(ctr: Ctr, place: Place, busybox_image: Image) -> None:
    place.configure()
    process = ctr.popen("run", "--rm", "--cni", busybox_image.reference, "one", "sh", "-c", "echo up; sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(place.left()) >= 2
    ctr("tasks", "rm", "-f", "one")
    ctr("containers", "rm", "one")
    assert place.left() == []


def test_a_lost_task_is_forgotten_with_its_container(ctr: Ctr, place: Place, busybox_image: Image) -> None:
    place.configure()
    ctr("run", "-d", "--cni", "--null-io", busybox_image.reference, "one", "true")
    # Debian's ctr knows nothing of our records: it deletes the task and the network stays, as after a reboot.
    debians = Ctr(daemons.program("ctr"), ctr.address, ctr.namespace)
    debians("tasks", "rm", "-f", "one")
    assert [name for name in place.left() if not name.startswith("veth")] != []
    ctr("containers", "rm", "one")
    assert place.left() == []


def test_what_fails_leaves_nothing(ctr: Ctr, place: Place, busybox_image: Image) -> None:
    none = ctr.run("run", "--rm", "--cni", busybox_image.reference, "one", "true")
    assert none.returncode == 1
    assert f"ctr: no network config found in {place.conf}" in none.stderr
    place.configure()
    file = place.conf / "10-play.conflist"
    conf = json.loads(file.read_text())
    conf["plugins"].append({"type": "there-is-none"})
    file.write_text(json.dumps(conf))
    missing = ctr.run("run", "--rm", "--cni", busybox_image.reference, "one", "true")
    assert missing.returncode == 1
    assert "CNI plugin there-is-none in " in missing.stderr
    assert place.left() == []
    conf["plugins"][1] = {"type": "host-local", "ipam": {"type": "host-local"}}
    file.write_text(json.dumps(conf))
    refused = ctr.run("run", "--rm", "--cni", busybox_image.reference, "one", "true")
    assert refused.returncode == 1
    assert "CNI plugin host-local for container " in refused.stderr
    assert ctr("containers", "ls", "-q") == ""
    assert ctr("tasks", "ls", "-q") == ""
    assert ctr.run("run", "--rm", "--cni", "--net-host", busybox_image.reference, "one", "true").returncode == 1


def test_an_interrupted_setup_is_undone_from_its_record(place: Place, tmp_path: Path) -> None:
    """A plug-in that dies in the middle, then one that does not know what is asked to be undone."""
    place.plugins = tmp_path / "plugins"
    place.plugins.mkdir()
    log = tmp_path / "log"
    script = f'#!/bin/sh\necho "$CNI_COMMAND $CNI_CONTAINERID" >> {log}\ncat > /dev/null\n'
    for name, end in (("first", "echo '{}'"), ("second", '[ "$CNI_COMMAND" = DEL ] || kill -9 $$')):
        (place.plugins / name).write_text(f"{script}{end}\n")
        os.chmod(place.plugins / name, 0o755)
    conf = {"cniVersion": "0.4.0", "name": "n", "plugins": [{"type": "first"}, {"type": "second"}]}
    (place.conf / "1.conflist").write_text(json.dumps(conf))
    cni = Cni(str(place.conf), [str(place.plugins)], str(place.cache))
    with pytest.raises(UnknownError, match="second for container c: ADD: it failed without a word"):
        cni.setup("c", place.netns)
    assert log.read_text().split("\n")[:-1] == ["ADD c", "ADD c", "DEL c", "DEL c"]
    assert cni.attachments("c") == []
    cni.remove("c")  # nothing is left, which is no error
    with pytest.raises(NotFoundError):
        Cni(str(tmp_path / "nowhere")).setup("c", place.netns)
