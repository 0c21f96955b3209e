"""The Transfer service: ends and streams from the wire, handed to the transferrers.

Source: containerd's plugins/services/transfer/service.go.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from typing import IO, Any, Final, cast

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from orlop.api.services.transfer.v1 import transfer_pb2 as api
from orlop.api.types.transfer import imagestore_pb2, importexport_pb2, registry_pb2
from orlop.base import namespaces
from orlop.base.errdefs import (
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    UnknownError,
    from_status,
)
from orlop.base.rpc import Call, Service, bind
from orlop.core.kinds import GRPC, STREAMING, TRANSFER
from orlop.core.plugin import Context, Registration
from orlop.core.streaming import Manager, Packed, Stream
from orlop.core.streaming.proxy import GARBLED, Sender, is_a, pack, received
from orlop.core.transfer.ends import (
    AuthKind,
    ImageExportStream,
    ImageImportStream,
    OCIRegistry,
    Secret,
    Transferrer,
)
from orlop.core.transfer.progress import MOVING, Event
from orlop.core.transfer.proxy import debug_of, event_message, platforms, store_end
from orlop.core.transfer.threads import LoopFile

log: Final = logging.getLogger(__name__)

DRAIN_S: Final = 10.0
"""For the client to take the last events; containerd's value."""


class Transfer:
    """containerd.services.transfer.v1.Transfer."""

    def __init__(self, manager: Manager, transferrers: Sequence[Transferrer]) -> None:
        self._manager = manager
        self._transferrers = transferrers

    async def transfer(self, call: Call, request: api.TransferRequest) -> Empty:
        namespace = namespaces.validate(call.namespace)
        async with contextlib.AsyncExitStack() as stack:
            listener = None
            if request.options.progress_stream:
                stream = self._manager.get(namespace, request.options.progress_stream)
                listener = (await stack.enter_async_context(_Told(stream))).tell
            ends = _Ends(self._manager, namespace, stack)
            source, destination = ends.end(request.source), ends.end(request.destination)
            for transferrer in self._transferrers:
                try:
                    await transferrer.transfer(namespace, source, destination, lease=call.lease, listener=listener)
                except UnimplementedError as error:
                    log.debug("transfer is not implemented", extra={"error": str(error)})
                else:
                    return Empty()
        raise from_status(
            UnimplementedError.code,
            f"method Transfer not implemented for {request.source.type_url} to {request.destination.type_url}",
        )


class _Ends:
    """Ends out of messages; the streams that they name are closed when the transfer is over."""

    def __init__(self, manager: Manager, namespace: str, stack: contextlib.AsyncExitStack) -> None:
        self._manager = manager
        self._namespace = namespace
        self._stack = stack

    def end(self, packed: Packed) -> object:
        """An end of a transfer, or a message that stands for itself because nobody here knows it."""
        if is_a(packed, imagestore_pb2.ImageStore):
            return store_end(_read(packed, imagestore_pb2.ImageStore))
        if is_a(packed, registry_pb2.OCIRegistry):
            return self._registry(_read(packed, registry_pb2.OCIRegistry))
        if is_a(packed, importexport_pb2.ImageImportStream):
            return self._import(_read(packed, importexport_pb2.ImageImportStream))
        if is_a(packed, importexport_pb2.ImageExportStream):
            return self._export(_read(packed, importexport_pb2.ImageExportStream))
        if _is_known(packed):
            return packed.type_url
        raise from_status(UnknownError.code, f"type with url {packed.type_url}: not found")

    def _stream(self, name: str) -> Stream:
        stream = self._manager.get(self._namespace, name)
        self._stack.push_async_callback(stream.close)
        return stream

    def _registry(self, message: registry_pb2.OCIRegistry) -> OCIRegistry:
        resolver = message.resolver
        credentials = _Asked(self._stream(resolver.auth_stream)) if resolver.auth_stream else None
        return OCIRegistry(
            reference=message.reference,
            headers=dict(resolver.headers),
            host_dir=resolver.host_dir,
            default_scheme=resolver.default_scheme,
            credentials=credentials,
            http_debug=debug_of(resolver),
            logs=Sender(self._stream(resolver.logs_stream)) if resolver.logs_stream else None,
        )

    def _import(self, message: importexport_pb2.ImageImportStream) -> ImageImportStream:
        file = LoopFile(received(self._stream(message.stream)))
        self._stack.push_async_callback(file.end)
        return ImageImportStream(
            source=cast("IO[bytes]", file),  # io's raw files are no IO for the type checker
            media_type=message.media_type,
            force_compress=message.force_compress,
        )

    def _export(self, message: importexport_pb2.ImageExportStream) -> ImageExportStream:
        return ImageExportStream(
            target=Sender(self._stream(message.stream)),
            media_type=message.media_type,
            platforms=platforms(message.platforms),
            all_platforms=message.all_platforms,
            skip_compatibility_manifest=message.skip_compatibility_manifest,
            skip_non_distributable=message.skip_non_distributable,
        )


