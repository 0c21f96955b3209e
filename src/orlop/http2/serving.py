"""gRPC calls on one HTTP/2 connection: requests in, handlers run, answers out."""

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from orlop.http2 import eager, frames, rpc
from orlop.http2.connection import Connection, Stream
from orlop.http2.inbound import Inbound
from orlop.http2.rpc import PREFIX, PREFIX_SIZE, Refusal, Request, RpcError, Status

if TYPE_CHECKING:
    from orlop.http2.server import Server

log: Final = logging.getLogger("orlop.http2")

# A generator that never waits must let others run now and then.
_MESSAGES_PER_TURN: Final = 32
# Frames that ask for nothing, for each call: see `Limits`.
_CONTROL_PER_CALL: Final = 4
# Requests that repeat are read once, for as long as the connection's header table stands still.
_REMEMBERED: Final = 256
_REMEMBERED_BLOCK: Final = 256

_DEADLINE: Final = Status(rpc.DEADLINE_EXCEEDED, "context deadline exceeded")
_SHUTTING_DOWN: Final = Status(rpc.UNAVAILABLE, "server is shutting down")
_NO_MESSAGE: Final = Status(rpc.INTERNAL, "the request has no message")
_TWO_MESSAGES: Final = Status(rpc.INTERNAL, "the request has more than one message")
_CUT_SHORT: Final = Status(rpc.UNKNOWN, "unexpected EOF")
_COMPRESSED: Final = Status(rpc.INTERNAL, "grpc: compressed flag set with identity or empty encoding")
_CANCELLED: Final = Status(rpc.CANCELLED, "context canceled")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, from SO_PEERCRED (as of connect(2)); all None where the socket cannot say."""

    uid: int | None = None
    gid: int | None = None
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """One method: how it streams, who answers, and its name for people.

    `handler(context, payload)`, where `context` is what the server's `make_context` has made:

    - neither side streams: `payload` is bytes; returns bytes, or an awaitable of bytes. Bytes returned at once are
      answered without a task.
    - otherwise an async generator of bytes (or what returns an async iterator). `payload` is bytes, or an async
      iterator of bytes where the client streams; it ends when the client has closed its side. Where only the client
      streams, exactly one message must be produced.

    A handler is cancelled when the deadline has passed, the client gave up or the connection is gone.
    """

    client_streaming: bool
    server_streaming: bool
    handler: Callable[[Any, Any], Any]  # Any: bytes or an iterator in; bytes, awaitable or iterator out
    name: str = ""


class Call(Stream):
    """A stream that carries a call.

    Attributes:
        inbound: what the client streams, for its handler; None where it sends one message.
        message: that one message, once it is whole.
        partial: bytes of a message that is not whole.
        compressed: messages may be.
    """

    __slots__ = (
        "compressed",
        "connection",
        "context",
        "ended",
        "head_sent",
        "inbound",
        "message",
        "method",
        "number",
        "partial",
        "task",
        "timer",
    )

    def __init__(
        self, connection: "GrpcConnection", stream: int, method: Method, context: Any, *, compressed: bool
    ) -> None:
        super().__init__(stream, connection.sender.stream_window, connection.limits.stream_window)
        self.connection = connection
        self.number = stream.to_bytes(4, "big")
        self.method = method
        self.context = context
        self.compressed = compressed
        self.inbound: Inbound | None = None
        self.message: bytes | None = None
        self.partial: bytearray | None = None
        self.ended = False
        self.head_sent = False
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None

    def finished(self) -> None:
        self.connection.outlet_finished(self)


class GrpcConnection(Connection):
    """Serves one peer until either side closes.

    Attributes:
        running: handlers that have a task, those of ended calls included.
        held: bytes of received messages, whole or not, that no handler has taken yet.
    """

    def __init__(self, server: "Server") -> None:
        super().__init__(server.limits, server.room)
        self._server = server
        self.peer = Peer()
        self.running = 0
        self.held = 0
        self._requests: dict[bytes, Request] = {}
        self._generation = 0

    # ---- life

    def opened(self) -> bool:
        assert self.transport is not None
        self.peer = credentials(self.transport.get_extra_info("socket"))
        return self._server.connection_opened(self)

    def closed(self) -> None:
        self._server.connection_closed(self)

    def cut(self) -> None:
        """End every call with UNAVAILABLE and close as soon as that is written."""
        for stream in list(self.streams.values()):
            assert isinstance(stream, Call)
            self._fail(stream, _SHUTTING_DOWN)
        self.end(frames.NO_ERROR, "")

    # ---- requests

    def headers_received(self, stream: int, block: bytes, end: bool) -> None:
        if self.decoder.generation != self._generation:
            self._generation = self.decoder.generation
            self._requests.clear()
        request = self._requests.get(block) or self._decode(block)
        if self.is_last:
            return
        if request is None or request.malformed:
            text = "header list is too large" if request is None else request.malformed
            code = frames.ENHANCE_YOUR_CALM if request is None else frames.PROTOCOL_ERROR
            raise frames.StreamFault(stream, code, text)
        limits = self.limits
        if max(len(self.streams), self.running) >= limits.streams or self.sender.waiting > limits.outbound:
            self.refuse(stream)
            return
        method = self._server.methods.get(request.path)
        if request.refusal is not None or method is None:
            refusal = request.refusal or Refusal(rpc.unknown_method(request.path, self._server.services))
            self._refuse(stream, refusal, end)
            return
        if request.timeout_s == 0:
            self._refuse(stream, Refusal(_DEADLINE), end)
            return
        deadline = None if request.timeout_s is None else self.loop.time() + request.timeout_s
        context = self._server.make_context(request, self.peer, deadline)
        call = Call(self, stream, method, context, compressed=request.compressed)
        self.streams[stream] = call
        self.control.give(_CONTROL_PER_CALL)
        call.received_end = end
        if deadline is not None:
            call.timer = self.loop.call_at(deadline, self._fail, call, _DEADLINE)
        if method.client_streaming:
            call.inbound = Inbound(self, call)
            self._start_stream(call, call.inbound)
        if end:
            self._message_end(call)

    def _decode(self, block: bytes) -> Request | None:
        fields = self.decoder.decode(block, self.limits.header_list)
        if fields is None:
            return None
        request = rpc.read_request(fields)
        if (
            self.decoder.generation == self._generation
            and len(block) <= _REMEMBERED_BLOCK
            and len(self._requests) < _REMEMBERED
        ):
            self._requests[block] = request
        return request

    def _refuse(self, stream: int, refusal: Refusal, end: bool) -> None:
        sender = self.sender
        sender.sent += 1
        sender.write(
            rpc.refusal_frames(stream, refusal, frame_size=sender.frame_size, list_limit=self.header_limit)
            + (b"" if end else frames.rst_stream(stream, frames.NO_ERROR))
        )

    # ---- messages

    def payload_received(self, stream: Stream, payload: bytes) -> None:
        call = stream
        assert isinstance(call, Call)
        size = len(payload)
        if size >= PREFIX_SIZE and call.received_end and call.inbound is None and call.partial is call.message is None:
            # What nearly all calls are: one message in one frame.
            compressed, length = PREFIX.unpack_from(payload)
            if length == size - PREFIX_SIZE and not compressed and length <= self.limits.max_receive:
                self._dispatch(call, payload[PREFIX_SIZE:])
                return
        if size and not call.ended:
            self._split(call, payload)
        if call.ended:
            return
        if call.received_end:
            self._message_end(call)
        elif call.inbound is None or call.inbound.open:
            self.give_back(call)

    def _split(self, call: Call, payload: bytes) -> None:
        """Take the whole messages out of what has come, and keep the rest."""
        data: bytes | bytearray = payload
        if call.partial is not None:
            self.held -= len(call.partial)
            data, call.partial = call.partial, None
            data += payload
        position, size = 0, len(data)
        while size - position >= PREFIX_SIZE:
            compressed, length = PREFIX.unpack_from(data, position)
            if compressed and (compressed > 1 or not call.compressed):
                self._fail(call, _COMPRESSED if compressed == 1 else rpc.unexpected_format(compressed))
                return
            if length > self.limits.max_receive:
                self._fail(call, rpc.too_large(length, self.limits.max_receive))
                return
            stop = position + PREFIX_SIZE + length
            if stop > size:
                break
            if call.inbound is None and call.message is not None:
                self._fail(call, _TWO_MESSAGES)
                return
            # Through a view: a slice of a bytearray would be a second copy.
            with memoryview(data) as view:
                message = bytes(view[position + PREFIX_SIZE : stop])
            position = stop
            if compressed:
                data_or_failure = rpc.inflated(message, self.limits.max_receive)
                if isinstance(data_or_failure, Status):
                    self._fail(call, data_or_failure)
                    return
                message = data_or_failure
            if call.inbound is not None:
                call.inbound.feed(message)
            else:
                call.message = message
            self.held += len(message) + PREFIX_SIZE
        if position < size:
            if isinstance(data, bytearray):
                del data[:position]
                call.partial = data
            else:
                call.partial = bytearray(data[position:])
            self.held += size - position
        if self.held > self.limits.inbound:
            text = f"{self.held} bytes of messages wait on this connection already"
            self._fail(call, Status(rpc.RESOURCE_EXHAUSTED, text))

    def _message_end(self, call: Call) -> None:
        """The client has said all."""
        if call.partial is not None:
            self._fail(call, _CUT_SHORT)
        elif call.inbound is not None:
            call.inbound.close()
        elif call.message is None:
            self._fail(call, _NO_MESSAGE)
        else:
            message, call.message = call.message, None
            self.held -= len(message) + PREFIX_SIZE
            self._dispatch(call, message)

    # ---- running

    def _dispatch(self, call: Call, message: bytes) -> None:
        method = call.method
        if method.server_streaming:
            self._start_stream(call, message)
            return
        try:
            answer = method.handler(call.context, message)
        except Exception as error:
            self._fail_with(call, error)
            return
        if type(answer) is bytes:
            self._answer(call, answer)
            return
        self._start(call, self._finish_unary(call, answer))

    def _start_stream(self, call: Call, argument: bytes | Inbound) -> None:
        self._start(call, self._finish_stream(call, argument))

    def _start(self, call: Call, run: Coroutine[Any, Any, None]) -> None:
        self.running += 1
        task = eager.start(run, self.loop)
        if task is None:
            self.running -= 1
            return
        call.task = task
        self._server.tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: "asyncio.Task[None]") -> None:
        self.running -= 1
        self._server.tasks.discard(task)

    async def _finish_unary(self, call: Call, answer: Awaitable[bytes]) -> None:
        try:
            message = await answer
        except asyncio.CancelledError:
            self._cancelled(call)
            return
        except Exception as error:
            self._fail_with(call, error)
            return
        self._answer(call, message)

    async def _finish_stream(self, call: Call, argument: bytes | Inbound) -> None:
        try:
            produced = call.method.handler(call.context, argument)
            try:
                if call.method.server_streaming:
                    await self._send_stream(call, produced)
                else:
                    await self._send_one(call, produced)
            finally:
                close = getattr(produced, "aclose", None)
                if close is not None:
                    await close()
        except asyncio.CancelledError:
            self._cancelled(call)
        except Exception as error:
            self._fail_with(call, error)

    async def _send_stream(self, call: Call, produced: AsyncIterator[bytes]) -> None:
        sender = self.sender
        count = 0
        async for message in produced:
            if call.ended:
                return
            if len(message) > self.limits.max_send:
                self._fail(call, rpc.too_large_to_send(len(message), self.limits.max_send))
                return
            if not call.head_sent:
                call.head_sent = True
                sender.write(rpc.head_frame(call.number))
            sender.send(call, PREFIX.pack(0, len(message)) + message)
            sender.flush_soon()
            count += 1
            if call.waiting:
                await call.drained()
            elif count % _MESSAGES_PER_TURN == 0:
                await asyncio.sleep(0)
        if self._finish(call):
            tail = rpc.success_frame(call.number)
            sender.end(call, tail if call.head_sent else rpc.head_frame(call.number) + tail)
            sender.flush()

    async def _send_one(self, call: Call, produced: AsyncIterator[bytes]) -> None:
        answers = [message async for message in produced]
        if len(answers) == 1:
            self._answer(call, answers[0])
        else:
            self._fail(call, Status(rpc.INTERNAL, f"handler produced {len(answers)} answers instead of one"))

    def _cancelled(self, call: Call) -> None:
        """The task was cancelled: by us, after the call had ended, or by somebody else, which the caller must hear."""
        if not call.ended:
            self._fail(call, _CANCELLED)
            raise asyncio.CancelledError

    # ---- ending

    def _finish(self, call: Call) -> bool:
        """Settle what is kept for a call; False if something has ended it before."""
        if call.ended:
            return False
        call.ended = True
        if call.timer is not None:
            call.timer.cancel()
        if call.partial is not None:
            self.held -= len(call.partial)
            call.partial = None
        if call.message is not None:
            self.held -= len(call.message) + PREFIX_SIZE
            call.message = None
        if call.inbound is not None:
            call.inbound.drop()
        return True

    def stream_reset(self, stream: Stream) -> None:
        assert isinstance(stream, Call)
        if self._finish(stream):
            self._cancel(stream)

    def _answer(self, call: Call, message: bytes) -> None:
        size = len(message)
        if size > self.limits.max_send:
            self._fail(call, rpc.too_large_to_send(size, self.limits.max_send))
        elif self._finish(call):
            number = call.number
            self.sender.answer(call, rpc.head_frame(number), PREFIX.pack(0, size) + message, rpc.success_frame(number))

    def _fail(self, call: Call, status: Status) -> None:
        """Answer with a failure now and cancel the handler; a handler that will not end delays nobody."""
        if not self._finish(call):
            return
        self._cancel(call)
        sender = self.sender
        if call.waiting:
            # It has waited for the client long enough; nobody could read a status behind it.
            self.reset(call, frames.CANCEL)
            return
        if call.head_sent:
            tail = rpc.failure_frames(call.id, status, frame_size=sender.frame_size, list_limit=self.header_limit)
        else:
            refusal = Refusal(status)
            tail = rpc.refusal_frames(call.id, refusal, frame_size=sender.frame_size, list_limit=self.header_limit)
        sender.end(call, tail)
        sender.flush()

    def _cancel(self, call: Call) -> None:
        """Cancel the handler, unless it is the one that calls; not before its first step, for that takes the answer."""
        task = call.task
        if task is not None and task is not asyncio.current_task(self.loop):
            self.loop.call_soon(task.cancel)

    def _fail_with(self, call: Call, error: Exception) -> None:
        if call.ended:
            log.debug("http2: handler of %s failed after its call had ended: %r", call.method.name, error)
        elif isinstance(error, RpcError):
            self._fail(call, error.status)
        else:
            self._fail(call, self._server.status_of(error, call.method.name))


def credentials(sock: Any) -> Peer:
    """Who connected a unix socket; Any because asyncio hands out a TransportSocket, which is no socket.socket."""
    if sock is None or sock.family != socket.AF_UNIX:
        return Peer()
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(uid=uid, gid=gid, pid=pid)
