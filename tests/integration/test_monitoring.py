"""The metrics page and the debug socket of a running daemon."""

import http.client
import json
import re
import socket
import stat
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import orlop
from orlop.base.errdefs import NotFoundError
from orlop.core.version import VERSION
from tests.integration.spans import Collector, collector
from tools.daemons import Orlopd
from tools.images import Image

CONFIG = """
[plugins."io.containerd.server.v1.metrics"]
address = "127.0.0.1:0"
[plugins."io.containerd.metrics.v1.grpc-prometheus"]
grpc_histogram = true
"""


def metrics(daemon: Orlopd) -> dict[tuple[str, ...], float]:
    """Values by name and label values, sorted by label name."""
    found = re.search(r'msg="serving HTTP" .*address=(\S+)', daemon.log)
    assert found is not None
    with urllib.request.urlopen(f"http://{found[1]}/v1/metrics", timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = answer.read().decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.root
def test_calls_and_containers_are_counted(new_orlopd: Callable[..., Orlopd], busybox_image: Image) -> None:
    daemon = new_orlopd(config=CONFIG)
    with orlop.Client(str(daemon.address), "metered", timeout_s=60) as client:
        with open(busybox_image.archive, "rb") as archive:
            [image] = client.import_(archive)
        image.unpack()
        with pytest.raises(NotFoundError):
            client.images.get("absent")
        options = orlop.SpecOptions(args=("sleep", "1000"))
        with client.new_container("web", image, options) as container, container.new_task() as task:
            task.start()
            found = metrics(daemon)
            task.kill("SIGKILL")
            task.wait()
        after = metrics(daemon)
    method = ("Get", "containerd.services.images.v1.Images", "unary")
    assert found["grpc_server_handled_total", "NotFound", *method] == 1
    assert found["grpc_server_started_total", *method] >= 1
    assert found["grpc_server_handling_seconds_count", *method] == found["grpc_server_started_total", *method]
    assert any(key[0] == "containerd_build_info_total" and VERSION in key for key in found)
    assert found["process_open_fds",] > 0
    assert found["container_pids_current", "web", "metered"] == 1
    assert not any("metered" in key for key in after)


def test_a_daemon_without_the_address_does_not_load_the_library(new_orlopd: Callable[..., Orlopd]) -> None:
    daemon = new_orlopd()
    loaded = Path(f"/proc/{daemon.pid}/maps").read_text()
    assert "aiohttp" not in loaded


def test_calls_are_traced_where_an_endpoint_is_named(new_orlopd: Callable[..., Orlopd]) -> None:
    with collector() as endpoint:
        daemon = new_orlopd(env={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "NO_PROXY": "*"})
        with orlop.Client(str(daemon.address), "traced", timeout_s=60) as client:
            with pytest.raises(NotFoundError):
                client.images.get("absent")
        daemon.stop()
    [span] = [one for one in Collector.spans if one.name == "containerd.services.images.v1.Images/Get"]
    attributes = {one.key: one.value for one in span.attributes}
    assert attributes["rpc.grpc.status_code"].int_value == 5
    assert attributes["containerd.namespace"].string_value == "traced"
    assert span.status.message == 'image "absent": not found'


@pytest.mark.root
def test_the_daemon_moves_into_its_cgroup(new_orlopd: Callable[..., Orlopd]) -> None:
    name = f"orlop-{uuid.uuid4().hex[:8]}"
    daemon = new_orlopd(config=f'[cgroup]\npath = "/{name}/daemon"\n')
    lines = Path(f"/proc/{daemon.pid}/cgroup").read_text().splitlines()
    directories = sorted(Path("/sys/fs/cgroup").glob(f"**/{name}/daemon"))
    try:
        assert directories
        real = {path.resolve() for path in directories}  # cpu and cpuacct may be two names of one
        assert len([line for line in lines if line.endswith(f":/{name}/daemon")]) == len(real)
    finally:
        daemon.stop()
        for directory in {path.resolve() for path in directories}:
            directory.rmdir()
            directory.parent.rmdir()


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("debug", timeout=60)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def get(address: Path, path: str) -> tuple[int, str]:
    connection = UnixConnection(str(address))
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_the_debug_socket_shows_what_the_daemon_does(new_orlopd: Callable[..., Orlopd], short_directory: Path) -> None:
    address = short_directory / "debug.sock"
    daemon = new_orlopd(config=f'[debug]\naddress = "{address}"\n')
    assert stat.S_IMODE(address.stat().st_mode) == 0o660
    status, stacks = get(address, "/debug/pprof/goroutine?debug=2")
    assert status == 200, daemon.log
    assert "thread MainThread" in stacks
    assert "task orphans:" in stacks
    status, profile = get(address, "/debug/pprof/profile?seconds=0.2")
    assert status == 200
    assert re.search(r"BaseEventLoop\.run_forever \(base_events\.py:\d+\);.* \d+$", profile, re.MULTILINE)
    assert json.loads(get(address, "/debug/vars")[1])["pid"] == daemon.pid
    assert "objects by type" in get(address, "/debug/pprof/heap")[1]
    assert get(address, "/debug/pprof/profile?seconds=no")[0] == 400
    assert get(address, "/debug/pprof/block") == (
        501,
        "profile block: there is none of a Python program: not implemented\n",
    )
    daemon.stop()
    assert not address.exists()


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:x", "127.0.0.1:99999"])
def test_an_address_that_is_none_stops_the_start(
    tmp_path: Path, new_orlopd: Callable[..., Orlopd], address: str
) -> None:
    with pytest.raises(Exception, match="must be host:port or a path"):
        new_orlopd(config=f'[metrics]\naddress = "{address}"\n')
