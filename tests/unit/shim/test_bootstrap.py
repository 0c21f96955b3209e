"""The program's command line, and what daemons send to its stdin."""

import os
from pathlib import Path

import pytest

from orlop.api.runtime.bootstrap.v1 import bootstrap_pb2
from orlop.api.runtime.task.v2 import shim_pb2
from orlop.api.types.runc.options import oci_pb2
from orlop.shim import bootstrap, deletion, startup
from orlop.shim.bootstrap import Arguments
from orlop.shim.paths import Place


def test_arguments_as_containerd_gives_them():
    words = ["-namespace", "default", "-address", "/run/c.sock", "-publish-binary", "/usr/bin/containerd"]
    words += ["-id", "web", "-debug", "start"]
    found = Arguments(words)
    assert (found.namespace, found.address, found.id) == ("default", "/run/c.sock", "web")
    assert (found.publish_binary, found.debug, found.action) == ("/usr/bin/containerd", True, "start")


def test_arguments_in_all_of_gos_forms():
    found = Arguments(["--namespace=x", "-id=", "-debug=false", "--", "delete"])
    assert (found.namespace, found.id, found.debug, found.action) == ("x", "", False, "delete")


@pytest.mark.parametrize(
    ("words", "text"), [(["-none"], "flag provided but not defined: -none"), (["-id"], "flag needs an argument: -id")]
)
def test_arguments_that_are_wrong(words: list[str], text: str, capfd: pytest.CaptureFixture[str]):
    assert bootstrap.main(words) == 1
    assert text in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["start"], "shim namespace cannot be empty"),
        (["-namespace", "../x", "start"], "namespace '../x' is not valid"),
        (["-namespace", "x", "-id", "a/b", "start"], "id 'a/b' is not valid"),
        (["-namespace", "x", "dance"], "unknown command 'dance'"),
    ],
)
def test_refused(words: list[str], text: str, capfd: pytest.CaptureFixture[str]):
    assert bootstrap.main(words) == 1
    assert text in capfd.readouterr().err


def test_version(capfd: pytest.CaptureFixture[str]):
    assert bootstrap.main(["-v"]) == 0
    assert capfd.readouterr().out.startswith("containerd-shim-orlop-v1:\n  Version:")


def options(**fields: str) -> oci_pb2.Options:
    return oci_pb2.Options(**fields)  # type: ignore[arg-type]


def test_startup_with_options():
    message = shim_pb2.CreateTaskRequest().options
    message.type_url = "containerd.runc.v1.Options"
    message.value = options(shim_cgroup="/shims", root="/r").SerializeToString()
    found = startup.parse(message.SerializeToString(), "ns", "id")
    assert (found.shim_cgroup, found.ttrpc_address) == ("/shims", "")


def test_startup_with_bootstrap_params():
    params = bootstrap_pb2.BootstrapParams(instance_id="id", namespace="ns", containerd_ttrpc_address="/run/x.ttrpc")
    extension = params.extensions.add().value
    extension.type_url = "type.googleapis.com/containerd.runc.v1.Options"
    extension.value = options(shim_cgroup="/shims").SerializeToString()
    found = startup.parse(params.SerializeToString(), "ns", "id")
    assert (found.shim_cgroup, found.ttrpc_address) == ("/shims", "/run/x.ttrpc")


@pytest.mark.parametrize("data", [b"", b"\xff", b"\x0a\xff", b"\x0b", b"\x08" + b"\xff" * 20, os.urandom(64)])
def test_startup_with_rubbish(data: bytes):
    startup.parse(data, "ns", "id")


def test_answer_of_delete_is_a_delete_response():
    for pid, status, at_ns in ((0, 137, 0), (70000, 3, 1795494066_409499526)):
        answer = shim_pb2.DeleteResponse.FromString(deletion._answer(pid, status, at_ns))
        assert (answer.pid, answer.exit_status, answer.exited_at.ToNanoseconds()) == (pid, status, at_ns)


def test_answer_of_start(monkeypatch: pytest.MonkeyPatch):
    place = Place("/run/orlop", "/run/containerd/containerd.sock", "default")
    monkeypatch.delenv("MAX_SHIM_VERSION", raising=False)
    assert bootstrap._answer(place) == place.url
    monkeypatch.setenv("MAX_SHIM_VERSION", "2")
    assert bootstrap._answer(place) == place.url
    monkeypatch.setenv("MAX_SHIM_VERSION", "3")
    assert bootstrap._answer(place) == f'{{"version":3,"address":"{place.url}","protocol":"ttrpc"}}'


def test_place():
    import hashlib

    place = Place("/run/orlop", "/a.sock", "ns")
    assert place.socket == f"/run/orlop/s/{hashlib.sha256(b'/a.sock' + bytes(1) + b'ns').hexdigest()[:32]}"
    assert (
        len({place.socket, Place("/run/orlop", "/b.sock", "ns").socket, Place("/run/orlop", "/a.sock", "n").socket})
        == 3
    )
    with pytest.raises(ValueError, match="too long"):
        Place("/x" * 50, "/a.sock", "ns")


def test_directory_of_supervisors_must_be_ours(tmp_path: Path):
    place = Place(str(tmp_path), "/a.sock", "ns")
    place.make_directory()
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    place.make_directory()
    (tmp_path / "s").chmod(0o755)
    with pytest.raises(PermissionError, match="mode 0700"):
        place.make_directory()
