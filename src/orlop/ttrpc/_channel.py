"""One connection shared by threads, all of them blocking: the inside of the sync client.

There is no reader thread: of the threads that wait for an answer one is elected to read for all (it "holds the office")
and hands it on when it has its own answer.

Lock order: `_send_lock`, then `_lock`; `_lock` is never held while something blocks. Only who holds the office
(`_reading`) touches the reader. Only who holds `_send_lock` writes, and stream numbers are given under it, because they
must grow on the wire. The socket is closed when nobody polls its number any more, else that would be given away.
"""

import _socket  # the C module: `socket` builds enums of all its constants, 8 ms that a CLI notices
import select
import threading
import time
from collections import deque

from orlop.ttrpc import wire
from orlop.ttrpc._reader import FrameReader
from orlop.ttrpc.errors import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    RESOURCE_EXHAUSTED,
    TEXT_DEADLINE,
    UNAVAILABLE,
    TtrpcError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself costs milliseconds of import
    from typing import Final, Protocol

    # kind, flags and data of a frame
    Item = tuple[int, int, bytes | memoryview]

    class Socket(Protocol):
        """What is needed of a connected stream socket: a `socket.socket` will do."""

        def close(self) -> None: ...
        def fileno(self) -> int: ...
        def recv_into(self, buffer: memoryview, /) -> int: ...
        def send(self, data: memoryview, /) -> int: ...
        def setblocking(self, flag: bool, /) -> None: ...
        def shutdown(self, how: int, /) -> None: ...


# What may wait for a stream's receiver; beyond, nothing more is read for so long, then the stream fails.
STREAM_MESSAGES: "Final" = 1024
STREAM_BYTES: "Final" = 16 << 20
STALL_SECONDS: "Final" = 10.0


class Call:
    """What is kept of a call until it ends: frames that came for it, and the lock on which its thread sleeps.

    Attributes:
        deadline: on `time.monotonic()`, or None.
        finished: the peer has said its last.
    """

    __slots__ = (
        "deadline",
        "drained",
        "error",
        "finished",
        "items",
        "name",
        "size",
        "stalled_until",
        "stream",
        "streaming",
        "wake",
    )

    def __init__(self, name: str, timeout_s: "float | None", streaming: bool) -> None:
        self.name = name
        self.deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self.streaming = streaming
        self.stream = 0
        self.items: deque[Item] = deque()
        self.size = 0
        self.finished = False
        self.error: TtrpcError | None = None
        self.wake = threading.Lock()
        self.wake.acquire()
        self.drained: threading.Lock | None = None  # what the reader sleeps on while this stream is full
        self.stalled_until: float | None = None  # when the stream fails if nothing is taken

    def overfull(self) -> bool:
        return self.streaming and (len(self.items) > STREAM_MESSAGES or self.size > STREAM_BYTES)

    def release_drained(self) -> None:
        self.stalled_until = None
        drained, self.drained = self.drained, None
        if drained is not None:
            drained.release()

    def too_late(self) -> TtrpcError:
        return TtrpcError(DEADLINE_EXCEEDED, f"{self.name}: {TEXT_DEADLINE}")

    def remaining(self) -> float:
        """Seconds until the deadline as locks take them: -1 for ever."""
        if self.deadline is None:
            return -1
        return min(max(0.0, self.deadline - time.monotonic()), threading.TIMEOUT_MAX)

    def remaining_ms(self) -> "float | None":
        """Milliseconds until the deadline as poll(2) takes them."""
        if self.deadline is None:
            return None
        return min(max(0.0, self.deadline - time.monotonic()) * 1e3, 2e9)

    def timeout_nano(self) -> int:
        """What is left, for the request; 0 where there is no deadline.

        Raises:
            TtrpcError: DEADLINE_EXCEEDED if nothing is left.
        """
        if self.deadline is None:
            return 0
        left = int((self.deadline - time.monotonic()) * 1e9)
        if left <= 0:
            raise self.too_late()
        return min(left, (1 << 63) - 1)


