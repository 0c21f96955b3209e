"""Quotas of a namespace under a daemon: containers, bytes and memory; who sets them, and many clients at once."""

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

import orlop
from orlop.base.errdefs import NotFoundError, PermissionDeniedError, ResourceExhaustedError
from tests.hostile.tarballs import archive, member
from tests.integration.bad_input import pulling as bad_input
from tests.integration.bad_input.pulling import NAME, image_of, pull, transfer

pytestmark = pytest.mark.root

PULLING = bad_input.NAMESPACE
NAMESPACE = f"quota-{os.getpid()}"
MIB = 1 << 20


@pytest.fixture
def daemon(new_orlopd, our_ctr, short_directory):
    address = f"{short_directory}/quota.sock"
    one = new_orlopd(
        config=f"""
[plugins."io.containerd.metadata.v1.bolt".quotas."{NAMESPACE}"]
containers = 3
memory = {100 * MIB}

[sockets.tenant]
address = "{address}"
namespace = "{NAMESPACE}"
role = "run"
"""
    )
    yield one
    our_ctr(one)("namespaces", "rm", "--cgroup", "--cascade", "--yes", NAMESPACE)


def test_memory_is_the_sum_of_the_tasks_limits(daemon, our_ctr, busybox_image):
    ctr = our_ctr(daemon, NAMESPACE)
    ctr("images", "import", busybox_image.archive)

    def run(name, *flags):
        return ctr.run("run", "--detach", "--null-io", *flags, busybox_image.reference, name, "sleep", "1000")

    refused = run("none")
    assert f'namespace "{NAMESPACE}": quota memory: limit {100 * MIB}, in use 0, asked for no limit' in refused.stderr
    ctr("containers", "rm", "none")
    assert run("a", f"--memory-limit={60 * MIB}").returncode == 0
    refused = run("b", f"--memory-limit={41 * MIB}")
    assert f"in use {60 * MIB}, asked for {41 * MIB}" in refused.stderr
    ctr("containers", "rm", "b")
    assert run("b", f"--memory-limit={40 * MIB}").returncode == 0
    with orlop.Client(str(daemon.address), NAMESPACE, timeout_s=60) as client:
        with pytest.raises(ResourceExhaustedError, match=f"in use {40 * MIB}, asked for {61 * MIB}"):
            client.task("a").update(b'{"memory": {"limit": %d}}' % (61 * MIB))
        client.task("a").update(b'{"memory": {"limit": %d}}' % (50 * MIB))
        client.task("b").update(b'{"memory": {"limit": %d}}' % (50 * MIB))
    daemon.kill()
    daemon.start()
    with orlop.Client(str(daemon.address), NAMESPACE, timeout_s=60) as client:
        with pytest.raises(ResourceExhaustedError, match=f"in use {50 * MIB}, asked for {51 * MIB}"):
            client.task("a").update(b'{"memory": {"limit": %d}}' % (51 * MIB))
    refused = run("c", f"--memory-limit={10 * MIB}")
    assert f"in use {100 * MIB}, asked for {10 * MIB}" in refused.stderr
    ctr("tasks", "rm", "--force", "a")
    ctr("containers", "rm", "c")
    assert run("c", f"--memory-limit={10 * MIB}").returncode == 0


def test_many_clients_at_once_do_not_get_more(daemon, our_ctr, busybox_image):
    ctr = our_ctr(daemon, NAMESPACE)
    ctr("images", "import", busybox_image.archive)

    def create(number):
        return ctr.run("containers", "create", busybox_image.reference, f"c{number}", "true")

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(create, range(8)))
    assert sum(one.returncode == 0 for one in outcomes) == 3
    for one in outcomes:
        assert one.returncode == 0 or "quota containers: limit 3, in use 3, asked for 1" in one.stderr
    assert len(ctr("containers", "ls", "-q").split()) == 3


def test_many_tasks_at_once_do_not_get_more_memory(daemon, our_ctr, busybox_image):
    ctr = our_ctr(daemon, NAMESPACE)
    ctr("images", "import", busybox_image.archive)

    def run(name):
        flags = ("--detach", "--null-io", f"--memory-limit={40 * MIB}")
        return ctr.run("run", *flags, busybox_image.reference, name, "sleep", "1000")

    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(run, "abc"))
    assert sorted(one.returncode == 0 for one in outcomes) == [False, True, True]
    [refused] = [one.stderr for one in outcomes if one.returncode]
    assert f"quota memory: limit {100 * MIB}, in use {80 * MIB}, asked for {40 * MIB}" in refused


