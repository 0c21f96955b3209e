"""Stream processors: programs that turn a layer of one media type into another, decryption for example.

A layer goes through a chain of them until a tar is left that a worker can unpack. The first reads the blob, each next
one what the one before writes, the worker what the last one writes. A program is told the type that it gets in
STREAM_PROCESSOR_MEDIATYPE, and what the client sent for it (an Any, serialised) on descriptor 3.

They are configured by who administrates the host, and run with the daemon's rights.

Source: core/diff/stream.go and stream_unix.go of containerd, and its docs/stream_processors.md.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from orlop.base.errdefs import FailedPreconditionError, UnimplementedError, UnknownError
from orlop.base.settling import settle
from orlop.core.diff.workers import readable
from orlop.core.runtime.binaries import OUR_OWN
from orlop.oci import media_types

MEDIA_TYPE_VARIABLE: Final = "STREAM_PROCESSOR_MEDIATYPE"
_PAYLOAD: Final = 3
_END_S: Final = 10.0
# Between the end of a program's output, which others see, and the end of the program.
_PATIENCE_S: Final = 0.5
_STDERR: Final = 4096
_TAR_SUFFIXES: Final = frozenset({"gzip", "zstd"})
# Puts a descriptor where the program looks for it, and is the program from then on.
_LAUNCH: Final = f"""
import os, signal, sys
os.dup2(int(sys.argv[1]), {_PAYLOAD})
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
os.execv(sys.argv[2], sys.argv[3:])
"""


@dataclass(kw_only=True)
class StreamProcessor:
    """One as it is configured: the media types it takes and the one it gives, and how it is run."""

    accepts: list[str] = field(default_factory=list)
    returns: str = ""
    path: str = ""
    args: list[str] = field(default_factory=list)
    env: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One processor's turn with a layer; `media_type` is what it gets."""

    id: str
    media_type: str
    processor: StreamProcessor


def defaults() -> dict[str, StreamProcessor]:
    """What is configured where nobody has said otherwise: as in containerd, a program that need not be there."""
    layer = media_types.OCI_LAYER
    return {
        f"io.containerd.ocicrypt.decoder.v1.tar{dotted}": StreamProcessor(
            accepts=[f"{layer}{suffix}+encrypted"],
            returns=f"{layer}{suffix}",
            path="ctd-decoder",
            args=["--decryption-keys-path", "/etc/containerd/ocicrypt/keys"],
            env=["OCICRYPT_KEYPROVIDER_CONFIG=/etc/containerd/ocicrypt/ocicrypt_keyprovider.conf"],
        )
        for dotted, suffix in (("", ""), (".gzip", "+gzip"))
    }


def chain(media_type: str, configured: Mapping[str, StreamProcessor]) -> list[Step]:
    """What a layer goes through before it is a tar, compressed or not; nothing for most.

    Raises:
        UnimplementedError: it, or what comes out on the way, is no tar and no processor takes it.
        FailedPreconditionError: the processors hand it round in a circle.
    """
    steps: list[Step] = []
    current = media_type
    while True:
        taker = next((key for key in sorted(configured) if current in configured[key].accepts), None)
        if taker is None:
            if not _is_tar(current):
                raise UnimplementedError(f"failed to get stream processor for {current}: no processor for media-type")
            return steps
        if any(step.media_type == current for step in steps):
            raise FailedPreconditionError(f"stream processor {taker}: {current} is what comes of {current}")
        steps.append(Step(id=taker, media_type=current, processor=configured[taker]))
        current = configured[taker].returns
        if current == media_types.OCI_LAYER:
            return steps


@contextlib.asynccontextmanager
async def running(steps: Sequence[Step], source: int, payloads: Mapping[str, bytes]) -> AsyncIterator[int]:
    """Have the programs of a chain process what `source` gives; yields a descriptor to read the result from.

    Leaving waits for all of them, which takes a moment only, for the result has been read to its end; after a failure
    they are killed.

    Raises:
        UnknownError: a program could not be started, or ended with a failure, which is then what made everything
            behind it fail; the text quotes what it said.
    """
    started: list[_Process] = []
    with contextlib.ExitStack() as fds:
        try:
            for step in steps:
                read_end, write_end = os.pipe2(os.O_CLOEXEC)
                fds.callback(os.close, read_end)
                try:
                    started.append(_start(step, source, write_end, payloads.get(step.id)))
                finally:
                    os.close(write_end)
                source = read_end
            try:
                yield source
            except Exception as error:
                failed = await _blame(started)
                if failed is not None:
                    raise failed from error
                raise
            fds.close()
            await _end(started)
        finally:
            for process in started:
                await process.end()


