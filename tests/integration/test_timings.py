"""Where the time of a start goes: `--timings`, the client's `timings`, the service behind them, and spans in traces."""

import re
from collections.abc import Callable, Iterator

import pytest

import orlop
from orlop.base.errdefs import NotFoundError, UnimplementedError
from orlop.base.phases import arranged
from tests.integration.spans import Collector, collector
from tools.daemons import Containerd, Ctr, Orlopd
from tools.images import Image

pytestmark = pytest.mark.root
Bind = Callable[..., Ctr]
RUNTIMES = r"(?:runc|crun)"


@pytest.fixture
def client(orlopd: Orlopd, namespace: str, busybox_image: Image) -> Iterator[orlop.Client]:
    with orlop.Client(str(orlopd.address), namespace, timeout_s=60) as one:
        with open(busybox_image.archive, "rb") as archive:
            one.import_(archive)
        for image in one.images.list():
            image.unpack()
        yield one
        for image in one.images.list():
            image.delete(synchronous=True)
    orlopd.forget_cgroup(namespace)


def rows(text: str) -> list[tuple[str, str, float, float]]:
    """Phase with its indentation, process, start and length in milliseconds."""
    lines = text.splitlines()
    assert re.fullmatch(r"PHASE +PROCESS +START +TIME", lines[0])
    found = []
    for line in lines[1:]:
        match = re.fullmatch(r"( *\S.*?) +(client|orlopd|supervisor) +(-?[\d.]+) ms +([\d.]+) ms", line)
        assert match is not None, line
        found.append((match[1], match[2], float(match[3]), float(match[4])))
    return found


def of(table: list[tuple[str, str, float, float]], process: str) -> list[str]:
    return [name.strip() for name, whose, _, _ in table if whose == process]


@pytest.fixture
def ctr(client: orlop.Client, orlopd: Orlopd, our_ctr: Bind, namespace: str) -> Ctr:
    return our_ctr(orlopd, namespace)


def test_run_shows_all_three_on_one_line_of_time(ctr: Ctr, busybox_image: Image) -> None:
    done = ctr.run("run", "--rm", "--timings", busybox_image.reference, "timed", "echo", "hello")
    assert (done.returncode, done.stdout) == (0, "hello\n")
    table = rows(done.stderr)
    assert table[0][:3] == ("connect", "client", 0.0)
    starts = [start for _, _, start, _ in table]
    assert starts == sorted(starts)
    client = of(table, "client")
    for name in ("image", "users", "spec", "Snapshots.Prepare", "Containers.Create", "Tasks.Create", "Tasks.Start"):
        assert client.count(name) == 1
    assert client.index("Tasks.Wait") < client.index("Tasks.Delete") < client.index("Containers.Delete")
    daemon = of(table, "orlopd")
    wanted = {"create", "activation", "bundle", "shim", "shim Create", "shim Start", "delete", "shim Delete"}
    assert wanted <= set(daemon) <= {*wanted, "shim started", "shim connected", "cgroup lock"}
    supervisor = of(table, "supervisor")
    order = ["create", "mounts", "stdio", "RUNTIME create", "start", "RUNTIME start", "runs", "delete", "unmount"]
    assert [name for name in (re.sub(RUNTIMES, "RUNTIME", one) for one in supervisor) if name in order] == order
    depth = {(name.strip(), whose): len(name) - len(name.lstrip()) for name, whose, _, _ in table}
    assert depth["Tasks.Create", "client"] < depth["create", "orlopd"] < depth["shim Create", "orlopd"]
    assert depth["shim Create", "orlopd"] < depth["create", "supervisor"] < depth["mounts", "supervisor"]


def test_a_run_that_fails_shows_how_far_it_came(ctr: Ctr, busybox_image: Image) -> None:
    done = ctr.run("run", "--rm", "--timings", busybox_image.reference, "bad", "/no/such/program")
    assert done.returncode == 1
    text, _, error = done.stderr.rpartition("ctr: ")
    names = {name.strip() for name, _, _, _ in rows(text)}
    assert "no such file" in error
    assert {"Tasks.Create", "Containers.Delete"} <= names
    assert "Tasks.Start" not in names


