"""Requests that no library sends, frame by frame, to containerd's gRPC server and to ours: the same answers.

Debian 12's grpc-go is of 2021. Later ones answer 415, 400 and 405 where it resets a stream or looks away, and take
gzip, and so do we; those are in tests/unit/http2, in containerd 1.7's words. A deadline that has passed on arrival
is met by either answer there: its handler races.
"""

import socket

import pytest

from orlop.http2 import frames
from tests.unit.http2.client import HEADERS, Client, message
from tools.daemons import containerd_version

pytestmark = pytest.mark.interop

VERSION = "/containerd.services.version.v1.Version"
PATH = f"{VERSION}/Version"


def headers(**changes):
    changed = {f":{name[1:]}" if name[0] == "_" else name.replace("_", "-"): value for name, value in changes.items()}
    return list((dict(HEADERS) | {":path": PATH} | changed).items())


REQUESTS = {
    "unknown service": (headers(_path="/x.Y/Z"), message(b"")),
    "unknown method": (headers(_path=f"{VERSION}/Nope"), message(b"")),
    "subtype": (headers(content_type="application/grpc+proto"), message(b"")),
    "identity": (headers(grpc_encoding="identity"), message(b"")),
    "unknown encoding": (headers(grpc_encoding="snappy"), message(b"x", compressed=1)),
    "compressed without an encoding": (headers(), message(b"x", compressed=1)),
    "unknown format": (headers(), message(b"x", compressed=7)),
    "large": (headers(), b"\0\x7f\0\0\0abc"),
    "cut": (headers(), b"\0\0\0\0\x05ab"),
    "some time": (headers(grpc_timeout="1H"), message(b"")),
    "authority of a unix socket": (headers(_authority="%2Frun%2Fx.sock"), message(b"")),
    "trailing user agent": (headers(user_agent="grpc-go/1.59.0"), message(b"")),
    "an upper case name": ([*headers(), ("Upper", "x")], message(b"")),
}


def ask(daemon, fields, data):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(daemon.address))
        client = Client(connection)
        client.raw(frames.header_frames(0, 1, client.fields(fields), 16384))
        client.raw(frames.frame(frames.DATA, frames.END_STREAM, 1, data))
        answer = client.answer(1)
        if not answer.headers:
            return answer.reset
        return answer.headers[0][":status"], answer.status, bool(answer.data)


@pytest.mark.parametrize("name", REQUESTS)
def test_the_same_answer(containerd, lean_orlopd, name):
    if name == "gzip" and containerd_version() > (1, 6):
        pytest.skip("later releases take compressed messages; no client of containerd sends them, and we refuse them")
    assert ask(lean_orlopd, *REQUESTS[name]) == ask(containerd, *REQUESTS[name])
