"""The gRPC door on TCP, with TLS: for clients on other machines. Off unless an address is configured.

Who can call here is root on this machine. Without `tls_ca` every client that can connect may call; with it only those
whose certificate that authority has signed, and with `tls_common_name` only the one of that name.

Source: the server plug-in grpc-tcp of containerd.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterable
from typing import Any, Final, Protocol, Self

from orlop.base.errdefs import InvalidArgumentError, UnavailableError
from orlop.base.rpc import Service
from orlop.http2.limits import Limits
from orlop.server.doors.lean import STOP_GRACE_S, Handlers

log: Final = logging.getLogger(__name__)

BACKLOG: Final = 512


class Settings(Protocol):
    """What the configuration says; see `GrpcTcp` there."""

    address: str
    tls_ca: str
    tls_cert: str
    tls_key: str
    tls_common_name: str
    max_recv_message_size: int
    max_send_message_size: int


class TcpDoor:
    """An async context manager: entering binds and serves, leaving stops with a short grace for running calls.

    Attributes:
        address: `host:port` that it listens at, with the port that a port of 0 became.

    Raises on entering:
        InvalidArgumentError: the address or a file of the TLS settings makes no sense.
        UnavailableError: the address cannot be bound.
    """

    def __init__(self, settings: Settings, services: Iterable[Service]) -> None:
        self._settings = settings
        self.address = settings.address
        limits = Limits(max_receive=settings.max_recv_message_size, max_send=settings.max_send_message_size)
        self._server = Handlers(settings.max_send_message_size).serving(services, limits, admit=self._admit)

    async def __aenter__(self) -> Self:
        tls = _context(self._settings)
        if tls is None:
            log.warning("gRPC on TCP without TLS: whoever can connect is root here", extra={"address": self.address})
        host, port = _parse(self.address)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise UnavailableError(f'gRPC on TCP: cannot listen at "{self.address}": {error.strerror}') from error
        bound = listener.getsockname()
        self.address = f"{bound[0]}:{bound[1]}"
        await self._server.serve(listener, tls=tls)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._server.close(STOP_GRACE_S)

    def _admit(self, transport: asyncio.Transport) -> bool:
        wanted = self._settings.tls_common_name
        if not wanted:
            return True
        certificate = transport.get_extra_info("peercert") or {}
        name = _common_name(certificate)
        if name != wanted:
            log.warning("gRPC on TCP: certificate of another name refused", extra={"common_name": name})
        return name == wanted


def _parse(address: str) -> tuple[str, int]:
    host, separator, port = address.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidArgumentError(f'gRPC on TCP: address "{address}": must be host:port')
    return host.strip("[]"), int(port)


def _context(settings: Settings) -> ssl.SSLContext | None:
    """What TLS is done with, or None where nothing is said of it."""
    if not settings.tls_cert and not settings.tls_key:
        if settings.tls_ca or settings.tls_common_name:
            raise InvalidArgumentError("gRPC on TCP: tls_ca and tls_common_name need tls_cert and tls_key")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key or None)
        if settings.tls_ca:
            context.load_verify_locations(settings.tls_ca)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(filter(None, (settings.tls_cert, settings.tls_key, settings.tls_ca)))
        raise InvalidArgumentError(f"gRPC on TCP: {files}: {error}") from error
    if settings.tls_ca:
        context.verify_mode = ssl.CERT_REQUIRED
    elif settings.tls_common_name:
        raise InvalidArgumentError("gRPC on TCP: tls_common_name needs tls_ca")
    return context


def _common_name(certificate: Any) -> str:
    # Any: the nested tuples of ssl.SSLSocket.getpeercert()
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return ""
