"""The supervisor process: event loop, socket, tasks of one namespace, and when to end.

It ends when it has no task and nobody has used it for a while (two seconds, or `LINGER_VARIABLE` seconds as long as the
daemon stays connected): a container that follows the last one soon finds it running. While its lock is held there is no
other.
"""

import asyncio
import concurrent.futures.thread
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Final

from orlop.api.events import task_pb2 as events_pb2
from orlop.api.runtime.task.v2 import shim_pb2 as v2_pb2
from orlop.api.runtime.task.v3 import shim_pb2 as v3_pb2
from orlop.base import errdefs, failpoints, rpc
from orlop.base.errdefs import AlreadyExistsError, DeadlineExceededError, NotFoundError, OrlopError
from orlop.core.mount import disk
from orlop.linux import prctl
from orlop.shim import adoption, events, records, spawn
from orlop.shim.choice import Chooser
from orlop.shim.events import Publisher, TtrpcForwarder
from orlop.shim.oom import OomWatcher
from orlop.shim.paths import Place
from orlop.shim.reaper import Reaper, boot_id
from orlop.shim.records import Record
from orlop.shim.runtime import Runtime, RuntimeFailedError
from orlop.shim.service import TaskService
from orlop.shim.task import Request, Task, Workshop, exits_are_held
from orlop.ttrpc.server import Context, Method, Peer, Server

if TYPE_CHECKING:
    from orlop.shim.sandboxes import Sandboxes

# A daemon of another release sends it. One that does not know it ends at once, which its tasks outlive as well.
RETIRE: Final = signal.SIGUSR2
LINGER_VARIABLE: Final = "ORLOP_SHIM_LINGER"
EARLY_VARIABLE: Final = "ORLOP_EARLY_DELETION"
"""Whether a deletion is answered before the OCI runtime has done its part: yes, unless it is 0."""
_LINGER_S: Final = 30.0
_ALONE_S: Final = 2.0
_IDLE_CHECK_S: Final = 0.5
_FLUSH_S: Final = 2.0
_RETIRE_S: Final = 10.0
_RETIRE_CHECK_S: Final = 0.02
# Between the answer to a deletion and the runtime's own removal: starting a process holds up what is to be written.
_ANSWER_FIRST_S: Final = 0.002
# Between tries of that removal; afterwards it is for the next task of that name, or the next supervisor.
_REMOVAL_PAUSES_S: Final = (0.1, 0.5, 2.0)
# After the start, so that the first container does not wait for what it does not use.
_REST_S: Final = 0.5

TIMINGS: Final = "orlop.services.timings.v1.Timings"
_SANDBOX_SERVICE: Final = "containerd.runtime.sandbox.v1.Sandbox"
_SANDBOX_METHODS: Final = (
    "CreateSandbox",
    "StartSandbox",
    "Platform",
    "StopSandbox",
    "WaitSandbox",
    "SandboxStatus",
    "PingSandbox",
    "ShutdownSandbox",
    "SandboxMetrics",
)

_log = logging.getLogger(__name__)


