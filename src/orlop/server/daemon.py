"""The composition root: a root directory, a plug-in graph and doors, put together in one place.

    async with Daemon(config) as daemon:        # the graph runs, nobody listens
        async with daemon.doors():              # clients can come
            ...

It is entered by the program `orlopd`, by `orlop.Engine` inside a foreign process, and by tests. What belongs to a whole
process (signals, umask, logging, sub-reaper) is the program's, in `orlop.cmd.orlopd`, and not done here.
"""

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from orlop.base.errdefs import FailedPreconditionError, InvalidArgumentError, UnavailableError
from orlop.base.rpc import Service
from orlop.core.kinds import GRPC, RUNTIME, TASK_MONITOR, TRACING, TTRPC
from orlop.core.plugin import Registration
from orlop.linux.cgroup_warmth import Warmth
from orlop.server import builtins, reload
from orlop.server.config import DOORS, MESSAGE_LIMIT, BoundSocket, Config, Grpc
from orlop.server.counting import Calls, counted
from orlop.server.doors import sockets
from orlop.server.doors.ttrpc import TtrpcDoor
from orlop.server.graph import Graph
from orlop.server.reload import Outcome
from orlop.server.warmth import WINDOW_S, heralded

if TYPE_CHECKING:
    from orlop.server.doors.grpc import GrpcDoor
    from orlop.server.doors.http import HttpDoor
    from orlop.server.doors.lean import LeanDoor

log: Final = logging.getLogger(__name__)

# Clients may pass through to sockets, FIFOs and bundles below; what lies there has modes of its own.
DIRECTORY_MODE: Final = 0o711


