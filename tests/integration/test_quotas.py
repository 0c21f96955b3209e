"""Quotas of a namespace under a daemon: containers, bytes and memory; who sets them, and many clients at once."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

import orlop
from orlop.base.errdefs import PermissionDeniedError, ResourceExhaustedError

pytestmark = pytest.mark.root

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
