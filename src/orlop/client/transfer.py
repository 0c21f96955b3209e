"""The daemon's transfer service, as `client.transfer`: the client opens the streams that a transfer needs and serves
them while the daemon works.

Source: containerd's client/transfer.go and core/transfer/proxy.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import IO, Any, Final

from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from orlop.api.services.streaming.v1 import streaming_pb2 as streaming_api
from orlop.api.services.transfer.v1 import transfer_pb2 as api
from orlop.api.types.transfer import progress_pb2, registry_pb2
from orlop.base.errdefs import InternalError, InvalidArgumentError, OrlopError, UnavailableError, UnimplementedError
from orlop.client.channel import Rpc
from orlop.client.session import Duplex, Session
from orlop.core.leases import unique_id
from orlop.core.streaming.proxy import WIDEST, Sender, is_a, pack, received
from orlop.core.transfer.ends import (
    CredentialHelper,
    End,
    ImageExportStream,
    ImageImportStream,
    ImageStore,
    OCIRegistry,
)
from orlop.core.transfer.progress import Listener
from orlop.core.transfer.proxy import event_of, export_message, import_message, registry_message, store_message
from orlop.core.transfer.threads import Thread

STREAM: Final = Rpc("containerd.services.streaming.v1.Streaming", "Stream", Packed, Packed)
TRANSFER: Final = Rpc("containerd.services.transfer.v1.Transfer", "Transfer", api.TransferRequest, Empty)

READ_BYTES: Final = 256 << 10
SETTLE_S: Final = 10.0
"""For what the daemon has sent before it answered to arrive."""


async def transfer(session: Session, source: End, destination: End, listener: Listener | None) -> None:
    """Move what `source` names to `destination`; see `Client.transfer`."""

    async def whole(looped: Session) -> None:
        async with contextlib.AsyncExitStack() as stack:
            serving = await stack.enter_async_context(_Serving(looped))
            request = api.TransferRequest(
                source=pack(await serving.end(source)),
                destination=pack(await serving.end(destination)),
            )
            if listener is not None:
                request.options.progress_stream = await serving.progress(listener)
            await serving.call(request)

    await session.looped(whole)


class FileSink:
    """A file as the target of an export; writing is done in a thread. Closing does not close the file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    async def write(self, data: bytes) -> None:
        """See `core.transfer.ends.Sink`."""
        await asyncio.to_thread(self._file.write, data)

    async def close(self) -> None:
        """See `core.transfer.ends.Sink`."""


class _ClientStream:
    """See `core.streaming.Stream`, from the client's side."""

    def __init__(self, duplex: Duplex[Packed, Packed]) -> None:
        self._duplex = duplex

    async def send(self, message: Packed) -> None:
        try:
            await self._duplex.send(message)
        except OrlopError as error:
            # Of whatever class: each transport has its own for a stream that the daemon has ended, perhaps well.
            raise UnavailableError(f"stream: {error.text}") from error

    async def receive(self) -> Packed | None:
        return await self._duplex.receive()

    async def close(self) -> None:
        with contextlib.suppress(OrlopError):  # the daemon may have ended it already
            await self._duplex.end()


