"""Keeping the kernel's cgroup lock warm while a container is about to start.

Moving a process between cgroups takes a per-CPU reader-writer semaphore for writing. The first such write on an idle
system waits for an RCU grace period, 6 to 15 ms as measured; those that follow within some milliseconds do not. An OCI
runtime moves its process some 20 ms after the client's first call, so a write that changes nothing, made every few
milliseconds until then, lets that wait run beside the client's own work.

Source: cgroup_procs_write_start() and cgroup_threadgroup_rwsem in the kernel's kernel/cgroup/cgroup.c; rcu_sync.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Final

# A pause that is shorter than the time for which the lock stays warm, about 5 ms where it was measured.
INTERVAL_S: Final = 0.003
# A write that takes longer has met a cold lock.
COLD_NS: Final = 1_000_000


class Warmth:
    """Writes this process into its own cgroup, in a thread, from a `touch()` until it is over.

    Silent on failure: a host where this does not work is only slower. Off, it costs nothing: the thread is started by
    the first `touch()` and waits without a timer in between.

    Attributes:
        waited: when the last write that had to wait began and ended, in nanoseconds on CLOCK_MONOTONIC.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._until = 0.0
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.waited = (0, 0)

    def touch(self) -> None:
        """Something may start within the window; cheap, may be called often."""
        self._until = time.monotonic() + self._window_s
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="orlop-warmth", daemon=True)
            self._thread.start()
        self._wake.set()

    def cool(self) -> None:
        """Nothing is about to start any more."""
        self._until = 0.0

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._until = 0.0
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        path = own_procs_file()
        if path is None:
            return
        with contextlib.suppress(OSError):  # not permitted here, or our cgroup was removed: then without warmth
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                self._loop(descriptor)
            finally:
                os.close(descriptor)

    def _loop(self, descriptor: int) -> None:
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            while time.monotonic() < self._until:
                start_ns = time.monotonic_ns()
                os.write(descriptor, b"0")
                end_ns = time.monotonic_ns()
                if end_ns - start_ns > COLD_NS:
                    self.waited = (start_ns, end_ns)
                time.sleep(INTERVAL_S)


def own_procs_file(cgroups: str = "/proc/self/cgroup", mountinfo: str = "/proc/self/mountinfo") -> str | None:
    """A `cgroup.procs` of a cgroup that this process is in, on any hierarchy that is mounted whole: cgroups(7)."""
    with contextlib.suppress(OSError):
        mounts = dict(_hierarchies(mountinfo))
        with open(cgroups, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                mounted = mounts.get(controllers)
                file = f"{mounted}{path.rstrip('/')}/cgroup.procs" if mounted else ""
                if file and os.access(file, os.W_OK):
                    return file
    return None


def _hierarchies(mountinfo: str) -> Iterator[tuple[str, str]]:
    """Controllers as /proc/self/cgroup writes them, and where their hierarchy is mounted."""
    with open(mountinfo, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            before, _, after = line.partition(" - ")
            fstype, _, options = after.split()[:3]
            point, root = before.split()[4], before.split()[3]
            if root != "/":
                continue
            if fstype == "cgroup2":
                yield "", point
            elif fstype == "cgroup":
                words = [word for word in options.split(",") if word not in {"rw", "ro", "xattr", "clone_children"}]
                yield ",".join(words), point
