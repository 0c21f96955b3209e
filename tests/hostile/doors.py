"""Sending bad messages and frames to a daemon's doors, and what must be true of it afterwards."""

import contextlib
import importlib
import os
import pkgutil
import socket
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import grpc

import orlop.api.services
from orlop.base.errdefs import OrlopError
from orlop.ttrpc.client import Client as Ttrpc
from orlop.ttrpc.errors import TtrpcError
from tests.hostile import generators
from tools.daemons import Orlopd

MEMORY_LIMIT_KB = 300_000
METADATA = {"containerd-namespace": "hostile"}
# They change the host by their nature, for whoever may use root's socket.
NOT_CALLED = {"containerd.services.mounts.v1.Mounts", "containerd.services.transfer.v1.Transfer"}
CANARIES = ("/", "/etc", "/root")


def methods() -> list[Any]:
    """The descriptors of all methods. Any: protobuf gives them no public type."""
    found = []
    for module in pkgutil.walk_packages(orlop.api.services.__path__, f"{orlop.api.services.__name__}."):
        if module.name.endswith("_pb2"):
            services = importlib.import_module(module.name).DESCRIPTOR.services_by_name.values()
            found += [one for service in services if service.full_name not in NOT_CALLED for one in service.methods]
    return found


def requests(method: Any, count: int, start: int = 0) -> list[bytes]:
    """Distinct bad requests for a method."""
    found: dict[bytes, None] = {}
    for seed in range(start, start + 4 * count):
        found.setdefault(generators.message(Random(f"{method.full_name} {seed}"), method.input_type))
        if len(found) == count:
            break
    return list(found)


def call_ttrpc(client: Ttrpc, method: Any, request: bytes) -> None:
    """Call a method; of its answers at most three are awaited, shortly. Errors of the call are fine."""
    service = method.containing_service.full_name
    with contextlib.suppress(TtrpcError, OrlopError, TimeoutError):
        if not method.client_streaming and not method.server_streaming:
            client.call(service, method.name, request, metadata=METADATA, timeout_s=1)
            return
        with client.stream(
            service,
            method.name,
            b"" if method.client_streaming else request,
            client_streaming=method.client_streaming,
            server_streaming=method.server_streaming,
            metadata=METADATA,
            timeout_s=0.3,
        ) as stream:
            if method.client_streaming:
                stream.send(request)
                stream.close_send()
            for _ in range(3):
                if stream.receive() is None:
                    break


def call_grpc(channel: Any, method: Any, request: bytes) -> None:
    """The same over gRPC. Any: a grpc.Channel, whose stubs know generated methods only."""
    name = f"/{method.containing_service.full_name}/{method.name}"
    metadata = list(METADATA.items())
    with contextlib.suppress(grpc.RpcError):
        if method.client_streaming:
            next(channel.stream_stream(name)(iter([request]), metadata=metadata, timeout=1), None)
        elif method.server_streaming:
            next(channel.unary_stream(name)(request, metadata=metadata, timeout=0.2), None)
        else:
            channel.unary_unary(name)(request, metadata=metadata, timeout=1)


def send(address: str, blob: bytes) -> None:
    """Send bytes, say that no more will come, and read until the daemon hangs up or has nothing more to say."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(1)
        peer.connect(address)
        with contextlib.suppress(OSError):
            peer.sendall(blob)
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(1 << 16):
                pass


@contextlib.contextmanager
def unharmed(daemon: Orlopd) -> Iterator[None]:
    """See that the daemon lives, has failed at nothing unforeseen, is small, and has put nothing outside."""
    pid, places = daemon.pid, {place: set(os.listdir(place)) for place in CANARIES}
    log = len(daemon.log)
    yield
    with orlop.Client(str(daemon.address), "default", timeout_s=30) as client:
        client.version()
    assert daemon.process is not None
    assert daemon.process.poll() is None
    assert daemon.pid == pid
    assert {place: set(os.listdir(place)) for place in CANARIES} == places
    said = daemon.log[log:]
    assert "Traceback" not in said, said[-8000:]
    assert "handler failed" not in said, said[-8000:]
    assert peak_kb(pid) < MEMORY_LIMIT_KB


def peak_kb(pid: int | str = "self") -> int:
    """The most memory that a process ever had, in kilobytes."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0])
