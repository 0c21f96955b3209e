"""One accepted connection of the server: requests in, handlers run, answers out.

What bounds a peer here: calls at once (`max_calls`), messages by the limit, what a stream may have waiting
(`_STREAM_MESSAGES`, `_STREAM_BYTES`) and for how long it may hold the connection back (`stall_timeout_s`), and reading
stops while the peer does not take its answers. Whatever else it sends is answered with a status or ignored, as Go does.
"""

import asyncio
import logging
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from orlop.ttrpc import wire
from orlop.ttrpc._frames import FrameProtocol
from orlop.ttrpc.errors import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    INTERNAL,
    INVALID_ARGUMENT,
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    TEXT_CANCELLED,
    TEXT_DEADLINE,
    UNAVAILABLE,
    UNIMPLEMENTED,
    TtrpcError,
)

if TYPE_CHECKING:
    from orlop.ttrpc.server import Server

_log = logging.getLogger("orlop.ttrpc")

# What may wait for a handler on one stream before the connection is held back.
_STREAM_MESSAGES: Final = 64
_STREAM_BYTES: Final = 4 << 20
# A generator that never waits must let others run now and then.
_MESSAGES_PER_TURN: Final = 32
# Refused peers get this long to ask, so that they can be told why.
_REFUSAL_SECONDS: Final = 5.0
# A status must fit into any message limit, whatever a handler's error says.
_MESSAGE_TEXT_MAX: Final = 64 << 10

