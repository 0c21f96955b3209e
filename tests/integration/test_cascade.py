"""`ctr namespaces rm --cascade`: what it prints, what it removes, and that it goes on after a crash of either side."""

import contextlib
import os
import select
import signal
import subprocess

import pytest

from orlop.base.errdefs import UnavailableError

pytestmark = pytest.mark.root

# Cgroups are named after namespaces, on one host.
WHOLE, OTHER = f"whole-{os.getpid()}", f"other-{os.getpid()}"


def fill(daemon, our_ctr, image, name):
    ctr = our_ctr(daemon, name)
    ctr("images", "import", image.archive)
    for number in range(3):
        labels = ("--label", "containerd.io/restart.status=running") if number == 2 else ()
        ctr("run", "--detach", "--null-io", *labels, image.reference, f"c{number}", "sleep", "1000")
    ctr("leases", "create", "--id", "held")
    return ctr


def inventory(daemon, our_ctr, name):
    ctr = our_ctr(daemon, name)
    return {
        words: ctr(*words)
        for words in (("tasks", "ls"), ("containers", "ls", "-q"), ("images", "ls", "-q"), ("content", "ls", "-q"))
    } | {"snapshots": ctr("snapshots", "ls")}


@pytest.fixture
def daemon(new_orlopd, our_ctr):
    one = new_orlopd()
    yield one
    if one.process is None:
        one.start()
    our_ctr(one)("namespaces", "rm", "--cgroup", "--cascade", "--yes", WHOLE, OTHER)


def names(daemon, our_ctr):
    return our_ctr(daemon)("namespaces", "ls", "-q").split()


def test_it_prints_its_plan_and_asks(daemon, our_ctr, busybox_image):
    ctr = fill(daemon, our_ctr, busybox_image, WHOLE)
    fill(daemon, our_ctr, busybox_image, OTHER)
    before, other = inventory(daemon, our_ctr, WHOLE), inventory(daemon, our_ctr, OTHER)
    plain = ctr.run("namespaces", "rm", WHOLE)
    assert plain.returncode != 0
    assert "must be empty" in plain.stderr
    asked = ctr.run("namespaces", "rm", "--cascade", WHOLE)
    assert asked.returncode != 0
    assert "standard input is no terminal to ask at" in asked.stderr
    for line in ("3 tasks", "3 containers", "1 images", "snapshots on overlayfs", "1 leases", "content"):
        assert line in asked.stderr
    assert inventory(daemon, our_ctr, WHOLE) == before
    done = ctr.run("namespaces", "rm", "--cgroup", "--cascade", "--yes", WHOLE)
    assert (done.returncode, done.stdout) == (0, f"{WHOLE}\n"), done.stderr
    assert WHOLE not in names(daemon, our_ctr)
    assert inventory(daemon, our_ctr, OTHER) == other
    again = ctr.run("namespaces", "rm", "--cgroup", "--cascade", "--yes", WHOLE)
    assert (again.returncode, again.stdout) == (0, f"{WHOLE}\n")
    assert f"namespace {WHOLE}: is empty" in again.stderr


@pytest.mark.parametrize("after", [1, 4, 7, 9, 12])
def test_it_goes_on_after_the_daemons_death(daemon, our_ctr, busybox_image, after):
    """The daemon is killed when so many things are gone; who removes comes back when it does."""
    import orlop

    fill(daemon, our_ctr, busybox_image, WHOLE)
    fill(daemon, our_ctr, busybox_image, OTHER)
    other = inventory(daemon, our_ctr, OTHER)
    gone = []

    def count(kind, name):
        gone.append((kind, name))
        if len(gone) == after:
            daemon.kill()

    with orlop.Client(str(daemon.address), WHOLE, timeout_s=60) as client:
        with pytest.raises(UnavailableError):
            client.remove_namespace(progress=count)
        assert len(gone) == after
    daemon.start()
    done = our_ctr(daemon).run("namespaces", "rm", "--cgroup", "--cascade", "--yes", WHOLE)
    assert (done.returncode, done.stdout) == (0, f"{WHOLE}\n"), done.stderr
    assert WHOLE not in names(daemon, our_ctr)
    assert inventory(daemon, our_ctr, OTHER) == other


def test_it_goes_on_after_its_own_death(daemon, our_ctr, busybox_image):
    """ctr is killed as soon as the first task is gone."""
    ctr = fill(daemon, our_ctr, busybox_image, WHOLE)
    events = our_ctr(daemon).popen("events")
    removing = None
    try:
        heard = b""
        while b"/tasks/delete" not in heard:
            # The subscription stands some time after its program has started.
            if removing is None and b"/namespaces/" in heard:
                removing = ctr.popen("namespaces", "rm", "--cgroup", "--cascade", "--yes", WHOLE)
            if removing is None:
                ctr("namespaces", "label", WHOLE, "a=b")
            ready, _, _ = select.select([events.stdout], [], [], 0.1)
            heard += os.read(events.stdout.fileno(), 1 << 16) if ready else b""
        assert isinstance(removing, subprocess.Popen)
        removing.send_signal(signal.SIGKILL)
    finally:
        for process in (events, removing):
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                process.communicate()
    assert ctr.run("namespaces", "rm", "--cgroup", "--cascade", "--yes", WHOLE).returncode == 0
    assert WHOLE not in names(daemon, our_ctr)