class Supervisor:
    """Holds the tasks of one namespace."""

    def __init__(self, place: Place, *, events_path: str, tasks_directory: str) -> None:
        self._place = place
        self._tasks_directory = tasks_directory
        self._tasks: dict[str, Task] = {}
        self._creating: set[str] = set()
        self._removals: dict[str, asyncio.Task[None]] = {}
        self._sandboxes: Sandboxes | None = None
        self._late_methods: dict[str, rpc.Method] = {}
        self._ending = asyncio.Event()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._idle_checks = 0
        self._linger_s = float(os.environ.get(LINGER_VARIABLE) or _LINGER_S)
        self._answers_first = os.environ.get(EARLY_VARIABLE) != "0"
        self._reaper = Reaper()
        self._publisher = Publisher(place.namespace, TtrpcForwarder(events_path) if events_path else None)
        self._chooser = Chooser(self._reaper, place)
        self._shop = Workshop(
            place=place,
            namespace=place.namespace,
            boot=boot_id(),
            reaper=self._reaper,
            publisher=self._publisher,
            oom=OomWatcher(self._out_of_memory),
        )
        self._server = Server(translate=_status, check_access=self._refusal)
        service = TaskService(self)
        for module in (v2_pb2, v3_pb2):
            bound = rpc.bind(module.DESCRIPTOR.services_by_name["Task"], service)
            self._server.add(bound.name, {name: _adapt(method, self) for name, method in bound.methods.items()})
        # Most supervisors never see a sandbox: what they are made of is imported with the first call.
        self._server.add(_SANDBOX_SERVICE, {name: _later(name, self._sandbox_method) for name in _SANDBOX_METHODS})
        self._server.add(TIMINGS, {"Get": _later("Get", self._timings_method)})

    async def run(self, listener: socket.socket) -> None:
        """Serve until there is nothing more to supervise."""
        loop = asyncio.get_running_loop()
        # Mounting and unmounting what takes long; a thread is only made when there is work.
        loop.set_default_executor(concurrent.futures.thread.ThreadPoolExecutor(4, "mount"))
        self._reaper.start(loop)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(signum, self._signalled, signum)
        loop.add_signal_handler(RETIRE, self._retire)
        loop.add_signal_handler(signal.SIGUSR1, _log_stacks)
        self._tasks, unfinished = await adoption.adopt(self._shop, self._tasks_directory)
        for bundle, record in unfinished:
            self._await_removal(record.container, adoption.undo(self._shop, bundle, record))
        self._finish_removals()
        self._adopt_sandboxes()
        publishing = loop.create_task(self._publisher.run())
        await self._server.serve(listener)
        loop.call_later(_REST_S, self._import_the_rest)
        gc.collect()
        gc.freeze()
        self.touch()
        await self._ending.wait()
        await self._server.close(timeout_s=1.0)
        if self._removals:
            await asyncio.wait(self._removals.values(), timeout=10.0)
        await self._publisher.flush(_FLUSH_S)
        publishing.cancel()
        await self._publisher.close()

    # ---- what the service needs

    def task(self, container: str) -> Task:
        """Raises NotFoundError for one that is not there."""
        try:
            return self._tasks[container]
        except KeyError:
            raise NotFoundError("container not created") from None

    async def create(self, request: Request) -> Task:
        """Create a task, after what is left of an earlier one of that id has gone."""
        container = request.container
        if container in self._tasks or container in self._creating:
            raise AlreadyExistsError(f'task "{container}"')
        self._creating.add(container)
        # Only when it gets tight: where it is not raised, nothing has to be given back to containers.
        if len(self._tasks) % 16 == 15 and spawn.open_files() > spawn.file_limit() // 2:
            spawn.raise_file_limit()
        phases = self._shop.recent.begin((container, ""))
        try:
            with phases("create"):
                with phases("earlier removed"):
                    await self._removed(container)
                task = await self._create(request)
            self._tasks[container] = task
            return task
        finally:
            self._creating.discard(container)
            self.touch()

    async def _create(self, request: Request) -> Task:
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._place.gone, 0o700)  # now, for on a full disk nothing could be deleted without it
        choice = await self._chooser.choose(request.options)
        try:
            return await Task.create(self._shop, request, choice.runtime)
        except RuntimeFailedError as error:
            # What crun says of a spec that is newer than itself.
            if choice.fallback is None or "unknown version" not in error.reason:
                raise
            _log.info("%s; so by %s", error, choice.fallback.command)
            return await Task.create(self._shop, request, choice.fallback)

    async def delete(self, container: str) -> tuple[int, int, int]:
        """Delete a task that has ended. The runtime's own removal goes on after this has returned, unless told else.

        Returns:
            pid, exit status and time of exit in nanoseconds.
        """
        task = self.task(container)
        async with task.deleting() as exit_:
            # Before the answer: whoever finds this after a crash removes the rest.
            records.bury(task.bundle, task.init.record, f"{self._place.gone}/{container}")
        records.remove(task.bundle, "")
        del self._tasks[container]
        self._remove(task.init.record, task.runtime)
        if not self._answers_first:
            await asyncio.shield(self._removals[container])
        self.touch()
        return task.init.pid, exit_.status, exit_.at_ns

    def shut_down(self, now: bool) -> None:
        """End if there is no task; without `now` after lingering."""
        if now and not self._busy:
            self._ending.set()

    # ---- removal

    def _remove(self, record: Record, runtime: Runtime) -> None:
        self._await_removal(record.container, self._remove_soon(record, runtime))

    def _await_removal(self, container: str, work: Coroutine[None, None, None]) -> None:
        """Do `work` in the background; a new container of that id waits for it."""
        removal = asyncio.get_running_loop().create_task(work)
        self._removals[container] = removal
        removal.add_done_callback(lambda _done: self._removals.pop(container, None))

    async def _remove_soon(self, record: Record, runtime: Runtime) -> None:
        if self._answers_first:
            await asyncio.sleep(_ANSWER_FIRST_S)
        for pause_s in _REMOVAL_PAUSES_S:
            if await self._remove_from_runtime(record, runtime):
                return
            await asyncio.sleep(pause_s)
        await self._remove_from_runtime(record, runtime)

    async def _remove_from_runtime(self, record: Record, runtime: Runtime) -> bool:
        """Whether it is removed, or not to be tried again soon."""
        log = f".{record.container}.json"  # beside the tombstone, for the bundle may be gone by now
        try:
            with self._shop.recent.at((record.container, ""))(f"{runtime.name} delete"):
                await runtime.delete(record.container, bundle=self._place.gone, force=True, log=log)
        except (OrlopError, OSError) as error:
            _log.error("removal of %s: %s", record.container, error)
            return isinstance(error, DeadlineExceededError)
        failpoints.reach("shim.delete.removed")
        for name in (record.container, log):
            with contextlib.suppress(OSError):
                os.unlink(f"{self._place.gone}/{name}")
        failpoints.reach("shim.delete.forgotten")
        return True

    async def _removed(self, container: str) -> None:
        """Wait until nothing is left of an earlier container of that id; what could not be removed is tried again."""
        removal = self._removals.get(container)
        if removal is not None:
            await asyncio.shield(removal)
        record = records.read(f"{self._place.gone}/{container}")
        if record is not None and record.boot == self._shop.boot:
            await self._remove_from_runtime(record, adoption.runtime_of(self._reaper, record))

    def _finish_removals(self) -> None:
        """Remove what a killed supervisor had promised to."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._place.gone):
                record = records.read(f"{self._place.gone}/{name}")
                if record is None or record.container != name:
                    continue
                if record.boot != self._shop.boot:
                    os.unlink(f"{self._place.gone}/{name}")
                    continue
                self._remove(record, adoption.runtime_of(self._reaper, record))

    # ---- sandboxes

    def _adopt_sandboxes(self) -> None:
        if os.path.isdir(self._place.sandboxes):
            self.sandboxes()

    def sandboxes(self) -> "Sandboxes":
        """The sandboxes; those of a supervisor that was killed among them."""
        if self._sandboxes is None:
            from orlop.shim.sandboxes import Sandboxes

            self._sandboxes = Sandboxes(self._place, self._shop.boot, lambda: list(self._tasks.values()))
        return self._sandboxes

    def _sandbox_method(self, name: str) -> rpc.Method:
        if name not in self._late_methods:
            from orlop.api.runtime.sandbox.v1 import sandbox_pb2
            from orlop.shim.sandboxes import SandboxService

            descriptor = sandbox_pb2.DESCRIPTOR.services_by_name["Sandbox"]
            service = SandboxService(self.sandboxes(), self.touch)
            self._late_methods.update(rpc.bind(descriptor, service).methods)
        return self._late_methods[name]

    def _timings_method(self, name: str) -> rpc.Method:
        if name not in self._late_methods:
            from orlop.api.services.timings.v1 import timings_pb2
            from orlop.shim.timings import TimingsService

            descriptor = timings_pb2.DESCRIPTOR.services_by_name["Timings"]
            self._late_methods.update(rpc.bind(descriptor, TimingsService(self._shop.recent)).methods)
        return self._late_methods[name]

    @staticmethod
    def _import_the_rest() -> None:
        """What may be used late, now: the package's files may be replaced or removed under a running supervisor."""
        from orlop.api.runtime.sandbox.v1 import sandbox_pb2
        from orlop.api.services.timings.v1 import timings_pb2
        from orlop.base import platforms
        from orlop.core.mount import idmap, loop
        from orlop.shim import sandboxes, timings

        names = [one.__name__ for one in (sandbox_pb2, timings_pb2, platforms, idmap, loop, sandboxes, timings)]
        _log.info("all modules are imported, %s at last", ", ".join(names))

    # ---- life

    @property
    def _busy(self) -> bool:
        return bool(self._tasks or self._creating or self._sandboxes)

    def touch(self) -> None:
        """Somebody has used the supervisor: its time to linger begins anew."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._idle_checks = 0
        self._schedule_idle_check()

    def _schedule_idle_check(self) -> None:
        self._idle_timer = asyncio.get_running_loop().call_later(_IDLE_CHECK_S, self._check_idle)

    def _check_idle(self) -> None:
        if self._busy:
            self._idle_timer = None  # the end of the last task or sandbox touches
            return
        self._idle_checks += 1
        limit_s = self._linger_s if self._server.connections else min(self._linger_s, _ALONE_S)
        if self._idle_checks * _IDLE_CHECK_S >= limit_s:
            self._ending.set()
        else:
            self._schedule_idle_check()

    def _signalled(self, signum: int) -> None:
        # A supervisor with tasks does not go: containerd's shim ignores SIGTERM as well.
        if self._busy:
            _log.warning("signal %d ignored: %d tasks", signum, len(self._tasks))
        else:
            self._ending.set()

    def _retire(self) -> None:
        """End although there are tasks, once nothing is half done: a successor of another release adopts them."""
        _log.info("retiring with %d tasks", len(self._tasks))
        deadline = asyncio.get_running_loop().time() + _RETIRE_S

        def look() -> None:
            loop = asyncio.get_running_loop()
            busy = self._creating or exits_are_held() or any(task.busy for task in self._tasks.values())
            if busy and loop.time() < deadline:
                loop.call_later(_RETIRE_CHECK_S, look)
            else:
                self._ending.set()

        look()

    def _refusal(self, peer: Peer) -> str | None:
        if peer.uid != os.geteuid():
            return f"uid {peer.uid} may not use this supervisor"
        self.touch()
        return None

    def _out_of_memory(self, container: str) -> None:
        self._publisher.publish(events.OOM, events_pb2.TaskOOM(container_id=container))


def _log_stacks() -> None:
    """Say what this process is doing, as containerd and its shims do at this signal."""
    from orlop.base import stacks

    _log.info("stacks\n%s", stacks.text())


def _status(error: BaseException) -> tuple[int, str]:
    """As `to_status`; of a disk that is full or failing, which file system it is."""
    if isinstance(error, OSError) and disk.is_disks(error):
        path = error.filename2 or error.filename
        if isinstance(path, str) and path.startswith("/"):  # not a descriptor, nor relative to one
            error = disk.failure(f"supervisor: {path}", os.path.dirname(path), error)
    return errdefs.to_status(error)


def _adapt(method: rpc.Method, supervisor: Supervisor) -> Method:
    def handle(context: Context, payload: bytes) -> object:
        peer = rpc.Peer(door="ttrpc", uid=context.peer.uid, pid=context.peer.pid)
        return method.unary(rpc.Call(peer=peer, metadata=context.metadata, deadline=context.deadline), payload)

    return Method(client_streaming=False, server_streaming=False, handler=handle)


def _later(name: str, method_of: Callable[[str], rpc.Method]) -> Method:
    def handle(context: Context, payload: bytes) -> object:
        peer = rpc.Peer(door="ttrpc", uid=context.peer.uid, pid=context.peer.pid)
        call = rpc.Call(peer=peer, metadata=context.metadata, deadline=context.deadline)
        return method_of(name).unary(call, payload)

    return Method(client_streaming=False, server_streaming=False, handler=handle)


def serve(place: Place, listener: socket.socket, *, events_path: str, tasks_directory: str) -> None:
    """Be the supervisor; returns when it is no longer needed. The caller holds the lock."""
    prctl.set_child_subreaper()
    prctl.set_name("orlop-shim")

    async def main() -> None:
        await Supervisor(place, events_path=events_path, tasks_directory=tasks_directory).run(listener)

    try:
        asyncio.run(main())
    finally:
        # While the lock is still held: a socket file that is there belongs to whoever holds it.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place.socket)
