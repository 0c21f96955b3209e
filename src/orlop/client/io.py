"""Where a process's standard streams go: FIFOs with copiers, files, loggers, or nowhere.

A `ProcessIO` has a short life: `open()` before the daemon is asked to create the process (paths exist and our ends are
open), `start()` when it has been created, `wait()` once it has exited, `close()` in any case. Copying is done by
threads, one per stream, in blocking and asyncio clients alike: it is reads and writes of descriptors and nothing else.

FIFOs lie in a private directory of their own:

    <fifo directory>/<random>/<id>-stdin, <id>-stdout, <id>-stderr
"""

import contextlib
import errno
import os
import select
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from orlop.base.errdefs import InvalidArgumentError

DEFAULT_FIFO_DIRECTORY: Final = "/run/orlop/fifo"
_CHUNK: Final = 64 << 10
# Seconds without a byte after which the output of a process that has exited is taken to be complete, although someone
# still holds its end.
PATIENCE_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """What the daemon is told: paths or URIs; an empty string is no stream."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class ProcessIO(Protocol):
    """Standard streams of one process."""

    def open(self, name: str) -> Streams:
        """Make ready; `name` (container or exec id) becomes part of file names."""
        ...

    def start(self, on_stdin_end: Callable[[], None]) -> None:
        """The process has been created. `on_stdin_end` is called, in some thread, when our input has ended."""
        ...

    def wait(self) -> None:
        """The process has exited: wait until its output has arrived."""
        ...

    def detach(self) -> None:
        """Leave the streams to others; paths stay."""
        ...

    def close(self) -> None:
        """Let go of all, also after a failure. May be called twice."""
        ...


class NullIO:
    """No streams: input ends at once, output is lost."""

    def __init__(self, *, terminal: bool = False) -> None:
        self._terminal = terminal

    def open(self, name: str) -> Streams:
        return Streams(terminal=self._terminal)

    def start(self, on_stdin_end: Callable[[], None]) -> None: ...

    def wait(self) -> None: ...

    def detach(self) -> None: ...

    def close(self) -> None: ...


class LogIO(NullIO):
    """Output into a log: `file:///path`, `binary:///path?arg=value`, or a plain path, which is a file."""

    def __init__(self, uri: str, *, terminal: bool = False) -> None:
        super().__init__(terminal=terminal)
        if "://" not in uri:
            uri = "file://" + os.path.abspath(uri)
        scheme = uri.partition("://")[0]
        if scheme not in ("file", "binary", "fifo"):
            raise InvalidArgumentError(f"log uri {uri!r}: scheme {scheme!r} is none of file, binary, fifo")
        self._uri = uri

    def open(self, name: str) -> Streams:
        return Streams(stdout=self._uri, stderr=self._uri, terminal=self._terminal)


class FifoIO:
    """Streams through FIFOs, copied to and from descriptors of this process.

    Args:
        stdin: descriptor to read input from, or bytes; None for no input.
        stdout, stderr: descriptor to write output to, or a bytearray to append it to; None for no such stream.
        terminal: the process has a terminal, and so no stderr of its own.
        directory: for the FIFOs; made if it is not there.
        paths: of FIFOs that exist already, to attach to.
        feed: False makes the FIFO for input but copies nothing into it.
    """

    def __init__(
        self,
        *,
        stdin: "int | bytes | None" = None,
        stdout: "int | bytearray | None" = None,
        stderr: "int | bytearray | None" = None,
        terminal: bool = False,
        directory: str = "",
        paths: Streams | None = None,
        feed: bool = True,
    ) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._stderr = None if terminal else stderr
        self._terminal = terminal
        self._directory = directory
        self._attached = paths
        self._feeds = feed
        self._made: list[str] = []
        self._own = ""
        self._undo = contextlib.ExitStack()
        self._outputs: list[threading.Thread] = []
        self._input: threading.Thread | None = None
        self._stop_fd = -1  # readable once copiers must stop
        self._end_fd = -1  # readable once the process has exited
        self._plans: list[tuple[int, int | bytearray]] = []
        self._input_fd = -1
        self._keeper_fd = -1

    def open(self, name: str) -> Streams:
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
            self._undo.callback(os.close, self._stop_fd)
            self._end_fd = os.eventfd(0, os.EFD_CLOEXEC)
            self._undo.callback(os.close, self._end_fd)
            streams = self._attached or self._make(name)
            if streams.stdout and self._stdout is not None:
                self._plans.append((self._reader(streams.stdout), self._stdout))
            if streams.stderr and self._stderr is not None:
                self._plans.append((self._reader(streams.stderr), self._stderr))
            if streams.stdin and self._stdin is not None:
                self._open_input(streams.stdin)
            undo.pop_all()
        return streams

    def start(self, on_stdin_end: Callable[[], None]) -> None:
        for source, sink in self._plans:
            thread = threading.Thread(target=self._copy_out, args=(source, sink), name="orlop-output", daemon=True)
            self._outputs.append(thread)
            thread.start()
        if self._input_fd >= 0:
            # The daemon's side has opened its end by now; keeping ours would hide that it goes away.
            os.close(self._keeper_fd)
            self._keeper_fd = -1
            if not self._feeds:
                os.close(self._input_fd)
                self._input_fd = -1
                return
            self._input = threading.Thread(
                target=self._copy_in, args=(self._input_fd, on_stdin_end), name="orlop-input", daemon=True
            )
            self._input_fd = -1
            self._input.start()

    def wait(self) -> None:
        if self._end_fd >= 0:
            os.eventfd_write(self._end_fd, 1)
        for thread in self._outputs:
            thread.join()

    def detach(self) -> None:
        self._made.clear()
        self._own = ""

    def close(self) -> None:
        if self._stop_fd >= 0:
            os.eventfd_write(self._stop_fd, 1)
        for thread in (*self._outputs, *([self._input] if self._input is not None else [])):
            thread.join()
        self._outputs.clear()
        self._input = None
        for fd in (self._input_fd, self._keeper_fd):
            if fd >= 0:
                os.close(fd)
        self._input_fd = self._keeper_fd = self._stop_fd = self._end_fd = -1
        self._undo.close()
        for path in self._made:
            with contextlib.suppress(FileNotFoundError):  # the daemon may have removed it with the task
                os.unlink(path)
        self._made.clear()
        if self._own:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(self._own)
            self._own = ""

    # ---- paths

    def _make(self, name: str) -> Streams:
        parent = self._directory or default_directory()
        os.makedirs(parent, mode=0o711, exist_ok=True)
        self._own = tempfile.mkdtemp(dir=parent)  # mode 0700

        def fifo(wanted: object, stream: str) -> str:
            if wanted is None:
                return ""
            path = os.path.join(self._own, f"{os.path.basename(name)}-{stream}")
            os.mkfifo(path, 0o700)
            self._made.append(path)
            return path

        return Streams(
            stdin=fifo(self._stdin, "stdin"),
            stdout=fifo(self._stdout, "stdout"),
            stderr=fifo(self._stderr, "stderr"),
            terminal=self._terminal,
        )

    def _reader(self, path: str) -> int:
        # Without O_NONBLOCK this would wait for a writer, that is for the container.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._undo.callback(os.close, fd)
        return fd

    def _open_input(self, path: str) -> None:
        # A FIFO cannot be opened for writing without waiting while nobody reads it; so read it ourselves until then.
        self._keeper_fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._input_fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    # ---- copiers

    def _copy_out(self, source: int, sink: "int | bytearray") -> None:
        for chunk in self._chunks(source):
            if isinstance(sink, bytearray):
                sink += chunk
                continue
            try:
                _write_all(sink, chunk)
            except OSError as error:
                if error.errno != errno.EPIPE:
                    raise
                # Whoever read our output has gone. Go on reading, or the container would wait for us for ever.
                sink = bytearray()

    def _chunks(self, source: int) -> Iterator[bytes]:
        poll = select.poll()
        # POLLHUP is only told once a writer has been there: a container that has not opened its end is not at its end.
        poll.register(source, select.POLLIN)
        poll.register(self._stop_fd, select.POLLIN)
        poll.register(self._end_fd, select.POLLIN)
        patience = None
        while events := dict(poll.poll(patience)):
            if source in events:
                try:
                    chunk = os.read(source, _CHUNK)
                except BlockingIOError:
                    continue
                if not chunk:
                    return
                yield chunk
            elif self._stop_fd in events:
                return
            else:
                poll.unregister(self._end_fd)
                patience = PATIENCE_S * 1000

    def _copy_in(self, target: int, on_end: Callable[[], None]) -> None:
        with contextlib.closing(_Descriptor(target)):
            if isinstance(self._stdin, bytes):
                ended = self._feed(target, self._stdin)
            else:
                assert self._stdin is not None
                ended = self._pump(self._stdin, target)
        if ended:
            on_end()

    def _pump(self, source: int, target: int) -> bool:
        poll = select.poll()
        poll.register(source, select.POLLIN)
        poll.register(self._stop_fd, select.POLLIN)
        while True:
            events = dict(poll.poll())
            if self._stop_fd in events:
                return False
            try:
                chunk = os.read(source, _CHUNK)
            except BlockingIOError:
                continue
            except OSError:
                return True  # EIO: our terminal has gone, which is the end of input
            if not chunk:
                return True
            if not self._feed(target, chunk):
                return False

    def _feed(self, target: int, data: bytes) -> bool:
        """Write to the container as fast as it takes; False when it takes no more or we are told to stop."""
        poll = select.poll()
        poll.register(target, select.POLLOUT)
        poll.register(self._stop_fd, select.POLLIN)
        view = memoryview(data)
        while view:
            if self._stop_fd in dict(poll.poll()):
                return False
            try:
                view = view[os.write(target, view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                return False
        return True


class _Descriptor:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        os.close(self._fd)


def default_directory() -> str:
    """Where FIFOs go: below /run for root, else in the user's temporary directory."""
    if os.geteuid() == 0:
        return DEFAULT_FIFO_DIRECTORY
    return os.path.join(tempfile.gettempdir(), f"orlop-fifo-{os.geteuid()}")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])  # a non-blocking descriptor that we were given, such as a pipe of asyncio's


class Capture(FifoIO):
    """Output into memory: `stdout` and `stderr` are complete when `Task.wait` or `Task.delete` has returned."""

    def __init__(self, *, stdin: bytes | None = None, terminal: bool = False, directory: str = "") -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        super().__init__(stdin=stdin, stdout=self.stdout, stderr=self.stderr, terminal=terminal, directory=directory)


def inherit(*, stdin: bool = True, terminal: bool = False, directory: str = "", feed: bool = True) -> FifoIO:
    """This process's own standard streams."""
    return FifoIO(stdin=0 if stdin else None, stdout=1, stderr=2, terminal=terminal, directory=directory, feed=feed)


def remove_fifos(paths: Iterable[str]) -> None:
    """Remove the FIFOs of a process that has been deleted, and their directory if nothing else is in it.

    Paths that are no FIFOs (files, URIs, what is gone already) are left. Source: loadFifos in containerd's client.
    """
    directories = set()
    for path in paths:
        with contextlib.suppress(OSError):
            if path.startswith("/") and stat.S_ISFIFO(os.lstat(path).st_mode):
                os.unlink(path)
                directories.add(os.path.dirname(path))
    for directory in directories:
        with contextlib.suppress(OSError):
            os.rmdir(directory)