def test_bytes_and_who_sets_limits(daemon, our_ctr, busybox_image, short_directory):
    with orlop.Client(f"{short_directory}/quota.sock", NAMESPACE, timeout_s=60) as tenant:
        tenant.content.write("first", b"x" * 1000, labels={"containerd.io/gc.root": "yes"})
        with pytest.raises(PermissionDeniedError):
            tenant.namespaces.label(NAMESPACE, {"orlop.dev/quota.bytes": "1000000"})
        our_ctr(daemon)("namespaces", "label", NAMESPACE, "orlop.dev/quota.bytes=1500")
        with pytest.raises(ResourceExhaustedError, match="quota bytes: limit 1500, in use 1000, asked for 501"):
            tenant.content.write("second", b"y" * 501)
        tenant.content.write("third", b"z" * 500)
        refused = our_ctr(daemon, NAMESPACE).run("images", "import", busybox_image.archive)
        assert "quota bytes: limit 1500" in refused.stderr
    refused = our_ctr(daemon).run("namespaces", "label", NAMESPACE, "orlop.dev/quota.bytes=much")
    assert 'label orlop.dev/quota.bytes: "much" must be a whole number' in refused.stderr


@pytest.mark.parametrize("puller", [pull, transfer])
def test_a_pull_is_refused_by_the_sizes_in_its_manifest(new_orlopd, puller):
    """None of the layers is asked for, though each would fit alone."""
    config = f'[plugins."io.containerd.metadata.v1.bolt".quotas."{PULLING}"]\nbytes = {20 * MIB}'
    daemon = new_orlopd(config=config)
    served = []

    def scenario(registry):
        image_of(registry, *(archive(member(b"f", os.urandom(12 * MIB))) for _ in range(2)))
        served.append(registry)
        return NAME

    with pytest.raises(ResourceExhaustedError, match=rf'"{PULLING}": quota bytes: limit {20 * MIB}, in use \d+, asked'):
        puller(daemon, scenario)
    paths = [seen.path for seen in served[0].seen]
    assert any("/manifests/" in path for path in paths)
    assert not any("/blobs/" in path for path in paths)


@pytest.mark.parametrize("snapshotter", ["overlayfs", "native", "erofs"])
def test_a_layer_is_unpacked_only_as_far_as_the_quota_goes(new_orlopd, busybox_image, snapshotter):
    daemon = new_orlopd()
    with orlop.Client(str(daemon.address), PULLING, timeout_s=60) as client:
        found = {one.id: one.status for one in client.introspection.plugins(["type==io.containerd.snapshotter.v1"])}
        if found[snapshotter] != "ok":
            pytest.skip(f"{snapshotter} is not to be had here")
        with open(busybox_image.archive, "rb") as opened:
            [image] = client.import_(opened)
        snapshots = client.snapshots(snapshotter)
        client.leases.delete(client.leases.create("collect").id, synchronous=True)
        stored = sum(info.size_bytes for info in client.content.walk())

        def limit(number):
            client.namespaces.label(PULLING, {"orlop.dev/quota.bytes": str(number)})

        limit(stored + 100_000)
        what = f"limit {stored + 100_000}, in use {stored}: layer .* take(s)? more than 100000 bytes"
        with pytest.raises(ResourceExhaustedError, match=what):
            image.unpack(snapshotter=snapshotter)
        assert list(snapshots.walk()) == []
        limit(0)
        image.unpack(snapshotter=snapshotter)
        child = {one.parent: one.name for one in snapshots.walk()}
        made = [child[""]]
        while made[-1] in child:
            made.append(child[made[-1]])
        size = sum(snapshots.usage(one).size_bytes for one in made)
        for one in reversed(made):
            with contextlib.suppress(NotFoundError):  # without those above it nothing holds it any more
                snapshots.remove(one)
        limit(stored + size - 1)
        with pytest.raises(ResourceExhaustedError, match="quota bytes"):
            image.unpack(snapshotter=snapshotter)
        limit(stored + size)
        image.unpack(snapshotter=snapshotter)
        image.delete(synchronous=True)
