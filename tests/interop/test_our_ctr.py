"""Our `ctr` on orlopd beside Debian's on containerd: the same commands give the same status, columns and errors.

Help, warnings and errors of more than one object are worded otherwise; they are taken out before the comparison.
"""

import dataclasses
import json
import re

import pytest

from tests.interop import compare
from tests.interop.our_differences import OUR_DIFFERENCES
from tests.interop.test_ctr import SCENARIOS, _places

pytestmark = [pytest.mark.root, pytest.mark.interop]

# Debian's ctr leaves the snapshot of a container that could not be made to the collector, ours removes it.
SWEEP = ("leases create --id sweep", "leases delete --sync sweep")

MORE = {
    "labels": [
        "images import {archive}",
        "images label {image} bare",
        "images ls -q labels.bare==true",
        "images label -r {image} a=b",
        "images ls",
        "content label {config} bare",
        "content label {config} bare=",
        "content label {config}",
        "content label nonsense a=b",
        "images rm --sync {image}",
    ],
    "images more": [
        "images check",
        "images import {archive}",
        "images check",
        "images convert --uncompress --oci {image} x/converted:1",
        "images convert {image}",
        "images convert x/none:1 x/y:1",
        "images convert --platform nonsense/x/y/z {image} x/y:1",
        "images convert --platform linux/s390x {image} x/y:1",
        "images ls",
        "images mount {image} {scratch}/nowhere",
        "images unmount {scratch}/nowhere",
        "images rm --sync x/converted:1",
        "snapshots usage",
        "content prune references --dry",
        "content prune references",
        "content ls",
        "images check",
        "images rm --sync {image}",
    ],
    "oci": ["oci spec"],
    "containers more": [
        "images import {archive}",
        "containers create {image}",
        "containers create",
        "containers create --config {scratch}/none.json one",
        "containers create --mount type=bind,nonsense {image} one",
        "containers create --with-ns nonsense {image} one",
        "containers create --with-ns nonsense:/x {image} one",
        "containers create --seccomp-profile /x {image} one",
        "containers create --env-file {scratch}/none {image} one",
        *SWEEP,
        "containers ls",
        "snapshots ls",
        "containers create --snapshotter-label a=b --label colour {image} one",
        "containers label one",
        "containers info --spec none",
        "containers delete --keep-snapshot one",
        "snapshots ls",
        "snapshots label one",
        "snapshots rm one",
        "images rm --sync {image}",
    ],
    "run more": [
        "images import {archive}",
        "run --rm --detach {image} one true",
        "run {image}",
        "run",
        "run --rm --cap-drop CAP_CHOWN {image} one chown 1 /etc",
        "run --rm --seccomp {image} one echo allowed",
        "run --rm --seccomp {image} one unshare -U true",
        "run --rm --device /dev/zero {image} one ls /dev/zero",
        "run --rm --device /dev/none {image} one true",
        "run --rm --annotation nonsense {image} one true",
        "run --rm --cpus 0.5 --cpu-quota 5 {image} one true",
        "run --rm --runc-systemd-cgroup {image} one true",
        "run --rm --runtime io.containerd.other.v1 --runc-binary /x {image} one true",
        "run --rm --uidmap nonsense --gidmap 0:0:1 {image} one true",
        "run --rm --apparmor-profile a --apparmor-default-profile b {image} one true",
        "run --rm --rootfs /no/such/directory one true",
        "run --rm --tty --null-io {image} one true",
        *SWEEP,
        "run --detach --null-io --pid-file {scratch}/pid {image} one sleep 1000",
        "tasks ps one",
        "tasks kill --signal KILL one",
        "tasks exec one",
        "tasks rm --force one",
        "containers ls",
        "containers rm one",
        "images rm --sync {image}",
    ],
}


@pytest.fixture
def both(containerd, orlopd, go_ctr, our_ctr, namespace):
    clients = {
        "containerd": (go_ctr(containerd, f"{namespace}-c"), containerd),
        "orlopd": (our_ctr(orlopd, f"{namespace}-o"), orlopd),
    }
    yield clients
    for ctr, _ in clients.values():
        for task in ctr("tasks", "ls", "-q").split():
            ctr("tasks", "rm", "--force", task, check=False)
        for container in ctr("containers", "ls", "-q").split():
            ctr("containers", "rm", container, check=False)
        for image in ctr("images", "ls", "-q").split():
            ctr("images", "rm", "--sync", image, check=False)


def _said(answer: compare.Answer) -> compare.Answer:
    """An answer without what is said in words of one's own: hints, warnings, logged errors beside the last one."""
    kept = [line for line in answer.errors.splitlines() if line.startswith("ctr: ")]
    errors = f"{kept[-1]}\n" if answer.status and kept else ""
    # The class at the end is said by errors of the API, and by ours in any case.
    errors = re.sub(r": (unknown|invalid argument|not found|failed precondition)\n$", "\n", errors)
    output = re.sub(r"Less than a second|About a minute|\d+ seconds?", "AGE", answer.output)
    return dataclasses.replace(answer, output=output, errors=errors)


@pytest.mark.parametrize("name", [*(name for name in SCENARIOS if name not in {"pull", "version"}), *MORE])
def test_answers_are_the_same(name, both, tmp_path, busybox_image):
    if name in {"containers", "run", "tasks"}:
        for ctr, _ in both.values():
            ctr("images", "import", busybox_image.archive)
    places = _places(both, tmp_path, busybox_image, None)
    for place in places.values():
        place["config"] = _config(busybox_image)
    problems = compare.compare(name, (SCENARIOS | MORE)[name], both, places, known=OUR_DIFFERENCES, said=_said)
    assert not problems, "\n\n".join(problems)


def _config(image):

    blobs = image.directory / "blobs" / "sha256"
    index = json.loads((image.directory / "index.json").read_text())
    manifest = json.loads((blobs / index["manifests"][0]["digest"].partition(":")[2]).read_text())
    while "manifests" in manifest:
        manifest = json.loads((blobs / manifest["manifests"][0]["digest"].partition(":")[2]).read_text())
    return manifest["config"]["digest"]
