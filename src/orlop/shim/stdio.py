"""A process's stdin, stdout and stderr: what the OCI runtime is handed, what is kept, what is moved.

    client's FIFO, output     handed to the process as it is; a read end is kept until the process is deleted
    client's FIFO, input      spliced into a pipe; the process has the pipe
    file                      the process has a pipe, spliced into the file
    logging program           the process and the program share a pipe
    terminal                  the process has a pty; its master is moved from and to the FIFOs (`orlop.shim.console`)

Life: `open()`, then `child` goes to the runtime, then `started()` or `close()`; `close_stdin()` when the client says
that no more will come; `ended()` when the process has; `close()` when it is deleted. What `kept` names must outlive
this supervisor; a keeper holds it, and a successor gets it back through `resume()`.
"""

import asyncio
import contextlib
import os
import signal
import stat
from collections.abc import Callable, Mapping

from orlop.base.errdefs import UnknownError
from orlop.shim import sinks
from orlop.shim.console import Console, ConsoleSocket
from orlop.shim.pump import SplicePump
from orlop.shim.reaper import Reaper
from orlop.shim.runtime import Stdio
from orlop.shim.sinks import Paths
from orlop.shim.spawn import DEVNULL

_LOGGER_READY_S = 10.0
_LOGGER_FAILS_S = 0.01
# After the process, a logging program has this long to write the rest down. Source: binaryIOProcTermTimeout, io.go.
_LOGGER_END_S = 12.0
_DRAIN_S = 2.0


