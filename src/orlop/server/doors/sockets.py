"""Unix sockets for the doors: a stale one is taken over, a live one refused; access belongs to the configured owner."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from orlop.base.errdefs import AlreadyExistsError, InvalidArgumentError

# A unix socket's path with its final zero must fit sockaddr_un: unix(7).
PATH_LIMIT: Final = 107
MODE: Final = 0o660


def path_of(address: str) -> Path:
    """The path of `address`, which may have the scheme `unix://`.

    Raises:
        InvalidArgumentError: it is not an absolute path, or too long for a unix socket.
    """
    path = address.removeprefix("unix://")
    if not path.startswith("/"):
        raise InvalidArgumentError(f'address "{address}": must be an absolute path')
    if len(os.fsencode(path)) > PATH_LIMIT:
        raise InvalidArgumentError(f'address "{address}": longer than the {PATH_LIMIT} bytes of a unix socket')
    return Path(path)


def claim(path: Path) -> None:
    """Make the directory of `path` and remove a socket there that nobody listens on.

    Raises:
        AlreadyExistsError: somebody listens there.
        InvalidArgumentError: something that is no socket lies there.
    """
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidArgumentError(f'address "{path}": there is a file that is no socket')
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise AlreadyExistsError(f'address "{path}": another daemon listens there')


def listen(path: Path, *, uid: int, gid: int, mode: int = MODE, backlog: int = 512) -> socket.socket:
    """A listening socket that nobody but its owner can connect to at any time.

    Raises:
        AlreadyExistsError, InvalidArgumentError: see `claim`.
        OSError: it cannot be bound or given to its owner.
    """
    claim(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        # The mode of the file that bind(2) makes is that of the socket, less the umask: no moment of wider access.
        os.fchmod(listener.fileno(), mode & MODE)
        listener.bind(os.fspath(path))
        give(path, uid=uid, gid=gid, mode=mode)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def give(path: Path, *, uid: int, gid: int, mode: int = MODE) -> None:
    """Set owner and mode of a bound socket."""
    if (uid, gid) != (os.geteuid(), os.getegid()):
        os.chown(path, uid, gid)
    path.chmod(mode)


@contextlib.contextmanager
def private_umask() -> Iterator[None]:
    """A umask under which new sockets have `MODE` at most; for libraries that bind by themselves.

    The umask belongs to the process: only for the daemon's start, before other threads make files.
    """
    before = os.umask(0o777 & ~MODE)
    try:
        yield
    finally:
        os.umask(before)
