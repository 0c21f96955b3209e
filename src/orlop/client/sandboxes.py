"""Sandboxes, as `client.sandboxes`: what containers are grouped in, such as a pod."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from google.protobuf.any_pb2 import Any as PackedAny

from orlop.api.services.sandbox.v1 import sandbox_pb2 as pb
from orlop.api.types import sandbox_pb2 as types
from orlop.base.errdefs import NotFoundError
from orlop.base.platforms import Platform
from orlop.client.channel import Rpc
from orlop.client.containers import DEFAULT_RUNTIME, SPEC_TYPE_URL
from orlop.client.session import Session
from orlop.client.stamps import to_datetime
from orlop.client.tasks import Exit

_STORE = "containerd.services.sandbox.v1.Store"
STORE_CREATE = Rpc(_STORE, "Create", pb.StoreCreateRequest, pb.StoreCreateResponse)
STORE_UPDATE = Rpc(_STORE, "Update", pb.StoreUpdateRequest, pb.StoreUpdateResponse)
STORE_DELETE = Rpc(_STORE, "Delete", pb.StoreDeleteRequest, pb.StoreDeleteResponse)
STORE_LIST = Rpc(_STORE, "List", pb.StoreListRequest, pb.StoreListResponse)
STORE_GET = Rpc(_STORE, "Get", pb.StoreGetRequest, pb.StoreGetResponse)
_CONTROLLER = "containerd.services.sandbox.v1.Controller"
CREATE = Rpc(_CONTROLLER, "Create", pb.ControllerCreateRequest, pb.ControllerCreateResponse)
START = Rpc(_CONTROLLER, "Start", pb.ControllerStartRequest, pb.ControllerStartResponse)
PLATFORM = Rpc(_CONTROLLER, "Platform", pb.ControllerPlatformRequest, pb.ControllerPlatformResponse)
STOP = Rpc(_CONTROLLER, "Stop", pb.ControllerStopRequest, pb.ControllerStopResponse)
WAIT = Rpc(_CONTROLLER, "Wait", pb.ControllerWaitRequest, pb.ControllerWaitResponse)
STATUS = Rpc(_CONTROLLER, "Status", pb.ControllerStatusRequest, pb.ControllerStatusResponse)
SHUTDOWN = Rpc(_CONTROLLER, "Shutdown", pb.ControllerShutdownRequest, pb.ControllerShutdownResponse)

DEFAULT_SANDBOXER = "shim"


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRecord:
    """A sandbox as the daemon holds it; `spec` is the JSON of its runtime-spec, if it has one."""

    id: str
    runtime: str = DEFAULT_RUNTIME
    runtime_options: PackedAny | None = None
    spec: bytes = b""
    sandboxer: str = DEFAULT_SANDBOXER
    labels: Mapping[str, str] = field(default_factory=dict)
    extensions: Mapping[str, PackedAny] = field(default_factory=dict)
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStatus:
    """How a sandbox fares; `state` is the shim's word, such as `SANDBOX_READY`, and empty where nothing runs."""

    state: str
    pid: int
    info: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    version: int = 0