class _Serving:
    """The streams of one transfer, and the tasks that serve them. All have ended when it is left."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stack = contextlib.AsyncExitStack()
        self._helping: list[asyncio.Task[None]] = []
        self._receiving: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "_Serving":
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for task in self._own():
            task.cancel()
        await asyncio.gather(*self._own(), return_exceptions=True)
        await self._stack.aclose()

    async def end(self, end: End) -> Message:
        """An end as a message, with its streams open."""
        match end:
            case OCIRegistry():
                return await self._registry(end)
            case ImageStore():
                return store_message(end)
            case ImageImportStream():
                stream, name = await self._open("import")
                self._helping.append(asyncio.create_task(_send_file(stream, end.source)))
                return import_message(end, name)
            case ImageExportStream():
                stream, name = await self._open("export")
                self._receiving.append(asyncio.create_task(_receive(stream, end.target.write)))
                return export_message(end, name)
        raise InvalidArgumentError(f"{end!r} is no end of a transfer")

    async def progress(self, listener: Listener) -> str:
        """Open the stream for progress."""
        stream, name = await self._open("progress")
        self._receiving.append(asyncio.create_task(_listen(stream, listener)))
        return name

    async def call(self, request: api.TransferRequest) -> None:
        """Make the call, and return when all that the daemon sent has arrived.

        What failed here, such as reading an archive, is told rather than what the daemon made of it.
        """
        calling = asyncio.create_task(self._call(request))
        try:
            while not calling.done():
                running = {task for task in self._own() if not task.done()}
                await asyncio.wait({calling, *running}, return_when=asyncio.FIRST_COMPLETED)
                self._raise_own()
            await calling
        finally:
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)
        if self._receiving:
            await asyncio.wait(self._receiving, timeout=SETTLE_S)
            self._raise_own()

    async def _call(self, request: api.TransferRequest) -> None:
        await self._session.call(TRANSFER, request, endless=True)

    def _own(self) -> list[asyncio.Task[None]]:
        return [*self._helping, *self._receiving]

    def _raise_own(self) -> None:
        for task in self._own():
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _registry(self, end: OCIRegistry) -> Message:
        auth = logs = ""
        if end.credentials is not None:
            stream, auth = await self._open("creds")
            self._helping.append(asyncio.create_task(_answer(stream, end.credentials)))
        if end.http_debug and end.logs is not None:
            stream, logs = await self._open("logs")
            self._receiving.append(asyncio.create_task(_receive(stream, end.logs.write)))
        return registry_message(end, auth_stream=auth, logs_stream=logs)

    async def _open(self, kind: str) -> tuple[_ClientStream, str]:
        name = f"{kind}-{unique_id()}"
        duplex = await self._session.duplex(STREAM)
        self._stack.push_async_callback(duplex.close)
        try:
            await duplex.send(pack(streaming_api.StreamInit(id=name)))
            answer = await duplex.receive()
        except InternalError as error:
            # A daemon without streams ends the call at once. grpcio then forgets why if a message was being written, so
            # ask again in a way that cannot be overtaken.
            try:
                await self._session.call(TRANSFER, api.TransferRequest())
            except UnimplementedError:
                raise
            except OrlopError:
                raise error from None
            raise
        if answer is None:
            raise UnavailableError(f"stream {name}: the daemon ended it")
        return _ClientStream(duplex), name


async def _send_file(stream: _ClientStream, source: IO[bytes]) -> None:
    sender = Sender(stream)
    async with Thread("orlop-send") as thread:
        while data := await thread.run(source.read, READ_BYTES):
            try:
                await sender.write(data)
            except OrlopError:
                return  # the daemon wants no more of it; what became of it, the call tells
    await sender.close()


async def _receive(stream: _ClientStream, write: Callable[[bytes], Coroutine[Any, Any, None]]) -> None:
    # One window for all: where grpcio is to send on a stream that the daemon is just ending, it drops what came before.
    async with contextlib.aclosing(received(stream, window=WIDEST)) as chunks:
        async for data in chunks:
            await write(data)


async def _listen(stream: _ClientStream, listener: Listener) -> None:
    with contextlib.suppress(OrlopError):  # progress that cannot be told is no failure
        async for message in _messages(stream):
            if is_a(message, progress_pb2.Progress):
                listener(event_of(progress_pb2.Progress.FromString(message.value)))


async def _answer(stream: _ClientStream, helper: CredentialHelper) -> None:
    with contextlib.suppress(UnavailableError):  # the transfer is over
        async for message in _messages(stream):
            if not is_a(message, registry_pb2.AuthRequest):
                continue
            asked = registry_pb2.AuthRequest.FromString(message.value)
            secret = await helper.secret(asked.reference, asked.host)
            kind = int(secret.kind)
            response = registry_pb2.AuthResponse(
                authType=kind,  # type: ignore[arg-type]  # protobuf enums are ints
                secret=secret.secret,
                username=secret.username,
            )
            await stream.send(pack(response))


async def _messages(stream: _ClientStream) -> AsyncIterator[Packed]:
    while (message := await stream.receive()) is not None:
        yield message
