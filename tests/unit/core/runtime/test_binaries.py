"""Finding and running shim programs."""

import asyncio
import stat

import pytest

from orlop.api.runtime.task.v2 import shim_pb2
from orlop.base.errdefs import DeadlineExceededError, InternalError, UnknownError
from orlop.core.runtime import binaries
from orlop.core.runtime.binaries import ShimBinary, ShimHost
from orlop.core.runtime.bundle import Bootstrap, Bundles

HOST = ShimHost(state="/run/o", address="/run/o/o.sock", ttrpc_address="/run/o/o.sock.ttrpc", publish_binary="orlopd")


@pytest.fixture
def program(tmp_path):
    def write(text):
        path = tmp_path / "shim"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return ShimBinary(path=path)

    return write


@pytest.fixture
def bundle(tmp_path):
    return Bundles(state=tmp_path / "state", root=tmp_path / "root").create("ns", "web", "", b"{}")


def test_names_and_paths_are_resolved(tmp_path, monkeypatch):
    shim = tmp_path / "containerd-shim-kata-v2"
    shim.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert binaries.resolve("io.containerd.kata.v2", {}).path == shim
    assert binaries.resolve(str(shim), {}) == ShimBinary(path=shim)
    assert binaries.resolve("io.containerd.runc.v2", {"io.containerd.runc.v2": str(shim)}) == ShimBinary(path=shim)
    assert binaries.resolve("io.containerd.runc.v2", {}).groups


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "invalid runtime name"),
        ("../x", "invalid runtime name"),
        ("a/b.c", "invalid runtime name"),
        ("/no/such/shim", "stat /no/such/shim"),
        ("io.containerd.nothing.v9", 'binary not installed "containerd-shim-nothing-v9"'),
    ],
)
def test_what_cannot_be_resolved_is_named(name, words):
    with pytest.raises(UnknownError, match="failed to resolve runtime path") as caught:
        binaries.resolve(name, {})
    assert words in str(caught.value)


def test_a_shim_is_told_who_it_is_for(program, bundle):
    binary = program('cat > options; env > environment; echo "$@" > arguments; echo "unix:///run/s/x"')
    assert asyncio.run(binaries.start(binary, HOST, bundle, b"options")) == Bootstrap(address="unix:///run/s/x")
    assert (bundle.path / "options").read_text() == "options"
    arguments = (bundle.path / "arguments").read_text().split()
    assert arguments[:2] == ["-namespace", "ns"]
    assert arguments[-3:] == ["-id", "web", "start"]
    environment = (bundle.path / "environment").read_text().splitlines()
    assert "TTRPC_ADDRESS=/run/o/o.sock.ttrpc" in environment
    assert "MAX_SHIM_VERSION=3" in environment


def test_a_shim_that_fails_is_quoted(program, bundle):
    binary = program('echo "no cgroups here" >&2; exit 3')
    with pytest.raises(InternalError, match=r'task "web": start shim .*exit status 3: no cgroups here'):
        asyncio.run(binaries.start(binary, HOST, bundle, b""))
    with pytest.raises(InternalError, match="no address"):
        asyncio.run(binaries.start(program("echo hello"), HOST, bundle, b""))
    with pytest.raises(UnknownError, match="No such file"):
        asyncio.run(binaries.start(ShimBinary(path=bundle.path / "none"), HOST, bundle, b""))


def test_a_program_that_prints_without_end_is_ended(program, bundle):
    for script in ("exec yes", "exec yes >&2"):
        with pytest.raises(InternalError, match="prints more than"):
            asyncio.run(binaries.start(program(script), HOST, bundle, b"x" * 100_000))


def test_a_shim_that_hangs_is_ended(program, bundle, monkeypatch):
    monkeypatch.setattr(binaries, "START_TIMEOUT_S", 0.2)
    with pytest.raises(DeadlineExceededError, match="no answer within"):
        asyncio.run(binaries.start(program("exec sleep 60"), HOST, bundle, b""))


def test_cleaning_up_returns_what_the_shim_says(program, bundle, tmp_path):
    reply = shim_pb2.DeleteResponse(pid=7, exit_status=137)
    (tmp_path / "reply").write_bytes(reply.SerializeToString())
    assert asyncio.run(binaries.delete(program(f"cat {tmp_path}/reply"), HOST, bundle)) == reply