class Sandbox:
    """One sandbox.

    Used as a context manager it is deleted on leaving; its containers, which are deleted before, end with it.
    """

    def __init__(self, session: Session, record: SandboxRecord) -> None:
        self._session = session
        self._record = record

    @property
    def id(self) -> str:
        """Its name in the namespace."""
        return self._record.id

    @property
    def record(self) -> SandboxRecord:
        """All that the daemon holds of it."""
        return self._record

    async def start(self) -> int:
        """Start it; returns the pid of its process, 0 where it has none of its own."""
        request = pb.ControllerStartRequest(sandbox_id=self.id, sandboxer=self._record.sandboxer)
        return (await self._session.call(START, request)).pid

    async def stop(self, *, timeout_s: int = 0) -> None:
        """End it and the tasks in it; one that has ended is fine."""
        request = pb.ControllerStopRequest(sandbox_id=self.id, sandboxer=self._record.sandboxer, timeout_secs=timeout_s)
        await self._session.call(STOP, request, endless=True)

    async def wait(self) -> Exit:
        """Return when it has ended. Raises NotFoundError if it does not run."""
        request = pb.ControllerWaitRequest(sandbox_id=self.id, sandboxer=self._record.sandboxer)
        response = await self._session.call(WAIT, request, endless=True)
        return Exit(code=response.exit_status, exited_at=to_datetime(response.exited_at))

    async def status(self, *, verbose: bool = False) -> SandboxStatus:
        """How it fares."""
        request = pb.ControllerStatusRequest(sandbox_id=self.id, sandboxer=self._record.sandboxer, verbose=verbose)
        response = await self._session.call(STATUS, request)
        return SandboxStatus(
            state=response.state,
            pid=response.pid,
            info=dict(response.info),
            address=response.address,
            version=response.version,
        )

    async def platform(self) -> Platform:
        """What containers in it have to be made for. containerd's gRPC service does not answer this."""
        request = pb.ControllerPlatformRequest(sandbox_id=self.id, sandboxer=self._record.sandboxer)
        found = (await self._session.call(PLATFORM, request)).platform
        return Platform(os=found.os, architecture=found.architecture, variant=found.variant)

    async def label(self, labels: Mapping[str, str]) -> "Sandbox":
        """Set labels and keep the others; an empty value removes a label."""
        sandbox = types.Sandbox(sandbox_id=self.id, labels=dict(labels))
        request = pb.StoreUpdateRequest(sandbox=sandbox, fields=[f"labels.{key}" for key in labels])
        return Sandbox(self._session, _record((await self._session.call(STORE_UPDATE, request)).sandbox))

    async def delete(self) -> None:
        """Shut it down, if it runs, and forget it. A record that names no controller, as of 1.7, is only forgotten."""
        if self._record.sandboxer:
            request = pb.ControllerShutdownRequest(sandbox_id=self.id, sandboxer=self._record.sandboxer)
            with contextlib.suppress(NotFoundError):  # it does not run
                await self._session.call(SHUTDOWN, request, endless=True)
        with contextlib.suppress(NotFoundError):  # somebody was quicker
            await self._session.call(STORE_DELETE, pb.StoreDeleteRequest(sandbox_id=self.id))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.delete()


class Sandboxes:
    """The sandboxes of the namespace."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def get(self, sandbox_id: str) -> Sandbox:
        """One sandbox. Raises NotFoundError."""
        response = await self._session.call(STORE_GET, pb.StoreGetRequest(sandbox_id=sandbox_id))
        return Sandbox(self._session, _record(response.sandbox))

    async def list(self, filters: Sequence[str] = ()) -> list[Sandbox]:
        """The sandboxes that match one of the filters, by id."""
        response = await self._session.call(STORE_LIST, pb.StoreListRequest(filters=list(filters)))
        records = sorted((_record(one) for one in response.list), key=lambda record: record.id)
        return [Sandbox(self._session, record) for record in records]

    async def create(
        self,
        sandbox_id: str,
        spec: bytes | None = None,
        *,
        runtime: str = DEFAULT_RUNTIME,
        runtime_options: PackedAny | None = None,
        sandboxer: str = DEFAULT_SANDBOXER,
        labels: Mapping[str, str] | None = None,
        extensions: Mapping[str, PackedAny] | None = None,
        options: PackedAny | None = None,
        netns: str = "",
    ) -> Sandbox:
        """Store a sandbox and have its controller bring it up, so that it can be started; all or nothing.

        Args:
            spec: JSON of a runtime-spec for the shim.
            options: for the shim, of whatever type it takes.
            netns: path of a network namespace for it.

        Raises:
            AlreadyExistsError: there is one of that id.
            NotFoundError: the daemon has no such controller.
        """
        sandbox = types.Sandbox(
            sandbox_id=sandbox_id,
            runtime=types.Sandbox.Runtime(name=runtime, options=runtime_options),
            spec=PackedAny(type_url=SPEC_TYPE_URL, value=spec) if spec else None,
            labels=dict(labels or {}),
            extensions=dict(extensions or {}),
            sandboxer=sandboxer,
        )
        stored = (await self._session.call(STORE_CREATE, pb.StoreCreateRequest(sandbox=sandbox))).sandbox
        request = pb.ControllerCreateRequest(
            sandbox_id=sandbox_id, sandboxer=sandboxer, sandbox=stored, options=options, netns_path=netns
        )
        try:
            await self._session.call(CREATE, request, endless=True)
        except BaseException:
            with contextlib.suppress(NotFoundError):
                await self._session.call(STORE_DELETE, pb.StoreDeleteRequest(sandbox_id=sandbox_id))
            raise
        return Sandbox(self._session, _record(stored))


def _record(sandbox: types.Sandbox) -> SandboxRecord:
    return SandboxRecord(
        id=sandbox.sandbox_id,
        runtime=sandbox.runtime.name,
        runtime_options=sandbox.runtime.options if sandbox.runtime.HasField("options") else None,
        spec=sandbox.spec.value,
        sandboxer=sandbox.sandboxer,
        labels=dict(sandbox.labels),
        extensions=dict(sandbox.extensions),
        created_at=to_datetime(sandbox.created_at),
        updated_at=to_datetime(sandbox.updated_at),
    )
