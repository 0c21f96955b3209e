"""Connections to shims: one per address, shared by all the tasks that the shim holds."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from google.protobuf.message import Message

from orlop import ttrpc
from orlop.base import failpoints, trace
from orlop.base.errdefs import DeadlineExceededError, OrlopError, UnavailableError, UnimplementedError, from_status
from orlop.core.runtime.binaries import ShimBinary
from orlop.core.runtime.bundle import Bootstrap, Bundle
from orlop.ttrpc import aio
from orlop.ttrpc.errors import TEXT_DEADLINE

log: Final = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 10.0
# An answer of a shim may wait for the OCI runtime, which the shim bounds by itself; this is for a shim that hangs.
CALL_TIMEOUT_S: Final = 120.0
NAMESPACE_KEY: Final = "containerd-namespace-ttrpc"

M = TypeVar("M", bound=Message)


class Shim:
    """One shim process, reached over ttrpc.

    Attributes:
        groups: it is our supervisor; when it dies, a successor takes its tasks over.
        tasks, sandboxes: bundles of what it holds by id, as far as this daemon knows.
        cgroup: where a supervisor of ours lives by the wish of a client, empty by nobody's; None if it is not known.
        not_revived: why at the last attempt no successor could be started.
    """

    def __init__(self, namespace: str, bootstrap: Bootstrap, binary: ShimBinary | None) -> None:
        self.namespace = namespace
        self.bootstrap = bootstrap
        self.binary = binary
        self.tasks: dict[str, Bundle] = {}
        self.sandboxes: dict[str, Bundle] = {}
        self.cgroup: str | None = None
        self.revive: Callable[[], Awaitable[None]] | None = None
        self._client: aio.Client | None = None
        self._watch: asyncio.Task[None] | None = None
        self.reviving: asyncio.Lock = asyncio.Lock()
        self.not_revived: UnavailableError | None = None
        self._closing = False
        self._record = trace.recorder()

    @property
    def groups(self) -> bool:
        return self.binary is not None and self.binary.groups

    @property
    def holds(self) -> bool:
        """Whether it holds anything."""
        return bool(self.tasks or self.sandboxes)

    def any_bundle(self) -> Bundle | None:
        """A bundle of what it holds, in which its program can be run."""
        return next((bundle for bundles in (self.tasks, self.sandboxes) for bundle in bundles.values()), None)

    def alive(self) -> bool:
        """Whether the connection stands, as far as this side has noticed."""
        return self._client is not None and not self._client.closed

    async def connect(self, on_lost: Callable[["Shim"], Awaitable[None]]) -> None:
        """Connect, and call `on_lost` once when the connection breaks that nobody here closed.

        Raises:
            UnavailableError: nobody listens at the address.
            UnimplementedError: the shim speaks a protocol or a version that we do not.
        """
        if self.bootstrap.protocol != "ttrpc":
            raise UnimplementedError(f"shim {self.bootstrap.address}: protocol {self.bootstrap.protocol!r}")
        if self.bootstrap.version not in (2, 3):
            raise UnimplementedError(f"shim {self.bootstrap.address}: version {self.bootstrap.version}")
        try:
            self._client = await aio.Client.connect(
                self.bootstrap.address, timeout_s=CONNECT_TIMEOUT_S, metadata={NAMESPACE_KEY: self.namespace}
            )
        except ttrpc.TtrpcError as error:
            raise UnavailableError(f"shim: {error}") from error
        name = f"shim {self.bootstrap.address}"
        self._watch = asyncio.create_task(self._watch_connection(self._client, on_lost), name=name)

    async def lost(self) -> None:
        """Wait until the connection has broken."""
        if self._client is not None:
            await self._client.wait_closed()

    async def close(self) -> None:
        """Drop the connection; the shim and its tasks go on."""
        self._closing = True
        if self._client is not None:
            await self._client.close()
        if self._watch is not None and self._watch is not asyncio.current_task():
            await asyncio.gather(self._watch, return_exceptions=True)

    async def call(
        self,
        method: str,
        request: Message,
        reply: type[M],
        *,
        timeout_s: float | None = CALL_TIMEOUT_S,
        service: str = "",
    ) -> M:
        """One unary call of the task service, or of another that is named.

        Raises:
            UnavailableError: the connection broke before the answer.
            DeadlineExceededError: no answer within `timeout_s`.
            OrlopError: what the shim answered, with its own words.
        """
        if not self.alive():
            if self.revive is None:
                raise UnavailableError(f"shim {self.bootstrap.address}: {method}: the shim is gone")
            await self.revive()
        client = self._client
        if client is None:
            raise UnavailableError(f"shim {self.bootstrap.address}: {method}: not connected")
        start = trace.clock()
        try:
            payload = await client.call(
                service or f"containerd.task.v{self.bootstrap.version}.Task",
                method,
                request.SerializeToString(),
                timeout_s=timeout_s,
            )
        except ttrpc.TtrpcError as error:
            raise self._translate(error, method) from error
        finally:
            if self._record is not None:
                self._record("shim", method, start, trace.clock())
        failpoints.reach("task.shim.called")
        return reply.FromString(payload)

    def _translate(self, error: ttrpc.TtrpcError, method: str) -> OrlopError:
        text = error.message
        bare = text == TEXT_DEADLINE or text.endswith(f"{method}: {TEXT_DEADLINE}")  # else the shim has said more
        if error.code == DeadlineExceededError.code and bare:
            return DeadlineExceededError(f"shim {self.bootstrap.address}: {method}: no answer in time")
        return from_status(error.code, error.message)

    async def _watch_connection(self, client: aio.Client, on_lost: Callable[["Shim"], Awaitable[None]]) -> None:
        await client.wait_closed()
        if not self._closing:
            log.info("shim disconnected", extra={"address": self.bootstrap.address, "namespace": self.namespace})
            await on_lost(self)
