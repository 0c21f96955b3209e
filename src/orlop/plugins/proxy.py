"""Plug-ins behind another program's gRPC socket: `[proxy_plugins]` of the configuration.

    [proxy_plugins.stargz]
    type = "snapshot"                                   or "diff", or "sandbox"
    address = "/run/containerd-stargz-grpc/containerd-stargz-grpc.sock"

They connect when they are first used, so the other program may be started later, and anew. grpcio is imported by the
first one that is used.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from orlop.api.services.diff.v1 import diff_pb2
from orlop.api.services.sandbox.v1 import sandbox_pb2
from orlop.api.services.snapshots.v1 import snapshots_pb2
from orlop.base.errdefs import InvalidArgumentError, OrlopError, UnimplementedError, from_status
from orlop.base.platforms import default_string
from orlop.base.rpc import LEASE_HEADER, NAMESPACE_HEADER
from orlop.core.diff.proxy import ProxyDiffer
from orlop.core.kinds import DIFFER, SANDBOX_CONTROLLER, SERVICE, SNAPSHOTTER
from orlop.core.plugin import Context, Kind, Registration
from orlop.core.sandboxes.proxy import ProxyController
from orlop.core.snapshots.proxy import ProxySnapshotter

MESSAGE_LIMIT: Final = 16 << 20
# What the other side is told: numbers say nothing of namespaces, and a service may want one.
NAMESPACE: Final = "default"
# Listing is for the sweep at start; who does not answer by then is swept at a later start.
LIST_TIMEOUT_S: Final = 2.0


class Settings(Protocol):
    """What the configuration says of one proxy plug-in; see `ProxyPlugin` of the server's configuration."""

    @property
    def type(self) -> str: ...

    @property
    def address(self) -> str: ...

    @property
    def remote(self) -> str: ...

    @property
    def platform(self) -> str: ...

    @property
    def exports(self) -> Mapping[str, str]: ...

    @property
    def capabilities(self) -> Sequence[str]: ...


class Peer:
    """Blocking calls of one service on one socket; may be used by several threads."""

    def __init__(self, service: Any, address: str) -> None:
        # Any: protobuf's service descriptor, whose type differs between its implementations.
        self._service = service
        self._address = address
        self._open: Any = None

    def unary(self, name: str, request: Message, *, namespace: str = NAMESPACE, lease: str = "") -> Any:
        """Ask and wait. Raises the errors of `base.errdefs`; UnavailableError if nobody answers at the address."""
        import grpc

        path, decode = self._method(name)
        call = self._channel().unary_unary(path)
        try:
            return decode(call(request.SerializeToString(), metadata=_headers(namespace, lease)))
        except grpc.RpcError as error:
            raise self._error(error, name) from None

    def stream(self, name: str, request: Message) -> Iterator[Any]:
        """Ask and yield the answers."""
        import grpc

        path, decode = self._method(name)
        call = self._channel().unary_stream(path)
        try:
            for answer in call(request.SerializeToString(), metadata=_headers(NAMESPACE, ""), timeout=LIST_TIMEOUT_S):
                yield decode(answer)
        except grpc.RpcError as error:
            raise self._error(error, name) from None

    def begin(self, name: str, request: Message, *, namespace: str) -> Any:
        """Ask and do not wait: grpcio's call, for `finish`."""
        path, _decode = self._method(name)
        call = self._channel().unary_unary(path)
        return call.future(request.SerializeToString(), metadata=_headers(namespace, ""))

    def finish(self, name: str, call: Any) -> Any:
        """The answer to a call that is done. Errors as `unary`."""
        import grpc

        try:
            return self._method(name)[1](call.result())
        except grpc.RpcError as error:
            raise self._error(error, name) from None

    def close(self) -> None:
        """Hang up."""
        if self._open is not None:
            self._open.close()

    def _channel(self) -> Any:
        import grpc

        if self._open is None:
            path = self._address.removeprefix("unix://")
            self._open = grpc.insecure_channel(
                f"unix:{path}",
                options=[
                    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
                    ("grpc.max_send_message_length", MESSAGE_LIMIT),
                    # grpc-go refuses the percent-encoded socket path that grpcio would send as :authority.
                    ("grpc.default_authority", "localhost"),
                    ("grpc.enable_http_proxy", 0),
                    # So that one that was started anew is found at once.
                    ("grpc.initial_reconnect_backoff_ms", 100),
                    ("grpc.max_reconnect_backoff_ms", 1000),
                ],
            )
        return self._open

    def _method(self, name: str) -> tuple[str, Callable[[bytes], Any]]:
        method = self._service.methods_by_name[name]
        return f"/{self._service.full_name}/{name}", GetMessageClass(method.output_type).FromString

    def _error(self, error: Any, name: str) -> OrlopError:
        code, details = error.code(), error.details() or ""
        if code.name == "UNAVAILABLE":
            details = f"proxy plug-in at {self._address}: {name}: {details}"
        return from_status(int(code.value[0]), details)


