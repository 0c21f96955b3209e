"""The tasks of all namespaces: created, found again after a restart, cleaned up when their shim is dead.

Nothing here survives the daemon: what is true lies in the bundles and in the shims. `load()` asks them.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from orlop.api.events import task_pb2
from orlop.api.runtime.task.v2 import shim_pb2
from orlop.api.types import mount_pb2
from orlop.base.errdefs import (
    AlreadyExistsError,
    NotFoundError,
    OrlopError,
    UnavailableError,
    UnimplementedError,
    UnknownError,
    from_status,
)
from orlop.base.labels import GC_BREF_CONTAINER
from orlop.base.phases import DAEMON, Phase, Phases, Recent
from orlop.core.mount import Mount
from orlop.core.mount.manager import MountManager
from orlop.core.runtime import binaries, timings
from orlop.core.runtime.binaries import ShimBinary
from orlop.core.runtime.bundle import SANDBOX_FILE, Bootstrap, Bundle, Bundles, remove_hidden
from orlop.core.runtime.leaving import Leaving
from orlop.core.runtime.memory import FILE as MEMORY_FILE
from orlop.core.runtime.memory import MemoryQuotas, limit_in, limit_of
from orlop.core.runtime.shim_manager import SHUTDOWN_TIMEOUT_S, ShimManager
from orlop.core.runtime.shims import Shim
from orlop.core.runtime.tasks import ProcessIO, Task, absent

log: Final = logging.getLogger(__name__)

# What a process whose shim has died is said to have ended with when nobody knows: killed. As containerd says it.
KILLED: Final = 137

Publish = Callable[[str, str, Message], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateOptions:
    """What makes a task of a container.

    Attributes:
        runtime: name or absolute path.
        spec_type, spec: the runtime spec as the client gave it.
        options: the runtime's options; those of the task win over those of the container.
        checkpoint: directory of a checkpoint to restore, or empty.
        sandbox: the sandbox that the task is in, whose shim holds it; empty for none.
        task_api: where the sandbox's task API is, if its controller is not ours.
        lay_out: puts a checkpoint to restore into the directory that it is called with; used without `checkpoint`.
    """

    runtime: str
    spec_type: str
    spec: bytes
    rootfs: Sequence[Mount] = ()
    io: ProcessIO = field(default_factory=ProcessIO)
    options: AnyMessage | None = None
    checkpoint: str = ""
    sandbox: str = ""
    task_api: Bootstrap | None = None
    lay_out: Callable[[Path], Awaitable[None]] | None = None


class TaskManager:
    """Knows every task by namespace and id, and the shim that holds it.

    Args:
        mounts: performs beforehand what of a root file system's mounts the shim cannot; without one it gets them all.

    Attributes:
        recent: this daemon's phases of the processes that began last, by namespace, container and exec id.
    """

    def __init__(
        self,
        bundles: Bundles,
        shims: ShimManager,
        publish: Publish,
        *,
        mounts: MountManager | None = None,
        memory: MemoryQuotas | None = None,
    ) -> None:
        self._bundles = bundles
        self._shims = shims
        self._publish = publish
        self._mounts = mounts
        self._memory = memory or MemoryQuotas()
        self.recent: Recent[tuple[str, str, str]] = Recent()
        self._tasks: dict[tuple[str, str], Task] = {}
        self._creating: set[tuple[str, str]] = set()
        self._leaving = Leaving()
        shims.on_dead.append(self._bury_all)

    def get(self, namespace: str, task_id: str) -> Task:
        """The task of that name.

        Raises:
            NotFoundError: there is none.
        """
        task = self._tasks.get((namespace, task_id))
        if task is None:
            raise absent(task_id)
        return task

    @property
    def bundles(self) -> Bundles:
        """Where tasks have their directories."""
        return self._bundles

    def owns(self, namespace: str, task_id: str) -> bool:
        """Whether there is such a task, or one is being made or removed; to be asked on the event loop."""
        key = (namespace, task_id)
        return key in self._tasks or key in self._creating or key in self._leaving

    def held(self) -> list[Bundle]:
        """The bundles of all tasks."""
        return [task.bundle for task in self._tasks.values()]

    def addresses(self) -> set[str]:
        """Where the shims of tasks are."""
        return {task.shim.bootstrap.address for task in self._tasks.values()}

    def of_namespace(self, namespace: str) -> list[Task]:
        """The tasks of a namespace, by id."""
        return [task for (owner, _), task in sorted(self._tasks.items()) if owner == namespace]

    def all(self) -> list[Task]:
        """The tasks of all namespaces."""
        return list(self._tasks.values())

    async def create(self, namespace: str, task_id: str, options: CreateOptions) -> int:
        """Create a task and return the pid of its init process, which waits to be started.

        All or nothing: when this raises, the bundle, the mounts and what the runtime had made are gone.

        Raises:
            AlreadyExistsError: the container has a task.
            UnknownError: the runtime cannot be found; see `binaries.resolve`.
            OrlopError: what the shim or the OCI runtime said.
        """
        key = (namespace, task_id)
        if key in self._tasks:
            await self._forget_if_gone(self._tasks[key])
        if key in self._tasks or key in self._creating:
            raise AlreadyExistsError(f"task {task_id}")
        binary = self._shims.resolve(options.runtime)
        if self._memory.applies(namespace):
            self._memory.admit(namespace, task_id, limit_of(options.spec), self._others(namespace, task_id))
        self._creating.add(key)
        phases = self.recent.begin((namespace, task_id, ""))
        try:
            with phases("create"):
                return await self._create(key, binary, options, phases)
        finally:
            self._creating.discard(key)
            if key not in self._tasks:
                self._memory.forget(namespace, task_id)

    async def _create(self, key: tuple[str, str], binary: ShimBinary, options: CreateOptions, phases: Phases) -> int:
        namespace, task_id = key
        with phases("bundle"):
            bundle = self._bundles.create(namespace, task_id, options.spec_type, options.spec)
        try:
            with phases("activation"):
                options = replace(options, rootfs=await self._activate(bundle, options.rootfs))
            checkpoint = options.checkpoint or await _lay_out(bundle, options)
            with phases("shim"):
                shim = await self._shim_for(bundle, binary, options, phases)
        except BaseException:
            await asyncio.shield(self._discard(bundle))
            raise
        shim.tasks[task_id] = bundle
        try:
            with phases("shim Create"):
                reply = await self._create_in_living(shim, bundle, options, checkpoint)
        except BaseException as error:
            lost = isinstance(error, UnavailableError) and shim.groups
            await asyncio.shield(self._abandon(shim, bundle, lost=lost))
            raise
        self._tasks[key] = Task(bundle, shim, self.recent)
        return reply.pid

    async def delete(self, namespace: str, task_id: str) -> shim_pb2.DeleteResponse:
        """Delete a stopped task with its bundle; a foreign shim is shut down with its last task.

        Raises:
            NotFoundError: there is none.
            FailedPreconditionError: it still runs.
        """
        task = self.get(namespace, task_id)
        async with task.lock:
            if self._tasks.get((namespace, task_id)) is not task:
                raise absent(task_id)
            phases = task.phases()
            with phases("delete"):
                try:
                    with phases("shim Delete"):
                        reply = await task.delete()
                except NotFoundError:
                    await self._forget(task)
                    raise
                except OrlopError as error:
                    if isinstance(error, UnavailableError):
                        await self._forget_if_deleted(task)
                    raise from_status(error.code, f"failed to delete task: {error}") from error
                with phases("bundle"):
                    await self._forget(task)
        return reply

    async def update(self, task: Task, resources: AnyMessage, annotations: Mapping[str, str]) -> None:
        """Change a task's limits while it runs.

        Raises:
            ResourceExhaustedError: more memory than the namespace's quota leaves.
            OrlopError: what the shim or the OCI runtime said.
        """
        asked = limit_in(resources.value)
        if asked is None or not self._memory.applies(task.namespace):
            await task.update(resources, annotations)
            return
        async with task.lock:
            before = self._memory.of(task.namespace, task.id, task.bundle.path)
            counted = max(asked, before) if asked else 0
            self._memory.admit(task.namespace, task.id, counted, self._others(task.namespace, task.id))
            task.bundle.write(MEMORY_FILE, f"{counted}".encode())
            # If this fails, whether the limit has been changed is not known: the larger one counts on.
            await task.update(resources, annotations)
            task.bundle.write(MEMORY_FILE, f"{asked}".encode())
            self._memory.set(task.namespace, task.id, asked)

    def _others(self, namespace: str, task_id: str) -> Iterator[tuple[str, Path]]:
        """The namespace's other tasks, and those that are being made, with their bundles."""
        for owner, name in self._tasks.keys() | self._creating:
            if owner == namespace and name != task_id:
                yield name, self._bundles.get(owner, name).path

    async def phases(self, namespace: str, task_id: str, exec_id: str = "") -> list[Phase]:
        """What is known of how long the steps of a process's life took, here and in its supervisor, in no order.

        Raises:
            NotFoundError: nothing: it never was, or too many have come since.
        """
        noted = self.recent.find((namespace, task_id, exec_id))
        found = noted.of(DAEMON) if noted is not None else []
        for shim in self._shims.supervisors(namespace):
            found += await timings.read(shim, task_id, exec_id)
        if not found:
            what = f"exec {exec_id} of task {task_id}" if exec_id else f"task {task_id}"
            raise NotFoundError(f"{what}: no times are known")
        return found

    async def load(self) -> None:
        """Find the tasks that an earlier daemon left, and clean up after shims that are gone."""
        bundles = await asyncio.to_thread(self._bundles.swept)
        async with asyncio.TaskGroup() as group:
            for bundle in bundles:
                group.create_task(self._load_one(bundle), name=f"load {bundle.namespace}/{bundle.id}")
        await self._shims.renew()
        await self._shims.resume(await asyncio.to_thread(self._bundles.namespaces))

    async def _shim_for(self, bundle: Bundle, binary: ShimBinary, options: CreateOptions, phases: Phases) -> Shim:
        """The shim that will hold the task: its sandbox's, else one for the runtime."""
        if not options.sandbox:
            return await self._shims.start(bundle, binary, options.options, phases)
        bundle.write(SANDBOX_FILE, options.sandbox.encode())
        if options.task_api is not None:
            shim = await self._shims.connect(bundle.namespace, options.task_api, None)
        else:
            shim = self._of_sandbox(bundle.namespace, options.sandbox)
        bundle.save(shim.bootstrap, shim.binary.path if shim.binary is not None else binary.path)
        return shim

    def _of_sandbox(self, namespace: str, sandbox_id: str) -> Shim:
        """A sandbox may be one of a controller of ours, or as in CRI a task of that name."""
        shim = self._shims.of_sandbox(namespace, sandbox_id)
        if shim is None:
            task = self._tasks.get((namespace, sandbox_id))
            if task is None:
                raise UnknownError(f"failed to start shim: can't find sandbox {sandbox_id}")
            shim = task.shim
        return shim

    async def _create_in_living(
        self, shim: Shim, bundle: Bundle, options: CreateOptions, checkpoint: str
    ) -> shim_pb2.CreateTaskResponse:
        """Create in the shim; if it is a supervisor of ours that has died before it answered, in its successor."""
        try:
            return await self._create_in(shim, bundle, options, checkpoint)
        except UnavailableError:
            if not shim.groups or shim.alive():
                raise
        with contextlib.suppress(NotFoundError):  # the dead one may have got so far
            await shim.call("Delete", shim_pb2.DeleteRequest(id=bundle.id), shim_pb2.DeleteResponse)
        return await self._create_in(shim, bundle, options, checkpoint)

    async def _create_in(
        self, shim: Shim, bundle: Bundle, options: CreateOptions, checkpoint: str
    ) -> shim_pb2.CreateTaskResponse:
        request = shim_pb2.CreateTaskRequest(
            id=bundle.id,
            bundle=str(bundle.path),
            terminal=options.io.terminal,
            stdin=options.io.stdin,
            stdout=options.io.stdout,
            stderr=options.io.stderr,
            checkpoint=checkpoint,
            options=options.options,
            rootfs=[
                mount_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options)
                for m in options.rootfs
            ],
        )
        try:
            return await shim.call("Create", request, shim_pb2.CreateTaskResponse)
        except OrlopError as error:
            # Foreign clients look for containerd's words; the class stays the shim's.
            raise from_status(error.code, f"failed to create shim task: {error}") from error

    async def _abandon(self, shim: Shim, bundle: Bundle, *, lost: bool) -> None:
        """Undo what a failed create left; the first error is the caller's, so failures here are logged.

        Args:
            lost: the supervisor died under the call. Its OCI runtime may still be making the container, and neither a
                successor nor anybody else would know of it without the bundle.
        """
        shim.tasks.pop(bundle.id, None)
        if lost and shim.binary is not None:
            try:
                await binaries.delete(shim.binary, self._shims.host, bundle)
            except OrlopError as error:
                fields = {"namespace": bundle.namespace, "id": bundle.id, "error": str(error)}
                log.error("what a dead supervisor was creating is left", extra=fields)
        with contextlib.suppress(OrlopError):  # most often NotFound: the shim undid its own part
            await shim.call(
                "Delete", shim_pb2.DeleteRequest(id=bundle.id), shim_pb2.DeleteResponse, timeout_s=SHUTDOWN_TIMEOUT_S
            )
        await self._let_go(shim, bundle)
        await self._discard(bundle)

    async def _forget(self, task: Task) -> None:
        with self._leaving.removing(task.bundle):
            self._tasks.pop((task.namespace, task.id), None)
            self._memory.forget(task.namespace, task.id)
            task.shim.tasks.pop(task.id, None)
            await self._let_go(task.shim, task.bundle)
            await self._discard(task.bundle)

    async def _forget_if_gone(self, task: Task) -> None:
        """Who asked for a deletion may have been cut off before it was heard that it is done."""
        if not task.lock.locked():
            async with task.lock:
                await self._forget_if_deleted(task)

    async def _forget_if_deleted(self, task: Task) -> None:
        """A supervisor of ours may delete a task and die before it says so; its successor knows nothing of it."""
        if not task.shim.groups or self._tasks.get((task.namespace, task.id)) is not task:
            return
        try:
            await task.state()
        except NotFoundError:
            log.info("task was deleted by its late supervisor", extra={"namespace": task.namespace, "id": task.id})
            await self._forget(task)
        except OrlopError:
            return  # nobody can tell: it counts as there

    async def _let_go(self, shim: Shim, bundle: Bundle) -> None:
        """A foreign shim ends with its last task, but for a sandbox's, which ends with the sandbox."""
        if shim.groups:
            return
        if bundle.sandbox:
            await self._shims.let_go(shim)
        else:
            await self._shims.shut_down(shim, bundle)

    async def _activate(self, bundle: Bundle, rootfs: Sequence[Mount]) -> Sequence[Mount]:
        """What the shim is to mount: the mounts as they are, or what is left of them after an activation.

        The container keeps the activation from the collector. One that is there already, from a task of that id that
        was not deleted, is taken as it is.
        """
        if self._mounts is None:
            return rootfs
        try:
            activation = await self._mounts.activate(
                bundle.namespace, bundle.id, rootfs, labels={GC_BREF_CONTAINER: bundle.id}
            )
        except UnimplementedError:
            return rootfs
        except AlreadyExistsError:
            activation = self._mounts.info(bundle.namespace, bundle.id)
        return activation.system

    async def _deactivate(self, bundle: Bundle) -> None:
        if self._mounts is None or not self._mounts.exists(bundle.namespace, bundle.id):
            return
        try:
            await self._mounts.deactivate(bundle.namespace, bundle.id)
        except NotFoundError:
            pass  # the collector was quicker
        except OrlopError as error:
            fields = {"namespace": bundle.namespace, "id": bundle.id, "error": str(error)}
            log.error("mounts of a task are left", extra=fields)

    async def _discard(self, bundle: Bundle) -> None:
        self._shims.forget_log(bundle)
        hidden: list[Path] = []
        try:
            if bundle.is_mounted():
                # A shim that died left it, and unmounting an overlay may write its files out first.
                await asyncio.to_thread(bundle.delete)
            else:
                bundle.hide(hidden)
        except OrlopError as error:
            log.error("bundle is left", extra={"namespace": bundle.namespace, "id": bundle.id, "error": str(error)})
        if hidden:
            # Nobody waits for the unlinking, and it would keep the event loop from others.
            asyncio.get_running_loop().run_in_executor(None, remove_hidden, hidden)
        await self._deactivate(bundle)

    async def _load_one(self, bundle: Bundle) -> None:
        bootstrap, path = bundle.bootstrap(), bundle.binary()
        binary = ShimBinary(path=path, groups=path.name == binaries.SUPERVISOR) if path else None
        if bootstrap is None:
            log.warning("bundle without a shim", extra={"namespace": bundle.namespace, "id": bundle.id})
            await self._bury(bundle, binary)
            return
        try:
            shim = await self._shims.find(bundle, bootstrap, binary)
            shim.tasks[bundle.id] = bundle
            task = Task(bundle, shim, self.recent)
            try:
                if shim.alive():  # else it goes on without a supervisor, until one can be started
                    await task.state()
            except BaseException:
                shim.tasks.pop(bundle.id)
                raise
        except (OrlopError, OSError) as error:
            fields = {"namespace": bundle.namespace, "id": bundle.id, "error": str(error)}
            log.warning("task is lost with its shim", extra=fields)
            await self._bury(bundle, binary)
            return
        if not shim.groups:
            self._shims.follow_log(bundle)
        self._tasks[bundle.namespace, bundle.id] = task

    async def recover(self, bundle: Bundle) -> bool:
        """Take over the task of a bundle that is nobody's, or remove what is there of it; returns whether it is ours.

        What an earlier daemon left is dealt with so at the start; nobody can make a task of that name meanwhile.
        """
        key = (bundle.namespace, bundle.id)
        if not self.owns(*key) and bundle.path.is_dir():
            self._creating.add(key)
            try:
                await self._load_one(bundle)
            finally:
                self._creating.discard(key)
        return key in self._tasks

    async def _bury_all(self, shim: Shim) -> None:
        """A foreign shim has died, and its tasks with it."""
        for task_id in sorted(shim.tasks):
            task = self._tasks.get((shim.namespace, task_id))
            if task is not None:
                with self._leaving.removing(task.bundle):
                    del self._tasks[shim.namespace, task_id]
                    await self._bury(task.bundle, shim.binary)

    async def _bury(self, bundle: Bundle, binary: ShimBinary | None) -> None:
        """Clean up after a dead shim and tell everyone that its task has ended."""
        exit_status, exited_at, pid = KILLED, time.time_ns(), 0
        if binary is not None:
            try:
                reply = await binaries.delete(binary, self._shims.host, bundle)
                exit_status, pid = reply.exit_status, reply.pid
                exited_at = reply.exited_at.ToNanoseconds() or exited_at
            except OrlopError as error:
                log.error("dead shim", extra={"namespace": bundle.namespace, "id": bundle.id, "error": str(error)})
        exited = task_pb2.TaskExit(container_id=bundle.id, id=bundle.id, pid=pid, exit_status=exit_status)
        exited.exited_at.FromNanoseconds(exited_at)
        deleted = task_pb2.TaskDelete(container_id=bundle.id, pid=pid, exit_status=exit_status)
        deleted.exited_at.FromNanoseconds(exited_at)
        self._publish(bundle.namespace, "/tasks/exit", exited)
        self._publish(bundle.namespace, "/tasks/delete", deleted)
        await self._discard(bundle)


async def _lay_out(bundle: Bundle, options: CreateOptions) -> str:
    """Have a checkpoint laid out in the bundle's work directory, where it stays until the task is deleted."""
    if options.lay_out is None:
        return ""
    directory = bundle.work.resolve() / "checkpoint"
    directory.mkdir(mode=0o700)
    await options.lay_out(directory)
    return str(directory)
