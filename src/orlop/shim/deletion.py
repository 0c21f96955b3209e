"""The `delete` command: what a daemon runs after a supervisor has died, to be rid of one container.

The container is killed, the runtime's state, the cgroup and the mounts are removed, and its exit is told: 137, as
containerd's shim does, unless the record of the dead supervisor knows better. A supervisor that lives is asked instead.
"""

import os
import signal
import subprocess
import sys
import time

from orlop.api.runtime.task.v2 import shim_pb2
from orlop.shim import records
from orlop.shim.reaper import boot_id, start_time
from orlop.shim.rootfs import unmount_tree

_KILLED = 128 + signal.SIGKILL
_LIMIT_S = 60.0


def delete(namespace: str, address: str, container: str, bundle: str) -> int:
    """Remove what is left of a container and print a DeleteResponse.

    Raises:
        OrlopError: the mounts cannot be undone.
    """
    record = records.read(records.path(bundle))
    answer = shim_pb2.DeleteResponse(exit_status=_KILLED)
    at_ns = time.time_ns()
    if record is not None and record.boot == boot_id():
        answer.pid = record.pid
        if record.status == records.STOPPED:
            answer.exit_status, at_ns = record.exit_status, record.exited_at_ns
        _end_keepers(bundle)
        _remove_from_runtime(record)
    answer.exited_at.FromNanoseconds(at_ns)
    unmount_tree(f"{bundle}/rootfs")
    sys.stdout.buffer.write(answer.SerializeToString())
    sys.stdout.flush()
    return 0


def _remove_from_runtime(record: records.Record) -> None:
    argv = [record.command, "--root", record.root]
    if record.systemd_cgroup:
        argv.append("--systemd-cgroup")
    # What it says is not quoted: stdout and stderr are this command's answer.
    subprocess.run(
        [*argv, "delete", "--force", record.container],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=_LIMIT_S,
        check=False,
    )


def _end_keepers(bundle: str) -> None:
    for record in records.read_all(bundle, boot_id()):
        pid = int(record.keeper.get("pid", 0))
        if pid and start_time(pid) == record.keeper.get("start_time"):
            os.kill(pid, signal.SIGKILL)
