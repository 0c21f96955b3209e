"""Finding the daemon: which socket, which protocol.

Our daemon listens for gRPC on `<address>` and for ttrpc on `<address>.ttrpc`, with the same services. containerd has
both sockets too, but serves only Events/Forward on the second. So a client asks the ttrpc socket for the version: an
answer means ttrpc, "unimplemented" means gRPC.
"""

import os
from typing import Final, Literal

from orlop.base.errdefs import InvalidArgumentError, OrlopError, UnavailableError, UnimplementedError
from orlop.client.channel import Channel

DEFAULT_ADDRESS: Final = "/run/orlop/orlop.sock"
DEFAULT_NAMESPACE: Final = "default"
Transport = Literal["ttrpc", "grpc"]

_PROBE: Final = ("containerd.services.version.v1.Version", "Version")
# Seconds that a daemon which accepts may take to say which services it has.
_PROBE_TIMEOUT_S: Final = 10.0


def default_address() -> str:
    """`CONTAINERD_ADDRESS`, else our daemon's socket."""
    return os.environ.get("CONTAINERD_ADDRESS") or DEFAULT_ADDRESS


def default_namespace() -> str:
    """`CONTAINERD_NAMESPACE`, else `default`."""
    return os.environ.get("CONTAINERD_NAMESPACE") or DEFAULT_NAMESPACE


def socket_path(address: str) -> str:
    """The path in an address, with or without `unix://`. Raises InvalidArgumentError for another scheme."""
    path = address.removeprefix("unix://").removeprefix("unix:")
    if "://" in path or not path:
        raise InvalidArgumentError(f"address {address!r}: a unix socket's path is expected")
    return path


async def open_channel(
    address: str, *, transport: Transport | None = None, timeout_s: float | None = None, asynchronous: bool = False
) -> Channel:
    """Connect to the daemon at `address`.

    Args:
        transport: None finds out.
        timeout_s: in which the connection must stand; None waits ten seconds.

    Raises:
        UnavailableError: nobody answers there; the text says why and the hint what to do.
    """
    path = socket_path(address)
    if transport == "grpc":
        return await _grpc(path, timeout_s, asynchronous)
    ttrpc_path = path if path.endswith(".ttrpc") else f"{path}.ttrpc"
    if transport == "ttrpc":
        return await _ttrpc(ttrpc_path, timeout_s, asynchronous)
    if path == ttrpc_path or _is_there(ttrpc_path):
        try:
            channel = await _ttrpc(ttrpc_path, timeout_s, asynchronous)
        except UnavailableError:
            if path == ttrpc_path:
                raise
        else:
            if await _serves(channel):
                return channel
    return await _grpc(path, timeout_s, asynchronous)


async def _serves(channel: Channel) -> bool:
    service, method = _PROBE
    try:
        await channel.unary(service, method, b"", metadata={}, timeout_s=_PROBE_TIMEOUT_S)
    except UnimplementedError:
        await channel.close()
        return False
    except OrlopError:
        await channel.close()
        raise
    return True


async def _ttrpc(path: str, timeout_s: float | None, asynchronous: bool) -> Channel:
    from orlop.client.ttrpc_channel import AsyncTtrpcChannel, BlockingTtrpcChannel

    try:
        if asynchronous:
            return await AsyncTtrpcChannel.connect(path, timeout_s or 10.0)
        return BlockingTtrpcChannel.connect(path, timeout_s or 10.0)
    except OrlopError as error:
        error.hint = error.hint or _hint(path)
        raise


async def _grpc(path: str, timeout_s: float | None, asynchronous: bool) -> Channel:
    _knock(path)  # says at once what grpcio would hide behind a time-out, and before grpcio is imported
    from orlop.client.grpc_channel import AsyncGrpcChannel, BlockingGrpcChannel

    if asynchronous:
        channel = AsyncGrpcChannel(path)
        await channel.ready(timeout_s or 10.0)
        return channel
    blocking = BlockingGrpcChannel(path)
    blocking.ready(timeout_s or 10.0)
    return blocking


def _knock(path: str) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UnavailableError(f"connect to {path}: {reason}", hint=_hint(path)) from error


def _is_there(path: str) -> bool:
    return os.path.exists(path)


def _hint(path: str) -> str:
    if not _is_there(path):
        return "is the daemon running? start orlopd, or give its socket with --address or CONTAINERD_ADDRESS"
    return "may this user use the socket, and does the daemon still run? see its log"
