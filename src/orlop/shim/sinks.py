"""What a client's stdio address means: a FIFO, a file, or a logging program.

/path or fifo:///path        a FIFO that the client made; a plain path may also be a file or a device
file:///path                 a file, made if need be, appended to
binary:///path?key=value     a program that is handed pipes; see `start_logger`
"""

import contextlib
import errno
import fcntl
import os
import signal
import stat
from dataclasses import dataclass

from orlop.base.errdefs import InvalidArgumentError, NotFoundError, OrlopError, PermissionDeniedError
from orlop.linux.openat2 import RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2

_AT_FDCWD = -100
# As much as containerd's pipe, copy buffer and FIFO hold together, so that a client who stops reading stops the
# container no sooner.
_FIFO_SIZE = 256 << 10
_F_SETPIPE_SZ = 1031
_PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LINKS = 40  # the kernel's own limit: path_resolution(7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """A process's stdio as the client asked for it; empty texts mean /dev/null."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


def split(address: str) -> tuple[str, str]:
    """The scheme (`fifo` when there is none) and the rest.

    Raises:
        InvalidArgumentError: unknown scheme, or a path that is not absolute or has a NUL byte.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "fifo", address
    if scheme not in ("fifo", "file", "binary"):
        raise InvalidArgumentError(f"unknown STDIO scheme {scheme}")
    if not rest.startswith("/") or "\0" in rest:
        raise InvalidArgumentError(f"stdio {address!r}: the path must be absolute")
    return scheme, rest


def open_place(path: str, what: str) -> tuple[int, int]:
    """An O_PATH descriptor of `path` and its file type (`stat.S_IFMT`); a link as the last component is refused.

    Before that, links are followed that root made, such as /var/run. Who may write into a directory on the way, as
    tenants into theirs, could otherwise put a link there when the path has been judged.

    Raises:
        OrlopError: naming `what`, the path and the reason.
    """
    try:
        try:
            fd = openat2(path, _PLACE, dir_fd=_AT_FDCWD, resolve=RESOLVE_NO_SYMLINKS)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            fd = _follow(path)
    except OSError as error:
        raise io_error(what, path, error) from error
    kind = stat.S_IFMT(os.fstat(fd).st_mode)
    if kind not in (stat.S_IFIFO, stat.S_IFREG, stat.S_IFCHR):
        os.close(fd)
        raise InvalidArgumentError(f"{what} {path}: must be a FIFO, a file or a device, and no link")
    return fd, kind


def _follow(path: str) -> int:
    """Open `path` one component after the other, through links of root's alone."""
    rest = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    followed = 0
    try:
        while rest:
            there = os.open(rest.pop(), _PLACE, dir_fd=here)
            status = os.fstat(there)
            if not (stat.S_ISLNK(status.st_mode) and rest):
                os.close(here)
                here = there
                continue
            try:
                followed += 1
                if status.st_uid != 0 or followed > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = os.readlink("", dir_fd=there)
            finally:
                os.close(there)
            rest += [part for part in reversed(target.split("/")) if part not in ("", ".")]
            if target.startswith("/"):
                os.close(here)
                here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except BaseException:
        os.close(here)
        raise
    return here


def reopen(place: int, flags: int) -> int:
    """Open what an O_PATH descriptor stands for, whatever its path leads to by now."""
    return os.open(f"/proc/self/fd/{place}", flags | os.O_CLOEXEC | os.O_NOCTTY)


