"""The check of tasks: what the daemon holds, what lies on disk, and what is on the host, belong together.

    task-without-bundle     a task, and no bundle
    bundle-orphan           a bundle, and no task: what a shim may hold in it, its mounts and processes included
    work-orphan             a task's work directory, and no bundle
    runtime-orphan          what an OCI runtime knows of a container that is no task's: processes, cgroup, state
    keeper-orphan           a keeper that no record names
    cgroup-orphan           a cgroup of a namespace that is no task's, and without a process
    supervisor-orphan       a supervisor's socket on which nobody listens

The manager of tasks says on the event loop whose something is; what is on the host is looked at twice, a while apart,
because it comes a moment before its record and goes a moment after.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from orlop.base.errdefs import OrlopError
from orlop.core import trees
from orlop.core.fsck import Finding, Unchecked
from orlop.core.fsck.checks import Order
from orlop.core.metadata import Database
from orlop.core.runtime import leftovers
from orlop.core.runtime.bundle import Bundle
from orlop.core.runtime.leftovers import Cgroup, Keeper, State
from orlop.core.runtime.manager import TaskManager
from orlop.linux import pidfd

# Between two looks at what is on the host: far longer than from making something to its record.
APART_S: Final = 1.5
_DELETE_S: Final = 60.0


class RuntimeCheck:
    """See `orlop.core.fsck.checks.Check`.

    Args:
        state: the daemon's state directory.
    """

    what = "tasks"

    def __init__(self, db: Database, manager: TaskManager, state: Path) -> None:
        self._db = db
        self._manager = manager
        self._state = state

    def run(self, order: Order) -> Iterator[Finding | Unchecked]:
        if order.after_stop:
            return  # tasks were taken over or buried before anything was served
        yield from self._tasks(order)
        yield from self._bundles(order)
        yield from self._work(order)
        yield from self._states(order)
        yield from self._host(order)

    def _is_owned(self, order: Order, namespace: str, task_id: str) -> bool:
        """Whether there is such a task, or one is being made or removed."""
        return order.call(lambda: self._manager.owns(namespace, task_id))

    # Tasks and bundles.

    def _tasks(self, order: Order) -> Iterator[Finding]:
        def lost(bundle: Bundle) -> bool:
            return any(task.bundle is bundle for task in self._manager.all()) and not bundle.path.is_dir()

        suspects = [bundle for bundle in order.call(self._all_bundles) if not bundle.path.is_dir()]
        for bundle in suspects:
            if not order.call(lambda bundle=bundle: lost(bundle)):  # type: ignore[misc]
                continue
            yield Finding(
                kind="task-without-bundle",
                object=f"{bundle.namespace}/{bundle.id}",
                namespaces=(bundle.namespace,),
                wrong=f"its bundle {bundle.path} has gone",
                mends="deleting it: ctr tasks delete --force",
            )

    def _all_bundles(self) -> list[Bundle]:
        return [task.bundle for task in self._manager.all()]

    def _bundles(self, order: Order) -> Iterator[Finding]:
        for bundle in self._manager.bundles.found():
            order.go_on()
            if not self._is_orphan(order, bundle):
                continue
            found = Finding(
                kind="bundle-orphan",
                object=str(bundle.path),
                namespaces=(bundle.namespace,),
                wrong="it is here, and no task of that name",
                mends="--repair takes it over if its shim holds a task, else removes it, processes and mounts too",
            )
            if order.repair:
                taken = order.wait(self._manager.recover(bundle))
                gone = not bundle.path.exists()
                words = "taken over: its shim holds it" if taken else "removed, with its processes and mounts"
                found = found.after(taken or gone, words if taken or gone else "")
            yield found

    def _is_orphan(self, order: Order, bundle: Bundle) -> bool:
        return order.call(lambda: not self._manager.owns(bundle.namespace, bundle.id) and bundle.path.is_dir())

    def _work(self, order: Order) -> Iterator[Finding]:
        for path in self._manager.bundles.works():
            bundle = self._manager.bundles.get(path.parent.name, path.name)

            if self._is_orphaned_work(order, bundle, path):
                yield Finding(
                    kind="work-orphan",
                    object=str(path),
                    namespaces=(bundle.namespace,),
                    wrong="it is the work directory of no task",
                    mends="removed" if order.repair else "--repair removes it",
                    mended=order.repair,
                )
        if order.repair:
            self._manager.bundles.sweep_hidden()

    def _is_orphaned_work(self, order: Order, bundle: Bundle, path: Path) -> bool:
        def look() -> bool:
            if self._manager.owns(bundle.namespace, bundle.id) or bundle.path.exists() or not path.is_dir():
                return False
            if order.repair:  # out of sight in the same breath, so that no new task's is removed
                self._manager.bundles.discard_work(path)
            return True

        return order.call(look)

    # What OCI runtimes know.

    def _states(self, order: Order) -> Iterator[Finding]:
        for one in leftovers.states(self._state):
            order.go_on()
            # Twice: what was removed and made anew between the questions is somebody's by the second time.
            if not (self._is_nobodys(order, one) and self._is_nobodys(order, one)):
                continue
            gone = order.repair and _delete_state(one)
            yield Finding(
                kind="runtime-orphan",
                object=str(one.path),
                namespaces=(one.namespace,),
                wrong=f"{one.runtime} has a container of that name, and there is no task",
                mends=f"{'deleted' if gone else '--repair deletes it'} with its processes and its cgroup",
                mended=gone,
            )

    def _is_nobodys(self, order: Order, one: State) -> bool:
        return (
            not self._is_owned(order, one.namespace, one.id)
            and not self._manager.bundles.get(one.namespace, one.id).path.exists()  # told already
            and not leftovers.is_being_removed(self._state, one.id)
            and one.path.is_dir()
        )

    # What is on the host.

    def _host(self, order: Order) -> Iterator[Finding]:
        cgroups, keepers, sockets = self._cgroups(order), self._keepers(order), leftovers.dead_sockets(self._state)
        if not (cgroups or keepers or sockets):
            return
        order.stopped.wait(APART_S)
        order.go_on()
        again = self._cgroups(order)
        for path, cgroup in cgroups.items():
            if again.get(path) == cgroup:
                yield self._cgroup(order, cgroup)
        for keeper in keepers & self._keepers(order):
            yield self._keeper(order, keeper)
        still = leftovers.dead_sockets(self._state)
        for socket, inode in sockets.items():
            if still.get(socket) != inode or self._is_served(order, socket):
                continue
            with _alone(socket) as alone:
                found = _socket(order, socket) if alone and socket in leftovers.dead_sockets(self._state) else None
            if found is not None:
                yield found

    def _cgroups(self, order: Order) -> Mapping[str, Cgroup]:
        namespaces = [row["name"] for row in self._db.all("SELECT name FROM namespaces")]
        found = leftovers.empty_cgroups(namespaces)
        if not found:
            return {}
        named = {leftovers.cgroup_of(bundle.path) for bundle in self._manager.bundles.found()}
        named |= {f"/{one.namespace}/{one.id}" for one in leftovers.states(self._state)}  # told with those
        return {
            path: one
            for path, one in found.items()
            if path not in named
            and not self._is_owned(order, one.namespace, one.id)
            and not leftovers.is_being_removed(self._state, one.id)
        }

    def _keepers(self, order: Order) -> set[Keeper]:
        order.go_on()
        return {one for one in leftovers.keepers(self._manager.bundles.state) if not leftovers.is_kept(one)}

    def _is_served(self, order: Order, socket: Path) -> bool:
        """Whether tasks are held behind a socket: its supervisor has died, and gets a successor."""
        address = f"unix://{socket}"
        return order.call(lambda: any(task.shim.bootstrap.address == address for task in self._manager.all()))

    def _cgroup(self, order: Order, one: Cgroup) -> Finding:
        found = Finding(
            kind="cgroup-orphan",
            object=one.path,
            namespaces=(one.namespace,),
            wrong="it is of no task, and no process is in it",
            mends="--repair removes it",
        )
        if not order.repair or self._is_owned(order, one.namespace, one.id):
            return found
        try:
            one.remove()
        except OSError as error:
            return found.after(False, f"another look: {error}")
        return found.after(True, "removed")

    def _keeper(self, order: Order, one: Keeper) -> Finding:
        gone = order.repair and _end(one)
        return Finding(
            kind="keeper-orphan",
            object=f"process {one.pid}",
            namespaces=(one.bundle.parent.name,),
            wrong=f"it keeps descriptors for {one.bundle}, and no record there names it",
            mends="ended" if gone else "--repair ends it",
            mended=gone,
        )


def _socket(order: Order, path: Path) -> Finding:
    if order.repair:
        path.unlink()
    return Finding(
        kind="supervisor-orphan",
        object=str(path),
        wrong="its supervisor was killed and held nothing",
        mends="removed" if order.repair else "--repair removes it, and so does the next start",
        mended=order.repair,
    )


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Keep others from starting a supervisor at a socket; False if somebody does, or lives there."""
    import fcntl

    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(lock)


def _delete_state(one: State) -> bool:
    program = shutil.which(one.runtime)
    if program is None:
        return False
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [program, "--root", one.root, "delete", "--force", one.id],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_DELETE_S,
            check=False,
        )
    if one.path.is_dir():
        # A state that the runtime cannot read: it has nothing of it any more.
        with contextlib.suppress(OSError):
            if not any(one.path.glob("*.json")) and not (one.path / "status").exists():
                trees.remove(one.path)
    return not one.path.exists()


def _end(one: Keeper) -> bool:
    with contextlib.suppress(OSError, OrlopError), contextlib.ExitStack() as undo:
        handle = pidfd.pidfd_open(one.pid)
        undo.callback(os.close, handle)
        if leftovers.start_time(one.pid) == one.start_time and not leftovers.is_kept(one):
            pidfd.pidfd_send_signal(handle, signal.SIGKILL)
            return True
    return False
