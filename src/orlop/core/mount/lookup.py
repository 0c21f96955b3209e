"""Reading small files of a container's root file system as the container would see them, links and all."""

import errno
import os
import stat
from typing import Final

from orlop.base.errdefs import FailedPreconditionError, ResourceExhaustedError
from orlop.linux.openat2 import openat2

MAX_BYTES: Final = 16 << 20
_RETRIES: Final = 32


def read_in_root(root: str, path: str, *, max_bytes: int = MAX_BYTES) -> bytes | None:
    """The bytes of a regular file below `root`, or None if there is none.

    Links are followed as if `root` were `/`, so none leads outside. A FIFO or device that an image put in the file's
    place is not opened for reading.

    Raises:
        FailedPreconditionError: it is no regular file.
        ResourceExhaustedError: it is larger than `max_bytes`.
    """
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = _open(path.lstrip("/"), root_fd)
    finally:
        os.close(root_fd)
    if fd is None:
        return None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FailedPreconditionError(f"{path} in the root file system is no regular file")
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ResourceExhaustedError(f"{path} in the root file system is larger than {max_bytes} bytes")
    return data


def _open(path: str, root_fd: int) -> int | None:
    for _ in range(_RETRIES):
        try:
            return openat2(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=root_fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            if error.errno != errno.EAGAIN:
                raise
    raise FailedPreconditionError(f"{path} in the root file system changes while it is read")
