"""The check of what containers have left on the host.

    keeper-orphan           a keeper that no record names
    cgroup-orphan           a cgroup that is no task's, without a process
    cgroup-populated        one with processes whose root directories are ours, and no task that they are of
    supervisor-orphan       a supervisor's socket on which nobody listens
    shim-socket-orphan      the same of a foreign shim, for a container or a sandbox of ours

All of these come a moment before their record and go a moment after. So they are looked at twice, a while apart.
"""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orlop.base.errdefs import OrlopError
from orlop.core.fsck import Finding
from orlop.core.fsck.checks import Order
from orlop.core.metadata import Database
from orlop.core.runtime import cgroups, leftovers
from orlop.core.runtime.cgroups import Cgroup, Homes
from orlop.core.runtime.check_bundles import Owner
from orlop.core.runtime.leftovers import Keeper
from orlop.linux import pidfd
from orlop.linux.unix_sockets import alone, refuses

# Between two looks: far longer than from making something to its record.
APART_S: Final = 1.5
_DYING_S: Final = 5.0
_LOOK_S: Final = 0.05
_NAMES: Final = "SELECT namespace, id FROM containers UNION SELECT namespace, id FROM sandboxes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What is asked about the host.

    Attributes:
        root, state: the daemon's directories.
        address: the daemon's, by which shims name their sockets.
    """

    root: Path
    state: Path
    address: str

    @property
    def homes(self) -> Homes:
        return Homes((self.root, self.state))


@dataclass(frozen=True, slots=True)
class _Seen:
    """One look."""

    cgroups: Mapping[str, Cgroup]
    keepers: frozenset[Keeper]
    sockets: Mapping[Path, int]
    shims: Mapping[Path, tuple[int, str]]


@dataclass(frozen=True, slots=True)
class HostLook:
    """Looks at what is on the host."""

    db: Database
    host: Host
    tasks: Owner
    sandboxes: Owner | None = None

    @property
    def _owners(self) -> Sequence[Owner]:
        return (self.tasks,) if self.sandboxes is None else (self.tasks, self.sandboxes)

    def run(self, order: Order) -> Iterator[Finding]:
        before = self._look(order)
        if not (before.cgroups or before.keepers or before.sockets or before.shims):
            return
        order.stopped.wait(APART_S)
        order.go_on()
        now = self._look(order)
        for path, cgroup in before.cgroups.items():
            again = now.cgroups.get(path)
            if again is None or again.directories != cgroup.directories:
                continue
            if not (cgroup.pids or again.pids):
                yield self._empty(order, again)
            elif cgroup.pids & again.pids:
                yield self._populated(order, again)
        for keeper in before.keepers & now.keepers:
            yield _keeper(order, keeper)
        for socket, inode in before.sockets.items():
            if now.sockets.get(socket) != inode or self._is_served(order, socket):
                continue
            with alone(socket) as ours:
                dead = ours and refuses(socket)
                found = _socket(order, socket) if dead else None
            if found is not None:
                yield found
        for socket, seen in before.shims.items():
            if now.shims.get(socket) == seen:
                yield self._shim(order, socket, *seen)

    def _look(self, order: Order) -> _Seen:
        order.go_on()
        state = self.host.state
        keepers = {one for one in leftovers.keepers(self.tasks.bundles.state) if not leftovers.is_kept(one)}
        return _Seen(self._cgroups(order), frozenset(keepers), leftovers.dead_sockets(state), self._shims(order))

    def _is_owned(self, order: Order, namespace: str, name: str) -> bool:
        return order.call(lambda: any(owner.owns(namespace, name) for owner in self._owners))

    # Cgroups.

    def _cgroups(self, order: Order) -> Mapping[str, Cgroup]:
        namespaces = [row["name"] for row in self.db.all("SELECT name FROM namespaces")]
        found = cgroups.find(namespaces, cgroups.asked_for(self.db))
        if not found:
            return {}
        named = {leftovers.cgroup_of(one.path) for owner in self._owners for one in owner.bundles.found()}
        named |= {f"/{one.namespace}/{one.id}" for one in leftovers.states(self.host.state)}  # told with those
        homes = self.host.homes
        return {
            path: one
            for path, one in found.items()
            if not any(f"{other}/".startswith(f"{path}/") for other in named if other)
            and not self._is_owned(order, one.namespace, one.id)
            and not leftovers.is_being_removed(self.host.state, one.id)
            and (not one.pids or any(map(homes.has, one.pids)))
        }

    def _empty(self, order: Order, one: Cgroup) -> Finding:
        found = Finding(
            kind="cgroup-orphan",
            object=one.path,
            namespaces=(one.namespace,),
            wrong="it is of no task, and no process is in it",
            mends="--repair removes it",
        )
        return self._removed(order, one, found, "removed") if order.repair else found

    def _populated(self, order: Order, one: Cgroup) -> Finding:
        foreign = cgroups.strangers(one, self.host.homes)
        found = Finding(
            kind="cgroup-populated",
            object=one.path,
            namespaces=(one.namespace,),
            wrong=f"there is no task of it, and in it run {_words(sorted(one.pids))}",
            mends="--repair ends them and removes it",
        )
        if foreign:
            return found.after(False, f"ending by hand what is left: {_words(foreign)} may be somebody else's")
        if not order.repair or self._is_owned(order, one.namespace, one.id):
            return found
        cgroups.kill(one, self.host.homes)
        return self._removed(order, one, found, "ended, and removed", dying_s=_DYING_S)

    def _removed(self, order: Order, one: Cgroup, found: Finding, words: str, *, dying_s: float = 0) -> Finding:
        """After removing a cgroup in which processes may be dying for so long."""
        end = time.monotonic() + dying_s
        while True:
            order.go_on()
            if self._is_owned(order, one.namespace, one.id):
                return found
            try:
                one.remove()
            except OSError as error:
                if error.errno == errno.EBUSY and time.monotonic() < end:
                    order.stopped.wait(_LOOK_S)
                    continue
                return found.after(False, f"another look: {error}")
            return found.after(True, words)

    # Sockets.

    def _is_served(self, order: Order, socket: Path) -> bool:
        """Whether something is held behind a socket: its supervisor has died, and gets a successor."""
        address = f"unix://{socket}"

        return order.call(lambda: any(address in owner.addresses() for owner in self._owners))

    def _shims(self, order: Order) -> Mapping[Path, tuple[int, str]]:
        """Sockets of foreign shims on which nobody listens, by whose they would be."""
        names = {
            leftovers.shim_socket(self.host.address, row["namespace"], row["id"]): (row["namespace"], row["id"])
            for row in self.db.all(_NAMES)
        }
        found = {}
        for path, inode in leftovers.dead_shims(names).items():
            if not self._is_owned(order, *names[path]):
                found[path] = (inode, "/".join(names[path]))
        return found

    def _shim(self, order: Order, path: Path, inode: int, whose: str) -> Finding:
        namespace, _, name = whose.partition("/")
        found = Finding(
            kind="shim-socket-orphan",
            object=str(path),
            namespaces=(namespace,),
            wrong=f"the shim of {name} was killed, and nobody listens on it",
            mends="--repair removes it",
        )
        if not order.repair or self._is_owned(order, namespace, name):
            return found
        if leftovers.dead_shims([path]).get(path) != inode:
            return found.after(False, "another look: it was changed meanwhile")
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return found.after(True, "removed")


def _words(pids: list[int]) -> str:
    shown = ", ".join(map(str, pids[:10]))
    return f"process {shown}" if len(pids) == 1 else f"processes {shown}{' and more' if len(pids) > 10 else ''}"


def _keeper(order: Order, one: Keeper) -> Finding:
    gone = order.repair and _end(one)
    return Finding(
        kind="keeper-orphan",
        object=f"process {one.pid}",
        namespaces=(one.bundle.parent.name,),
        wrong=f"it keeps descriptors for {one.bundle}, and no record there names it",
        mends="ended" if gone else "--repair ends it",
        mended=gone,
    )


def _end(one: Keeper) -> bool:
    with contextlib.suppress(OSError, OrlopError), contextlib.ExitStack() as undo:
        handle = pidfd.pidfd_open(one.pid)
        undo.callback(os.close, handle)
        if leftovers.start_time(one.pid) == one.start_time and not leftovers.is_kept(one):
            pidfd.pidfd_send_signal(handle, signal.SIGKILL)
            return True
    return False


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
