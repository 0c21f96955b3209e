"""Moving bytes between two descriptors on the event loop, without blocking it and without holding them.

`SplicePump` moves them inside the kernel (pipe to pipe, pipe to file); `CopyPump` reads and writes, for terminals.
Both end once: at the end of the source, or when the sink is gone. Neither closes a descriptor; `on_end` does what is
due.
"""

import asyncio
import contextlib
import errno
import logging
import os
import select
from collections.abc import Callable

_log = logging.getLogger(__name__)

_CHUNK = 64 << 10
# A source that never runs dry must let the others have their turn.
_ROUNDS = 16


class Pump:
    """One direction. Subclasses implement `_move()`.

    Args:
        source: non-blocking descriptor that can be polled.
        sink: descriptor; `sink_polls` says whether it can be polled (a regular file cannot, and never blocks).
        on_end: called once, when no more can be moved.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: int,
        sink: int,
        *,
        on_end: Callable[[], None],
        sink_polls: bool = True,
    ) -> None:
        self._loop = loop
        self._source = source
        self._sink = sink
        self._sink_polls = sink_polls
        self._on_end = on_end
        self._waits_for_sink = False
        self.ended = False

    def start(self) -> None:
        self._loop.add_reader(self._source, self._run)

    def stop(self) -> None:
        """Move no more; `on_end` is not called."""
        if not self.ended:
            self.ended = True
            self._loop.remove_reader(self._source)
            self._forget_sink()

    def drain(self) -> None:
        """Move what is there now, as far as the sink takes it."""
        while not self.ended and self._step():
            pass

    def _run(self) -> None:
        for _ in range(_ROUNDS):
            if self.ended or not self._step():
                return

    def _step(self) -> bool:
        """Move once; False when there is nothing to do at the moment, or no more at all."""
        try:
            moved = self._move()
        except BlockingIOError:
            self._wait()
            return False
        except OSError as error:
            self._end(error)
            return False
        if moved == 0:
            self._end(None)
            return False
        if self._waits_for_sink:
            self._forget_sink()
            self._loop.add_reader(self._source, self._run)
        return True

    def _move(self) -> int:
        """Move some bytes; 0 at the end of the source, BlockingIOError when either side is not ready."""
        raise NotImplementedError

    def _wait(self) -> None:
        """Called when either side would block. Only of a source that has something do we know that it is the sink."""
        if self._sink_polls and not self._waits_for_sink and self._sink_is_full():
            self._waits_for_sink = True
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._sink, self._run)
        elif self._waits_for_sink and not self._sink_is_full():
            self._forget_sink()
            self._loop.add_reader(self._source, self._run)

    def _sink_is_full(self) -> bool:
        raise NotImplementedError

    def _forget_sink(self) -> None:
        if self._waits_for_sink:
            self._waits_for_sink = False
            self._loop.remove_writer(self._sink)

    def _end(self, error: OSError | None) -> None:
        # EPIPE: the reader of the sink has gone; EIO: a terminal nobody has open any more. Both are ends, not faults.
        if error is not None and error.errno not in (errno.EPIPE, errno.EIO):
            _log.warning("output cannot be moved: %s", error)
        self.stop()
        self._on_end()


class SplicePump(Pump):
    """Pipe to pipe or pipe to file by splice(2). A full disk loses what does not fit; the writer is not disturbed."""

    _lost = 0

    def _move(self) -> int:
        try:
            return self._splice()
        except OSError as error:
            if self._sink_polls or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            lost = len(os.read(self._source, _CHUNK))
            if not self._lost:
                _log.error("output is being lost: %s", error)  # once, since the log may lie on the same disk
            self._lost += lost
            return lost

    def _end(self, error: OSError | None) -> None:
        if self._lost:
            _log.error("output lost, %d bytes in all", self._lost)
        super()._end(error)

    def _splice(self) -> int:
        if not self._sink_polls:
            # Others may append to the file or truncate it; splice(2) refuses descriptors opened with O_APPEND.
            with contextlib.suppress(OSError):  # a device cannot seek and need not
                os.lseek(self._sink, 0, os.SEEK_END)
        return os.splice(self._source, self._sink, _CHUNK, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)

    def _sink_is_full(self) -> bool:
        poll = select.poll()
        poll.register(self._sink, select.POLLOUT)
        return not poll.poll(0)


class CopyPump(Pump):
    """Reads, and writes what was read; holds at most one chunk that the sink has not taken yet."""

    _rest: memoryview | None = None

    def _move(self) -> int:
        if self._rest is None:
            data = os.read(self._source, _CHUNK)
            if not data:
                return 0
            self._rest = memoryview(data)
        if not self._sink_polls:
            with contextlib.suppress(OSError):  # a device cannot seek and need not
                os.lseek(self._sink, 0, os.SEEK_END)
        written = os.write(self._sink, self._rest)
        self._rest = self._rest[written:] if written < len(self._rest) else None
        return max(written, 1)

    def _sink_is_full(self) -> bool:
        return self._rest is not None
