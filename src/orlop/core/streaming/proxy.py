"""Bytes over a stream of messages, with a window: containerd's protocol.

    receiver → sender    WindowUpdate   so many bytes more may come
    sender → receiver    Data           some of them
    sender closes        the end

Neither side can tell the other of an error: a sender that fails closes, and the receiver sees a short archive.

Source: containerd's core/transfer/streaming.
"""

import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Final

from google.protobuf.message import DecodeError, Message

from orlop.api.types.transfer import streaming_pb2 as api
from orlop.base.errdefs import UnavailableError
from orlop.core.streaming import Packed, Stream

log: Final = logging.getLogger(__name__)

WINDOW: Final = 512 << 10
"""Bytes that may be on their way to the daemon; containerd's own receivers give 64 KiB."""

WIDEST: Final = (1 << 31) - 1
"""The largest window, as much as none: then the transport's own flow control counts."""

PIECE: Final = 128 << 10
"""The most in one message."""

GARBLED: Final = "proto: cannot parse invalid wire-format data"
"""What Go says of a packed message that is none."""


def pack(message: Message) -> Packed:
    """A message with its name, as Go's typeurl writes it: without a host before it."""
    return Packed(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def is_a(packed: Packed, kind: type[Message]) -> bool:
    """Whether a packed message is of that kind."""
    name: str = kind.DESCRIPTOR.full_name
    return packed.type_url.rpartition("/")[2] == name


async def received(stream: Stream, *, window: int = WINDOW) -> AsyncGenerator[bytes, None]:
    """Yield what the other end sends, until it ends the stream; closes the stream when left.

    Args:
        window: bytes that may be on their way; opened again when half of them have come.
    """
    left = 0
    try:
        while True:
            if left <= window // 2:
                with contextlib.suppress(UnavailableError):  # ended; what was sent before is still to come
                    await stream.send(pack(api.WindowUpdate(update=window - left)))
                left = window
            message = await stream.receive()
            if message is None:
                return
            data = _data(message)
            if data:
                left -= len(data)
                yield data
    finally:
        await stream.close()


def _data(message: Packed) -> bytes:
    if not is_a(message, api.Data):
        log.warning("stream: ignoring message of type %s", message.type_url)
        return b""
    return api.Data.FromString(message.value).data


class Sender:
    """The sending side of a byte stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._window = 0

    async def write(self, data: bytes) -> None:
        """Send bytes when the receiver has room for them. Raises UnavailableError if it has gone."""
        view = memoryview(data)
        while view:
            while self._window <= 0:
                await self._widen()
            piece = view[: min(PIECE, self._window)]
            await self._stream.send(pack(api.Data(data=bytes(piece))))
            self._window -= len(piece)
            view = view[len(piece) :]

    async def close(self) -> None:
        """Say that this is the end."""
        await self._stream.close()

    async def _widen(self) -> None:
        message = await self._stream.receive()
        if message is None:
            raise UnavailableError("stream: the receiver has gone")
        if not is_a(message, api.WindowUpdate):
            log.warning("stream: ignoring message of type %s", message.type_url)
            return
        try:
            update = api.WindowUpdate.FromString(message.value).update
        except DecodeError as error:
            raise UnavailableError(f"stream: {error}") from error
        self._window = min(self._window + max(update, 0), WIDEST)
