"""Containers that are started again by their labels, on a real daemon."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import orlop
from orlop.base.errdefs import NotFoundError
from orlop.core.runtime.restart import COUNT_LABEL, LOG_LABEL, POLICY_LABEL, STATUS_LABEL, STOPPED_LABEL
from tools.daemons import Orlopd
from tools.images import Image

pytestmark = pytest.mark.root

CONFIG = '[plugins."io.containerd.monitor.container.v1.restart"]\ninterval = "1500ms"\n'


@pytest.fixture
def client(new_orlopd: Callable[..., Orlopd], busybox_image: Image) -> Iterator[orlop.Client]:
    daemon = new_orlopd(config=CONFIG)
    with orlop.Client(str(daemon.address), "restart", timeout_s=60) as made:
        with open(busybox_image.archive, "rb") as archive:
            [image] = made.import_(archive)
        image.unpack()
        yield made
        for container in made.containers.list():
            container.label({STATUS_LABEL: "stopped", POLICY_LABEL: "no"})
        for state in made.tasks():
            made.task(state.container_id).delete(force=True)


def run(client: orlop.Client, image: Image, script: str, labels: dict[str, str]) -> orlop.Container:
    container = client.new_container(
        "one", image.reference, orlop.SpecOptions(args=("sh", "-c", script)), labels={STATUS_LABEL: "running", **labels}
    )
    container.new_task().start()
    return container


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def label(client: orlop.Client, name: str) -> str:
    return client.containers.get("one").labels.get(name, "")


def status(client: orlop.Client) -> str:
    try:
        return client.task("one").status()
    except NotFoundError:
        return ""


def test_a_killed_container_runs_again_and_its_output_goes_to_the_log(
    client: orlop.Client, busybox_image: Image, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    container = run(client, busybox_image, "echo here; sleep 1000", {LOG_LABEL: f"file://{log}"})
    first = client.task("one").state().pid
    client.task("one").kill("SIGKILL")
    until(lambda: status(client) == "RUNNING" and client.task("one").state().pid != first)
    assert label(client, COUNT_LABEL) == "1"
    until(lambda: log.exists() and log.read_text() == "here\n")
    container.label({STATUS_LABEL: "stopped"})
    until(lambda: status(client) == "")


def test_failures_are_tried_again_as_often_as_said(client: orlop.Client, busybox_image: Image) -> None:
    run(client, busybox_image, "exit 3", {POLICY_LABEL: "on-failure:2"})
    until(lambda: label(client, COUNT_LABEL) == "2" and status(client) == "STOPPED")
    time.sleep(4)  # more than two rounds of the monitor: it must not go on
    assert (label(client, COUNT_LABEL), status(client)) == ("2", "STOPPED")


def test_what_was_stopped_on_purpose_stays_so(client: orlop.Client, busybox_image: Image) -> None:
    container = run(client, busybox_image, "sleep 1000", {POLICY_LABEL: "unless-stopped"})
    container.label({STOPPED_LABEL: "true"})
    client.task("one").kill("SIGKILL")
    until(lambda: status(client) == "STOPPED")
    time.sleep(4)  # more than two rounds of the monitor
    assert (label(client, COUNT_LABEL), status(client)) == ("", "STOPPED")
    container.label({STOPPED_LABEL: "false"})
    until(lambda: status(client) == "RUNNING")


def test_a_container_without_a_task_is_started(client: orlop.Client, busybox_image: Image) -> None:
    options = orlop.SpecOptions(args=("sleep", "1000"))
    client.new_container("one", busybox_image.reference, options, labels={STATUS_LABEL: "running"})
    until(lambda: status(client) == "RUNNING")


@pytest.mark.parametrize("spec", [b"null", b"[" * 100_000], ids=["null", "deep"])
def test_a_spec_that_cannot_be_read_ends_the_watch_over_nobody_else(
    client: orlop.Client, busybox_image: Image, tmp_path: Path, spec: bytes
) -> None:
    from orlop.api.services.containers.v1 import containers_pb2 as pb
    from orlop.client.channel import Rpc

    service = "containerd.services.containers.v1.Containers"
    create = Rpc(service, "Create", pb.CreateContainerRequest, pb.CreateContainerResponse)
    broken = pb.Container(id="broken", labels={STATUS_LABEL: "running", LOG_LABEL: f"file://{tmp_path}/log"})
    broken.runtime.name = "io.containerd.runc.v2"
    broken.spec.type_url = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
    broken.spec.value = spec
    client.call(create, pb.CreateContainerRequest(container=broken))
    container = client.new_container("one", busybox_image.reference, orlop.SpecOptions(args=("sleep", "1000")))
    container.new_task().start()
    container.label({STATUS_LABEL: "running"})
    first = client.task("one").state().pid
    client.task("one").kill("SIGKILL")
    until(lambda: status(client) == "RUNNING" and client.task("one").state().pid != first)
    container.label({STATUS_LABEL: "stopped"})
    until(lambda: status(client) == "")
    client.containers.get("broken").delete()
