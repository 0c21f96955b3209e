"""The check of tasks and sandboxes: what the daemon holds, what lies on disk, and what is on the host, belong together.

    runtime-orphan      what an OCI runtime knows of a container that is no task's: processes, cgroup, state

and what `check_bundles` and `check_host` find. The managers say on the event loop whose something is.
"""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from typing import Final

from orlop.core import trees
from orlop.core.fsck import Finding, Unchecked
from orlop.core.fsck.checks import Order
from orlop.core.metadata import Database
from orlop.core.runtime import leftovers
from orlop.core.runtime.check_bundles import BundlesLook, Owner
from orlop.core.runtime.check_host import Host, HostLook
from orlop.core.runtime.leftovers import State
from orlop.core.runtime.manager import TaskManager

_DELETE_S: Final = 60.0


class RuntimeCheck:
    """See `orlop.core.fsck.checks.Check`.

    Args:
        sandboxes: those that shims hold, if there is a controller of them.
    """

    what = "tasks"

    def __init__(self, db: Database, manager: TaskManager, sandboxes: Owner | None, host: Host) -> None:
        self._manager = manager
        self._state = host.state
        self._bundles = [BundlesLook(manager, "task", "ctr tasks delete --force")]
        if sandboxes is not None:
            self._bundles.append(BundlesLook(sandboxes, "sandbox", "ctr sandboxes rm --force"))
        self._host = HostLook(db, host, manager, sandboxes)

    def run(self, order: Order) -> Iterator[Finding | Unchecked]:
        if order.after_stop:
            return  # tasks were taken over or buried before anything was served
        for look in self._bundles:
            yield from look.run(order)
        yield from self._states(order)
        yield from self._host.run(order)

    def _is_owned(self, order: Order, namespace: str, task_id: str) -> bool:
        """Whether there is such a task, or one is being made or removed."""
        return order.call(lambda: self._manager.owns(namespace, task_id))

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
