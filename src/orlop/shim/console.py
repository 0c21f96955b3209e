"""A terminal's relay: the OCI runtime makes the pty and sends its master through a socket; bytes are moved from and to
it. Between the pty and FIFOs the kernel moves them, so that a relay that is killed holds none.

Output goes to the sink, which is closed when the last process that had the terminal has ended. When the client's input
ends (after CloseIO) the terminal is hung up, as when a line is cut: containerd's shim closes the master then, too.
"""

import array
import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable

from orlop.base.errdefs import UnknownError
from orlop.shim.pump import CopyPump, Pump, SplicePump

_RETRY_FIRST_S = 0.05
_RETRY_MOST_S = 5.0


class ConsoleSocket:
    """The listening socket whose path the OCI runtime is told; it connects and sends one descriptor.

    Args:
        directory: private to us, and short: the path must fit into 108 bytes.
    """

    def __init__(self, directory: str) -> None:
        self.path = f"{directory}/p{os.urandom(4).hex()}"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._listener.bind(self.path)
            self._listener.listen(1)
        except OSError:
            self._listener.close()
            raise

    def receive(self) -> int:
        """The pty's master. The runtime has sent it before it returned, so nothing is waited for.

        Raises:
            UnknownError: it has not.
        """
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            raise UnknownError("the OCI runtime has sent no console") from None
        with connection:
            space = socket.CMSG_SPACE(array.array("i").itemsize)
            _data, ancillary, _flags, _ = connection.recvmsg(4096, space, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                return int.from_bytes(payload[:4], "little" if struct.pack("=H", 1) == b"\1\0" else "big")
        raise UnknownError("the OCI runtime has sent no console")

    def close(self) -> None:
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


class Console:
    """The relay of one terminal. It owns the descriptors that it is given.

    Args:
        sink: where output goes, non-blocking; `sink_polls` is True for a pipe or FIFO. -1 throws output away.
        fifo: the client's input, non-blocking, or -1.
        hold: a write end of that FIFO, which withholds its end until `close_stdin()`, or -1.
        on_hangup: called when the terminal was hung up or has ended, and holds nothing more to keep.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, sink: int, sink_polls: bool, fifo: int, hold: int) -> None:
        self._loop = loop
        self._sink = sink
        self._sink_polls = sink_polls
        self._fifo = fifo
        self._hold = hold
        self._master = -1
        self._input: SplicePump | None = None
        self._output: Pump | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._retry_s = _RETRY_FIRST_S
        self._process_ended = False
        self._finished: asyncio.Event = asyncio.Event()
        self.on_hangup: Callable[[], None] = lambda: None

    @property
    def kept(self) -> dict[str, int]:
        """What must outlive this supervisor: the pty, and the sink's write end, or its reader would meet an end."""
        sink = self._sink if self._sink_polls else -1
        fds = {"master": self._master, "stdin-fifo": self._fifo, "sink": sink}
        return {name: fd for name, fd in fds.items() if fd >= 0}

    def attach(self, master: int) -> None:
        """Relay from now on."""
        self._master = master
        os.set_blocking(master, False)
        if self._sink < 0:
            self._sink = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
            self._sink_polls = False
        self._start_output()
        if self._fifo >= 0:
            self._input = SplicePump(self._loop, self._fifo, master, on_end=self._hang_up)
            self._input.start()

    def resize(self, width: int, height: int) -> None:
        """Tell the terminal's processes its size in characters."""
        if self._master >= 0:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def close_stdin(self) -> None:
        self._hold = _close(self._hold)

    def process_ended(self) -> None:
        """The process has ended; what it has written is still read."""
        self._process_ended = True
        if self._output is None or self._output.ended:
            self._finish()

    async def drained(self, limit_s: float) -> None:
        """Wait until all output has arrived in the sink, at most `limit_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._finished.wait()

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        for pump in (self._input, self._output):
            if pump is not None:
                pump.stop()
        self._sink = _close(self._sink)
        self._master = _close(self._master)
        self._fifo = _close(self._fifo)
        self._hold = _close(self._hold)
        self._finished.set()

    def _start_output(self) -> None:
        self._retry = None
        kind = SplicePump if self._sink_polls else CopyPump
        self._output = kind(
            self._loop, self._master, self._sink, on_end=self._output_ended, sink_polls=self._sink_polls
        )
        self._output.start()

    def _output_ended(self) -> None:
        # A master reads as ended whenever no process has the terminal open, and works again when one opens it anew.
        # Nothing tells us when, so look now and then while the process lives.
        if self._process_ended or self._master < 0:
            self._finish()
        else:
            self._retry = self._loop.call_later(self._retry_s, self._start_output)
            self._retry_s = min(self._retry_s * 2, _RETRY_MOST_S)

    def _hang_up(self) -> None:
        if self._output is not None:
            self._output.drain()
        self._finish()

    def _finish(self) -> None:
        self.close()
        self.on_hangup()


def _close(fd: int) -> int:
    if fd >= 0:
        os.close(fd)
    return -1