class ProcessIO:
    """The stdio of one process. See the module's text for its life.

    Args:
        directory: for the console's socket: private to us, with a short path.
        io_uid: owner of what the process gets, and `io_gid` its group.

    Attributes:
        child: what the runtime is to be given, if there is no terminal.
        kept: descriptors that must outlive this supervisor, by name.
        on_kept_changed: called when there is less to keep. The keeper must go or be replaced then: the write end that
        it
            holds counts, too.
    """

    def __init__(self, paths: Paths, *, directory: str, io_uid: int = 0, io_gid: int = 0) -> None:
        self.paths = paths
        self.child = Stdio()
        self.kept: dict[str, int] = {}
        self.console: Console | None = None
        self.console_socket: ConsoleSocket | None = None
        self.on_kept_changed: Callable[[], None] = lambda: None
        self._directory = directory
        self._hold = -1
        self._owner = (io_uid, io_gid)
        self._loop = asyncio.get_running_loop()
        self._child_fds: list[int] = []
        self._fds: list[int] = []
        self._stdin: SplicePump | None = None
        self._outputs: list[SplicePump] = []
        self._logger = 0
        self._undrained = 0
        self._drained: asyncio.Future[None] | None = None

    async def open(self, reaper: Reaper, name: str, namespace: str) -> None:
        """Open and make everything; on failure nothing stays open. A logging program is told `name` and namespace.

        Raises:
            OrlopError: naming the stream, the path and the reason.
        """
        try:
            if self.paths.terminal:
                self.console_socket = ConsoleSocket(self._directory)
                self.console = await self._open_console(reaper, name, namespace)
                return
            stdin = self._open_stdin(self.paths.stdin) if self.paths.stdin else DEVNULL
            if _is_logger(self.paths.stdout):
                stdout, stderr = await self._open_logger(reaper, name, namespace)
            else:
                stdout = self._open_output("stdout", self.paths.stdout)
                stderr = self._open_output("stderr", self.paths.stderr)
            self.child = Stdio(stdin=stdin, stdout=stdout, stderr=stderr)
            self._chown()
        except BaseException:
            self.close()
            raise

    def resume(self, kept: Mapping[str, int], *, stdin_closed: bool) -> None:
        """Take up the work of a supervisor that was killed, with the descriptors its keeper held."""
        if self.paths.terminal:
            self._resume_console(kept, stdin_closed)
            return
        if "stdin" in kept:
            self._pump_stdin(kept["stdin"], kept["stdin-fifo"])
            if not stdin_closed:
                self._hold = self._own(sinks.reopen(kept["stdin-fifo"], os.O_WRONLY | os.O_NONBLOCK))
        for name, path in (("stdout", self.paths.stdout), ("stderr", self.paths.stderr)):
            if name in kept:
                self._pump_output(name, kept[name], self._open_file(name, path))
            elif path and sinks.split(path)[0] == "fifo":
                with contextlib.suppress(Exception):  # the client's FIFO may have gone meanwhile
                    self._keep_fifo(name, path)
        self.started()

    def started(self) -> None:
        """The runtime has its copies: drop ours and begin to move bytes.

        Raises:
            UnknownError: a terminal was asked for and the runtime has sent none.
        """
        self._drop_child_fds()
        if self.console_socket is not None and self.console is not None:
            self.console.attach(self.console_socket.receive())
            self.kept = self.console.kept
            self.console_socket.close()
            self.console_socket = None
        for pump in (self._stdin, *self._outputs):
            if pump is not None and not pump.ended:
                pump.start()

    def close_stdin(self) -> None:
        """No more input will come: the process reads to the end what is there, then meets the end of file."""
        if self.console is not None:
            self.console.close_stdin()
        if self._hold >= 0:
            self._close(self._hold)
            self._hold = -1

    def ended(self) -> None:
        """The process has ended: its console, if any, is read to the end."""
        if self.console is not None:
            self.console.process_ended()

    async def drained(self) -> None:
        """Wait, not for ever, until what was written into files and terminals has arrived there."""
        if self.console is not None:
            await self.console.drained(_DRAIN_S)
        if self._undrained:
            self._drained = self._loop.create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_S):
                    await self._drained

    def close(self) -> None:
        """Let go of everything. A logging program sees its end of file, and is ended if it does not end."""
        if self.console_socket is not None:
            self.console_socket.close()
            self.console_socket = None
        if self.console is not None:
            self.console.close()
        self._drop_child_fds()
        for pump in (self._stdin, *self._outputs):
            if pump is not None:
                pump.stop()
        for fd in self._fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._fds.clear()
        self.kept.clear()
        if self._logger:
            self._loop.call_later(_LOGGER_END_S, self._terminate_logger)

    # ---- input

    def _open_stdin(self, path: str) -> int:
        fifo, hold = sinks.open_stdin(path)
        self._hold = self._own(hold)
        self._own(fifo)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._child_fds.append(reader)
        self._own(writer)
        os.set_blocking(writer, False)
        self._pump_stdin(writer, fifo)
        return reader

    def _pump_stdin(self, writer: int, fifo: int) -> None:
        self.kept |= {"stdin": self._own(writer), "stdin-fifo": self._own(fifo)}
        self._stdin = SplicePump(self._loop, fifo, writer, on_end=self._stdin_ended)

    def _stdin_ended(self) -> None:
        self.close_stdin()
        for name in ("stdin", "stdin-fifo"):
            self._close(self.kept.pop(name))
        self.on_kept_changed()

    # ---- terminal

    async def _open_console(self, reaper: Reaper, name: str, namespace: str) -> Console:
        fifo, hold = sinks.open_stdin(self.paths.stdin) if self.paths.stdin else (-1, -1)
        try:
            if _is_logger(self.paths.stdout):
                sink, _stderr = await self._open_logger(reaper, name, namespace)
                self._child_fds.remove(sink)
                os.set_blocking(sink, False)
                return self._console(sink, True, fifo, hold)
            return self._console(*self._console_sink(), fifo, hold)
        except BaseException:
            for fd in (fifo, hold):
                if fd >= 0:
                    os.close(fd)
            raise

    def _console_sink(self) -> tuple[int, bool]:
        """Where a terminal's output goes, and whether that can be polled."""
        if not self.paths.stdout:
            return -1, False
        scheme, path = sinks.split(self.paths.stdout)
        if scheme == "fifo":
            place, kind = sinks.open_place(path, "stdout")
            try:
                if kind == stat.S_IFIFO:
                    self._own(sinks.reopen(place, os.O_RDONLY | os.O_NONBLOCK))
                    return sinks.reopen(place, os.O_WRONLY | os.O_NONBLOCK), True
                fd = self._open_found("stdout", path, place)
            finally:
                os.close(place)
        else:
            fd = self._open_file("stdout", self.paths.stdout)
        self._fds.remove(fd)  # the console closes it
        return fd, False

    def _console(self, sink: int, sink_polls: bool, fifo: int, hold: int) -> Console:
        console = Console(self._loop, sink=sink, sink_polls=sink_polls, fifo=fifo, hold=hold)
        console.on_hangup = self._console_ended
        return console

    def _console_ended(self) -> None:
        self.kept = {}
        self.on_kept_changed()

    def _resume_console(self, kept: Mapping[str, int], stdin_closed: bool) -> None:
        if "master" not in kept:
            return
        fifo = kept.get("stdin-fifo", -1)
        hold = -1 if fifo < 0 or stdin_closed else sinks.reopen(fifo, os.O_WRONLY | os.O_NONBLOCK)
        self.console = self._console(*self._resume_sink(kept), fifo, hold)
        self.console.attach(kept["master"])
        self.kept = self.console.kept

    def _resume_sink(self, kept: Mapping[str, int]) -> tuple[int, bool]:
        is_logger = _is_logger(self.paths.stdout)
        if "sink" not in kept:
            return (-1, False) if is_logger else self._console_sink()
        if not is_logger:
            self._own(sinks.reopen(kept["sink"], os.O_RDONLY | os.O_NONBLOCK))
        return kept["sink"], True

    # ---- output

    def _open_output(self, name: str, address: str) -> int:
        if not address:
            return DEVNULL
        scheme, path = sinks.split(address)
        if scheme == "binary":
            return DEVNULL  # a logging program is asked for with stdout and takes both
        if name == "stderr" and self.paths.stdout == address and "stdout" in self.kept:
            return self._child_fds[-1]  # one file, one pipe: so the order of both is kept
        if scheme == "fifo":
            place, kind = sinks.open_place(path, name)
            try:
                if kind == stat.S_IFIFO:
                    return self._fifo_ends(name, path, place)[0]
                return self._piped(name, self._open_found(name, path, place))
            finally:
                os.close(place)
        return self._piped(name, self._open_file(name, address))

    def _piped(self, name: str, sink: int) -> int:
        """The write end of a pipe whose bytes are moved to `sink`."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._child_fds.append(writer)
        os.set_blocking(reader, False)
        self._pump_output(name, reader, sink)
        return writer

    def _fifo_ends(self, name: str, path: str, place: int) -> tuple[int, int]:
        try:
            writer, reader = sinks.open_fifo_output(place)
        except OSError as error:
            raise sinks.io_error(name, path, error) from error
        self._child_fds.append(writer)
        self._own(reader)
        return writer, reader

    def _keep_fifo(self, name: str, address: str) -> None:
        _scheme, path = sinks.split(address)
        place, kind = sinks.open_place(path, name)
        try:
            if kind == stat.S_IFIFO:
                self._own(sinks.reopen(place, os.O_RDONLY | os.O_NONBLOCK))
        finally:
            os.close(place)

    def _open_found(self, name: str, path: str, place: int) -> int:
        """The file or device that was looked at, whatever lies at its path by now."""
        try:
            return self._own(sinks.reopen(place, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            raise sinks.io_error(name, path, error) from error

    def _open_file(self, name: str, address: str) -> int:
        scheme, path = sinks.split(address)
        if scheme == "fifo":  # a plain path, to what is there already
            place, _kind = sinks.open_place(path, name)
            try:
                return self._open_found(name, path, place)
            finally:
                os.close(place)
        try:
            fd = sinks.open_file_output(path)
        except OSError as error:
            raise sinks.io_error(name, path, error) from error
        return self._own(fd)

    def _pump_output(self, name: str, reader: int, sink: int) -> None:
        self.kept[name] = self._own(reader)
        self._undrained += 1
        pump = SplicePump(self._loop, reader, sink, on_end=self._output_ended, sink_polls=False)
        self._outputs.append(pump)

    def _output_ended(self) -> None:
        self._undrained -= 1
        if not self._undrained and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # ---- logging program

    async def _open_logger(self, reaper: Reaper, name: str, namespace: str) -> tuple[int, int]:
        out_reader, out_writer = os.pipe2(os.O_CLOEXEC)
        self._child_fds += [out_reader, out_writer]
        err_reader, err_writer = os.pipe2(os.O_CLOEXEC)
        self._child_fds += [err_reader, err_writer]
        pid, ready = sinks.start_logger(self.paths.stdout, name, namespace, out_reader, err_reader)
        for fd in (out_reader, err_reader):
            self._child_fds.remove(fd)
            os.close(fd)
        self._logger = pid
        ended = reaper.future(pid)
        ended.add_done_callback(lambda _ended: setattr(self, "_logger", 0))
        try:
            await _until_readable(self._loop, ready, _LOGGER_READY_S)
        except TimeoutError as error:
            raise UnknownError(f"logging program of {self.paths.stdout}: not ready in {_LOGGER_READY_S:g} s") from error
        finally:
            os.close(ready)
        # The end of a program closes its descriptors, too, a moment before it can be seen.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(ended), _LOGGER_FAILS_S)
            raise UnknownError(f"logging program of {self.paths.stdout}: ended at once")
        return out_writer, err_writer

    def _terminate_logger(self) -> None:
        if self._logger:
            os.kill(self._logger, signal.SIGTERM)

    # ---- descriptors

    def _chown(self) -> None:
        """Pipes and FIFOs to the uid that the client asked for, so that a process of that uid can open /dev/stdout."""
        if self._owner == (0, 0):
            return
        for fd in self._child_fds:
            os.fchown(fd, *self._owner)

    def _drop_child_fds(self) -> None:
        for fd in self._child_fds:
            os.close(fd)
        self._child_fds.clear()

    def _own(self, fd: int) -> int:
        """Close `fd` with this object."""
        if fd not in self._fds:
            self._fds.append(fd)
        return fd

    def _close(self, fd: int) -> None:
        self._fds.remove(fd)
        os.close(fd)


def _is_logger(address: str) -> bool:
    return address.startswith("binary://")


async def _until_readable(loop: asyncio.AbstractEventLoop, fd: int, limit_s: float) -> None:
    readable = loop.create_future()
    loop.add_reader(fd, lambda: None if readable.done() else readable.set_result(None))
    try:
        async with asyncio.timeout(limit_s):
            await readable
    finally:
        loop.remove_reader(fd)
