"""Our `ctr` and `dist` as programs: 2017's transcripts, and tables beside those of Debian's ctr."""

from collections.abc import Callable

import pytest

from tools.daemons import Containerd, Ctr, Orlopd, Registry, our_program
from tools.images import Image

pytestmark = [pytest.mark.root, pytest.mark.interop]
Bind = Callable[..., Ctr]

LISTINGS = (
    "images ls",
    "images ls -q",
    "images check",
    "content ls -q",
    "snapshots ls",
    "snapshots tree",
    "snapshots usage",
    "snapshots info one",
    "snapshots mounts /mnt one",
    "containers ls",
    "containers ls -q",
    "containers info one",
    "tasks ls",
    "tasks ls -q",
    "tasks ps one",
    "leases ls",
    "plugins ls",
    "plugins ls -q",
    "plugins ls -d id==overlayfs",
    "plugins ls -d type==io.containerd.differ.v1",
    "plugins ls -d id==aufs,id==devmapper",
    "plugins ls type==io.containerd.snapshotter.v1",
    "content active",
    "snapshots usage -b",
    "snapshots label one",
    "containers info --spec one",
    "tasks metrics none",
    "snapshots info none",
    "containers info none",
    "tasks kill none",
    "snapshots rm none",
    "leases rm none",
)


def test_tables_are_those_of_debians_ctr(
    containerd: Containerd, go_ctr: Bind, our_ctr: Bind, namespace: str, busybox_image: Image
) -> None:
    theirs, ours = go_ctr(containerd, namespace), our_ctr(containerd, namespace)
    ours("images", "import", busybox_image.archive)
    ours("run", "-d", "--null-io", busybox_image.reference, "one", "sleep", "1000")
    try:
        for words in LISTINGS:
            left, right = theirs.run(*words.split()), ours.run(*words.split())
            shown = left.stdout
            if containerd.version < (1, 7):
                shown = shown.replace('"Extensions": null,', '"Extensions": {},\n    "SandboxID": "",')
            assert (right.returncode, right.stdout) == (left.returncode, shown), words
            assert right.stderr == left.stderr or left.returncode == 0, words
    finally:
        ours("tasks", "rm", "-f", "one", check=False)
        ours("containers", "rm", "one", check=False)
        ours("images", "rm", "--sync", busybox_image.reference, check=False)
        containerd.forget_cgroup(namespace)


def test_the_transcripts_of_2017(
    orlopd: Orlopd, registry: Registry, our_ctr: Bind, namespace: str, busybox_image: Image
) -> None:
    reference = registry.push(busybox_image, "library/redis")
    ctr = our_ctr(orlopd, namespace)
    other = f"{namespace}-foo"
    dist, dist_there = (Ctr(our_program("dist"), orlopd.address, one) for one in (namespace, other))
    ctr("namespaces", "create", other, "mylabel=bar")
    assert [line.split() for line in ctr("namespaces", "ls").splitlines() if other in line] == [[other, "mylabel=bar"]]
    pulled = dist("pull", reference)
    for words in (
        f"{reference}: resolved",
        "manifest-sha256:",
        "layer-sha256:",
        "config-sha256:",
        ": done",
        "elapsed: ",
    ):
        assert words in pulled
    listed = dist("images", "ls").splitlines()
    assert listed[0].split() == ["REF", "TYPE", "DIGEST", "SIZE"]
    assert listed[1].startswith(reference)
    assert dist_there("images", "ls").splitlines()[1:] == []
    assert "total:   0.0 B" in dist_there("pull", reference)
    dist_there("images", "rm", reference)
    assert ctr("namespaces", "rm", other) == f"{other}\n"
    refused = ctr.run("namespaces", "rm", namespace)
    assert refused.returncode == 1
    assert refused.stderr.startswith(
        f"ctr: unable to delete {namespace}: rpc error: code = FailedPrecondition "
        f"desc = namespace {namespace} must be empty"
    )
    done = ctr.run("run", "--rm", reference, "r1", "sh", "-c", "cat; exit 5", stdin="hello\n")
    assert (done.returncode, done.stdout) == (5, "hello\n")
    ctr("run", "-d", reference, "r2", "sleep", "1000")
    ctr("tasks", "pause", "r2")
    assert "PAUSED" in ctr("tasks", "ls")
    ctr("tasks", "resume", "r2")
    assert ctr("tasks", "exec", "r2", "echo", "hi") == "hi\n"
    ctr("tasks", "kill", "-s", "KILL", "r2")
    task = ctr.run("tasks", "rm", "-f", "r2")
    assert task.returncode == 0
    ctr("containers", "rm", "r2")
    assert ctr("containers", "ls", "-q") == ""
    ctr("images", "rm", "--sync", reference)
    orlopd.forget_cgroup(namespace)
