"""Every method of every service of the contract is called through ttrpc and through both gRPC doors.

What answers UNIMPLEMENTED as a method is exactly what the README's list of gaps says.
"""

import importlib
import pkgutil
import re
from pathlib import Path

import grpc
import pytest

import orlop.api.services
from orlop import ttrpc
from orlop.ttrpc.client import Client

README = Path(__file__).parents[2] / "README.md"
UNIMPLEMENTED = 12
# Mounts.Activate answers so, as containerd's does, when it is asked for nothing that needs it; then there is no word of
# a method.
NOTHING_TO_DO = "not implemented"
# Shims forward over ttrpc only, in containerd too.
TTRPC_ONLY = "containerd.services.events.ttrpc.v1.Events"
METADATA = {"containerd-namespace": "every-method"}
TIMEOUT_S = 20


def services():
    for module in pkgutil.walk_packages(orlop.api.services.__path__, f"{orlop.api.services.__name__}."):
        if module.name.endswith("_pb2"):
            yield from importlib.import_module(module.name).DESCRIPTOR.services_by_name.values()


METHODS = [
    (f"/{service.full_name}/{method.name}", method.client_streaming, method.server_streaming)
    for service in services()
    for method in service.methods
]


def gaps():
    """The methods in the README's section on gaps: lines of a table, service and method names."""
    section = README.read_text().split("\n## Gaps\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `([\w.]+)` \| (.+?) \|", section, re.MULTILINE)
    return {f"/{service}/{method}" for service, names in rows for method in re.findall(r"`(\w+)`", names)}


@pytest.fixture(scope="module")
def unimplemented_over_ttrpc(orlopd):
    found = set()
    with Client.connect(f"{orlopd.address}.ttrpc", timeout_s=TIMEOUT_S) as client:
        for name, client_streaming, server_streaming in METHODS:
            if _is_absent(*_answer_over_ttrpc(client, name, client_streaming, server_streaming)):
                found.add(name)
    return found


def _is_absent(code, text):
    return code == UNIMPLEMENTED and text != NOTHING_TO_DO


def _answer_over_ttrpc(client, name, client_streaming, server_streaming):
    service, method = name[1:].split("/")
    try:
        if not client_streaming and not server_streaming:
            client.call(service, method, b"", metadata=METADATA, timeout_s=TIMEOUT_S)
            return 0, ""
        with client.stream(
            service,
            method,
            client_streaming=client_streaming,
            server_streaming=server_streaming,
            metadata=METADATA,
            timeout_s=1 if name.endswith("/Subscribe") else TIMEOUT_S,
        ) as stream:
            if client_streaming:
                stream.close_send()
            while stream.receive() is not None:
                pass
        return 0, ""
    except ttrpc.TtrpcError as error:
        return error.code, error.message


@pytest.fixture(scope="module", params=["lean_orlopd", "grpcio_orlopd"])
def unimplemented_over_grpc(request):
    daemon = request.getfixturevalue(request.param)
    found = set()
    with grpc.insecure_channel(f"unix:{daemon.address}") as channel:
        for name, client_streaming, server_streaming in METHODS:
            if name.startswith(f"/{TTRPC_ONLY}/"):
                continue
            if _is_absent(*_answer_over_grpc(channel, name, client_streaming, server_streaming)):
                found.add(name)
    return found


def _answer_over_grpc(channel, name, client_streaming, server_streaming):
    kind = f"{'stream' if client_streaming else 'unary'}_{'stream' if server_streaming else 'unary'}"
    call = getattr(channel, kind)(name, request_serializer=None, response_deserializer=None)
    timeout = 1 if name.endswith("/Subscribe") else TIMEOUT_S
    try:
        answer = call(iter(()) if client_streaming else b"", metadata=list(METADATA.items()), timeout=timeout)
        if server_streaming:
            for _ in answer:
                pass
        return 0, ""
    except grpc.RpcError as error:
        return error.code().value[0], error.details()


@pytest.mark.root
def test_all_doors_serve_the_same(grpcio, unimplemented_over_ttrpc, unimplemented_over_grpc):
    assert unimplemented_over_ttrpc == unimplemented_over_grpc


@pytest.mark.root
def test_what_is_not_there_is_what_the_readme_says(unimplemented_over_ttrpc):
    assert unimplemented_over_ttrpc == gaps()
