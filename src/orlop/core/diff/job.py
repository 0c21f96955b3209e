"""One unpack job: the trusted process that prepares it, and the worker that meets the archive.

The trusted process confines itself (`sandbox`), forks the worker, relays what it reports, and when all is extracted
does the little that the worker may not: it marks opaque directories (trusted.overlay.opaque takes CAP_SYS_ADMIN, which
would open a worker every other door) and sets security.* attributes. It does so through openat2(2), following no link,
in the same private root. It is this process and not the daemon because it already stands in that root, and because its
descriptors and its end are the job's own.

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
from collections.abc import Iterator, Mapping
from typing import Any, Final

from orlop.base.errdefs import OrlopError
from orlop.core.diff import sandbox
from orlop.core.diff.errors import ArchiveError, LimitError, shown
from orlop.core.diff.extract import Extractor, Limits
from orlop.core.diff.stream import Pipeline
from orlop.core.diff.tar import Reader
from orlop.core.diff.tree import Tree
from orlop.core.mount import Mount
from orlop.linux import prctl
from orlop.linux._libc import libc, oserror
from orlop.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

_PROGRESS_EVERY: Final = 16 << 20
_MAX_REPORT: Final = 256 << 20
_PATH_MAX: Final = 4096
_ESTALE_PATH: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

Message = dict[str, Any]  # JSON


def run(request: Message, blob_fd: int, connection: socket.socket, life_fd: int) -> None:
    """Be the trusted process of a job, from its beginning to its end.

    Args:
        request: made by `Plan.request`.
        blob_fd: the layer blob.
        connection: to the daemon; its end is the order to give up.
        life_fd: held open by both processes, so that the daemon sees when both are gone.
    """
    try:
        sandbox.close_others((blob_fd, connection.fileno(), life_fd))
        prctl.set_name("orlop-layer")
        _send(connection, {"phase": "prepare"})
        done = _run(request, blob_fd, connection, life_fd)
        _send(connection, {"done": done})
    except BaseException as error:
        _send(connection, {"error": describe(error)})


def describe(error: BaseException, entry: bytes | None = None) -> Message:
    """A failure as the daemon is told it."""
    where = shown(entry) if entry is not None else None
    if isinstance(error, ArchiveError):
        kind = "limit" if isinstance(error, LimitError) else "archive"
        return {"kind": kind, "text": error.reason, "entry": shown(error.entry) if error.entry is not None else where}
    if isinstance(error, _ReportedError):
        return error.message
    if isinstance(error, OrlopError):
        return {"kind": "error", "code": error.code, "text": error.text, "entry": where}
    if isinstance(error, OSError):
        return {"kind": "os", "errno": error.errno, "text": error.strerror or str(error), "entry": where}
    if isinstance(error, MemoryError):
        return {"kind": "limit", "text": "it takes too much memory", "entry": where}
    return {"kind": "defect", "text": f"{type(error).__name__}: {error}", "entry": where}


class _ReportedError(Exception):
    """What the worker has said about its failure."""

    def __init__(self, message: Message) -> None:
        super().__init__(message)
        self.message = message


def _run(request: Message, blob_fd: int, connection: socket.socket, life_fd: int) -> Message:
    directory: str | None = request["directory"]
    if directory is not None and request["lower"] and os.listdir(directory):
        # Written before: what is there may have opaque marks that a worker cannot read. Let overlayfs do the work.
        request = {**request, "directory": None, "lower": [], "overlay": False}
        directory = None
    view = sandbox.enter(
        [mount_from(item) for item in request["mounts"]],
        [mount_from(item) for item in request["lower"]],
        directory,
    )
    report_read, report_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(report_read)
            _work(request, view, blob_fd, report_write, life_fd)
        finally:
            os._exit(1)
    os.close(report_write)
    os.close(blob_fd)
    try:
        final = _relay(report_read, connection)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    _, status = os.waitpid(pid, 0)
    if "error" in final:
        raise _ReportedError(final["error"])
    if "done" not in final:
        raise _ReportedError({"kind": "died", "text": _death(status), "entry": None})
    done: Message = final["done"]
    _privileged(view.root_fd, request["marks"], done)
    if request["sync"]:
        _send(connection, {"phase": "sync"})
        if libc.syncfs(view.root_fd) < 0:
            raise oserror("syncfs")
    done["isolated"] = view.isolated
    return done


def mount_from(item: Mapping[str, Any]) -> Mount:
    """A mount from its JSON."""
    return Mount(type=item["type"], source=item["source"], target=item["target"], options=tuple(item["options"]))


def _relay(report: int, connection: socket.socket) -> Message:
    """Hand the worker's messages on until it has said its last; the daemon's leaving ends it."""
    poll = select.poll()
    poll.register(report, select.POLLIN)
    poll.register(connection, select.POLLIN)
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
                _send(connection, {key: message[key] for key in ("phase", "progress") if key in message})


def _privileged(root_fd: int, marks: str, done: Message) -> None:
    """Set what the worker may not; every path is its word and goes through no link."""
    for text in done.pop("opaque"):
        _set(root_fd, bytes.fromhex(text), os.O_DIRECTORY, f"{marks}.opaque".encode(), b"y")
    for path, name, value in done.pop("privileged"):
        key = bytes.fromhex(name)
        if key.startswith(b"security."):
            _set(root_fd, bytes.fromhex(path), os.O_NONBLOCK, key, bytes.fromhex(value))


def _set(root_fd: int, path: bytes, flags: int, name: bytes, value: bytes) -> None:
    if len(path) >= _PATH_MAX:
        raise ArchiveError(f"{shown(path)} lies too deep for its attributes")
    try:
        fd = openat2(path or b".", os.O_RDONLY | flags, dir_fd=root_fd, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
    except OSError as error:
        if error.errno in _ESTALE_PATH:  # later entries have put something else there
            return
        raise
    try:
        os.setxattr(fd, name, value)
    finally:
        os.close(fd)


def _work(request: Message, view: sandbox.View, blob_fd: int, report: int, life_fd: int) -> None:
    """Be the worker. Never returns."""
    extractor: Extractor | None = None
    try:
        prctl.set_pdeathsig(signal.SIGKILL)
        poll = select.poll()
        poll.register(report, select.POLLERR)
        if poll.poll(0):
            os._exit(1)  # the parent died before it could take us along
        gc.disable()  # short-lived, and what it makes has no cycles
        os.umask(0)
        keep = {blob_fd, report, life_fd, view.root_fd, view.lower_fd}
        sandbox.confine(keep)
        limits = Limits(**request["limits"])
        pipeline = Pipeline(blob_fd, limit=limits.size)
        pipeline.start()
        sandbox.lock()
        tree = Tree(
            view.root_fd,
            view.lower_fd,
            layered=request["overlay"],
            open_limit=request["open_files"] // 20,
            always_inherits=view.parent_group,
        )
        merging = not tree.layered and bool(os.listdir(view.root_fd))
        _say(report, {"phase": "extract"})
        reader = Reader(_counted(pipeline, report))
        extractor = Extractor(reader, tree, merging=merging, limits=limits)
        result = extractor.run()
        _say(report, {"phase": "finish"})
        reader.drain()
        _say(
            report,
            {
                "done": {
                    "digest": pipeline.finish(),
                    "size": pipeline.size,
                    "entries": reader.entries,
                    "usage": None if merging else [tree.bytes, tree.inodes],
                    "opaque": [path.hex() for path in result.opaque],
                    "privileged": [[part.hex() for part in item] for item in result.privileged],
                    "ignored": result.ignored,
                }
            },
        )
        os._exit(0)
    except BaseException as error:
        _say(report, {"error": describe(error, extractor.current if extractor is not None else None)})
        os._exit(1)


def _counted(pipeline: Pipeline, report: int) -> Iterator[bytes]:
    told = 0
    for chunk in pipeline:
        yield chunk
        if pipeline.consumed - told >= _PROGRESS_EVERY:
            told = pipeline.consumed
            _say(report, {"progress": told})


def _say(report: int, message: Message) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(report, data) :]


def _send(connection: socket.socket, message: Message) -> None:
    """Tell the daemon; whether it still listens is seen by `_relay`."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.send(json.dumps(message).encode())


def _death(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"the worker ended with status {code} and said nothing"
    return f"the worker was killed by {signal.Signals(-code).name}"
