"""A container's task: its processes, and what may be done to it in which state.

States of init and what leads from one to the next; whatever is not drawn is refused in containerd's words:

    creating ─▶ created ─start▶ running ─pause▶ paused ─resume▶ running
                   └───────────────┴──────────────┴── exit ──▶ stopped ─delete▶ gone

Exits overtake everything, so no state follows `stopped`, and the exit of a process whose start is under way is told
after that start. Events of one task are published in the order of what happened.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import Message

from orlop.api.events import task_pb2 as events_pb2
from orlop.api.types.runc.options import oci_pb2
from orlop.base import failpoints, json_text
from orlop.base.errdefs import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OrlopError,
    UnknownError,
)
from orlop.base.phases import Phases, Recent, clock
from orlop.core.mount import Mount
from orlop.core.mount.perform import mount_all
from orlop.shim import cgroup, checkpoint, events, records, specification
from orlop.shim.events import Publisher
from orlop.shim.oom import OomWatcher
from orlop.shim.options import Options
from orlop.shim.paths import Place
from orlop.shim.process import Process
from orlop.shim.reaper import Exit, Reaper
from orlop.shim.records import CREATED, PAUSED, RUNNING, STOPPED, Record
from orlop.shim.rootfs import unmount_tree
from orlop.shim.runtime import UNDO_LIMIT_S, Runtime, RuntimeFailedError, kill_error, read_pid_file
from orlop.shim.sinks import Paths
from orlop.shim.stdio import ProcessIO

_log = logging.getLogger(__name__)

# File systems whose mounting takes no longer than a system call should; all others are mounted in a worker thread.
_QUICK_MOUNTS: Final = frozenset({"overlay", "bind", "rbind", "none", "tmpfs", ""})
_KILLED_LIMIT_S: Final = 10.0


@dataclass(slots=True, kw_only=True)
class Workshop:
    """What all tasks of a supervisor share.

    Attributes:
        recent: phases of the processes that began last, by container and exec id.
    """

    place: Place
    namespace: str
    boot: str
    reaper: Reaper
    publisher: Publisher
    oom: OomWatcher
    recent: Recent[tuple[str, str]] = field(default_factory=Recent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client wants created."""

    container: str
    bundle: str
    rootfs: Sequence[Mount]
    paths: Paths
    options: Options
    checkpoint: str = ""
    parent_checkpoint: str = ""


