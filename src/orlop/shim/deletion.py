"""The `delete` command: what a daemon runs after a supervisor has died, to be rid of one container.

The container is killed, the runtime's state, the cgroup and the mounts are removed, and its exit is told: 137, as
containerd's shim does, unless the record of the dead supervisor knows better. A supervisor that lives is asked instead.

containerd also runs this after each regular end of a container, and waits for it, so a bundle that holds nothing any
more is answered with hardly anything imported.
"""

import contextlib
import os
import signal
import sys
import time

_KILLED = 128 + 9
_LIMIT_S = 60.0
_CREATION_S = 20.0


def delete(namespace: str, address: str, container: str, bundle: str) -> int:
    """Remove what is left of a container and print a DeleteResponse.

    Raises:
        OrlopError: the mounts cannot be undone.
    """
    pid, status, at_ns = 0, _KILLED, time.time_ns()
    if os.path.lexists(f"{bundle}/orlop/init.json") or os.path.ismount(f"{bundle}/rootfs"):
        pid, status, at_ns = _remove(namespace, address, container, bundle)
    sys.stdout.buffer.write(_answer(pid, status, at_ns))
    sys.stdout.flush()
    return 0


def _remove(namespace: str, address: str, container: str, bundle: str) -> tuple[int, int, int]:
    from orlop.shim import records
    from orlop.shim.paths import Place, state_directory
    from orlop.shim.reaper import boot_id
    from orlop.shim.rootfs import unmount_tree

    record = records.read(records.path(bundle))
    socket = record.socket if record is not None and record.socket else ""
    asked = _ask(socket or Place(state_directory(), address, namespace).socket, container)
    if asked is not None:
        return asked
    pid, status, at_ns = 0, _KILLED, time.time_ns()
    if record is not None and record.boot == boot_id():
        pid = record.pid
        if record.status == records.STOPPED:
            status, at_ns = record.exit_status, record.exited_at_ns
        for one in records.read_all(bundle, record.boot):
            _end_keeper(one.keeper)
        if record.status == records.CREATING:
            _await_creation(bundle)
        _remove_from_runtime(record.command, record.root, record.systemd_cgroup, container)
    unmount_tree(f"{bundle}/rootfs")
    if record is not None:
        records.remove(bundle, "")
    return pid, status, at_ns


def _ask(socket: str, container: str) -> tuple[int, int, int] | None:
    """Have a living supervisor kill and delete the container; None if there is none, or it does not know it."""
    from orlop.api.runtime.task.v3 import shim_pb2
    from orlop.ttrpc.client import Client
    from orlop.ttrpc.errors import TtrpcError

    task = "containerd.task.v3.Task"
    try:
        with Client.connect(socket, timeout_s=_LIMIT_S) as client:
            state = shim_pb2.StateRequest(id=container).SerializeToString()
            client.call(task, "State", state, timeout_s=_LIMIT_S)
            kill = shim_pb2.KillRequest(id=container, signal=9, all=True).SerializeToString()
            with contextlib.suppress(TtrpcError):  # it may have ended; Wait and Delete say whether it has
                client.call(task, "Kill", kill, timeout_s=_LIMIT_S)
            wait = shim_pb2.WaitRequest(id=container).SerializeToString()
            client.call(task, "Wait", wait, timeout_s=_LIMIT_S)
            request = shim_pb2.DeleteRequest(id=container).SerializeToString()
            data = client.call(task, "Delete", request, timeout_s=_LIMIT_S)
    except TtrpcError:
        return None
    answer = shim_pb2.DeleteResponse.FromString(data)
    return answer.pid, answer.exit_status, answer.exited_at.ToNanoseconds()


def _await_creation(bundle: str) -> None:
    """Wait for an OCI runtime that a dead supervisor had told to make the container, and still does.

    What it makes has a state that can be removed; killed in the middle it might leave a cgroup that nobody knows.
    """
    deadline = time.monotonic() + _CREATION_S
    while pids := _creators(os.fsencode(bundle)):
        if time.monotonic() > deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.02)


def _creators(bundle: bytes) -> list[int]:
    """Processes that are told to create a container in `bundle`."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
                if b"create" in words and bundle in words:
                    found.append(int(name))
    return found


def _remove_from_runtime(command: str, root: str, systemd_cgroup: bool, container: str) -> None:
    import subprocess

    argv = [command, "--root", root]
    if systemd_cgroup:
        argv.append("--systemd-cgroup")
    # What it says is not quoted: stdout and stderr are this command's answer.
    subprocess.run(
        [*argv, "delete", "--force", container],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=_LIMIT_S,
        check=False,
    )


def _end_keeper(keeper: dict[str, int]) -> None:
    from orlop.shim.keeper import Keeper

    if keeper:
        Keeper(int(keeper["pid"]), int(keeper["start_time"]), {}).end()


def _answer(pid: int, status: int, at_ns: int) -> bytes:
    """A serialized `containerd.task.v2.DeleteResponse`, by hand: importing protobuf takes longer than all the rest."""
    seconds, nanos = divmod(at_ns, 10**9)
    stamp = b"\x08" + _varint(seconds) + b"\x10" + _varint(nanos)
    return b"\x08" + _varint(pid) + b"\x10" + _varint(status) + b"\x1a" + _varint(len(stamp)) + stamp


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
