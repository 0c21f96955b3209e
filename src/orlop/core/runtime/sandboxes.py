"""Sandboxes by shims: the controller `shim`, and what tasks need to know of the sandboxes that they are in.

A sandbox has a bundle as a task has, below a directory of its own; `bootstrap.json` in it says which shim holds it. The
shim speaks `containerd.runtime.sandbox.v1` beside the task API, and tasks of the sandbox are created in it.

Source: containerd's plugins/sandbox/controller.go, its texts among them.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from orlop.api.runtime.sandbox.v1 import sandbox_pb2 as pb
from orlop.api.types import mount_pb2
from orlop.base.errdefs import (
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    OrlopError,
    UnavailableError,
    UnimplementedError,
    UnknownError,
    from_status,
)
from orlop.base.phases import Phases
from orlop.base.quoting import quote
from orlop.core.mount import Mount
from orlop.core.runtime import binaries
from orlop.core.runtime.binaries import ShimBinary
from orlop.core.runtime.bundle import Bundle, Bundles
from orlop.core.runtime.leaving import Leaving
from orlop.core.runtime.shim_manager import SHUTDOWN_TIMEOUT_S, ShimManager
from orlop.core.runtime.shims import CALL_TIMEOUT_S, Shim
from orlop.core.runtime.tasks import ATTEMPTS
from orlop.core.sandboxes import Exit, Instance, Platform, Sandbox, Status

log: Final = logging.getLogger(__name__)

SERVICE: Final = "containerd.runtime.sandbox.v1.Sandbox"
PING_TIMEOUT_S: Final = 5.0

M = TypeVar("M", bound=Message)


class ShimController:
    """See `orlop.core.sandboxes.Controller`; a sandbox runs if its shim was started and is there."""

    def __init__(self, bundles: Bundles, shims: ShimManager) -> None:
        self.bundles = bundles
        self._shims = shims
        self._creating: set[tuple[str, str]] = set()
        self._leaving = Leaving()
        shims.on_dead.append(self._bury_all)

    async def create(
        self,
        namespace: str,
        sandbox: Sandbox,
        *,
        options: bytes | None = None,
        rootfs: Sequence[Mount] = (),
        netns: str = "",
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        key = (namespace, sandbox.id)
        if key in self._creating or self._shims.of_sandbox(*key) is not None:
            raise AlreadyExistsError(f"sandbox {sandbox.id} already running")
        self._creating.add(key)
        try:
            shim = await self._start_shim(namespace, sandbox)
            request = pb.CreateSandboxRequest(
                sandbox_id=sandbox.id,
                bundle_path=str(shim.sandboxes[sandbox.id].path),
                rootfs=[
                    mount_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options) for m in rootfs
                ],
                options=None if options is None else AnyMessage.FromString(options),
                netns_path=netns,
                annotations=annotations,
            )
            try:
                await _call(shim, "CreateSandbox", request, pb.CreateSandboxResponse)
            except BaseException as error:
                await asyncio.shield(self._clean_up(shim, sandbox.id))
                raise _reworded(error, f"failed to create sandbox {sandbox.id}") from error
        finally:
            self._creating.discard(key)

    async def start(self, namespace: str, sandbox_id: str) -> Instance:
        shim = self._shims.of_sandbox(namespace, sandbox_id)
        if shim is None:
            raise UnknownError(f"unable to find sandbox {quote(sandbox_id)}")
        request = pb.StartSandboxRequest(sandbox_id=sandbox_id)
        try:
            answer = await _call(shim, "StartSandbox", request, pb.StartSandboxResponse)
        except BaseException as error:
            if not (shim.groups and isinstance(error, FailedPreconditionError | UnavailableError)):
                await asyncio.shield(self._clean_up(shim, sandbox_id))
            # Else it runs, which is no reason to end it; or its supervisor died, whose successor has it as it was.
            raise _reworded(error, f"failed to start sandbox {sandbox_id}") from error
        return Instance(
            id=sandbox_id,
            pid=answer.pid,
            address=_address(shim),
            version=shim.bootstrap.version,
            created_at=answer.created_at.ToNanoseconds(),
            spec=answer.spec.SerializeToString() if answer.HasField("spec") else None,
        )

    async def platform(self, namespace: str, sandbox_id: str) -> Platform:
        shim = self._get(namespace, sandbox_id)
        request = pb.PlatformRequest(sandbox_id=sandbox_id)
        with _wording("failed to get sandbox platform"):
            answer = await self._outlasting(shim, "Platform", request, pb.PlatformResponse)
        found = answer.platform
        return Platform(os=found.os, architecture=found.architecture, variant=found.variant)

    async def stop(self, namespace: str, sandbox_id: str, *, timeout_s: int = 0) -> None:
        shim = self._shims.of_sandbox(namespace, sandbox_id)
        if shim is None:
            return
        request = pb.StopSandboxRequest(sandbox_id=sandbox_id, timeout_secs=timeout_s)
        try:
            await _call(shim, "StopSandbox", request, pb.StopSandboxResponse, timeout_s=CALL_TIMEOUT_S + timeout_s)
        except OrlopError as error:
            # A foreign shim may end, and the sandbox with it, before it answers.
            if isinstance(error, NotFoundError) or (isinstance(error, UnavailableError) and not shim.groups):
                return
            raise _reworded(error, "failed to stop sandbox") from error

    async def wait(self, namespace: str, sandbox_id: str) -> Exit:
        shim = self._get(namespace, sandbox_id)
        request = pb.WaitSandboxRequest(sandbox_id=sandbox_id)
        with _wording(f"failed to wait sandbox {sandbox_id}"):
            answer = await self._outlasting(shim, "WaitSandbox", request, pb.WaitSandboxResponse)
        return Exit(status=answer.exit_status, exited_at=answer.exited_at.ToNanoseconds())

    async def status(self, namespace: str, sandbox_id: str, *, verbose: bool = False) -> Status:
        shim = self._shims.of_sandbox(namespace, sandbox_id)
        if shim is None:
            return Status(id=sandbox_id, exited_at=time.time_ns())
        request = pb.SandboxStatusRequest(sandbox_id=sandbox_id, verbose=verbose)
        with _wording(f"failed to query sandbox {sandbox_id} status"):
            answer = await self._outlasting(shim, "SandboxStatus", request, pb.SandboxStatusResponse)
        return Status(
            id=answer.sandbox_id,
            pid=answer.pid,
            state=answer.state,
            info=dict(answer.info),
            created_at=answer.created_at.ToNanoseconds(),
            exited_at=answer.exited_at.ToNanoseconds(),
            extra=answer.extra.SerializeToString() if answer.HasField("extra") else None,
            address=_address(shim),
            version=shim.bootstrap.version,
        )

    async def shutdown(self, namespace: str, sandbox_id: str) -> None:
        shim = self._get(namespace, sandbox_id)
        request = pb.ShutdownSandboxRequest(sandbox_id=sandbox_id)
        with _wording("failed to shutdown sandbox"):
            await _call(shim, "ShutdownSandbox", request, pb.ShutdownSandboxResponse)
        await self._forget(shim, sandbox_id)

    async def metrics(self, namespace: str, sandbox_id: str) -> bytes:
        request = pb.SandboxMetricsRequest(sandbox_id=sandbox_id)
        answer = await _call(self._get(namespace, sandbox_id), "SandboxMetrics", request, pb.SandboxMetricsResponse)
        return answer.metrics.SerializeToString()

    async def update(self, namespace: str, sandbox_id: str, sandbox: Sandbox, fields: Sequence[str]) -> None:
        """Nothing that a shim could be told: its API has no update."""

    async def shutdown_all(self) -> None:
        """Shut down every sandbox of every namespace; what resists is logged and left to the next daemon."""
        for namespace, sandbox_id in self._shims.sandboxes():
            try:
                await self.shutdown(namespace, sandbox_id)
            except OrlopError as error:
                log.error("sandbox is left", extra={"namespace": namespace, "id": sandbox_id, "error": str(error)})

    async def load(self) -> None:
        """Find the sandboxes that an earlier daemon left, and clean up after shims that are gone."""
        bundles = await asyncio.to_thread(self.bundles.swept)
        async with asyncio.TaskGroup() as group:
            for bundle in bundles:
                group.create_task(self._load_one(bundle), name=f"load sandbox {bundle.namespace}/{bundle.id}")

    # ---- for the check; see `core.runtime.check_bundles.Owner`

    def held(self) -> list[Bundle]:
        """The bundles of all sandboxes that shims hold."""
        return self._shims.sandbox_bundles()

    def addresses(self) -> set[str]:
        """Where the shims of sandboxes are."""
        return self._shims.sandbox_addresses()

    def owns(self, namespace: str, sandbox_id: str) -> bool:
        """Whether a shim holds such a sandbox, or one is being made or removed; to be asked on the event loop."""
        key = (namespace, sandbox_id)
        return key in self._creating or key in self._leaving or self._shims.of_sandbox(*key) is not None

    async def recover(self, bundle: Bundle) -> bool:
        """Take over the sandbox of a bundle that is nobody's, or remove what is there; returns whether it is ours.

        What an earlier daemon left is dealt with so at the start; nobody can make one of that name meanwhile.
        """
        key = (bundle.namespace, bundle.id)
        if not self.owns(*key) and bundle.path.is_dir():
            self._creating.add(key)
            try:
                await self._load_one(bundle)
            finally:
                self._creating.discard(key)
        return self._shims.of_sandbox(*key) is not None

    # ---- shims and bundles

    def _get(self, namespace: str, sandbox_id: str) -> Shim:
        shim = self._shims.of_sandbox(namespace, sandbox_id)
        if shim is None:
            raise NotFoundError
        return shim

    async def _start_shim(self, namespace: str, sandbox: Sandbox) -> Shim:
        """The shim for a new sandbox, noted in the bundle and in the shim; nothing stays when this raises."""
        spec = AnyMessage.FromString(sandbox.spec or b"")
        options = AnyMessage.FromString(sandbox.runtime.options) if sandbox.runtime.options else None
        with _wording(f"failed to start new shim for sandbox {sandbox.id}"):
            binary = self._shims.resolve(sandbox.runtime.name)
        bundle = self.bundles.create(namespace, sandbox.id, spec.type_url, spec.value)
        try:
            with _wording(f"failed to start new shim for sandbox {sandbox.id}"):
                shim = await self._shims.start(bundle, binary, options, Phases())
        except BaseException:
            await asyncio.shield(self._discard(bundle))
            raise
        shim.sandboxes[sandbox.id] = bundle
        return shim

    async def _clean_up(self, shim: Shim, sandbox_id: str) -> None:
        """Undo what a failed create or start left; the first error is the caller's."""
        with contextlib.suppress(OrlopError):
            request = pb.ShutdownSandboxRequest(sandbox_id=sandbox_id)
            await _call(shim, "ShutdownSandbox", request, pb.ShutdownSandboxResponse, timeout_s=SHUTDOWN_TIMEOUT_S)
        await self._forget(shim, sandbox_id)

    async def _forget(self, shim: Shim, sandbox_id: str) -> None:
        bundle = shim.sandboxes.get(sandbox_id)
        if bundle is None:
            return
        with self._leaving.removing(bundle):
            del shim.sandboxes[sandbox_id]
            if not shim.groups and not shim.holds:
                await self._shims.shut_down(shim, bundle)
            await self._discard(bundle)

    async def _discard(self, bundle: Bundle) -> None:
        self._shims.forget_log(bundle)
        try:
            await asyncio.to_thread(bundle.delete)
        except OrlopError as error:
            fields = {"namespace": bundle.namespace, "id": bundle.id, "error": str(error)}
            log.error("bundle of a sandbox is left", extra=fields)

    async def _load_one(self, bundle: Bundle) -> None:
        bootstrap, path = bundle.bootstrap(), bundle.binary()
        binary = ShimBinary(path=path, groups=path.name == binaries.SUPERVISOR) if path else None
        fields = {"namespace": bundle.namespace, "id": bundle.id}
        try:
            if bootstrap is None:
                raise UnavailableError("its shim was not started")
            shim = await self._shims.find(bundle, bootstrap, binary)
            shim.sandboxes[bundle.id] = bundle
            try:
                if shim.alive():  # else it goes on without a supervisor, until one can be started
                    request = pb.PingRequest(sandbox_id=bundle.id)
                    await _call(shim, "PingSandbox", request, pb.PingResponse, timeout_s=PING_TIMEOUT_S)
            except UnimplementedError:
                pass  # not every shim can be asked; it is there
            except BaseException:
                shim.sandboxes.pop(bundle.id)
                raise
        except (OrlopError, OSError) as error:
            log.warning("sandbox is lost with its shim", extra={**fields, "error": str(error)})
            await self._bury(bundle, binary)
            return
        if not shim.groups:
            self._shims.follow_log(bundle)

    async def _bury_all(self, shim: Shim) -> None:
        """A foreign shim has died, and its sandboxes with it."""
        with contextlib.ExitStack() as leaving:
            for bundle in shim.sandboxes.values():
                leaving.enter_context(self._leaving.removing(bundle))
            for bundle in list(shim.sandboxes.values()):
                await self._bury(bundle, shim.binary)
            shim.sandboxes.clear()

    async def _bury(self, bundle: Bundle, binary: ShimBinary | None) -> None:
        if binary is not None and not binary.groups:
            try:
                await binaries.delete(binary, self._shims.host, bundle)
            except OrlopError as error:
                fields = {"namespace": bundle.namespace, "id": bundle.id, "error": str(error)}
                log.error("dead shim of a sandbox", extra=fields)
        await self._discard(bundle)

    async def _outlasting(self, shim: Shim, method: str, request: Message, reply: type[M]) -> M:
        """A call that changes nothing and so may be asked of a supervisor's successor; without a limit of time."""
        for _attempt in range(ATTEMPTS - 1):
            try:
                return await _call(shim, method, request, reply, timeout_s=None)
            except UnavailableError:
                if not shim.groups or shim.alive():
                    raise
        return await _call(shim, method, request, reply, timeout_s=None)


async def _call(
    shim: Shim, method: str, request: Message, reply: type[M], *, timeout_s: float | None = CALL_TIMEOUT_S
) -> M:
    return await shim.call(method, request, reply, timeout_s=timeout_s, service=SERVICE)


def _address(shim: Shim) -> str:
    """As containerd tells it to who creates tasks in a sandbox."""
    return f"{shim.bootstrap.protocol}+{shim.bootstrap.address}"


def _reworded(error: BaseException, words: str) -> BaseException:
    return from_status(error.code, f"{words}: {error}") if isinstance(error, OrlopError) else error


@contextlib.contextmanager
def _wording(words: str) -> Iterator[None]:
    try:
        yield
    except OrlopError as error:
        raise from_status(error.code, f"{words}: {error}") from error