class Task:
    """One container's task. Made by `create()`, or by adoption."""

    def __init__(self, workshop: Workshop, record: Record, bundle: str, runtime: Runtime) -> None:
        self.shop = workshop
        self.container = record.container
        self.bundle = bundle
        self.runtime = runtime
        self.init = Process(bundle, record)
        self.execs: dict[str, Process] = {}
        self.options = Options(io_uid=record.io_uid, io_gid=record.io_gid)
        self.cgroup = cgroup.Paths()
        self._lock = asyncio.Lock()

    @property
    def rootfs(self) -> str:
        return f"{self.bundle}/rootfs"

    def process(self, exec_id: str) -> Process:
        """Raises NotFoundError for an exec that is not there."""
        if not exec_id:
            return self.init
        try:
            return self.execs[exec_id]
        except KeyError:
            raise NotFoundError(f"process does not exist {exec_id}") from None

    def phases(self, exec_id: str = "") -> Phases:
        """What is noted of the times of a process."""
        return self.shop.recent.at((self.container, exec_id))

    @property
    def busy(self) -> bool:
        """Whether something is being done to it of which the records do not know yet."""
        return self._lock.locked() or any(process.starting for process in (self.init, *self.execs.values()))

    # ---- create

    @classmethod
    async def create(cls, workshop: Workshop, request: Request, runtime: Runtime) -> "Task":
        """Mount the root file system and have the runtime make the container; wholly or not at all.

        Raises:
            OrlopError: with the phase and, where the OCI runtime failed, its words.
        """
        phases = workshop.recent.at((request.container, ""))
        with phases("spec"):
            spec = specification.read(request.bundle)
            if specification.maps_mounts(spec):
                await runtime.require_mapped_mounts(request.container, bundle=request.bundle)
            specification.clamp_oom_score(request.bundle, spec)
        record = Record(
            boot=workshop.boot,
            container=request.container,
            stdin=request.paths.stdin,
            stdout=request.paths.stdout,
            stderr=request.paths.stderr,
            terminal=request.paths.terminal,
            socket=workshop.place.socket,
            shim_cgroup=workshop.place.cgroup,
            command=runtime.command,
            root=runtime.root,
            systemd_cgroup=runtime.systemd_cgroup,
            rootfs=bool(request.rootfs),
            shares_pids=specification.shares_pids(spec),
            io_uid=request.options.io_uid,
            io_gid=request.options.io_gid,
            no_pivot=request.options.no_pivot,
            criu_work_path=request.options.criu_work_path,
            checkpoint=request.checkpoint,
            parent_checkpoint=request.parent_checkpoint,
        )
        task = cls(workshop, record, request.bundle, runtime)
        task.options = request.options
        async with contextlib.AsyncExitStack() as undo:
            with phases("record"):
                task.init.save()
            undo.callback(records.remove, task.bundle, "")
            with phases("mounts"):
                await task._mount(request.rootfs, undo)
            with phases("stdio"):
                io = task.init.io = task.new_io(request.paths)
                undo.callback(task.init.close)
                await io.open(workshop.reaper, task.container, workshop.namespace)
            if request.checkpoint:
                task.init.set_status(CREATED)
                task._publish_create(request)
            else:
                with workshop.reaper.expecting():
                    await task._runtime_create(request, undo)
            undo.pop_all()
        return task

    async def _mount(self, mounts: Sequence[Mount], undo: contextlib.AsyncExitStack) -> None:
        if not mounts:
            return
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.rootfs, 0o711)
        if all(mount.type in _QUICK_MOUNTS for mount in mounts):
            mount_all(mounts, self.rootfs)
        else:
            await asyncio.get_running_loop().run_in_executor(None, mount_all, mounts, self.rootfs)
        undo.push_async_callback(self._unmount)
        failpoints.reach("shim.rootfs.mounted")

    async def _unmount(self) -> None:
        # In a worker thread: unmounting an overlay may write back a whole file system.
        await asyncio.get_running_loop().run_in_executor(None, unmount_tree, self.rootfs)

    async def _runtime_create(self, request: Request, undo: contextlib.AsyncExitStack) -> None:
        io = _of(self.init.io)
        pid_file = f"{self.bundle}/init.pid"
        undo.callback(self.shop.oom.unwatch, self.container)
        undo.push_async_callback(self._unmake)
        with self.phases()(f"{self.runtime.name} create"):
            await self.runtime.create(
                self.container,
                bundle=self.bundle,
                pid_file=pid_file,
                stdio=io.child,
                console_socket=io.console_socket.path if io.console_socket else "",
                no_pivot=request.options.no_pivot,
                no_new_keyring=request.options.no_new_keyring,
            )
        failpoints.reach("shim.create.made")
        with self.phases()("record"):
            self._began(io, pid_file, CREATED)
        self._publish_create(request)
        self.shop.reaper.watch(self.init.pid, self.init_ended)

    def _began(self, io: ProcessIO, pid_file: str, status: str) -> None:
        """The runtime has made init; have it recorded."""
        io.started()
        pid = read_pid_file(pid_file)
        self.cgroup = cgroup.Paths.of(pid)
        # Before it runs: it may be out of memory, and gone, before `runtime start` has returned.
        self.shop.oom.watch(self.container, self.cgroup)
        self.init.began(pid, status)

    async def _unmake(self) -> None:
        try:
            await self.runtime.delete(self.container, bundle=self.bundle, force=True, limit_s=UNDO_LIMIT_S)
        except OrlopError as error:
            # The caller is told of the first failure; the next creation of this id begins with removing what is left.
            _log.error("what was made of %s is left: %s", self.container, error)
            self.cgroup.kill()
            records.write_file(f"{self.shop.place.gone}/{self.container}", self.init.record)
        else:
            await asyncio.get_running_loop().run_in_executor(None, cgroup.remove_asked_for, self.bundle)

    def _publish_create(self, request: Request) -> None:
        event = events_pb2.TaskCreate(
            container_id=self.container,
            bundle=self.bundle,
            checkpoint=request.checkpoint,
            pid=self.init.pid,
            io=events_pb2.TaskIO(
                stdin=request.paths.stdin,
                stdout=request.paths.stdout,
                stderr=request.paths.stderr,
                terminal=request.paths.terminal,
            ),
        )
        for mount in request.rootfs:
            event.rootfs.add(type=mount.type, source=mount.source, target=mount.target, options=mount.options)
        self._publish(events.CREATE, event)

    # ---- start

    async def start(self, exec_id: str) -> int:
        """Start init, or an exec. Returns the pid."""
        if exec_id:
            return await self._start_exec(self.process(exec_id))
        async with self._lock:
            self._require_init({CREATED}, "start", {RUNNING: "a running process", PAUSED: "a paused process"})
            init = self.init
            init.starting = True
            try:
                if self.init.record.checkpoint:
                    await self._restore()
                else:
                    with self.phases()(f"{self.runtime.name} start"):
                        await self.runtime.start(self.container, bundle=self.bundle)
                    failpoints.reach("shim.start.started")
                    init.found(RUNNING)
                init.running_since_ns = clock()
                self.publish_start()
            finally:
                self._tell_held_exit(init)
            return init.pid

    async def _start_exec(self, process: Process) -> int:
        if process.status != CREATED or process.starting:
            raise UnknownError(f"cannot start a {_word(process)} process")
        if self.init.exit is not None:
            raise FailedPreconditionError(f"container {self.container} init process is not running")
        process.starting = True
        try:
            with self.shop.reaper.expecting():
                await self._runtime_exec(process)
        except BaseException as error:
            if process.pid:  # it has been told nobody, and is ours to reap
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            process.close()
            # So that whoever waits for it, or wants to delete it, can.
            process.ended(Exit(process.pid, 255, _now_ns(), known=False))
            process.starting = False
            if isinstance(error, OSError):
                raise UnknownError(f'exec "{process.exec_id}" in container "{self.container}": {error}') from error
            raise
        self._tell_held_exit(process)
        return process.pid

    async def _runtime_exec(self, process: Process) -> None:
        phases = self.phases(process.exec_id)
        with phases("stdio"):
            io = process.io = self.new_io(process.paths)
            await io.open(self.shop.reaper, process.name, self.shop.namespace)
        pid_file = f"{self.bundle}/{process.exec_id}.pid"
        with phases(f"{self.runtime.name} exec"):
            await self.runtime.exec(
                self.container,
                bundle=self.bundle,
                process_file=process.process_file,
                pid_file=pid_file,
                stdio=io.child,
                console_socket=io.console_socket.path if io.console_socket else "",
            )
        failpoints.reach("shim.exec.started")
        with phases("record"):
            io.started()
            pid = read_pid_file(pid_file)
            process.began(pid, RUNNING)
        process.running_since_ns = clock()
        event = events_pb2.TaskExecStarted(container_id=self.container, exec_id=process.exec_id, pid=pid)
        self._publish(events.EXEC_STARTED, event)
        self.shop.reaper.watch(pid, lambda exit_: self.exec_ended(process, exit_))

    async def _restore(self) -> None:
        with self.shop.reaper.expecting(), self.phases()(f"{self.runtime.name} restore"):
            if await self.runtime.status(self.container, bundle=self.bundle):
                # An earlier attempt came so far, and it, or its supervisor, not to the record.
                await self.runtime.delete(self.container, bundle=self.bundle, force=True)
            try:
                await self._runtime_restore()
            except BaseException:
                await self._undo_restore()
                raise

    async def _runtime_restore(self) -> None:
        io = _of(self.init.io)
        pid_file = f"{self.bundle}/init.pid"
        await self.runtime.restore(
            self.container,
            checkpoint.restore_options(self.init.record, self.bundle),
            bundle=self.bundle,
            pid_file=pid_file,
            stdio=io.child,
            console_socket=io.console_socket.path if io.console_socket else "",
        )
        failpoints.reach("shim.restore.restored")
        self._began(io, pid_file, RUNNING)
        self.shop.reaper.watch(self.init.pid, self.init_ended)

    async def _undo_restore(self) -> None:
        """Have it be still to be restored, as its record says."""
        try:
            await self.runtime.delete(self.container, bundle=self.bundle, force=True, limit_s=UNDO_LIMIT_S)
            self.shop.oom.unwatch(self.container)
            self.init.restart()
            io = self.init.io = self.new_io(self.init.paths)
            await io.open(self.shop.reaper, self.container, self.shop.namespace)
        except (OrlopError, OSError) as error:
            # The caller is told of the first failure; the task can be deleted.
            _log.error("what was restored of %s is left: %s", self.container, error)

    # ---- exec

    def add_exec(self, exec_id: str, paths: Paths, spec: bytes) -> None:
        """Prepare an exec; `spec` is the JSON of the runtime-spec's Process.

        Raises:
            AlreadyExistsError, InvalidArgumentError; UnknownError if the task is paused or has stopped.
        """
        if exec_id in self.execs:
            raise AlreadyExistsError(f"id {exec_id}")
        if self.init.status in (PAUSED, STOPPED):
            raise UnknownError(f"cannot exec in a {self.init.status} state")
        if self.init.record.checkpoint and self.init.status == CREATED:
            raise UnknownError("cannot exec in a created state")
        document = specification.process(exec_id, spec, terminal=paths.terminal)
        record = Record(
            boot=self.shop.boot,
            container=self.container,
            exec_id=exec_id,
            status=CREATED,
            stdin=paths.stdin,
            stdout=paths.stdout,
            stderr=paths.stderr,
            terminal=paths.terminal,
        )
        self.shop.recent.begin((self.container, exec_id))
        process = Process(self.bundle, record)
        process.process_file = f"{self.bundle}/{records.DIRECTORY}/process-{exec_id}.json"
        specification.write_private(process.process_file, document)
        failpoints.reach("shim.exec.written")
        process.save()  # last: a successor takes up what has a record
        self.execs[exec_id] = process
        self._publish(events.EXEC_ADDED, events_pb2.TaskExecAdded(container_id=self.container, exec_id=exec_id))

    # ---- signals and states

    async def kill(self, exec_id: str, signum: int, everyone: bool) -> None:
        """Signal a process, or all of the container's."""
        process = self.process(exec_id)
        if process.exit is None and not 0 <= signum <= signal.SIGRTMAX:
            # What becomes of it in containerd, where the kernel is asked.
            raise UnknownError("unknown error after kill: invalid argument")
        thaws = signum == signal.SIGKILL and self.init.status == PAUSED
        if exec_id or not (everyone or thaws):
            process.send_signal(signum)
            return
        if process.exit is not None and not everyone:
            raise NotFoundError("process already finished")
        # Frozen processes of cgroup v1 do not die; the runtime thaws them.
        try:
            await self.runtime.kill(self.container, signum, bundle=self.bundle, everyone=everyone)
        except (RuntimeFailedError, DeadlineExceededError) as error:
            known = kill_error(error)
            if signum != signal.SIGKILL or isinstance(known, NotFoundError):
                raise known from error
            self._kill_by_hand(error)

    def _kill_by_hand(self, reason: OrlopError) -> None:
        """A runtime that fails must not keep a container alive."""
        _log.error("killing %s without its runtime: %s", self.container, reason)
        self.cgroup.kill()
        if self.init.exit is None and self.init.pid:
            with contextlib.suppress(NotFoundError):
                self.init.send_signal(signal.SIGKILL)

    async def pause(self) -> None:
        async with self._lock:
            words = {CREATED: "task in created state", PAUSED: "a paused container", STOPPED: "a stopped container"}
            self._require_init({RUNNING}, "pause", words)
            self.init.pausing = True
            try:
                await self.runtime.pause(self.container, bundle=self.bundle)
            except OrlopError:
                if self.cgroup.frozen():  # it has failed after its work
                    self.init.found(PAUSED)
                raise
            finally:
                self.init.pausing = False
            self.init.found(PAUSED)
            self._publish(events.PAUSED, events_pb2.TaskPaused(container_id=self.container))

    async def resume(self) -> None:
        async with self._lock:
            words = {CREATED: "task in created state", RUNNING: "a running process", STOPPED: "a stopped container"}
            self._require_init({PAUSED}, "resume", words)
            try:
                await self.runtime.resume(self.container, bundle=self.bundle)
            except OrlopError:
                if self.cgroup.frozen() is False:
                    self.init.found(RUNNING)
                raise
            self.init.found(RUNNING)
            self._publish(events.RESUMED, events_pb2.TaskResumed(container_id=self.container))

    async def update(self, resources: bytes) -> None:
        """Set resources: JSON of the runtime-spec's LinuxResources."""
        async with self._lock:
            self._require_init({CREATED, RUNNING, PAUSED}, "update", {STOPPED: "a stopped container"})
            try:
                json_text.loads(resources)
            except ValueError as error:
                raise InvalidArgumentError(f'resources for container "{self.container}": {error}') from error
            path = f"{self.bundle}/{records.DIRECTORY}/resources.json"
            specification.write_private(path, resources)
            try:
                await self.runtime.update(self.container, bundle=self.bundle, resources_file=path)
            finally:
                os.unlink(path)

    async def checkpoint(self, path: str, wanted: oci_pb2.CheckpointOptions) -> None:
        """Dump the container into the directory `path`."""
        async with self._lock:
            words = {CREATED: "a task in created state", STOPPED: "a stopped container"}
            self._require_init({RUNNING, PAUSED}, "checkpoint", words)
            await checkpoint.dump(self.runtime, self.container, self.bundle, path, wanted)
            event = events_pb2.TaskCheckpointed(container_id=self.container, checkpoint=path)
            self._publish(events.CHECKPOINTED, event)

    # ---- delete

    async def delete_exec(self, process: Process) -> Exit:
        """Forget an exec that has ended or was never started."""
        if process.status not in (CREATED, STOPPED) or process.starting:
            raise UnknownError("cannot delete a running process")
        if process.io is not None:
            await process.io.drained()
        self._forget_exec(process)
        return process.exit or Exit(process.pid, 0, 0)

    @contextlib.asynccontextmanager
    async def deleting(self) -> AsyncIterator[Exit]:
        """Within, the task is at its end and unmounted; afterwards only the runtime's state is left: `remove()`."""
        async with self._lock:
            words = {RUNNING: "a running process", PAUSED: "a paused process"}
            self._require_init({CREATED, STOPPED}, "delete", words)
            init = self.init
            if init.exit is None and init.pid:
                init.send_signal(signal.SIGKILL)
                try:
                    async with asyncio.timeout(_KILLED_LIMIT_S):
                        await init.wait()
                except TimeoutError as error:
                    text = f'container "{self.container}": process {init.pid} was killed and does not end'
                    raise DeadlineExceededError(text) from error
            with self.phases()("output"):
                if init.io is not None:
                    await init.io.drained()
            with self.phases()("unmount"):
                await self._unmount()
            exit_ = init.exit or Exit(init.pid, 0, 0)
            yield exit_
            self.shop.oom.unwatch(self.container)
            for process in list(self.execs.values()):
                self._forget_exec(process)
            init.close()
            event = events_pb2.TaskDelete(container_id=self.container, pid=init.pid, exit_status=exit_.status)
            event.exited_at.FromNanoseconds(exit_.at_ns)
            self._publish(events.DELETE, event)

    def _forget_exec(self, process: Process) -> None:
        process.close()
        self.execs.pop(process.exec_id, None)
        records.remove(self.bundle, process.exec_id)
        for path in (process.process_file, f"{self.bundle}/{process.exec_id}.pid"):
            with contextlib.suppress(OSError):
                os.unlink(path)

    # ---- exits

    def init_ended(self, exit_: Exit) -> None:
        if self.init.record.shares_pids:
            # Its Linux pid namespace is somebody else's, so the kernel ends none of the other processes.
            task = asyncio.get_running_loop().create_task(self._kill_rest(exit_))
            _running.add(task)
            task.add_done_callback(_running.discard)
        else:
            self._init_gone(exit_)

    async def _kill_rest(self, exit_: Exit) -> None:
        try:
            await self.runtime.kill(self.container, signal.SIGKILL, bundle=self.bundle, everyone=True)
        except OrlopError as error:
            self._kill_by_hand(error)
        # Where the namespace is init's own, the kernel lets its exit be seen only after those of all others.
        running = [process.wait() for process in self.execs.values() if process.pid and process.exit is None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILLED_LIMIT_S):
                await asyncio.gather(*running)
        self._init_gone(exit_)

    def _init_gone(self, exit_: Exit) -> None:
        self.shop.oom.check(self.container)
        self.init.ended(exit_)
        if not self.init.starting:
            self.publish_exit(self.init)

    def exec_ended(self, process: Process, exit_: Exit) -> None:
        process.ended(exit_)
        if not process.starting:
            self.publish_exit(process)

    def _tell_held_exit(self, process: Process) -> None:
        process.starting = False
        if process.exit is not None:
            self.publish_exit(process)

    def publish_start(self) -> None:
        self._publish(events.START, events_pb2.TaskStart(container_id=self.container, pid=self.init.pid))

    def publish_exit(self, process: Process) -> None:
        exit_ = process.exit
        if exit_ is None:
            return
        if process.running_since_ns:
            since_ns = min(process.running_since_ns, process.ended_ns)
            self.phases(process.exec_id).note("runs", since_ns, process.ended_ns)
        event = events_pb2.TaskExit(
            container_id=self.container, id=process.name, pid=process.pid, exit_status=exit_.status
        )
        event.exited_at.FromNanoseconds(exit_.at_ns)
        self._publish(events.EXIT, event)

    # ---- small things

    def _publish(self, topic: str, event: Message) -> None:
        self.shop.publisher.publish(topic, event)

    def new_io(self, paths: Paths) -> ProcessIO:
        one = self.options
        return ProcessIO(paths, directory=self.shop.place.directory, io_uid=one.io_uid, io_gid=one.io_gid)

    def _require_init(self, states: set[str], verb: str, words: dict[str, str]) -> None:
        status = self.init.status
        if status not in states:
            # containerd's class for a wrong state, which its clients expect beside its words
            raise UnknownError(f"cannot {verb} {words.get(status, f'a {status} process')}")


# Tasks of the event loop that nobody awaits are kept from the garbage collector here.
_running: set[asyncio.Task[None]] = set()


def exits_are_held() -> bool:
    """Whether the exit of an init is known and not written down yet."""
    return bool(_running)


def _word(process: Process) -> str:
    return "stopped" if process.status == STOPPED else "running"


def _of(io: ProcessIO | None) -> ProcessIO:
    if io is None:
        raise UnknownError("the process has no stdio any more")
    return io


def _now_ns() -> int:
    return time.time_ns()
