"""Processes by descriptor: pidfd_open(2), pidfd_send_signal(2), pidfd_getfd(2), and exits by PIDFD_GET_INFO."""

import errno
import fcntl
import os
import select
import signal
import struct
from typing import Final

from orlop.linux._libc import SYS_pidfd_getfd, oserror, syscall

# linux/pidfd.h; the first 64 bytes of struct pidfd_info are the same in all kernels that have it (6.13 on).
_PIDFD_INFO: Final = struct.Struct("<QQ11Ii")
_PIDFD_GET_INFO: Final = (3 << 30) | (_PIDFD_INFO.size << 16) | (0xFF << 8) | 11
_PIDFD_INFO_EXIT: Final = 1 << 3


def pidfd_open(pid: int) -> int:
    """A close-on-exec descriptor of a process: pidfd_open(2). Raises OSError: ESRCH if there is none."""
    return os.pidfd_open(pid)


def pidfd_send_signal(pidfd: int, signum: int) -> None:
    """Signal the process behind `pidfd`: pidfd_send_signal(2). Raises ProcessLookupError if it has been reaped."""
    signal.pidfd_send_signal(pidfd, signum)


def pidfd_getfd(pidfd: int, target_fd: int) -> int:
    """A close-on-exec duplicate of another process's descriptor: pidfd_getfd(2).

    Raises:
        OSError: EBADF if the process has no such descriptor; EPERM unless it may be traced; ESRCH if it has ended;
            ENOSYS before Linux 5.6.
    """
    fd = syscall(SYS_pidfd_getfd, pidfd, target_fd, 0)
    if fd < 0:
        raise oserror(f"pidfd_getfd {target_fd}")
    return fd


def has_exited(pidfd: int) -> bool:
    """Whether the process has ended (reaped or not); does not wait."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def exit_status(pidfd: int) -> int | None:
    """The wait status of a process that has ended *and been reaped* by somebody, from Linux 6.15 on.

    The descriptor must have been opened before the process was reaped.

    Returns:
        A status for `os.waitstatus_to_exitcode`; None while the process lives, is a zombie, or where the kernel cannot
        tell (then the caller must not guess).
    """
    buffer = bytearray(_PIDFD_INFO.pack(_PIDFD_INFO_EXIT, *(0,) * 13))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.ESRCH):
            return None
        raise
    fields = _PIDFD_INFO.unpack(buffer)
    return int(fields[-1]) if fields[0] & _PIDFD_INFO_EXIT else None


def zombie_status(pid: int) -> int | None:
    """The wait status of a zombie from /proc/PID/stat (proc_pid_stat(5), field 52), for those who cannot wait for it.

    Returns:
        None if the process is gone, is no zombie, or the field is hidden (0 is also what the kernel shows to readers
        who may not trace the process; as root it is the status).
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    if len(fields) < 50 or fields[0] not in (b"Z", b"X"):
        return None
    return int(fields[49])
