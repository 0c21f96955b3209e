"""The zygote: a small process with one thread that has everything imported and forks a new process per job.

It is started when the first job comes and ends when its control socket closes, so it never outlives the daemon. A job
comes as one message with descriptors: the job's own socket, the end of a pipe that only says who is still alive, the
file it works on, and of a file that is still coming, what tells how far. The first message on the job's socket is its
process as a pidfd.
"""

import contextlib
import errno
import gc
import json
import os
import select
import signal
import socket
import sys
from typing import Final

from orlop.core.diff import apply_job, compare_job, image_job, index_job, job, output, sandbox, stream
from orlop.linux import malloc, prctl

MAX_REQUEST: Final = 1 << 18
_JOBS: Final = {
    "apply": apply_job.apply,
    "compare": compare_job.compare,
    "image": image_job.store,
    "index": index_job.index,
}


def main(control_fd: int) -> None:
    """Serve jobs until the other side closes `control_fd`."""
    prctl.set_name("orlop-zygote")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the daemon to act on
    malloc.keep_freed()
    prepare()
    children: dict[int, int] = {}
    poll = select.poll()
    poll.register(control_fd, select.POLLIN)
    limit = sandbox.raise_open_files()
    with socket.socket(fileno=control_fd) as control:
        while True:
            for fd, _ in poll.poll():
                if fd != control_fd:
                    poll.unregister(fd)
                    os.close(fd)
                    os.waitpid(children.pop(fd), 0)
                elif not _accept(control, poll, children, limit):
                    return


def prepare() -> None:
    """Import what a job needs: it cannot once it stands in its own root."""
    for compression in (stream.Compression.GZIP, stream.Compression.ZSTD):
        stream.decompressor(compression)
        output.compressor(compression)()
    "".encode("unicode_escape").decode("ascii", "backslashreplace")
    os.strerror(errno.EPERM)
    gc.collect()
    gc.freeze()  # what is shared with the jobs stays shared


def _accept(control: socket.socket, poll: select.poll, children: dict[int, int], limit: int) -> bool:
    data, fds, _, _ = socket.recv_fds(control, MAX_REQUEST, 4)
    if not data:
        return False
    try:
        request = json.loads(data)
        request["open_files"] = limit
        connection_fd, life, *inputs = fds
        with socket.socket(fileno=connection_fd) as connection:
            pid = _fork(request, inputs, connection, life)
            pidfd = os.pidfd_open(pid)
            children[pidfd] = pid
            poll.register(pidfd, select.POLLIN)
            with contextlib.suppress(OSError):  # the caller has given up already; the job sees that too
                socket.send_fds(connection, [b'{"phase": "start"}'], [pidfd])
        for fd in (life, *inputs):
            os.close(fd)
    except OSError as error:  # no more processes: the closed socket tells the caller
        print(f"orlop zygote: {error}", file=sys.stderr)
    return True


def _fork(request: job.Message, inputs: list[int], connection: socket.socket, life: int) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        prctl.set_pdeathsig(signal.SIGKILL)
        if os.getppid() == parent:
            work = job.Job(request, *inputs, connection=connection, life=life)
            job.run(work, _JOBS[request["kind"]])
            status = 0
    finally:
        os._exit(status)
