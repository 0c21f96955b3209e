"""The one place in the supervisor that starts child processes. Nobody waits here: the reaper does.

`subprocess.Popen` and not `os.posix_spawn`: glibc's posix_spawn leaves signals 32 and 33 (SIGCANCEL and SIGSETXID)
ignored in the child, the OCI runtime hands that on to the container, and `setsigdef` refuses these two. Popen uses
vfork and exec itself, and resets what Python ignores.
"""

import contextlib
import os
import resource
import subprocess
from collections.abc import Mapping, Sequence

from orlop.base import failpoints

DEVNULL = subprocess.DEVNULL

# Soft limit of open files as this process was given it, once it has been raised; children get it back.
_inherited_limit: list[tuple[int, int]] = []


def raise_file_limit() -> None:
    """Allow this process as many open files as it may have; its children start with what it was given."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and not _inherited_limit:
        _inherited_limit.append((soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_files() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def file_limit() -> int:
    """How many it may have at present."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    stdin: int = DEVNULL,
    stdout: int = DEVNULL,
    stderr: int = DEVNULL,
    pass_fds: Sequence[int] = (),
    new_session: bool = False,
    cwd: str = "/",
    executable: str | None = None,
) -> int:
    """Start `argv` with the given descriptors as its 0, 1 and 2; `pass_fds` keep their numbers, all others are closed.

    Returns:
        The pid. The caller registers it with the reaper before it lets the event loop run.

    Raises:
        OSError: the program cannot be executed; nothing is left running.
    """
    failpoints.reach("shim.process.spawning")
    child = subprocess.Popen(
        argv,
        env=env,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        close_fds=True,
        pass_fds=pass_fds,
        start_new_session=new_session,
        cwd=cwd,
        executable=executable,
    )
    failpoints.reach("shim.process.spawned")
    if _inherited_limit:
        with contextlib.suppress(OSError):  # it may have ended already
            resource.prlimit(child.pid, resource.RLIMIT_NOFILE, _inherited_limit[0])
    # The reaper is the only one who waits; Popen must neither poll nor warn when it is collected.
    child.returncode = 0
    return child.pid
