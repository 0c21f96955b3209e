"""Sitting before a process: its exit, our signals, our terminal's mode and size."""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from orlop.base.errdefs import OrlopError
from orlop.client.sync import Process
from orlop.client.tasks import Exit

T = TypeVar("T")

# What is not the process's business: job control of our own, our children, and a closed output.
_OURS = {
    signal.SIGCHLD,
    signal.SIGPIPE,
    signal.SIGURG,
    signal.SIGWINCH,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCONT,
    signal.SIGKILL,
    signal.SIGSTOP,
    signal.SIGALRM,
    signal.SIGPROF,
    signal.SIGVTALRM,
}


class Persist(Protocol):
    """`App.persist`."""

    def __call__(self, call: Callable[[], T]) -> T: ...


def attend(
    process: Process,
    *,
    terminal: bool,
    started: Callable[[], object] | None = None,
    persist: Persist,
) -> Exit:
    """Start a process by `started`, or take one that runs; pass signals and window sizes on, and wait for its exit.

    Args:
        persist: makes a call again when the daemon has gone away and come back.

    Waiting is done by a thread; this one sleeps until a signal or the exit comes, and so may make calls of its own.
    """
    asked = False

    def start() -> None:
        nonlocal asked
        # The daemon may have started it and gone away before it could say so.
        if started is not None and (not asked or process.status() == "CREATED"):
            asked = True
            started()

    with _Signals() as caught, raw_terminal() if terminal else contextlib.nullcontext():
        ended: list[Exit | BaseException] = []

        def wait() -> None:
            try:
                ended.append(persist(process.wait))
            except BaseException as error:
                ended.append(error)
            finally:
                caught.wake()

        persist(start)
        if terminal:
            resize(process)
        waiter = threading.Thread(target=wait, name="orlop-wait", daemon=True)
        waiter.start()
        while not ended:
            for number in caught.wait():
                if number == signal.SIGWINCH:
                    if terminal:
                        resize(process)
                elif number not in _OURS:
                    with contextlib.suppress(OrlopError):  # it has exited meanwhile
                        process.kill(number)
        waiter.join()
        outcome = ended[0]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def resize(process: Process) -> None:
    """Give the process's terminal our terminal's size."""
    try:
        size = os.get_terminal_size(sys.stdin.fileno())
    except OSError:
        return  # not a terminal; then there is no size to give
    with contextlib.suppress(OrlopError):  # it has exited meanwhile
        process.resize(size.columns, size.lines)


@contextlib.contextmanager
def raw_terminal() -> Iterator[None]:
    """Our terminal in raw mode, as it was before on the way out; nothing if standard input is none."""
    import termios
    import tty

    fd = sys.stdin.fileno()
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class _Signals:
    """Signals as numbers from a pipe, for the time of the context."""

    def __enter__(self) -> "_Signals":
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._old_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._old: dict[int, object] = {}
        for number in signal.valid_signals() - (_OURS - {signal.SIGWINCH}):
            # What was ignored when we were started (nohup, a background job) stays ignored.
            if signal.getsignal(number) is signal.SIG_IGN:
                continue
            with contextlib.suppress(OSError, ValueError):  # 32 and 33 belong to libc
                self._old[number] = signal.signal(number, lambda *_: None)
        return self

    def __exit__(self, *_exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() gave us before
        signal.set_wakeup_fd(self._old_fd)
        os.close(self._read)
        os.close(self._write)

    def wake(self) -> None:
        """End `wait` without a signal; from any thread."""
        with contextlib.suppress(BlockingIOError):  # full: then it wakes anyhow
            os.write(self._write, b"\0")

    def wait(self) -> list[int]:
        """The signals that have come, waiting for one."""
        select.select([self._read], [], [])
        return [number for number in os.read(self._read, 256) if number]
