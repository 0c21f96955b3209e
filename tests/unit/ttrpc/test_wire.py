"""Our envelope codec against protobuf's, and the frame cutter against any cut."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

import orlop
from orlop.api.ttrpc import request_pb2
from orlop.ttrpc import wire
from orlop.ttrpc._reader import FrameReader
from orlop.ttrpc.errors import UNAVAILABLE, Status, TtrpcError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
pairs = st.lists(st.tuples(texts, texts), max_size=4)
int64 = st.integers(-(1 << 63), (1 << 63) - 1)


@given(texts, texts, st.binary(max_size=300), int64, pairs)
def test_request_is_what_protobuf_writes(service, method, payload, timeout_nano, metadata):
    ours = wire.encode_request(service, method, payload, timeout_nano, metadata)
    theirs = request_pb2.Request(service=service, method=method, payload=payload, timeout_nano=timeout_nano)
    for key, value in metadata:
        theirs.metadata.add(key=key, value=value)
    assert ours == theirs.SerializeToString(deterministic=True)
    for data in (ours, memoryview(ours)):
        request = wire.decode_request(data)
        assert (request.service, request.method, request.payload) == (service, method, payload)
        assert (request.timeout_nano, request.metadata) == (timeout_nano, metadata)


@given(st.integers(-(1 << 31), (1 << 31) - 1).filter(bool), texts, st.lists(st.binary(max_size=20), max_size=3))
def test_failure_is_what_protobuf_writes(code, message, details):
    response = request_pb2.Response()
    response.status.code, response.status.message = code, message
    anys = []
    for value in details:
        detail = response.status.details.add(type_url="type.googleapis.com/x", value=value)
        anys.append(detail.SerializeToString())
    ours = wire.encode_failure(code, message, tuple(anys))
    assert request_pb2.Response.FromString(ours) == response
    assert wire.decode_response(response.SerializeToString()) == (Status(code, message, tuple(anys)), b"")


@given(st.binary(max_size=300))
def test_success_is_what_protobuf_writes(payload):
    ours = wire.encode_response(payload)
    assert ours == request_pb2.Response(payload=payload).SerializeToString()
    assert wire.decode_response(ours) == (None, payload)


def test_status_ok_is_success():
    response = request_pb2.Response(payload=b"x")
    response.status.SetInParent()
    assert wire.decode_response(response.SerializeToString()) == (None, b"x")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    """What protobuf can read we read alike, but for groups, which nobody sends; what it cannot we refuse."""
    try:
        ours = wire.decode_request(data)
    except wire.WireError:
        return
    try:
        theirs = request_pb2.Request.FromString(data)
    except DecodeError:
        pytest.fail("accepted what protobuf refuses")
    assert (ours.service, ours.method, ours.payload) == (theirs.service, theirs.method, theirs.payload)
    assert ours.timeout_nano == theirs.timeout_nano
    assert ours.metadata == [(pair.key, pair.value) for pair in theirs.metadata]


def test_unknown_fields_are_stepped_over():
    known = wire.encode_request("s", "m", b"p")
    unknown = b"\x98\x06\x01" + b"\xa1\x06" + bytes(8) + b"\xa5\x06" + bytes(4) + b"\xaa\x06\x02hi"
    assert wire.decode_request(unknown + known + unknown).method == "m"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x0a\x05abc", "cut short"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "longer than ten bytes"),
        (b"\x0a", "cut short"),
        (b"\x80", "cut short"),
        (b"\x0a\x01\xff", "UTF-8"),
        (b"\x08\x01", "number where a string"),
        (b"\x22\x01x", "string where a number"),
        (b"\x02\x00", "field number 0"),
        (b"\x2b\x2c", "wire type 3"),
        (b"\xa1\x06abc", "cut short"),
    ],
)
def test_bad_bytes_are_named(data, reason):
    with pytest.raises(wire.WireError, match=reason):
        wire.decode_request(data)


def test_a_message_that_is_no_unicode_is_still_told():
    status, _payload = wire.decode_response(wire.encode_failure(2, "file \udcff"))
    assert status is not None
    assert status.message == "file ?"


u8, u32 = st.integers(0, 255), st.integers(0, (1 << 32) - 1)
# Stream, kind, flags, and the length of the data: sizes rather than bytes, which hypothesis would print.
frames = st.lists(st.tuples(u32, u8, u8, st.one_of(st.integers(0, 50), st.integers(0, 90_000))), max_size=6)


@given(frames, st.lists(st.integers(1, 70_000), min_size=1, max_size=50))
def test_frames_come_out_however_they_were_cut(sizes, cuts):
    limit = 70_000
    sent = [(stream, kind, flags, bytes([length % 251]) * length) for stream, kind, flags, length in sizes]
    data = memoryview(b"".join(wire.frame(*frame) for frame in sent))
    reader, got, turn = FrameReader(), [], 0
    while data:
        room = reader.room()
        count = min(len(room), len(data), cuts[turn % len(cuts)])
        turn += 1
        room[:count] = data[:count]
        data = data[count:]
        reader.add(count)
        while (frame := reader.next_frame(limit)) is not None:
            got.append(frame)
    wanted = [(*frame[:3], frame[3] if len(frame[3]) <= limit else None, len(frame[3])) for frame in sent]
    same = got == wanted
    assert same  # not compared here: pytest would print megabytes


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("/run/x.sock", "/run/x.sock"),
        ("unix:///run/x.sock", "/run/x.sock"),
        ("unix:/run/x.sock", "/run/x.sock"),
        ("unix://@shim", "\0shim"),
    ],
)
def test_addresses(address, path):
    assert wire.unix_path(address) == path


def test_address_of_another_scheme():
    with pytest.raises(TtrpcError, match="vsock://3:1024: only unix sockets") as caught:
        wire.unix_path("vsock://3:1024")
    assert caught.value.code == UNAVAILABLE


def test_sync_client_imports_little():
    """A CLI's budget is milliseconds: no asyncio, no protobuf, none of the slow modules of the standard library.

    The package around it is left out: what that imports is its own matter.
    """
    code = """if True:
        import sys
        package = sys.modules["orlop"] = type(sys)("orlop")
        package.__path__ = [sys.argv[1]]
        import orlop.ttrpc.client
        print(*sys.modules)
    """
    command = [sys.executable, "-c", code, str(Path(orlop.__file__).parent)]
    loaded = set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    slow = {"asyncio", "socket", "ssl", "typing", "dataclasses", "inspect", "enum", "logging", "re", "google.protobuf"}
    assert loaded & slow == set()


def test_server_works_without_ssl():
    code = (
        "import sys; sys.modules['ssl'] = None; from orlop.ttrpc import aio, server; assert '_ssl' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