class Daemon:
    """An async context manager over one root directory.

    Raises on entering:
        FailedPreconditionError: another daemon has the root directory, or a required plug-in does not work.
        UnavailableError: a directory cannot be made.
    """

    def __init__(self, config: Config, plugins: Sequence[Registration] | None = None) -> None:
        self.config = config
        self._plugins = plugins
        self._stack = contextlib.AsyncExitStack()
        self._warmth = Warmth(WINDOW_S) if config.warm_cgroups else None
        self._calls = Calls(histogram=config.grpc_metrics.grpc_histogram) if config.metrics.address else None

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            for directory in (self.config.root, self.config.state):
                _make_directory(Path(directory))
            stack.callback(_Lock(Path(self.config.root) / "lock").close)
            plugins = self._plugins
            if plugins is None:
                plugins = builtins.configured(self.config)
            self.graph = await stack.enter_async_context(Graph(self.config, plugins))
            if self._warmth is not None:
                stack.callback(self._warmth.close)
            known = {registration.uri for registration in plugins}
            for uri in sorted(self.config.plugins.keys() - known):
                self.config.warnings.append(f'plugins."{uri}": there is no such plug-in here, its section is ignored')
            for warning in self.config.warnings:
                log.warning("configuration", extra={"warning": warning})
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def reload(self, config: Config) -> Outcome:
        """Put what can be of a changed configuration into force; see `orlop.server.reload`."""
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            return await reload.reload(self.graph, config)
        finally:
            notify("READY=1")

    @property
    def services(self) -> list[Service]:
        """The services for every door, by the order of their plug-ins' start."""
        services = list(self.graph.all(GRPC).values())
        if self._warmth is not None:
            recent = next((one.recent for one in self.graph.all(RUNTIME).values()), None)
            services = heralded(services, self._warmth, recent)
        if self._calls is not None:
            services = counted(services, self._calls)
        for tracing in self.graph.all(TRACING).values():
            services = tracing.traced(services)
        return services

    @contextlib.asynccontextmanager
    async def doors(self, *, grpc: bool = True) -> AsyncIterator[None]:
        """Listen on the configured sockets while in this context.

        Raises:
            AlreadyExistsError: another daemon listens at an address.
        """
        config = self.config
        async with contextlib.AsyncExitStack() as stack:
            if grpc:
                await stack.enter_async_context(self._grpc_door(self.services, config.grpc))
            everything = [*self.services, *self.graph.all(TTRPC).values()]
            path = sockets.path_of(config.ttrpc_address)
            ttrpc_door = TtrpcDoor(path, everything, uid=config.ttrpc.uid, gid=config.ttrpc.gid)
            await stack.enter_async_context(ttrpc_door)
            if config.grpc_tcp.address:
                from orlop.server.doors.tcp import TcpDoor

                tcp = await stack.enter_async_context(TcpDoor(config.grpc_tcp, self.services))
                log.info("serving gRPC on TCP", extra={"address": tcp.address})
            for name, one in config.sockets.items():
                await self._bound(stack, name, one, grpc=grpc)
            for pages in self._pages():
                await stack.enter_async_context(pages)
                log.info("serving HTTP", extra={"address": ", ".join(pages.addresses)})
            yield

    def _pages(self) -> "Iterator[HttpDoor]":
        """The listeners for metrics and debugging, where the configuration has addresses for them."""
        config = self.config
        if config.metrics.address and self._calls is not None:
            from orlop.server.doors.http import HttpDoor, Page
            from orlop.server.metrics import CONTENT_TYPE, Metrics

            metrics = Metrics(self._calls, self.graph.all(TASK_MONITOR).values())
            page = Page(lambda _query: metrics.page(), CONTENT_TYPE)
            yield HttpDoor(config.metrics.address, {"/v1/metrics": page, "/metrics": page})
        if config.debug_socket.address:
            from orlop.server import debugging
            from orlop.server.doors.http import HttpDoor

            socket = config.debug_socket
            yield HttpDoor(socket.address, debugging.pages(), uid=socket.uid, gid=socket.gid)

    async def _bound(self, stack: contextlib.AsyncExitStack, name: str, one: BoundSocket, *, grpc: bool) -> None:
        """Listen for one namespace in a role."""
        # Late: who has no such socket imports nothing for it.
        from orlop.server import roles
        from orlop.server.roles.setup import tenant

        owner = tenant(name, one, self.config, self.graph)
        services = roles.bound(self.services, owner)
        if grpc:
            await stack.enter_async_context(self._grpc_door(services, one))
        path = sockets.path_of(f"{one.address}.ttrpc")
        await stack.enter_async_context(TtrpcDoor(path, services, uid=one.uid, gid=one.gid, mode=one.mode))
        log.info("serving", extra={"address": one.address, "namespace": one.namespace, "role": one.role})

    def _grpc_door(
        self, services: Iterable[Service], socket: Grpc | BoundSocket
    ) -> AbstractAsyncContextManager[object]:
        config = self.config.grpc
        door: type[GrpcDoor | LeanDoor]
        # Late: only what is used is imported; grpcio is large.
        if config.door == "grpcio":
            from orlop.server.doors import grpc

            door = grpc.GrpcDoor
        elif config.door == "lean":
            from orlop.server.doors import lean

            door = lean.LeanDoor
        else:
            raise InvalidArgumentError(f'grpc: door "{config.door}": must be one of {", ".join(DOORS)}')
        return door(
            sockets.path_of(socket.address),
            services,
            uid=socket.uid,
            gid=socket.gid,
            mode=socket.mode if isinstance(socket, BoundSocket) else sockets.MODE,
            # Nothing, and less, is no limit of the user's in containerd either.
            max_receive=config.max_recv_message_size if config.max_recv_message_size > 0 else MESSAGE_LIMIT,
            max_send=config.max_send_message_size if config.max_send_message_size > 0 else MESSAGE_LIMIT,
        )

    async def serve(self, stop: asyncio.Event) -> None:
        """Be a daemon: listen until `stop` is set."""
        async with self.doors():
            # What start-up made stays for good: keep the collector from walking it again and again.
            gc.collect()
            gc.freeze()
            log.info("serving", extra={"address": self.config.grpc.address, "ttrpc": self.config.ttrpc_address})
            notify("READY=1")
            await stop.wait()
            notify("STOPPING=1")


def notify(state: str) -> None:
    """Tell the service manager: sd_notify(3). Nothing happens without one."""
    import socket

    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)) as channel:
        with contextlib.suppress(OSError):  # a manager that went away is no reason to stop
            channel.sendto(state.encode(), address)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(f"directory {path}: {error.strerror}") from error


class _Lock:
    """Keeps a second daemon off the root directory; the kernel lets go of it however this process ends."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise FailedPreconditionError(
                f"root directory {path.parent}: in use by another daemon (pid {owner or 'unknown'})",
                hint="stop it, or give this one another --root and --state",
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        os.close(self._descriptor)
