"""The shims of all namespaces: started, connected to, found again, succeeded when they are ours and die.

Who holds something in a shim (tasks, sandboxes) shares its connection, and is told when a foreign shim has died. One
supervisor of ours serves a namespace, or those of its containers that want their shim in the same cgroup; when it dies,
its successor takes over what it held, and does what was still to be done.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from orlop.api.runtime.task.v2 import shim_pb2
from orlop.api.types.runc.options.oci_pb2 import Options as RuncOptions
from orlop.base.errdefs import OrlopError, UnavailableError
from orlop.base.phases import Phases
from orlop.core.runtime import binaries, leftovers
from orlop.core.runtime.binaries import ShimBinary, ShimHost
from orlop.core.runtime.bundle import Bootstrap, Bundle
from orlop.core.runtime.shimlog import ShimLogs
from orlop.core.runtime.shims import Shim
from orlop.version import __version__

log: Final = logging.getLogger(__name__)

REVIVE_PAUSES_S: Final = (0.0, 0.1, 0.5, 2.0)
SHUTDOWN_TIMEOUT_S: Final = 5.0
# A supervisor ends what it is at before it retires.
RETIRE_TIMEOUT_S: Final = 15.0
OUR_VERSION: Final = f"orlop/{__version__}"

OnDead = Callable[[Shim], Awaitable[None]]


class ShimManager:
    """Starts shims and keeps a connection to each.

    Args:
        mapped: shims by runtime name, from the configuration.

    Attributes:
        on_dead: called, in order, with each foreign shim whose connection has broken.
    """

    def __init__(self, host: ShimHost, mapped: Mapping[str, str]) -> None:
        self.host = host
        self.on_dead: list[OnDead] = []
        self._mapped = mapped
        self._shims: dict[tuple[str, str], Shim] = {}
        self._starts: dict[str, asyncio.Lock] = {}
        self._logs = ShimLogs()
        self._closing = False

    def resolve(self, runtime: str) -> ShimBinary:
        """The shim for a runtime name or path; see `binaries.resolve`."""
        return binaries.resolve(runtime, self._mapped)

    async def start(self, bundle: Bundle, binary: ShimBinary, options: AnyMessage | None, phases: Phases) -> Shim:
        """The shim that will hold what the bundle is for: a running supervisor of ours, or a new process.

        Raises:
            OrlopError: see `binaries.start` and `Shim.connect`.
        """
        cgroup = _shim_cgroup(options)
        lock = self._starts.setdefault(bundle.namespace, asyncio.Lock()) if binary.groups else contextlib.nullcontext()
        async with lock:
            if binary.groups:
                for (namespace, _), known in self._shims.items():
                    if namespace == bundle.namespace and known.groups and known.cgroup == cgroup and known.alive():
                        bundle.save(known.bootstrap, binary.path)
                        return known
            else:
                self.follow_log(bundle)
            serialised = options.SerializeToString() if options is not None else b""
            try:
                with phases("shim started"):
                    bootstrap = await binaries.start(binary, self.host, bundle, serialised)
                with phases("shim connected"):
                    shim = await self.connect(bundle.namespace, bootstrap, binary)
            except OrlopError:
                if binary.groups:  # it, or the program that starts it, may have been killed meanwhile
                    await self.resume([bundle.namespace])
                raise
            bundle.save(bootstrap, binary.path)
            shim.cgroup = cgroup
            return shim

    def supervisors(self, namespace: str) -> list[Shim]:
        """The supervisors of ours that hold a namespace's tasks, and are connected."""
        return [shim for shim in self._shims.values() if shim.namespace == namespace and shim.groups and shim.alive()]

    def of_sandbox(self, namespace: str, sandbox_id: str) -> Shim | None:
        """The shim that holds a sandbox, if one does."""
        for shim in self._shims.values():
            if shim.namespace == namespace and sandbox_id in shim.sandboxes:
                return shim
        return None

    def sandboxes(self) -> list[tuple[str, str]]:
        """Namespace and id of every sandbox that a shim holds."""
        return [(shim.namespace, name) for shim in self._shims.values() for name in shim.sandboxes]

    def sandbox_bundles(self) -> list[Bundle]:
        """The bundles of every sandbox that a shim holds."""
        return [bundle for shim in self._shims.values() for bundle in shim.sandboxes.values()]

    def sandbox_addresses(self) -> set[str]:
        """Where those shims are."""
        return {shim.bootstrap.address for shim in self._shims.values() if shim.sandboxes}

    async def connect(self, namespace: str, bootstrap: Bootstrap, binary: ShimBinary | None) -> Shim:
        """The shim at an address; see `Shim.connect` for errors."""
        key = (namespace, bootstrap.address)
        known = self._shims.get(key)
        if known is not None and known.alive():
            return known
        shim = Shim(namespace, bootstrap, binary)
        await shim.connect(self._lost)
        return self._enter(shim)

    async def find(self, bundle: Bundle, bootstrap: Bootstrap, binary: ShimBinary | None) -> Shim:
        """Connect to the shim that a bundle names; a supervisor of ours that died meanwhile gets its successor.

        Where none can be started, as on a full disk, the shim is returned as it is: what it held goes on, and each call
        tries again.

        Raises:
            UnavailableError: a foreign shim is gone.
        """
        async with self._starts.setdefault(f"{bundle.namespace}\0{bootstrap.address}", asyncio.Lock()):
            known = self._shims.get((bundle.namespace, bootstrap.address))
            if known is not None and known.groups:
                return known  # alive, or tried just now
            try:
                return await self.connect(bundle.namespace, bootstrap, binary)
            except UnavailableError:
                if binary is None or not binary.groups:
                    raise
            log.info("supervisor is gone, starting its successor", extra={"namespace": bundle.namespace})
            try:
                successor = await binaries.start(binaries.newest(binary), self.host, bundle, b"")
                return await self.connect(bundle.namespace, successor, binary)
            except OrlopError as error:
                fields = {"namespace": bundle.namespace, "error": str(error)}
                log.warning("successor of a supervisor did not start", extra=fields)
                return self._enter(Shim(bundle.namespace, bootstrap, binary))

    def _enter(self, shim: Shim) -> Shim:
        if shim.groups:
            shim.revive = lambda: self._revive(shim)
        self._shims[shim.namespace, shim.bootstrap.address] = shim
        return shim

    async def renew(self) -> None:
        """Have supervisors of another release retire; their successors, of this one, take over what they hold."""
        await asyncio.gather(
            *(self._renew(shim) for shim in list(self._shims.values()) if shim.groups and shim.alive())
        )

    async def _renew(self, shim: Shim) -> None:
        fields = {"namespace": shim.namespace, "address": shim.bootstrap.address}
        try:
            reply = await shim.call(
                "Connect", shim_pb2.ConnectRequest(), shim_pb2.ConnectResponse, timeout_s=RETIRE_TIMEOUT_S
            )
            if reply.version == OUR_VERSION or not reply.shim_pid:
                return
            log.info("supervisor of another release retires", extra={**fields, "version": reply.version})
            os.kill(reply.shim_pid, signal.SIGUSR2)
            async with asyncio.timeout(RETIRE_TIMEOUT_S):
                await shim.lost()
            await self._revive(shim)
        except (OrlopError, OSError, TimeoutError) as error:
            # It goes on as it is: supervisors of the release before this one are served as well.
            log.warning("supervisor of another release stays", extra={**fields, "error": str(error)})

    async def shut_down(self, shim: Shim, bundle: Bundle) -> None:
        """Tell a foreign shim that this bundle's task was all; it ends by itself if it has no other."""
        with contextlib.suppress(OrlopError):  # it may end before it answers
            await shim.call("Shutdown", shim_pb2.ShutdownRequest(id=bundle.id), Empty, timeout_s=SHUTDOWN_TIMEOUT_S)
        await self.let_go(shim)

    async def let_go(self, shim: Shim) -> None:
        """Close the connection to a foreign shim that holds nothing any more."""
        if not shim.groups and not shim.holds:
            self._shims.pop((shim.namespace, shim.bootstrap.address), None)
            await shim.close()

    def follow_log(self, bundle: Bundle) -> None:
        """Read what a foreign shim logs into its bundle's FIFO."""
        self._logs.open(bundle.path)

    def forget_log(self, bundle: Bundle) -> None:
        """The bundle goes."""
        self._logs.forget(bundle.path)

    async def close(self) -> None:
        """Let go of all shims; what they hold goes on."""
        self._closing = True
        await asyncio.gather(*(shim.close() for shim in self._shims.values()))
        self._logs.close()

    async def _lost(self, shim: Shim) -> None:
        """A connection broke: a supervisor gets a successor, what a foreign shim held is dead with it."""
        if self._closing:
            return
        if shim.groups and shim.holds:
            with contextlib.suppress(OrlopError):  # logged there; the next call tries again
                await self._revive(shim)
            return
        if shim.groups and await asyncio.to_thread(leftovers.is_killed, shim.bootstrap.address):
            await self.resume([shim.namespace])
        key = (shim.namespace, shim.bootstrap.address)
        if self._shims.get(key) is shim:  # and not its successor
            del self._shims[key]
        if not shim.groups:
            for tell in self.on_dead:
                await tell(shim)

    async def resume(self, namespaces: Iterable[str]) -> None:
        """Start successors of supervisors that were killed holding nothing any more, with containers still to remove.

        After a start, or when one dies. What cannot be done is logged: the namespace's next supervisor does it.
        """
        for namespace in namespaces:
            if not await asyncio.to_thread(leftovers.is_left, Path(self.host.state)):
                return
            try:
                binary = ShimBinary(path=binaries.supervisor_path(), groups=True)
                for bootstrap in await binaries.resume(binary, self.host, namespace):
                    if self._closing:
                        return
                    log.info("successor removes what is left", extra={"namespace": namespace})
                    await self.connect(namespace, bootstrap, binary)
            except OrlopError as error:
                fields = {"namespace": namespace, "error": str(error)}
                log.warning("what a supervisor has left stays for now", extra=fields)

    async def _revive(self, shim: Shim) -> None:
        """Give what a dead supervisor held to its successor, which finds it by its records.

        Who comes while somebody tries gets what comes of that: a list of many tasks tries once.

        Raises:
            UnavailableError: no successor could be started; names the last reason.
        """
        before = shim.not_revived
        async with shim.reviving:
            if shim.alive():
                return
            if shim.not_revived is not None and shim.not_revived is not before:
                raise UnavailableError(shim.not_revived.text)
            try:
                await self._start_successor(shim)
            except UnavailableError as error:
                shim.not_revived = error
                raise

    async def _start_successor(self, shim: Shim) -> None:
        bundle = shim.any_bundle()
        if shim.binary is None or bundle is None:
            raise UnavailableError(f"shim {shim.bootstrap.address}: the supervisor is gone")
        last: OrlopError | None = None
        for pause in REVIVE_PAUSES_S:
            await asyncio.sleep(pause)
            if shim.alive():
                return
            try:
                shim.bootstrap = await binaries.start(binaries.newest(shim.binary), self.host, bundle, b"")
                await shim.connect(self._lost)
            except OrlopError as error:
                last = error
                fields = {"namespace": shim.namespace, "error": str(error)}
                log.warning("successor of a supervisor did not start", extra=fields)
                continue
            log.info("successor took over", extra={"namespace": shim.namespace, "tasks": len(shim.tasks)})
            return
        raise UnavailableError(f"shim {shim.bootstrap.address}: no successor could be started: {last}") from last


def _shim_cgroup(options: AnyMessage | None) -> str:
    """The cgroup that the shim shall live in; empty where the options, being somebody else's or broken, name none."""
    if options is None or options.type_url.rpartition("/")[2] != RuncOptions.DESCRIPTOR.full_name:
        return ""
    try:
        return RuncOptions.FromString(options.value).shim_cgroup
    except DecodeError:
        return ""  # the shim says so
