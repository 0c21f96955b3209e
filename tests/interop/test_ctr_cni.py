"""When `ctr run --cni` takes a network down: Debian's ctr on containerd, and ours on orlopd.

A plug-in that only writes down what it is asked, and which state the task is in at that moment.
"""

import json
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools.daemons import Ctr, Engine, environment
from tools.images import Image

pytestmark = [pytest.mark.root, pytest.mark.interop]

PLUGIN = """#!/bin/sh
cat >/dev/null
task=$({look} tasks ls | sed -n "s/^${{CNI_CONTAINERID##*-}} *[0-9]* *//p")
echo "$CNI_COMMAND ${{task:-none}}" >>{log}
[ "$CNI_COMMAND" = ADD ] || exit 0
[ -e {refuse} ] && {{ echo '{{"code": 999, "msg": "it will not"}}'; exit 1; }}
printf '{{"cniVersion": "1.0.0", "interfaces": [{{"name": "eth0", "sandbox": "%s"}}],' "$CNI_NETNS"
echo '"ips": [{{"address": "10.9.8.7/24", "interface": 0}}], "dns": {{}}}}'
"""

# A ctr sees only these networks and plug-ins, and the host sees none of it.
ENTER = """set -e
mount -t tmpfs tmpfs /opt && mkdir -p /opt/cni/bin && cp {place}/notes /opt/cni/bin/
mount -t overlay -o lowerdir=/etc,upperdir={place}/upper,workdir={place}/work overlay /etc
exec "$@" """


@dataclass(frozen=True, slots=True)
class Stand:
    """A `ctr` whose networks are all made by the plug-in."""

    ctr: Ctr
    place: Path

    def __call__(self, words: str) -> list[str]:
        """Run a command, whatever comes of it; what the plug-in has noted."""
        log = self.place / "log"
        log.unlink(missing_ok=True)
        inner = self.ctr.argv(*shlex.split(words))
        argv = ["unshare", "--mount", "sh", "-c", ENTER.format(place=self.place), "sh", *inner]
        subprocess.run(argv, check=False, capture_output=True, env=environment(), stdin=subprocess.DEVNULL, timeout=60)
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def stand(
    go_ctr: Callable[..., Ctr], our_ctr: Callable[..., Ctr], busybox_image: Image, namespace: str, tmp_path: Path
) -> Callable[[str, Engine], Stand]:
    def make(who: str, daemon: Engine) -> Stand:
        place = tmp_path / who
        (place / "work").mkdir(parents=True)
        networks = place / "upper" / "cni" / "net.d"
        networks.mkdir(parents=True)
        conf = {"cniVersion": "1.0.0", "name": "noted", "plugins": [{"type": "notes"}]}
        (networks / "10-noted.conflist").write_text(json.dumps(conf))
        ctr = (our_ctr if who == "ours" else go_ctr)(daemon, f"{namespace}-{who}")
        look = shlex.join(go_ctr(daemon, ctr.namespace).argv())
        (place / "notes").write_text(PLUGIN.format(look=look, log=place / "log", refuse=place / "refuse"))
        (place / "notes").chmod(0o755)
        ctr("images", "import", busybox_image.archive)
        return Stand(ctr, place)

    return make


def test_a_network_goes_when_containerds_goes(
    containerd: Engine, orlopd: Engine, stand: Callable[[str, Engine], Stand], busybox_image: Image
) -> None:
    image, seen = busybox_image.reference, {}
    for who, daemon in (("containerd", containerd), ("orlopd", orlopd), ("ours", orlopd)):
        one = stand(who, daemon)
        rows = {
            "an end": one(f"run --rm --cni {image} one true"),
            "no start": one(f"run --rm --cni {image} two /no/such/program"),
        }
        (one.place / "refuse").touch()
        rows["refused"] = one(f"run --rm --cni {image} three true")
        (one.place / "refuse").unlink()
        rows["begun"] = one(f"run --detach --null-io --cni {image} four sleep 1000")
        rows["kill"] = one("tasks kill -s KILL four")
        rows["delete"] = [*one("tasks rm --force four"), *one("containers rm four")]
        seen[who] = rows
        one.ctr("images", "rm", "--sync", image)
    assert seen["orlopd"] == seen["containerd"]
    ours, theirs = seen["ours"], seen["containerd"]
    for name in ("an end", "no start", "refused", "begun"):
        assert ours[name] == theirs[name], name
    assert theirs["an end"] == ["ADD CREATED", "DEL none"]
    # From 1.7 on a signal takes the network down there, whichever it is; deleting never does. Ours goes with the task.
    assert theirs["kill"] in ([], ["DEL RUNNING"])
    assert (ours["kill"], theirs["delete"], ours["delete"]) == ([], [], ["DEL none"])
