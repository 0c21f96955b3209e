"""orlopd as a process: command line, sockets, notification, stopping, a second one on the same root."""

import json
import os
import signal
import socket
import stat
import subprocess
import time
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orlop.client import sync
from orlop.core.version import VERSION
from orlop.ttrpc.client import Client
from tools import daemons

ORLOPD = daemons.our_program("orlopd")
VERSION_RPC = ("containerd.services.version.v1.Version", "Version", b"")


def orlopd(*arguments, check=True, **more):
    return subprocess.run([ORLOPD, *arguments], capture_output=True, text=True, timeout=60, check=check, **more)


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "nothing of the kind happened"
        time.sleep(0.01)


@pytest.fixture
def running(tmp_path_factory, new_orlopd):
    return new_orlopd()


def test_version_and_configuration_are_printed():
    assert orlopd("--version").stdout.split()[2] == VERSION
    default = tomllib.loads(orlopd("config", "default").stdout)
    assert default["plugins"]["io.containerd.server.v1.grpc"]["address"] == "/run/orlop/orlop.sock"
    dumped = tomllib.loads(orlopd("-root", "/other", "--log-level", "debug", "config", "dump").stdout)
    assert (dumped["root"], dumped["debug"]["level"]) == ("/other", "debug")
    assert dumped["plugins"] == default["plugins"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--log-level", "loud"], 'log level "loud"'),
        (["--config", "/no/such/file"], "/no/such/file"),
        (["--address", "relative.sock", "--root", "{tmp}/r", "--state", "{tmp}/s"], "must be an absolute path"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_named(tmp_path, arguments, words):
    done = orlopd(*(argument.format(tmp=tmp_path) for argument in arguments), check=False)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_both_sockets_answer_and_belong_to_root_alone(running):
    for path in (running.address, f"{running.address}.ttrpc"):
        found = os.stat(path)
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o660
        assert found.st_uid == 0
    with Client.connect(f"{running.address}.ttrpc", timeout_s=10) as client:
        assert VERSION.encode() in client.call(*VERSION_RPC, timeout_s=10)


def test_a_second_daemon_on_the_same_root_or_socket_is_refused(running, tmp_path):
    same_root = orlopd("--root", running.root, "--state", tmp_path / "s", "-a", tmp_path / "x.sock", check=False)
    assert same_root.returncode == 1
    assert f"in use by another daemon (pid {running.pid})" in same_root.stderr
    same_socket = orlopd("--root", tmp_path / "r", "--state", tmp_path / "s", "-a", running.address, check=False)
    assert same_socket.returncode == 1
    assert "another daemon listens there" in same_socket.stderr
    with Client.connect(f"{running.address}.ttrpc", timeout_s=10) as client:
        assert client.call(*VERSION_RPC, timeout_s=10)


def test_a_killed_daemon_leaves_sockets_that_the_next_one_takes_over(running):
    running.kill()
    assert Path(running.address).exists()
    running.start()
    with Client.connect(f"{running.address}.ttrpc", timeout_s=10) as client:
        assert client.call(*VERSION_RPC, timeout_s=10)


def test_sigterm_ends_it_cleanly_also_with_open_streams(running):
    from orlop.api.services.events.v1 import events_pb2

    with Client.connect(f"{running.address}.ttrpc", timeout_s=10) as client:
        stream = client.stream(
            "containerd.services.events.v1.Events",
            "Subscribe",
            events_pb2.SubscribeRequest().SerializeToString(),
            server_streaming=True,
        )
        assert running.stop() == 0
        stream.close()
    assert not Path(running.address).exists()
    assert "Traceback" not in running.log


def test_the_service_manager_is_told(tmp_path):
    address = tmp_path / "notify.sock"
    environment = {**os.environ, "NOTIFY_SOCKET": str(address)}
    arguments = ["--root", tmp_path / "r", "--state", tmp_path / "s", "-a", tmp_path / "o.sock"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(30)
        process = subprocess.Popen([ORLOPD, *arguments], env=environment, stderr=subprocess.DEVNULL)
        try:
            assert manager.recv(100) == b"READY=1"
            process.send_signal(signal.SIGTERM)
            assert manager.recv(100) == b"STOPPING=1"
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()


def test_hangup_reloads_what_can_be_and_names_the_rest(new_orlopd):
    daemon = new_orlopd(config='[runtimes]\n"io.example.v1" = "/one"\n')
    path = daemon.directory / "config.toml"
    path.write_text('temp = ""\noom_score = 5\nwarm_cgroups = false\n[debug]\nlevel = "debug"\n[runtimes]\n')
    os.kill(daemon.pid, signal.SIGHUP)
    wait_for(lambda: "warm_cgroups" in daemon.log)
    assert 'msg="configuration reloaded" logger=orlop.server.reload key=debug.level' in daemon.log
    assert "restart the daemon for it" in daemon.log
    wait_for(lambda: Path(f"/proc/{daemon.pid}/oom_score_adj").read_text() == "5\n")
    path.write_text("root = 5")
    os.kill(daemon.pid, signal.SIGHUP)
    wait_for(lambda: "configuration is not reloaded" in daemon.log)
    assert daemon.answers()


def test_a_hook_runs_a_program_with_the_containers_facts(tmp_path):
    (tmp_path / "config.json").write_text('{"root": {"path": "rootfs"}, "annotations": {"a.b": "c d"}}')
    state = json.dumps({"ociVersion": "1.0.2", "id": "web", "pid": 42, "status": "created", "bundle": str(tmp_path)})
    words = ["{{id}}", "--pid={{ pid }}", "{{rootfs}}", '{{annotation "a.b"}}', "-plain"]
    printed = orlopd("oci-hook", "--", "printf", "%s\n", *words, input=state).stdout.splitlines()
    assert printed == ["web", "--pid=42", f"{tmp_path}/rootfs", "c d", "-plain"]
    refused = orlopd("oci-hook", "--", "printf", "{{nonsense}}", input=state, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "{{nonsense}}: not known" in refused.stderr


def test_sections_of_plugins_that_are_not_here_are_warned_about(new_orlopd):
    text = '[plugins."io.containerd.cri.v1.runtime"]\nx = 1\n[plugins."io.containerd.gc.v1.scheduler"]\nx = 1\n'
    daemon = new_orlopd(config=text)
    assert 'plugins.\\"io.containerd.cri.v1.runtime\\": there is no such plug-in here' in daemon.log
    assert 'plugins.\\"io.containerd.gc.v1.scheduler\\": x: unknown key, ignored' in daemon.log


def test_what_is_deprecated_is_told(new_orlopd):
    """Keys of containerd's that its own releases warn of; see `orlop.plugins.warnings` for the source."""
    daemon = new_orlopd(
        config="""
[plugins."io.containerd.tracing.processor.v1.otlp"]
endpoint = "http://127.0.0.1:1"
[plugins."io.containerd.internal.v1.tracing"]
sampling_ratio = 0.5
service_name = "here"
"""
    )
    before = datetime.now(UTC)
    with sync.Client(str(daemon.address), "default") as client:
        told = client.introspection.server().deprecations
        [plugin] = client.introspection.plugins(["type==io.containerd.warning.v1"])
        [erofs] = client.introspection.plugins(["type==io.containerd.snapshotter.v1,id==erofs"])
    assert (plugin.id, plugin.status) == ("deprecations", "ok")
    assert [one.id for one in told] == [
        "io.containerd.deprecation/tracing-processor-config",
        "io.containerd.deprecation/tracing-service-config",
    ]
    assert all(one.last_occurrence < before and "environment variables instead" in one.message for one in told)
    listed = subprocess.run(
        [daemons.our_program("ctr"), "--address", str(daemon.address), "deprecations", "list"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert [line.split()[0] for line in listed.splitlines()] == ["ID", *(one.id for one in told)]
    if erofs.status == "ok":
        assert set(erofs.platforms) == {"linux/amd64", "linux(+erofs)/amd64"}


def test_logs_are_json_when_wanted(new_orlopd):
    daemon = new_orlopd(config='[debug]\nformat = "json"\nlevel = "debug"\n')
    daemon.stop()
    lines = [json.loads(line) for line in daemon.log.splitlines() if line.startswith("{")]
    assert {"starting", "serving", "stopped"} <= {line["msg"] for line in lines}


def test_events_are_published_by_the_program_as_shims_ask_it_to(running):
    from google.protobuf.any_pb2 import Any

    from orlop.api.events.task_pb2 import TaskOOM
    from orlop.api.services.events.v1 import events_pb2
    from orlop.api.types.event_pb2 import Envelope

    event = TaskOOM(container_id="c")
    payload = Any(type_url="containerd.events.TaskOOM", value=event.SerializeToString()).SerializeToString()
    with Client.connect(f"{running.address}.ttrpc", timeout_s=10) as client:
        stream = client.stream(
            "containerd.services.events.v1.Events",
            "Subscribe",
            events_pb2.SubscribeRequest().SerializeToString(),
            server_streaming=True,
            timeout_s=60,
        )
        client.call(*VERSION_RPC, timeout_s=10)  # answered after the subscription before it
        subprocess.run(
            [ORLOPD, "--address", running.address, "publish", "--namespace", "ns", "--topic", "/tasks/oom"],
            input=payload,
            check=True,
            timeout=60,
            env={**os.environ, "TTRPC_ADDRESS": f"{running.address}.ttrpc"},
        )
        received = stream.receive()
        stream.close()
    assert received is not None
    envelope = Envelope.FromString(received)
    assert (envelope.namespace, envelope.topic) == ("ns", "/tasks/oom")
    assert TaskOOM.FromString(envelope.event.value) == event