class _Asked:
    """See `core.transfer.ends.CredentialHelper`: the client, over its stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def secret(self, reference: str, host: str) -> Secret:
        try:
            await self._stream.send(pack(registry_pb2.AuthRequest(host=host, reference=reference)))
            answer = await self._stream.receive()
        except UnavailableError:
            answer = None
        if answer is None or not is_a(answer, registry_pb2.AuthResponse):
            raise UnauthenticatedError(f"registry {host}: the client has ended the stream for credentials")
        response = _read(answer, registry_pb2.AuthResponse)
        kind = AuthKind(response.authType) if response.authType in set(AuthKind) else AuthKind.NONE
        return Secret(kind=kind, username=response.username, secret=response.secret)


class _Told:
    """Sends events in order; of a thing whose bytes move only the newest waits. A context manager around a transfer."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._events: deque[Event | str] = deque()  # a text stands for what is in `_moving` under that name
        self._moving: dict[str, Event] = {}
        self._wake = asyncio.Event()
        self._ending = False
        self._task: asyncio.Task[None] | None = None

    def tell(self, event: Event) -> None:
        """Have an event sent."""
        if event.event in MOVING:
            if event.name not in self._moving:
                self._events.append(event.name)
            self._moving[event.name] = event
        else:
            self._events.append(event)
        self._wake.set()

    async def __aenter__(self) -> "_Told":
        self._task = asyncio.create_task(self._send(), name="transfer progress")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._task is not None
        self._ending = True
        self._wake.set()
        await asyncio.wait({self._task}, timeout=DRAIN_S)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._stream.close()

    async def _send(self) -> None:
        with contextlib.suppress(UnavailableError):  # nobody listens any more
            while True:
                while self._events:
                    event = self._events.popleft()
                    if isinstance(event, str):
                        event = self._moving.pop(event)
                    await self._stream.send(pack(event_message(event)))
                if self._ending:
                    return
                self._wake.clear()
                await self._wake.wait()


def _is_known(packed: Packed) -> bool:
    """Whether it is a message of the API, though none that can be moved from or to."""
    try:
        api.DESCRIPTOR.pool.FindMessageTypeByName(packed.type_url.rpartition("/")[2])
    except KeyError:
        return False
    return True


def _read(packed: Packed, kind: type[Any]) -> Any:
    # Any: one function for several classes of messages.
    try:
        return kind.FromString(packed.value)
    except DecodeError:
        raise from_status(UnknownError.code, GARBLED) from None


def _init(context: Context) -> Service:
    transferrers = list(context.all(TRANSFER).values())
    service = Transfer(context.get(STREAMING), transferrers)
    return bind(api.DESCRIPTOR.services_by_name["Transfer"], service)


REGISTRATION: Final = Registration(kind=GRPC, id="transfer", requires=(STREAMING, TRANSFER), init=_init)