def open_stdin(path: str) -> tuple[int, int]:
    """The read end of a client's stdin FIFO and a write end, which withholds the end of file until CloseIO.

    Raises:
        InvalidArgumentError: it is no FIFO.
    """
    scheme, path = split(path)
    place, kind = open_place(path, "stdin")
    try:
        if scheme != "fifo" or kind != stat.S_IFIFO:
            raise InvalidArgumentError(f"stdin {path}: must be a FIFO")
        reader = reopen(place, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return reader, reopen(place, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            os.close(reader)
            raise
    except OSError as error:
        raise io_error("stdin", path, error) from error
    finally:
        os.close(place)


def open_fifo_output(place: int) -> tuple[int, int]:
    """Both ends of a client's FIFO for output: one to write (and read, so that nobody meets SIGPIPE), one kept to read.

    The kept end stays open until the task is deleted, so that what was written waits for a late reader; no write end is
    kept, so that readers see the end when the last process has ended.
    """
    writer = reopen(place, os.O_RDWR)
    try:
        with contextlib.suppress(OSError):
            _grow(writer)
        return writer, reopen(place, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        os.close(writer)
        raise


def open_file_output(path: str) -> int:
    """The file of a `file:` address, made if need be, for output to be appended to.

    Without O_APPEND, which splice(2) refuses. Magic links of /proc are not followed: a client's path shall not lead to
    the supervisor's own descriptors.
    """
    flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CREAT
    with contextlib.suppress(FileExistsError):
        os.makedirs(os.path.dirname(path), mode=0o755)
    return openat2(path, flags, dir_fd=_AT_FDCWD, mode=0o600, resolve=RESOLVE_NO_MAGICLINKS)


def start_logger(address: str, name: str, namespace: str, stdout: int, stderr: int) -> tuple[int, int]:
    """Start the program that `binary://` names.

    It gets the read ends of stdout and stderr as 3 and 4, and as 5 the write end of a pipe that it closes when it is
    ready; CONTAINER_ID (of an exec, the exec's) and CONTAINER_NAMESPACE in its environment; the query's keys and values
    as arguments. It ends when its inputs do. Source: NewBinaryIO in containerd's pkg/process/io.go and its
    runtime/v2/logging package.

    Returns:
        Its pid, and a descriptor that reads as ended when the program is ready or has failed.

    Raises:
        OrlopError: it cannot be run.
    """
    from urllib.parse import parse_qsl, unquote  # late: few containers have a logging program

    _scheme, rest = split(address)
    path, _, query = rest.partition("?")
    program = unquote(path)
    arguments = [word for key, value in parse_qsl(query, keep_blank_values=True) for word in (key, value) if word]
    ready, not_ready = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        pid = os.posix_spawn(
            program,
            [program, *arguments],
            {**os.environ, "CONTAINER_ID": name, "CONTAINER_NAMESPACE": namespace},
            file_actions=_logger_fds(stdout, stderr, not_ready),
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
        )
    except OSError as error:
        os.close(ready)
        raise io_error("logging program", program, error) from error
    finally:
        os.close(not_ready)
    return pid, ready


def _logger_fds(stdout: int, stderr: int, ready: int) -> list[tuple[int, ...]]:
    """File actions that put three descriptors at 3, 4 and 5, whatever their numbers are."""
    high = 100 + max(stdout, stderr, ready)
    actions: list[tuple[int, ...]] = []
    for offset, fd in enumerate((stdout, stderr, ready)):
        actions.append((os.POSIX_SPAWN_DUP2, fd, high + offset))
    for offset in range(3):
        actions.append((os.POSIX_SPAWN_DUP2, high + offset, 3 + offset))
    actions += [(os.POSIX_SPAWN_CLOSE, high + offset) for offset in range(3)]
    return actions


def _grow(fd: int) -> None:
    fcntl.fcntl(fd, _F_SETPIPE_SZ, _FIFO_SIZE)


def io_error(what: str, path: str, error: OSError) -> OrlopError:
    """`error` as one of ours, naming what was opened."""
    text = f"{what} {path}: {os.strerror(error.errno or 0)}"  # without the name of the call
    if isinstance(error, FileNotFoundError):
        return NotFoundError(text)
    if isinstance(error, PermissionError):
        return PermissionDeniedError(text)
    return InvalidArgumentError(text)
