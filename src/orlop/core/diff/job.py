"""What the jobs of workers have in common: a trusted process that prepares, and a worker that meets what is hostile.

The trusted process confines itself (`sandbox`), forks the worker, relays what it reports, and does what the worker may
not. What a job is besides is in `apply_job` and `compare_job`.

Messages to the daemon are JSON objects in a SOCK_SEQPACKET socket: `{"phase": …}`, `{"progress": bytes}`, and at last
one of `{"done": …}` and `{"error": …}`.
"""

import contextlib
import errno
import gc
import json
import os
import select
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final

from orlop.base.errdefs import OrlopError
from orlop.core.diff import sandbox
from orlop.core.diff.errors import ArchiveError, EntryError, LimitError, UnsuitableError, shown
from orlop.core.diff.layer import ChangedError
from orlop.core.mount import Mount
from orlop.linux import prctl

_MAX_REPORT: Final = 256 << 20

Message = dict[str, Any]  # JSON


@dataclass(frozen=True, slots=True)
class Job:
    """What a job's processes hold.

    Attributes:
        request: of the daemon; its `kind` says which job it is.
        file: descriptor of the file it works on.
        more: an eventfd that counts what comes of a file that is still coming, or -1.
        connection: to the daemon; its end is the order to give up.
        life: held open by both processes, so that the daemon sees when both are gone.
    """

    request: Message
    file: int
    more: int = -1
    _: KW_ONLY
    connection: socket.socket
    life: int

    @property
    def inputs(self) -> Sequence[int]:
        """All that is read."""
        return [self.file] if self.more < 0 else [self.file, self.more]


def run(job: Job, prepare: Callable[[Job], Message]) -> None:
    """Be the trusted process of a job, from its beginning to its end.

    Args:
        prepare: does the job and returns what the daemon is to have under "done".
    """
    try:
        sandbox.close_others((*job.inputs, job.connection.fileno(), job.life))
        prctl.set_name("orlop-layer")
        send(job, {"phase": "prepare"})
        send(job, {"done": prepare(job)})
    except BaseException as error:
        send(job, {"error": describe(error)})


def supervise(job: Job, work: Callable[[int], Message]) -> Message:
    """Have `work` done by a process of its own.

    Args:
        work: gets a descriptor for `say`; it confines itself, and returns what it reports under "done".

    Raises:
        ReportedError: what the worker has said of its failure, or that it died.
        InterruptedError: the daemon has gone; the worker is dead.
    """
    report_read, report_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(report_read)
            _work(report_write, work)
        finally:
            os._exit(1)
    os.close(report_write)
    for fd in job.inputs:
        os.close(fd)
    try:
        final = _relay(report_read, job)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    _, status = os.waitpid(pid, 0)
    if "error" in final:
        raise ReportedError(final["error"])
    if "done" not in final:
        raise ReportedError({"kind": "died", "text": _death(status), "entry": None})
    done: Message = final["done"]
    return done


def describe(error: BaseException, entry: bytes | None = None) -> Message:
    """A failure as the daemon is told it."""
    where = shown(entry) if entry is not None else None
    if isinstance(error, ArchiveError):
        kind = "limit" if isinstance(error, LimitError) else "archive"
        return {"kind": kind, "text": error.reason, "entry": shown(error.entry) if error.entry is not None else where}
    if isinstance(error, ReportedError):
        return error.message
    if isinstance(error, UnsuitableError):
        return {"kind": "unsuitable", "text": str(error), "entry": where}
    if isinstance(error, ChangedError):
        return {"kind": "changed", "text": str(error), "entry": where}
    if isinstance(error, OrlopError):
        return {"kind": "error", "code": error.code, "text": error.text, "entry": where}
    if isinstance(error, OSError):
        return {"kind": "os", "errno": error.errno, "text": error.strerror or str(error), "entry": where}
    if isinstance(error, MemoryError):
        return {"kind": "limit", "text": "it takes too much memory", "entry": where}
    return {"kind": "defect", "text": f"{type(error).__name__}: {error}", "entry": where}


class ReportedError(Exception):
    """What the worker has said about its failure."""

    def __init__(self, message: Message) -> None:
        super().__init__(message)
        self.message = message


def mount_from(item: Mapping[str, Any]) -> Mount:
    """A mount from its JSON."""
    return Mount(type=item["type"], source=item["source"], target=item["target"], options=tuple(item["options"]))


def _relay(report: int, job: Job) -> Message:
    """Hand the worker's messages on until it has said its last; the daemon's leaving ends it."""
    poll = select.poll()
    poll.register(report, select.POLLIN)
    poll.register(job.connection, select.POLLIN)
    buffer = bytearray()
    while True:
        for fd, _ in poll.poll():
            if fd != report:
                raise InterruptedError(errno.EINTR, "the caller has gone")
            data = os.read(report, 1 << 16)
            if not data:
                return {}
            buffer += data
            if len(buffer) > _MAX_REPORT:
                raise LimitError("the worker's report is too large")
            if b"\n" not in data:
                continue
            *lines, rest = bytes(buffer).split(b"\n")
            buffer = bytearray(rest)
            for line in lines:
                message = json.loads(line)
                if "done" in message or "error" in message:
                    return dict(message)
                send(job, {key: message[key] for key in ("phase", "progress") if key in message})


def _work(report: int, work: Callable[[int], Message]) -> None:
    """Be the worker. Never returns."""
    try:
        prctl.set_pdeathsig(signal.SIGKILL)
        poll = select.poll()
        poll.register(report, select.POLLERR)
        if poll.poll(0):
            os._exit(1)  # the parent died before it could take us along
        gc.disable()  # short-lived, and what it makes has no cycles
        say(report, {"done": work(report)})
        os._exit(0)
    except EntryError as error:
        say(report, {"error": describe(error.__cause__ or error, error.entry)})
    except BaseException as error:
        say(report, {"error": describe(error)})
    os._exit(1)


def say(report: int, message: Message) -> None:
    """Report from the worker; the trusted process hands phases and progress on."""
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(report, data) :]


def send(job: Job, message: Message) -> None:
    """Tell the daemon; whether it still listens is seen by `supervise`."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        job.connection.send(json.dumps(message).encode())


def _death(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"the worker ended with status {code} and said nothing"
    return f"the worker was killed by {signal.Signals(-code).name}"
