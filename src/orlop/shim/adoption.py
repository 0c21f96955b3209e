"""Taking over from a supervisor that was killed: from its records, and from what the kernel and the runtime say now.

The containers live on, as children of the daemon (a sub-reaper) or of init, so they are waited for by pidfd.
Descriptors that had to outlive the supervisor come from keepers. What a record does not settle is asked: whether a
created container was started meanwhile, whether a running one is frozen. Exits that may not have been told are told
again: a daemon takes them twice, but cannot do without.
"""

import asyncio
import contextlib
import logging
import os
import time

from orlop.base.errdefs import OrlopError
from orlop.linux import pidfd
from orlop.shim import cgroup, records
from orlop.shim.process import Process
from orlop.shim.reaper import Exit, Reaper, start_time
from orlop.shim.records import CREATED, CREATING, PAUSED, RUNNING, STOPPED, Record
from orlop.shim.rootfs import unmount_tree
from orlop.shim.runtime import Runtime, read_pid_file
from orlop.shim.stdio import ProcessIO
from orlop.shim.task import Task, Workshop

_log = logging.getLogger(__name__)

# A runtime that was making a container when its supervisor was killed goes on by itself for about so long.
_SETTLING_S = 3.0


def runtime_of(reaper: Reaper, record: Record) -> Runtime:
    """The runtime that a record names."""
    return Runtime(reaper, command=record.command, root=record.root, systemd_cgroup=record.systemd_cgroup)


async def adopt(workshop: Workshop, directory: str) -> tuple[dict[str, Task], list[tuple[str, Record]]]:
    """Find what belonged to this supervisor's place.

    Args:
        directory: the bundles of the namespace lie in it.

    Returns:
        The tasks by container, and bundle and record of containers whose creation was never finished: see `undo()`.
    """
    tasks: dict[str, Task] = {}
    unfinished: list[tuple[str, Record]] = []
    for bundle, found in _bundles(workshop, directory):
        init = found[0]
        if init.status == CREATING:
            unfinished.append((bundle, init))
            continue
        try:
            task = Task(workshop, init, bundle, runtime_of(workshop.reaper, init))
            await _adopt_task(task, found[1:])
        except (OSError, OrlopError) as error:
            _log.error("%s cannot be adopted: %s", init.container, error)
            continue
        tasks[init.container] = task
        _log.info("adopted %s: %s, pid %d", init.container, task.init.status, task.init.pid)
    return tasks, unfinished


async def undo(workshop: Workshop, bundle: str, record: Record) -> None:
    """Remove what a creation that was never finished has left."""
    runtime = runtime_of(workshop.reaper, record)
    for pause_s in (0.0, _SETTLING_S):
        await asyncio.sleep(pause_s)
        try:
            await runtime.delete(record.container, bundle=bundle, force=True)
        except OrlopError as error:
            _log.warning("unfinished container %s: %s", record.container, error)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, cgroup.remove_asked_for, bundle)
    await loop.run_in_executor(None, unmount_tree, f"{bundle}/rootfs")
    records.remove(bundle, "")


def _bundles(workshop: Workshop, directory: str) -> list[tuple[str, list[Record]]]:
    found = []
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(directory)):
            bundle = f"{directory}/{name}"
            all_of_one = records.read_all(bundle, workshop.boot)
            if not all_of_one or all_of_one[0].socket != workshop.place.socket:
                continue
            if os.path.lexists(f"{workshop.place.gone}/{name}"):
                records.remove(bundle, "")  # its deletion was answered; the runtime's part follows
                continue
            found.append((bundle, all_of_one))
    return found


async def _adopt_task(task: Task, execs: list[Record]) -> None:
    init = task.init
    handle = _open(init.record)
    if handle >= 0:
        task.cgroup = cgroup.Paths.of(init.pid)
    if init.record.checkpoint and not init.pid:
        init.io = task.new_io(init.paths)  # nothing has been handed out yet
        await init.io.open(task.shop.reaper, task.container, task.shop.namespace)
    else:
        _resume_io(task, init)
    for record in execs:
        process = Process(task.bundle, record)
        process.process_file = f"{task.bundle}/{records.DIRECTORY}/process-{record.exec_id}.json"
        task.execs[record.exec_id] = process
        _adopt_exec(task, process)
    if init.status == STOPPED:
        _restore_exit(init)
        task.publish_exit(init)
    elif handle >= 0:
        await _settle_status(task)
        init.watch_by_pidfd(handle, task.init_ended)
    elif init.pid:
        task.init_ended(Exit(init.pid, 255, _now(), known=False))


def _adopt_exec(task: Task, process: Process) -> None:
    if process.status == CREATED and not process.pid:
        # The runtime may have finished what the supervisor had asked for.
        with contextlib.suppress(OrlopError):
            pid = read_pid_file(f"{task.bundle}/{process.exec_id}.pid")
            process.record.start_time = start_time(pid)
            process.record.pid = pid
            process.found(RUNNING)
    if process.status == STOPPED:
        _restore_exit(process)
        task.publish_exit(process)
    elif process.pid:
        _resume_io(task, process)
        handle = _open(process.record)
        if handle >= 0:
            process.watch_by_pidfd(handle, lambda exit_: task.exec_ended(process, exit_))
        else:
            task.exec_ended(process, Exit(process.pid, 255, _now(), known=False))


def _open(record: Record) -> int:
    """A pidfd of the recorded process, dead or alive; -1 if it has been reaped, and so is perhaps somebody else."""
    if not record.pid or record.status == STOPPED:
        return -1
    try:
        handle = pidfd.pidfd_open(record.pid)
    except OSError:
        return -1
    if start_time(record.pid) == record.start_time:
        return handle
    os.close(handle)
    return -1


def _resume_io(task: Task, process: Process) -> None:
    io: ProcessIO = task.new_io(process.paths)
    process.io = io
    try:
        io.resume(process.adopt_keeper(), stdin_closed=process.record.stdin_closed)
        io.on_kept_changed = process.renew_keeper
    except (OSError, OrlopError) as error:
        _log.warning("stdio of %s cannot be taken up: %s", process.name, error)


async def _settle_status(task: Task) -> None:
    init = task.init
    frozen = task.cgroup.frozen()
    if init.status == CREATED and await task.runtime.status(task.container, bundle=task.bundle) in (
        "running",
        "paused",
    ):
        init.found(PAUSED if frozen else RUNNING)
        task.publish_start()
    elif init.status in (RUNNING, PAUSED) and frozen is not None:
        init.found(PAUSED if frozen else RUNNING)
    task.shop.oom.watch(task.container, task.cgroup)


def _restore_exit(process: Process) -> None:
    one = process.record
    process.exit = Exit(one.pid, one.exit_status, one.exited_at_ns, one.exit_known)


def _now() -> int:
    return time.time_ns()