def test_an_exec_has_its_own(ctr: Ctr, busybox_image: Image) -> None:
    ctr("run", "-d", "--null-io", busybox_image.reference, "host", "sleep", "1000")
    try:
        done = ctr.run("tasks", "exec", "--timings", "--exec-id", "one", "host", "echo", "hello")
        assert (done.returncode, done.stdout) == (0, "hello\n")
        table = rows(done.stderr)
        assert of(table, "orlopd") == ["shim Exec", "shim Start", "shim Delete"]
        supervisor = [re.sub(RUNTIMES, "RUNTIME", one) for one in of(table, "supervisor")]
        assert supervisor == ["start", "stdio", "RUNTIME exec", "record", "runs", "delete"]
        again = rows(ctr("tasks", "timings", "--exec-id", "one", "host"))
        assert of(again, "orlopd") == ["shim Exec", "shim Start", "shim Delete"]
        assert "shim Create" in of(rows(ctr("tasks", "timings", "host")), "orlopd")
    finally:
        ctr("tasks", "rm", "-f", "host")
        ctr("containers", "rm", "host")


def test_a_program_gets_phases(client: orlop.Client, busybox_image: Image) -> None:
    timed = client.timed()
    image = timed.images.get(busybox_image.reference)
    with timed.new_container("program", image, orlop.SpecOptions(args=("true",))) as container:
        with container.new_task() as task:
            task.start()
            task.wait()
    phases = timed.timings.own() + timed.timings.of("program")
    assert {one.process for one in phases} == {"client", "orlopd", "supervisor"}
    assert all(one.seconds >= 0 for one in phases)
    layout = [(depth, one.name, one.process) for depth, one in arranged(phases)]
    assert layout.index((0, "Tasks.Create", "client")) < layout.index((1, "create", "orlopd"))
    assert client.timings.own() == []


def test_what_is_not_known_is_not_found(client: orlop.Client, orlopd: Orlopd, busybox_image: Image) -> None:
    image = client.images.get(busybox_image.reference)
    with client.new_container("mine", image, orlop.SpecOptions(args=("true",))) as container:
        with pytest.raises(NotFoundError, match="task mine: no times are known"):
            client.timings.of("mine")
        with container.new_task() as task:
            task.start()
            task.wait()
            assert client.timings.of("mine")
            with pytest.raises(NotFoundError, match="exec x of task mine: no times are known"):
                client.timings.of("mine", "x")
            with pytest.raises(NotFoundError):
                client.in_namespace("another").timings.of("mine")


def test_a_daemon_that_is_not_ours_has_none(
    containerd: Containerd, our_ctr: Bind, namespace: str, busybox_image: Image
) -> None:
    ctr = our_ctr(containerd, namespace)
    ctr("images", "import", busybox_image.archive)
    try:
        done = ctr.run("run", "--rm", "--timings", busybox_image.reference, "timed", "true")
        warning, _, table = done.stderr.partition("\n")
        assert done.returncode == 0
        assert warning.startswith("ctr: times of the daemon: ")
        assert set(of(rows(table), "client")) >= {"Tasks.Create", "Tasks.Wait", "Containers.Delete"}
        with orlop.Client(str(containerd.address), namespace) as client, pytest.raises(UnimplementedError):
            client.timings.of("timed")
    finally:
        ctr("images", "rm", "--sync", busybox_image.reference)


def test_phases_are_spans_below_the_call(
    new_orlopd: Callable[..., Orlopd], namespace: str, busybox_image: Image
) -> None:
    with collector() as endpoint:
        daemon = new_orlopd(env={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "NO_PROXY": "*"})
        with orlop.Client(str(daemon.address), namespace, timeout_s=60) as client:
            with open(busybox_image.archive, "rb") as archive:
                [image] = client.import_(archive)
            with client.new_container("spans", image, orlop.SpecOptions(args=("true",))) as container:
                with container.new_task() as task:
                    task.start()
                    task.wait()
        daemon.stop()
        daemon.forget_cgroup(namespace)
    spans = {one.span_id: one for one in Collector.spans}

    def path(name: str) -> list[str]:
        """Names of a span and of those that it is below; the call's own is the last."""
        [span] = [one for one in spans.values() if re.sub(RUNTIMES, "RUNTIME", one.name) == name]
        found = [span.name]
        while span.parent_span_id:
            parent = spans[span.parent_span_id]
            assert parent.trace_id == span.trace_id
            found.append(parent.name.rpartition(".")[2])
            span = parent
        return found

    assert path("mounts") == ["mounts", "create", "shim Create", "create", "Tasks/Create"]
    assert path("RUNTIME start")[1:] == ["start", "shim Start", "Tasks/Start"]
    assert path("unmount") == ["unmount", "delete", "shim Delete", "delete", "Tasks/Delete"]