class _Process:
    """A running program with its children, a process group of their own, and the end of what they say."""

    def __init__(self, step: Step, child: "subprocess.Popen[bytes]", stderr: int) -> None:
        self.step = step
        self._child = child
        self._exited = os.pidfd_open(child.pid)
        self._stderr = stderr
        self._said = b""
        self._listening = asyncio.create_task(self._listen())

    async def wait(self) -> int:
        """Its exit status; negative for a signal. It is not reaped yet, so that its group keeps its number."""
        await readable(self._exited)
        await asyncio.wait([self._listening], timeout=_PATIENCE_S)  # a child may hold on to the descriptor
        result = os.waitid(os.P_PIDFD, self._exited, os.WEXITED | os.WNOWAIT | os.WNOHANG)  # noqa: ASYNC222 - WNOHANG
        assert result is not None  # it has exited
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    async def end(self) -> None:
        """Kill what is left of it, and wait for that."""
        os.killpg(self._child.pid, signal.SIGKILL)
        await settle(self._reap())

    def error(self, status: int) -> UnknownError:
        """Its failure in words."""
        end = f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
        said = self._said.decode(errors="replace").strip()
        return UnknownError(f"stream processor {self.step.id}: {end}{f': {said}' if said else ''}")

    async def _reap(self) -> None:
        await readable(self._exited)
        self._child.wait()
        os.close(self._exited)
        self._listening.cancel()
        await asyncio.wait([self._listening])
        os.close(self._stderr)

    async def _listen(self) -> None:
        while True:
            await readable(self._stderr)
            data = os.read(self._stderr, _STDERR)
            if not data:
                return
            self._said = (self._said + data)[-_STDERR:]


def _start(step: Step, source: int, target: int, payload: bytes | None) -> _Process:
    what = f"failed to get stream processor for {step.media_type}: {step.id}"
    program = shutil.which(step.processor.path)
    if program is None:
        raise UnknownError(f"{what}: program {step.processor.path!r} is not there")
    argv = [program, *step.processor.args]
    with contextlib.ExitStack() as undo:
        passed: tuple[int, ...] = ()
        if payload is not None:
            fd = _in_memory(payload)
            undo.callback(os.close, fd)
            passed = (fd,)
            argv = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(fd), program, *argv]
        stderr, their_stderr = os.pipe2(os.O_CLOEXEC)
        undo.callback(os.close, their_stderr)
        try:
            child = subprocess.Popen(
                argv,
                stdin=source,
                stdout=target,
                stderr=their_stderr,
                pass_fds=passed,
                env=_environment(step),
                start_new_session=True,
            )
        except OSError as error:
            os.close(stderr)
            raise UnknownError(f"{what}: {program}: {error.strerror}") from error
    return _Process(step, child, stderr)


def _in_memory(data: bytes) -> int:
    """A file with these bytes, to be read from its beginning."""
    fd = os.memfd_create("payload", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _environment(step: Step) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in OUR_OWN}
    for word in step.processor.env:
        name, _, value = word.partition("=")
        environment[name] = value
    return {**environment, MEDIA_TYPE_VARIABLE: step.media_type}


async def _end(started: Sequence[_Process]) -> None:
    """Wait for all; their output has ended, so there is little left for them to do."""
    for process in started:
        try:
            async with asyncio.timeout(_END_S):
                status = await process.wait()
        except TimeoutError:
            raise UnknownError(f"stream processor {process.step.id}: did not end with its output") from None
        if status:
            raise process.error(status)


async def _blame(started: Sequence[_Process]) -> UnknownError | None:
    """The first program that has failed. Its pipe is still open: none fails because nobody reads what it writes."""
    if not started:
        return None
    waits = [asyncio.create_task(process.wait()) for process in started]
    done, waiting = await asyncio.wait(waits, timeout=_PATIENCE_S)
    for task in waiting:
        task.cancel()
    if waiting:
        await asyncio.wait(waiting)
    for process, task in zip(started, waits, strict=True):
        if task in done and (status := task.result()):
            return process.error(status)
    return None


def _is_tar(media_type: str) -> bool:
    """Whether a worker can unpack it; it looks at the bytes for how they are compressed."""
    try:
        media_types.layer_compression(media_type)
    except UnimplementedError:
        return False
    return all(suffix in _TAR_SUFFIXES for suffix in media_types.parse(media_type)[1])
