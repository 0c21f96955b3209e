"""Ids, namespaces and labels that are none: refused by every service in the same words."""

import contextlib
from collections.abc import Callable

import pytest

import orlop
from orlop.base.errdefs import (
    InvalidArgumentError,
    NotFoundError,
    OrlopError,
)
from tests.integration.bad_input.pulling import NAMESPACE, refuses

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


IDS = [
    "",
    "a/b",
    "../x",
    "..",
    ".",
    "/etc",
    "a b",
    "a\0b",
    "a\n",
    "-a",
    "a-",
    "a--b",
    "_",
    "é",
    "x" * 77,
    "x" * 1_000_000,
    "%2e%2e",
    "\u202e",
]
id_names = pytest.mark.parametrize("bad", IDS, ids=lambda bad: ascii(bad)[:20])


@id_names
def test_ids_with_slashes_and_the_like(client, bad, prepared):
    """Of what has an identifier's rules."""
    with refuses(InvalidArgumentError, "identifier"):
        _create_container(client, bad)
    with refuses(InvalidArgumentError, "identifier"):
        client.namespaces.create(bad)
    with orlop.Client(client.address, "default") as other, contextlib.suppress(OrlopError):
        assert other.images.list() == []


@id_names
def test_a_namespace_in_the_header_that_is_none(daemon, client, bad):
    try:
        encoded = bad.encode("ascii")
    except UnicodeEncodeError:
        return  # no header can have it
    if len(encoded) > 8000 or any(byte < 32 for byte in encoded):
        return
    with orlop.Client(client.address, NAMESPACE) as other:
        stranger = other.in_namespace(bad)
        with pytest.raises(OrlopError, match=r"namespace|identifier"):
            stranger.images.list()


def _create_container(client, container_id):
    from orlop.api.services.containers.v1 import containers_pb2 as pb
    from orlop.client.channel import Rpc

    create = Rpc(
        "containerd.services.containers.v1.Containers", "Create", pb.CreateContainerRequest, pb.CreateContainerResponse
    )
    request = pb.CreateContainerRequest(container=pb.Container(id=container_id))
    request.container.runtime.name = "io.containerd.runc.v2"
    request.container.spec.type_url = "x"
    return client.call(create, request)


BIG = {"k": "v" * 100_000}


def test_labels_of_100_kilobytes(client, prepared):
    digest = client.images.get(prepared).target.digest
    text = r"label key and value length \(100001 bytes\) greater than maximum size \(4096 bytes\), key: k"
    attempts: list[Callable[[], object]] = [
        lambda: client.namespaces.create("labelled", BIG),
        lambda: client.namespaces.label(NAMESPACE, BIG),
        lambda: client.images.label(prepared, BIG),
        lambda: client.images.create("x", client.images.get(prepared).target, labels=BIG),
        lambda: client.content.label(digest, BIG),
        lambda: client.content.write("ref", b"data", labels=BIG),
        lambda: client.snapshots().prepare("labelled", labels=BIG),
        lambda: client.snapshots("native").prepare("labelled", labels=BIG),
        lambda: client.new_container("labelled", prepared, labels=BIG),
    ]
    for attempt in attempts:
        with refuses(InvalidArgumentError, text):
            attempt()
    with contextlib.suppress(NotFoundError):
        client.content.abort("ref")


def test_a_message_larger_than_any_door_takes(client, daemon):
    with pytest.raises(OrlopError, match=r"large|size|bytes|limit"):
        client.namespaces.create("big", {"k": "v" * (20 << 20)})
    client.version()
