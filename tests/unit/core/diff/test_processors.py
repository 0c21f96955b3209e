"""Chains of programs that layers go through."""

import asyncio
import contextlib
import os

import pytest

from orlop.base.errdefs import FailedPreconditionError, UnimplementedError, UnknownError
from orlop.core.diff.processors import Step, StreamProcessor, chain, defaults, running
from orlop.oci.media_types import OCI_LAYER, OCI_LAYER_GZIP

SECRET = f"{OCI_LAYER}+secret"


def processor(accepts, returns):
    return StreamProcessor(accepts=[accepts], returns=returns, path="cat")


def ids(media_type, configured):
    return [(step.id, step.media_type) for step in chain(media_type, configured)]


def test_layers_that_a_worker_knows_go_through_nothing():
    for media_type in (
        OCI_LAYER,
        OCI_LAYER_GZIP,
        f"{OCI_LAYER}+zstd",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ):
        assert chain(media_type, defaults()) == []


def test_a_chain_ends_with_a_layer():
    configured = {
        "one": processor("application/x", "application/y"),
        "two": processor("application/y", OCI_LAYER_GZIP),
        "three": processor(OCI_LAYER, "application/never"),
    }
    assert ids("application/x", configured) == [("one", "application/x"), ("two", "application/y")]


def test_what_is_configured_comes_before_what_is_built_in():
    assert ids(OCI_LAYER_GZIP, {"igzip": processor(OCI_LAYER_GZIP, OCI_LAYER)}) == [("igzip", OCI_LAYER_GZIP)]


def test_encrypted_layers_have_containerds_processors():
    assert ids(f"{OCI_LAYER_GZIP}+encrypted", defaults()) == [
        ("io.containerd.ocicrypt.decoder.v1.tar.gzip", f"{OCI_LAYER_GZIP}+encrypted")
    ]
    assert [step.processor.path for step in chain(f"{OCI_LAYER}+encrypted", defaults())] == ["ctd-decoder"]


@pytest.mark.parametrize("media_type", ["", "application/x", f"{OCI_LAYER_GZIP}+encrypted", f"{OCI_LAYER}+new"])
def test_what_nobody_takes(media_type):
    with pytest.raises(UnimplementedError, match=r"no processor for media-type"):
        chain(media_type, {})


def test_a_chain_that_ends_nowhere_names_where():
    with pytest.raises(UnimplementedError, match="processor for application/y: no"):
        chain("application/x", {"one": processor("application/x", "application/y")})


def test_a_circle():
    configured = {"a": processor("application/x", "application/y"), "b": processor("application/y", "application/x")}
    with pytest.raises(FailedPreconditionError, match="application/x"):
        chain("application/x", configured)


def step(name, script, media_type=SECRET, **fields):
    run = StreamProcessor(accepts=[media_type], returns=OCI_LAYER, path="sh", args=["-c", script], **fields)
    return Step(id=name, media_type=media_type, processor=run)


def process(data, steps, payloads=None, read=None):
    """What comes out of the programs, and their error if there is one."""

    async def run():
        source = os.memfd_create("blob")
        try:
            os.write(source, data)
            os.lseek(source, 0, os.SEEK_SET)
            async with running(steps, source, payloads or {}) as result:
                return await asyncio.to_thread(read or _everything, result)
        finally:
            os.close(source)

    before = set(os.listdir("/proc/self/fd"))
    try:
        return asyncio.run(run())
    finally:
        assert set(os.listdir("/proc/self/fd")) == before


def _everything(fd):
    found = b""
    while data := os.read(fd, 1 << 16):
        found += data
    return found


def test_no_programs_are_the_blob_itself():
    assert process(b"bytes", []) == b"bytes"


def test_programs_in_a_row():
    data = os.urandom(1 << 20)
    assert process(data, [step("one", "gzip"), step("two", "gzip -d")]) == data


def test_what_a_program_is_told(monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    monkeypatch.setenv("INHERITED", "yes")
    script = 'cat; echo "$STREAM_PROCESSOR_MEDIATYPE $MINE $INHERITED $NOTIFY_SOCKET $(cat <&3)"'
    said = process(b"in ", [step("one", script, env=["MINE=a=b"])], {"one": b"payload", "two": b"other"})
    assert said == f"in {SECRET} a=b yes  payload\n".encode()


def test_large_payloads_are_handed_over_whole():
    payload = os.urandom(3 << 20)
    assert process(b"", [step("one", "cat <&3")], {"one": payload}) == payload


def test_a_program_without_payload_has_no_descriptor_for_it():
    assert process(b"", [step("one", "if [ -e /proc/self/fd/3 ]; then echo yes; else echo no; fi")]) == b"no\n"


def test_a_program_that_is_not_there():
    missing = Step(id="one", media_type=SECRET, processor=StreamProcessor(path="/no/such/program"))
    with pytest.raises(UnknownError, match=r"processor for .*secret: one: program '/no/such/program' is not there"):
        process(b"", [step("zero", "sleep 1000"), missing])


def test_a_failure_after_everything_was_read():
    with pytest.raises(UnknownError, match="stream processor one: exit status 3: wrong key"):
        process(b"data", [step("one", "cat; echo wrong key >&2; exit 3")])


def test_a_program_that_dies_is_the_reason_for_what_follows():
    def read(fd):
        assert _everything(fd) == b""
        raise ValueError("the archive ends too early")

    with pytest.raises(UnknownError, match="stream processor one: killed by SIGTERM") as caught:
        process(b"data", [step("one", "kill -TERM $$"), step("two", "cat")], read=read)
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_program_in_the_middle_that_dies_while_others_wait():
    def read(fd):
        _everything(fd)
        raise ValueError("the archive ends too early")

    steps = [step("one", "cat /dev/zero"), step("two", "head -c 100; echo no more >&2; exit 1"), step("three", "cat")]
    with pytest.raises(UnknownError, match="stream processor two: exit status 1: no more"):
        process(b"", steps, read=read)


def test_other_failures_stay_what_they_are():
    def read(fd):
        raise ValueError("no archive")

    with pytest.raises(ValueError, match="no archive"):
        process(bytes(1 << 20), [step("one", "cat"), step("two", "cat /dev/zero")], read=read)


def test_a_cancelled_reader_leaves_no_program():
    async def run():
        source = os.open("/dev/null", os.O_RDONLY)
        try:
            async with running([step("one", "echo $$; exec sleep 1000")], source, {}) as result:
                pid = int(await asyncio.to_thread(os.read, result, 100))
                raise asyncio.CancelledError
        finally:
            os.close(source)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 0)
                pytest.fail("it lives")

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())
