"""The daemon's side of the workers: starting them, following a job, and ending it on every way out.

A pool has at most one zygote (`zygote`), started with the first job and ended when nothing has been asked of it for a
while. Jobs beyond the number of cores wait for their turn. A job that is cancelled, or whose deadline passes, is
killed; its caller goes on only when none of its processes lives any more, so that the tree it wrote can be removed.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

from orlop.base import errdefs, failpoints
from orlop.base.settling import settle
from orlop.core.content.arrival import Coming

_IDLE_S: Final = 30.0
_DEATH_S: Final = 20.0
_MAX_MESSAGE: Final = 1 << 18

Message = dict[str, Any]  # JSON


class Pool:
    """Workers for one daemon; belongs to one event loop.

    Args:
        size: jobs at the same time; the number of cores if None.
        idle_s: seconds without a job after which the zygote ends.
    """

    def __init__(self, size: int | None = None, *, idle_s: float = _IDLE_S) -> None:
        self.size: Final = size or max(1, len(os.sched_getaffinity(0)))
        self._turns = asyncio.Semaphore(self.size)
        self._idle_s = idle_s
        self._starting = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._jobs = 0
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> "Pool":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def warm(self) -> None:
        """Start the zygote, so that the first job need not wait for it; while a layer is fetched, say."""
        self._jobs += 1
        try:
            await self._zygote()
        finally:
            self._left()

    async def close(self) -> None:
        """End the zygote and with it every job that is left; their callers get UnavailableError."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        process, self._process = self._process, None
        self._hang_up()
        if process is not None:
            await _reap(process)

    async def run(
        self, request: Message, fd: int, *, tell: Callable[[Message], None] | None = None, coming: Coming | None = None
    ) -> Message:
        """Have a job done.

        Args:
            request: what the zygote's jobs understand.
            fd: the file it works on (a blob to read, or where to write one); stays the caller's.
            tell: called with the job's messages on the way.
            coming: how much of the file is there to be read. Such a job takes no turn from others, for it may take as
                long as it likes; somebody else sees to it that they are not too many.

        Returns:
            What the job answered under "done".

        Raises:
            JobError: what it answered under "error", or that it died; it names the phase.
            CancelledError, TimeoutError: as the caller cancelled; the job is dead.
        """
        async with self._turns if coming is None else contextlib.nullcontext():
            self._jobs += 1
            try:
                if coming is None:
                    return await self._run(request, [fd], tell)
                return await self._run({**request, "coming": coming.total}, [fd, coming.more], tell)
            finally:
                self._left()

    async def _run(self, request: Message, fds: list[int], tell: Callable[[Message], None] | None) -> Message:
        control = await self._zygote()
        with contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.enter_context(ours)
            ours.setblocking(False)
            life, held = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            undo.callback(os.close, life)
            try:
                await _send(control, json.dumps(request).encode(), [theirs.fileno(), held, *fds])
            finally:
                theirs.close()
                os.close(held)
            failpoints.reach("unpack.job.sent")
            job = _Job(ours, life)
            undo.callback(job.forget)
            try:
                return await job.follow(tell)
            finally:
                await settle(job.end())

    async def _zygote(self) -> socket.socket:
        async with self._starting:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._process is not None and self._process.poll() is not None:
                self._process = None  # it died; its jobs have seen it
                self._hang_up()
            if self._control is None:
                await self._spawn()
                failpoints.reach("unpack.worker.spawned")
            assert self._control is not None
            return self._control

    async def _spawn(self) -> None:
        """Start a zygote; when this is cancelled it is there for the next job."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)

        def spawn() -> None:
            self._process = _spawn(theirs.fileno())

        with theirs:
            try:
                await settle(asyncio.to_thread(spawn))
            finally:
                if self._process is None:
                    ours.close()
                else:
                    self._control = ours

    def _left(self) -> None:
        self._jobs -= 1
        if self._jobs == 0 and self._control is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._idle_s, self._idle)

    def _idle(self) -> None:
        self._timer = None
        process, self._process = self._process, None
        self._hang_up()
        if process is not None:
            # It ends as soon as it sees the socket closed; this thread only waits to reap it.
            asyncio.get_running_loop().run_in_executor(None, process.wait)

    def _hang_up(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            control.close()


class JobError(Exception):
    """A job's own account of its failure, or that it died.

    Attributes:
        phase: what it was doing: start, prepare, extract, finish, sync, compare.
        message: `kind` (archive, limit, changed, os, error, defect, died), `text`, `entry`, and `errno` or `code`.
    """

    def __init__(self, phase: str, message: Message) -> None:
        super().__init__(f"{phase}: {message.get('text')}")
        self.phase = phase
        self.message = message


class _Job:
    """One job's socket, process and pipe of life."""

    def __init__(self, connection: socket.socket, life: int) -> None:
        self._connection = connection
        self._life = life
        self._pidfd = -1
        self._phase = "start"

    async def follow(self, tell: Callable[[Message], None] | None) -> Message:
        while True:
            message = await self._receive()
            if message is None:
                raise JobError(self._phase, {"kind": "died", "text": "the job's process died", "entry": None})
            self._phase = message.get("phase", self._phase)
            if "done" in message:
                done: Message = message["done"]
                failpoints.reach("unpack.job.done")
                return done
            if "error" in message:
                raise JobError(self._phase, message["error"])
            failpoints.reach("unpack.job.told")
            if tell is not None:
                tell(message)

    async def end(self) -> None:
        """Kill what is left of the job and wait until nothing is."""
        self._connection.close()
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        try:
            async with asyncio.timeout(_DEATH_S):
                while not _ended(self._life):
                    await readable(self._life)
        except TimeoutError:
            raise errdefs.InternalError(f"an unpack worker could not be killed within {_DEATH_S:.0f} s") from None

    def forget(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    async def _receive(self) -> Message | None:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._connection, _MAX_MESSAGE, 1)
            except BlockingIOError:
                await readable(self._connection.fileno())
                continue
            except ConnectionResetError:
                return None
            for fd in fds:
                self.forget()
                self._pidfd = fd
            return json.loads(data) if data else None


def _spawn(control_fd: int) -> "subprocess.Popen[bytes]":
    """Start a zygote: no environment, no descriptors but its socket, no site, and our own module path."""
    code = (
        "import json,sys;sys.path[:]=json.loads(sys.argv[1]);"
        "from orlop.core.diff.zygote import main;main(int(sys.argv[2]))"
    )
    path = json.dumps([os.path.abspath(entry) for entry in sys.path])
    failpoints.reach("unpack.worker.spawning")
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code, path, str(control_fd)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(control_fd,),
        env={},
        cwd="/",
        start_new_session=True,
    )


async def _reap(process: "subprocess.Popen[bytes]") -> None:
    try:
        await asyncio.wait_for(asyncio.to_thread(process.wait, 5), 6)
    except (TimeoutError, subprocess.TimeoutExpired):
        process.kill()
        await asyncio.to_thread(process.wait)


async def _send(control: socket.socket, data: bytes, fds: list[int]) -> None:
    while True:
        try:
            socket.send_fds(control, [data], fds)
            return
        except BlockingIOError:
            await writable(control.fileno())
        except OSError as error:
            raise errdefs.UnavailableError(f"unpack workers: {error.strerror}") from error


async def readable(fd: int) -> None:
    """Wait until a descriptor can be read, or has ended."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, _set, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def writable(fd: int) -> None:
    """Wait until a descriptor can be written, or nobody reads it any more."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(fd, _set, ready)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _ended(life: int) -> bool:
    try:
        return os.read(life, 1) == b""
    except BlockingIOError:
        return False