SHUTTING_DOWN: Final = "server is shutting down"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, from SO_PEERCRED (as of connect(2)); all None where the socket cannot say."""

    uid: int | None = None
    gid: int | None = None
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """One method: how it streams and who answers.

    `handler(context, payload)`:

    - neither side streams: `payload` is bytes; returns bytes, or an awaitable of bytes. Bytes returned at once are
      answered without a task.
    - otherwise an async generator of bytes (or what returns an async iterator). `payload` is bytes, or an async
      iterator of bytes where the client streams; it ends when the client has closed its side. Where only the client
      streams, exactly one message must be produced.

    A handler is cancelled when the deadline has passed, the client gave up or the connection is gone.
    """

    client_streaming: bool
    server_streaming: bool
    handler: Callable[["Context", Any], Any]  # Any: bytes or an iterator in; bytes, awaitable or iterator out


@dataclass(slots=True)
class Context:
    """What is known of one call beside its payload.

    Attributes:
        metadata: by lower-case key; of several values the first.
        deadline: point on the event loop's clock (seconds) at which the caller gives up, or None.
        message_limit: largest message in bytes that the connection carries, envelope included.
    """

    service: str
    method: str
    peer: Peer
    deadline: float | None
    message_limit: int
    pairs: list[tuple[str, str]] = field(repr=False)
    metadata: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        metadata: dict[str, str] = {}
        for key, value in self.pairs:
            metadata.setdefault(key.lower(), value)
        self.metadata = metadata

    def values(self, key: str) -> list[str]:
        """All values of a metadata key, in the order sent."""
        return [value for name, value in self.pairs if name.lower() == key]


class Connection(FrameProtocol):
    """Serves one peer until either side closes."""

    def __init__(self, server: "Server") -> None:
        super().__init__(server.message_limit)
        self._server = server
        self._peer = Peer()
        self._calls: dict[int, _Call] = {}
        self._last_stream = 0
        self._refusal: str | None = None
        self._refusal_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self.closing = False

    @property
    def active_calls(self) -> int:
        return len(self._calls)

    # ---- life

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._peer = _credentials(transport.get_extra_info("socket"))
        if not self._server.connection_opened(self):
            transport.abort()  # type: ignore[attr-defined]
            return
        self._refusal = self._server.refusal(self._peer)
        if self._refusal is not None:
            self._refusal_timer = self._loop.call_later(_REFUSAL_SECONDS, transport.close)

    def connection_ended(self, reason: str) -> None:
        if self._refusal_timer is not None:
            self._refusal_timer.cancel()
        for call in list(self._calls.values()):
            self._finish(call)
            call.cancel()
        self._server.connection_closed(self)

    def close_when_idle(self) -> None:
        """Take no new calls; close when the last running one is answered."""
        self.closing = True
        if not self._calls:
            self._close()

    def cut(self) -> None:
        """End every call with UNAVAILABLE and close as soon as that is written."""
        self.closing = True
        for call in list(self._calls.values()):
            self._abort(call, UNAVAILABLE, SHUTTING_DOWN)
        self._close()

    def abort(self) -> None:
        """Drop the connection now."""
        if self.transport is not None:
            self.transport.abort()

    def _close(self) -> None:
        self.flush()
        if self.transport is not None:
            self.transport.close()

    # ---- large frames, whose memory all connections share

    def may_begin(self, length: int) -> bool:
        if not self._server.may_take(self, length):
            return False
        self._expect_whole()
        return True

    def begin_large(self) -> None:
        self._expect_whole()
        super().begin_large()

    def large_ended(self, length: int) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        self._server.give_back(length)

    def _expect_whole(self) -> None:
        self._stall_timer = self._loop.call_later(self._server.stall_timeout_s, self._stalled)

    def _stalled(self) -> None:
        _log.warning("ttrpc: a peer has not sent the rest of a large message; its connection is closed: %r", self._peer)
        self.abort()

    # ---- frames

    def frame_received(self, stream: int, kind: int, flags: int, data: bytes | memoryview) -> None:
        if self._refusal is not None:
            self._refuse(stream)
        elif kind == wire.CANCEL:
            call = self._calls.get(stream)
            if call is not None:
                self._finish(call)
                call.cancel()
        elif stream % 2 == 0:
            self._fail(stream, INVALID_ARGUMENT, "StreamID must be odd for client initiated streams")
        elif kind == wire.REQUEST:
            self._request(stream, flags, data)
        elif kind == wire.DATA:
            self._data(stream, flags, data)
        # Other kinds are ignored, as Go does, so that the protocol can grow.

    def adds_output(self, stream: int, kind: int) -> bool:
        return kind != wire.CANCEL and not (kind == wire.DATA and stream in self._calls)

    def oversize_received(self, stream: int, kind: int, length: int) -> None:
        error = wire.oversize(length, self.receive_limit)
        call = self._calls.get(stream)
        if call is not None:
            self._abort(call, error.code, error.message)
        else:
            self._fail(stream, error.code, error.message)

    def _refuse(self, stream: int) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        self._fail(stream, PERMISSION_DENIED, self._refusal or "")
        self._close()

    def _data(self, stream: int, flags: int, data: bytes | memoryview) -> None:
        call = self._calls.get(stream)
        if call is None or call.inbound is None:
            self._fail(stream, INVALID_ARGUMENT, "StreamID is no longer active")
            return
        if call.inbound.closed:
            self._abort(call, INVALID_ARGUMENT, "data handling error: ttrpc: stream closed")
            return
        if not flags & wire.NO_DATA:
            call.inbound.feed(bytes(data))
        if flags & wire.REMOTE_CLOSED:
            call.inbound.close()

    # ---- requests

    def _request(self, stream: int, flags: int, data: bytes | memoryview) -> None:
        if stream <= self._last_stream:
            self._fail(stream, INVALID_ARGUMENT, "StreamID cannot be re-used and must increment")
            return
        first, self._last_stream = self._last_stream == 0, stream
        try:
            request = wire.decode_request(data)
        except wire.WireError as error:
            self._fail(stream, INVALID_ARGUMENT, f"unmarshal request error: {error}")
            return
        if first:
            self._agree(request)
        try:
            method, deadline = self._admit(request)
        except TtrpcError as error:
            self._fail(stream, error.code, error.message)
            return
        context = Context(request.service, request.method, self._peer, deadline, self.send_limit, request.metadata)
        if method.client_streaming or method.server_streaming:
            self._start_stream(stream, flags, method, context, request.payload)
        else:
            self._start_unary(stream, method, context, request.payload)

    def _agree(self, request: wire.Request) -> None:
        """Raise the message limit if the peer offers it with its first request: see docs/ttrpc.md."""
        for pair in request.metadata:
            if pair[0] == wire.LIMIT_KEY:
                request.metadata.remove(pair)
                if pair[1].isdecimal() and len(pair[1]) < 12:
                    limit = max(self._server.message_limit, min(int(pair[1]), self._server.raised_limit))
                    self.receive_limit = self.send_limit = limit
                    self.send(0, wire.SETTINGS, 0, limit.to_bytes(4, "big"))
                return

    def _admit(self, request: wire.Request) -> tuple[Method, float | None]:
        if self.closing:
            raise TtrpcError(UNAVAILABLE, SHUTTING_DOWN)
        methods = self._server.services.get(request.service)
        if methods is None:
            raise TtrpcError(UNIMPLEMENTED, f"service {request.service}")
        method = methods.get(request.method)
        if method is None:
            raise TtrpcError(UNIMPLEMENTED, f"method {request.method}")
        if len(self._calls) >= self._server.max_calls:
            raise TtrpcError(RESOURCE_EXHAUSTED, f"{len(self._calls)} calls are running on this connection already")
        if request.timeout_nano < 0:
            raise TtrpcError(DEADLINE_EXCEEDED, TEXT_DEADLINE)
        return method, self._loop.time() + request.timeout_nano / 1e9 if request.timeout_nano else None

    def _start_unary(self, stream: int, method: Method, context: Context, payload: bytes) -> None:
        try:
            answer = method.handler(context, payload)
        except Exception as error:
            self._fail_with(stream, context, error)
            return
        if isinstance(answer, bytes):
            self._answer(stream, answer)
            return
        call = self._new_call(stream, context)
        call.start(self._loop.create_task(self._finish_unary(call, answer)), answer)

    def _start_stream(self, stream: int, flags: int, method: Method, context: Context, payload: bytes) -> None:
        call = self._new_call(stream, context)
        argument: bytes | _Inbound = payload
        if method.client_streaming:
            argument = call.inbound = _Inbound(self, call)
            # Go sends no message with the request that opens a client's stream; an empty one is not a message.
            if payload:
                argument.feed(payload)
            if not flags & wire.REMOTE_OPEN:
                argument.close()
        call.start(self._loop.create_task(self._finish_stream(call, method, argument)), None)

    def _new_call(self, stream: int, context: Context) -> "_Call":
        call = self._calls[stream] = _Call(self, stream, context)
        if context.deadline is not None:
            call.timer = self._loop.call_at(context.deadline, self._abort, call, DEADLINE_EXCEEDED, TEXT_DEADLINE)
        return call

    # ---- running

    async def _finish_unary(self, call: "_Call", answer: Awaitable[bytes]) -> None:
        try:
            payload = await answer
        except asyncio.CancelledError:
            self._cancelled(call)
            return
        except Exception as error:
            self._end_with(call, error)
            return
        if self._finish(call):
            self._answer(call.stream, payload)
            self._call_ended()

    async def _finish_stream(self, call: "_Call", method: Method, argument: "bytes | _Inbound") -> None:
        try:
            produced = method.handler(call.context, argument)
            try:
                if method.server_streaming:
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
            self._end_with(call, error)

    async def _send_stream(self, call: "_Call", produced: AsyncIterator[bytes]) -> None:
        count = 0
        async for payload in produced:
            if call.ended:
                return
            if len(payload) > self.send_limit:
                raise wire.oversize(len(payload), self.send_limit)
            self.send(call.stream, wire.DATA, 0, payload)
            count += 1
            if not self.writable:
                await self.drained()
            elif count % _MESSAGES_PER_TURN == 0:
                await asyncio.sleep(0)
        if self._finish(call):
            self.send(call.stream, wire.DATA, wire.REMOTE_CLOSED | wire.NO_DATA, b"")
            self._call_ended()

    async def _send_one(self, call: "_Call", produced: AsyncIterator[bytes]) -> None:
        answers = [payload async for payload in produced]
        if len(answers) != 1:
            name = f"{call.context.service}/{call.context.method}"
            raise TtrpcError(INTERNAL, f"handler of {name} produced {len(answers)} answers instead of one")
        if self._finish(call):
            self._answer(call.stream, answers[0])
            self._call_ended()

    def _cancelled(self, call: "_Call") -> None:
        """The task was cancelled: by us, after the call had ended, or by somebody else, which the caller must hear."""
        if self._finish(call):
            self._fail(call.stream, CANCELLED, TEXT_CANCELLED)
            self._call_ended()
            raise asyncio.CancelledError

    # ---- ending

    def _finish(self, call: "_Call") -> bool:
        """Take `call` off the books; False if something has ended it before."""
        if call.ended:
            return False
        call.ended = True
        del self._calls[call.stream]
        if call.timer is not None:
            call.timer.cancel()
        if call.inbound is not None:
            call.inbound.drop()
        return True

    def _call_ended(self) -> None:
        if self.closing and not self._calls:
            self._close()

    def _abort(self, call: "_Call", code: int, message: str) -> None:
        """Answer with a failure now and cancel the handler; a handler that will not end delays nobody."""
        if self._finish(call):
            self._fail(call.stream, code, message)
            call.cancel()
            self._call_ended()

    def _end_with(self, call: "_Call", error: Exception) -> None:
        if self._finish(call):
            self._fail_with(call.stream, call.context, error)
            self._call_ended()
        else:
            _log.debug("%s/%s failed after its call had ended: %r", call.context.service, call.context.method, error)

    def _answer(self, stream: int, payload: bytes) -> None:
        data = wire.encode_response(payload)
        if len(data) > self.send_limit:
            error = wire.oversize(len(data), self.send_limit)
            self._fail(stream, error.code, error.message)
        else:
            self.send(stream, wire.RESPONSE, 0, data)

    def _fail(self, stream: int, code: int, message: str, details: tuple[bytes, ...] = ()) -> None:
        self.send(stream, wire.RESPONSE, 0, wire.encode_failure(code, message[:_MESSAGE_TEXT_MAX], details))

    def _fail_with(self, stream: int, context: Context, error: Exception) -> None:
        if isinstance(error, TtrpcError):
            self._fail(stream, error.code, error.message, error.details)
        else:
            self._fail(stream, *self._server.status_of(context, error))

    def stalled(self, call: "_Call") -> None:
        """The handler has left a full stream untouched for too long."""
        seconds = self._server.stall_timeout_s
        self._abort(call, RESOURCE_EXHAUSTED, f"stream buffer full: nothing was taken for {seconds:g} s")

    @property
    def stall_timeout_s(self) -> float:
        return self._server.stall_timeout_s

    def track(self, task: "asyncio.Task[None]") -> None:
        self._server.track(task)


class _Call:
    """A call that is being handled by a task."""

    __slots__ = ("answer", "connection", "context", "ended", "inbound", "stream", "task", "timer")

    def __init__(self, connection: Connection, stream: int, context: Context) -> None:
        self.connection = connection
        self.stream = stream
        self.context = context
        self.ended = False
        self.inbound: _Inbound | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self.answer: object = None

    def start(self, task: "asyncio.Task[None]", answer: object) -> None:
        self.task = task
        self.answer = answer
        self.connection.track(task)
        task.add_done_callback(self._task_done)

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()

    def _task_done(self, _task: "asyncio.Task[None]") -> None:
        # A task that is cancelled before its first step never awaits what the handler returned.
        answer, self.answer = self.answer, None
        if asyncio.iscoroutine(answer):
            answer.close()


class _Inbound:
    """What a client sends on a stream, as the async iterator that the handler reads.

    Above the watermark the whole connection is held back, since ttrpc has no flow control per stream; a handler that
    leaves it so for `stall_timeout_s` loses its call rather than everybody else's.
    """

    __slots__ = ("_bytes", "_call", "_connection", "_items", "_timer", "_waiter", "closed")

    def __init__(self, connection: Connection, call: _Call) -> None:
        self._connection = connection
        self._call = call
        self._items: deque[bytes] = deque()
        self._bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.closed = False

    def feed(self, data: bytes) -> None:
        self._items.append(data)
        self._bytes += len(data)
        if self._timer is None and self._full():
            self._connection.hold()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._connection.stall_timeout_s, self._connection.stalled, self._call)
        self._wake()

    def close(self) -> None:
        """The client has said all."""
        self.closed = True
        self._wake()

    def drop(self) -> None:
        """The call has ended: forget what waits and let the connection go on."""
        self.closed = True
        self._items.clear()
        self._bytes = 0
        self._let_go()
        self._wake()

    def __aiter__(self) -> "_Inbound":
        return self

    async def __anext__(self) -> bytes:
        while not self._items:
            if self.closed:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = self._items.popleft()
        self._bytes -= len(data)
        if self._timer is not None:
            self._timer.cancel()
            if self._full():
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(self._connection.stall_timeout_s, self._connection.stalled, self._call)
            else:
                self._let_go()
        return data

    def _full(self) -> bool:
        return len(self._items) > _STREAM_MESSAGES or self._bytes > _STREAM_BYTES

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._connection.release()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._waiter = None


def _credentials(sock: Any) -> Peer:
    # Any: asyncio hands out a TransportSocket, which has getsockopt but is no socket.socket.
    if sock is None or sock.family != socket.AF_UNIX:
        return Peer()
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(uid=uid, gid=gid, pid=pid)