class AsyncPeer:
    """The same for the event loop: each call waits in a thread of its own."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def unary(self, name: str, request: Message, *, namespace: str, lease: str = "") -> Any:
        return await asyncio.to_thread(self._peer.unary, name, request, namespace=namespace, lease=lease)

    async def endless(self, name: str, request: Message, *, namespace: str) -> Any:
        """The same for what may take for ever: no thread waits, and the call ends when its caller goes away."""
        call = await asyncio.to_thread(self._peer.begin, name, request, namespace=namespace)
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        call.add_done_callback(lambda _call: loop.call_soon_threadsafe(done.set))
        try:
            await done.wait()
        except asyncio.CancelledError:
            call.cancel()
            raise
        return self._peer.finish(name, call)


def registration(name: str, settings: Settings, root: str) -> Registration:
    """The plug-in that the configuration asks for; one of a type that cannot be is shown as failed, with the reason.

    Args:
        root: the daemon's root directory, which tells our names from those of others on the same socket.
    """
    kinds: dict[str, tuple[Kind[Any], Callable[[Context], Any]]] = {
        "snapshot": (SNAPSHOTTER, lambda context: _snapshotter(context, name, settings, root)),
        "diff": (DIFFER, lambda context: _differ(context, settings)),
        "sandbox": (SANDBOX_CONTROLLER, lambda context: _sandboxer(context, name, settings)),
        "content": (SERVICE, lambda _context: _refuse(name, settings)),
    }
    if settings.type not in kinds:
        raise InvalidArgumentError(f'proxy_plugins: {name}: type "{settings.type}": must be one of {", ".join(kinds)}')
    kind, init = kinds[settings.type]
    return Registration(kind=kind, id=name, init=init)


def _snapshotter(context: Context, name: str, settings: Settings, root: str) -> ProxySnapshotter:
    peer = _peer(context, settings, snapshots_pb2.DESCRIPTOR.services_by_name["Snapshots"])
    mine = hashlib.sha256(root.encode()).hexdigest()[:12]
    return ProxySnapshotter(
        peer,
        name=settings.remote or name,
        prefix=f"orlop-{mine}",
        capabilities=tuple(settings.capabilities),
        exports=settings.exports,
    )


def _differ(context: Context, settings: Settings) -> ProxyDiffer:
    return ProxyDiffer(AsyncPeer(_peer(context, settings, diff_pb2.DESCRIPTOR.services_by_name["Diff"])))


def _sandboxer(context: Context, name: str, settings: Settings) -> ProxyController:
    peer = _peer(context, settings, sandbox_pb2.DESCRIPTOR.services_by_name["Controller"])
    return ProxyController(AsyncPeer(peer), name=settings.remote or name)


def _refuse(name: str, settings: Settings) -> Any:
    raise UnimplementedError(f"proxy plug-in {name}: type {settings.type}")


def _peer(context: Context, settings: Settings, service: Any) -> Peer:
    if not settings.address:
        raise InvalidArgumentError("address is required")
    context.exports.update({**settings.exports, "address": settings.address})
    context.capabilities += settings.capabilities
    context.platforms.append(settings.platform or default_string())
    peer = Peer(service, settings.address)
    context.on_close(peer.close)
    return peer


def _headers(namespace: str, lease: str) -> tuple[tuple[str, str], ...]:
    headers = ((NAMESPACE_HEADER, namespace),)
    return (*headers, (LEASE_HEADER, lease)) if lease else headers