class Channel:
    """Requests out, frames in, for many threads. See `orlop.ttrpc.client.Client` for the arguments.

    Attributes:
        error: why the connection is unusable, once it is.
        send_limit: largest message in bytes that the peer takes.
    """

    def __init__(self, sock: "Socket", address: str, offer: int) -> None:
        sock.setblocking(False)
        self.address = address
        self.error: TtrpcError | None = None
        self.send_limit = wire.MESSAGE_LIMIT
        self.offer = wire.bounded_limit(offer) if offer else 0
        self.settled = not offer  # whether the peer has answered our offer, or never will
        self._extended = False  # the peer knows our extension
        self._receive_limit = max(self.offer, wire.MESSAGE_LIMIT)
        self._sock = sock
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._calls: dict[int, Call] = {}
        self._waiters: dict[Call, None] = {}  # asleep until there is an answer or the office is free; oldest first
        self._reading = False
        self._next_stream = 1
        self._owed = memoryview(b"")  # the rest of a frame that has been written in part
        self._reader = FrameReader()
        self._full: Call | None = None  # a stream that must be emptied before more is read
        # An exception (Ctrl-C) came between a system call and its book-keeping: what the peer has is not known.
        self._write_torn = False
        self._read_torn = False
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)

    # ---- for the client

    def open(
        self, call: Call, service: str, method: str, payload: bytes, metadata: list[tuple[str, str]], flags: int
    ) -> None:
        """Send a request; its answers go to `call` until `forget`.

        Raises:
            TtrpcError: UNAVAILABLE; DEADLINE_EXCEEDED; RESOURCE_EXHAUSTED if the request is beyond the limit.
        """
        self._lock_send(call)
        try:
            call.stream = self._next_stream
            if self.offer and call.stream == 1:
                metadata.append((wire.LIMIT_KEY, str(self.offer)))
            data = wire.encode_request(service, method, payload, call.timeout_nano(), metadata)
            if len(data) > self.send_limit:
                raise wire.oversize(len(data), self.send_limit)
            with self._lock:
                if self.error is not None:
                    raise self.error.copy()
                self._calls[call.stream] = call
            self._next_stream += 2
            self._write(wire.frame(call.stream, wire.REQUEST, flags, data), call)
        except BaseException:
            with self._lock:
                self._calls.pop(call.stream, None)
            raise
        finally:
            self._unlock_send()

    def send_data(self, call: Call, flags: int, data: bytes) -> None:
        """Send data on a stream, unless the server has ended it: Go's server panics at data for an ended stream.

        Raises:
            TtrpcError: as `open`.
        """
        if len(data) > self.send_limit:
            raise wire.oversize(len(data), self.send_limit)
        self._lock_send(call)
        try:
            if not call.finished:
                self._write(wire.frame(call.stream, wire.DATA, flags, data), call)
        finally:
            self._unlock_send()

    def wait(self, call: Call) -> "Item":
        """The next frame for `call`.

        Raises:
            TtrpcError: the call or the connection failed, or the deadline passed.
        """
        late = False
        while True:
            office = False
            try:
                with self._lock:
                    item = self._ready(call)
                    if item is not None:
                        return item
                    if late:
                        raise call.too_late()
                    if self._reading:
                        self._waiters[call] = None
                    else:
                        office = True
                        self._reading = True
                if office:
                    self._read_for(call)
                else:
                    late = not self._sleep(call)
            finally:
                if office:
                    self._leave_office()

    def forget(self, call: Call) -> None:
        """The caller wants no more of this call: drop what comes, and say so to a peer that understands."""
        with self._lock:
            running = self._calls.pop(call.stream, None) is not None
            call.items.clear()
            call.size = 0
            call.release_drained()
        if running and self._extended and self.error is None and self._send_lock.acquire(blocking=False):
            # If the connection is busy or broken the peer is not told; its own deadline ends the call.
            try:
                call.deadline = 0.0
                self._write(wire.frame(call.stream, wire.CANCEL, 0, b""), call)
            except TtrpcError:
                pass  # late: the frame is owed; lost: the next call says so
            finally:
                self._unlock_send()

    def close(self) -> None:
        """End every call with CANCELLED and close the socket, now or when the last thread has left it."""
        self._fail(TtrpcError(CANCELLED, f"connection to {self.address} was closed by this side"))
        self._tidy()

    # ---- writing

    def _lock_send(self, call: Call) -> None:
        if not self._send_lock.acquire(timeout=call.remaining()):
            raise call.too_late()

    def _unlock_send(self) -> None:
        self._send_lock.release()
        if self.error is not None:
            self._tidy()

    def _write(self, data: bytes, call: Call) -> None:
        """Send a whole frame; `_send_lock` is held. What the deadline cuts off goes before the next frame."""
        if self._write_torn:
            self._lost("interrupted in the middle of a frame")
        self._owed = memoryview(bytes(self._owed) + data if self._owed else data)
        while self._owed:
            if self.error is not None:
                raise self.error.copy()
            try:
                self._write_torn = True
                sent = self._sock.send(self._owed)
                self._owed = self._owed[sent:]
                self._write_torn = False
            except BlockingIOError:
                self._write_torn = False
                self._wait_writable(call)
            except OSError as error:
                self._write_torn = False
                raise self._lost(error.strerror or str(error)).copy() from error

    def _wait_writable(self, call: Call) -> None:
        """Wait until the peer takes more; read meanwhile, since it may first have to get rid of its answers."""
        office = False
        try:
            with self._lock:
                if not self._reading and self.error is None:
                    office = True
                    self._reading = True
            poll = select.poll()
            poll.register(self._sock.fileno(), select.POLLOUT | (select.POLLIN if office else 0))
            events = poll.poll(call.remaining_ms())
            if not events:
                raise call.too_late()
            if office and events[0][1] & ~select.POLLOUT:
                self._receive(call)
        finally:
            if office:
                self._leave_office()

    # ---- waiting

    def _ready(self, call: Call) -> "Item | None":
        """What lies ready for `call`, else raise what ended it; `_lock` is held."""
        if call.items:
            item = call.items.popleft()
            call.size -= len(item[2])
            if not call.overfull():
                call.release_drained()
            return item
        error = call.error or self.error
        if error is not None:
            raise error.copy()
        return None

    def _sleep(self, call: Call) -> bool:
        """Sleep until woken, by an answer or because the office is free; False if the deadline passed."""
        woken = False
        try:
            woken = call.wake.acquire(timeout=call.remaining())
        finally:
            if not woken:
                with self._lock:
                    if call in self._waiters:
                        del self._waiters[call]
                    else:
                        call.wake.acquire(blocking=False)  # woken just now, perhaps for the office: hand it on
                    if not self._reading:
                        self._promote()
        return woken

    def _leave_office(self) -> None:
        with self._lock:
            self._reading = False
            self._promote()
        if self.error is not None:
            self._tidy()

    def _promote(self) -> None:
        """Wake the oldest waiter, who finds the office free; `_lock` is held."""
        for waiter in self._waiters:
            self._notify(waiter)
            return

    def _notify(self, call: Call) -> None:
        if call in self._waiters:
            del self._waiters[call]
            call.wake.release()

    # ---- reading, only by who holds the office

    def _read_for(self, call: Call) -> None:
        while not call.items and call.error is None and self.error is None:
            if self._poll.poll(call.remaining_ms()):
                self._receive(call)
            elif call.remaining() == 0:
                raise call.too_late()

    def _receive(self, reader: Call) -> None:
        """Take what the socket has and deal it out, for the thread that waits in `reader`."""
        if self._full is not None and not self._emptied(self._full, reader):
            return
        if self.error is not None:
            return
        if self._read_torn:
            self._lost("interrupted in the middle of a frame")
            return
        try:
            self._read_torn = True
            count = self._sock.recv_into(self._reader.room())
            self._reader.add(count)
        except BlockingIOError:
            self._read_torn = False
            return
        except OSError as error:
            self._lost(error.strerror or str(error))
            return
        self._read_torn = False
        if count == 0:
            self._lost("closed by the other side")
            return
        while (frame := self._reader.next_frame(self._receive_limit)) is not None:
            self._deal(*frame)

    def _deal(self, stream: int, kind: int, flags: int, data: "bytes | memoryview | None", length: int) -> None:
        self.settled = True  # SETTINGS comes before everything else or never
        if kind == wire.SETTINGS:
            if data is not None and len(data) >= 4 and self.offer:
                self.send_limit = min(wire.read_settings(bytes(data)), self.offer)
                self._extended = True
            return
        with self._lock:
            call = self._calls.get(stream)
            if call is None:
                return  # given up by its caller, or not ours
            if data is None:
                call.error = wire.oversize(length, self._receive_limit)
            else:
                call.items.append((kind, flags, data))
                call.size += length
            if data is None or kind == wire.RESPONSE or flags & wire.REMOTE_CLOSED:
                self._finish(call)
            self._notify(call)
            if not call.finished and call.overfull():
                self._full = call

    def _finish(self, call: Call) -> None:
        call.finished = True
        self._calls.pop(call.stream, None)

    def _emptied(self, full: Call, reader: Call) -> bool:
        """Wait until the stream `full` is emptied, so that the peer is slowed down; after a while fail it and go on.

        False if the wait ended for another reason. Raises DEADLINE_EXCEEDED for the reader's own deadline.
        """
        with self._lock:
            if full.finished or full.error is not None or not full.overfull():
                self._full = None
                return True
            now = time.monotonic()
            if full.stalled_until is None:
                full.stalled_until = now + STALL_SECONDS
            if now >= full.stalled_until:
                text = f"{full.name}: stream buffer full: nothing was taken for {STALL_SECONDS:g} s"
                full.error = TtrpcError(RESOURCE_EXHAUSTED, text)
                self._full = None
                self._finish(full)
                self._notify(full)
                return True
            if reader.remaining() == 0:
                raise reader.too_late()
            left = full.stalled_until - now
            drained = full.drained = threading.Lock()
            drained.acquire()
        drained.acquire(timeout=left if reader.deadline is None else min(left, reader.remaining()))
        return False

    # ---- losing

    def _lost(self, reason: str) -> TtrpcError:
        return self._fail(TtrpcError(UNAVAILABLE, f"connection to {self.address} lost: {reason}"))

    def _fail(self, error: TtrpcError) -> TtrpcError:
        """Mark the connection as lost and wake everybody; the first reason stays."""
        with self._lock:
            if self.error is not None:
                return self.error
            self.error = error
            for call in self._calls.values():
                call.release_drained()
            for call in list(self._waiters):
                self._notify(call)
            try:  # noqa: SIM105 - contextlib costs import time
                self._sock.shutdown(_socket.SHUT_RDWR)  # wakes who polls
            except OSError:
                pass  # it was not connected any more
            return error

    def _tidy(self) -> None:
        """Close the socket of a lost connection if no thread is inside; else the last one to leave comes here."""
        if not self._send_lock.acquire(blocking=False):
            return
        try:
            with self._lock:
                unused = not self._reading
            if unused:
                self._sock.close()
        finally:
            self._send_lock.release()
