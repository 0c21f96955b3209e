"""The service of sandboxes' controllers. Source: containerd's plugins/services/sandbox/controller_service.go."""

from collections.abc import Mapping
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from orlop.api.events import sandbox_pb2 as events
from orlop.api.services.sandbox.v1 import sandbox_pb2 as api
from orlop.base import namespaces
from orlop.base.errdefs import InvalidArgumentError, NotFoundError, OrlopError, UnknownError, from_status
from orlop.base.quoting import quote
from orlop.base.rpc import Call, Service, bind
from orlop.core.events import Exchange
from orlop.core.kinds import EVENT, GRPC, SANDBOX_CONTROLLER, SANDBOX_STORE
from orlop.core.metadata.sandboxes import SandboxStore
from orlop.core.mount import Mount
from orlop.core.plugin import Context, Registration
from orlop.core.sandboxes import Controller as Sandboxer
from orlop.core.sandboxes import Sandbox
from orlop.core.sandboxes.proxy import decode
from orlop.plugins.services.timestamps import to_timestamp

# Go's zero time, which is what containerd answers for a time that it does not know.
_ZERO: Final = Timestamp(seconds=-62135596800)


class Controller:
    """containerd.services.sandbox.v1.Controller.

    Args:
        sandboxers: the controllers by the name that requests give.
    """

    def __init__(self, store: SandboxStore, exchange: Exchange, sandboxers: Mapping[str, Sandboxer]) -> None:
        self._store = store
        self._exchange = exchange
        self._sandboxers = sandboxers

    async def create(self, call: Call, request: api.ControllerCreateRequest) -> api.ControllerCreateResponse:
        namespace = namespaces.validate(call.namespace)
        await self._named(request.sandboxer).create(
            namespace,
            self._sandbox(namespace, request),
            options=request.options.SerializeToString() if request.HasField("options") else None,
            rootfs=[
                Mount(type=m.type, source=m.source, target=m.target, options=tuple(m.options)) for m in request.rootfs
            ],
            netns=request.netns_path,
            annotations=dict(request.annotations),
        )
        event = events.SandboxCreate(sandbox_id=request.sandbox_id)
        self._exchange.publish(namespace, "/sandboxes/create", event)
        return api.ControllerCreateResponse(sandbox_id=request.sandbox_id)

    async def start(self, call: Call, request: api.ControllerStartRequest) -> api.ControllerStartResponse:
        namespace = namespaces.validate(call.namespace)
        try:
            sandboxer = self._named(request.sandboxer)
        except OrlopError as error:
            what = f"failed to get sandbox controller for {quote(request.sandboxer)}"
            raise from_status(error.code, f"{what}: {error}") from None
        try:
            instance = await sandboxer.start(namespace, request.sandbox_id)
        except OrlopError as error:
            what = f"failed to start sandbox {quote(request.sandbox_id)}"
            raise from_status(error.code, f"{what}: {error}") from error
        self._exchange.publish(namespace, "/sandboxes/start", events.SandboxStart(sandbox_id=request.sandbox_id))
        response = api.ControllerStartResponse(
            sandbox_id=instance.id,
            pid=instance.pid,
            created_at=to_timestamp(instance.created_at),
            labels=instance.labels,
            address=instance.address,
            version=instance.version,
        )
        if instance.spec is not None:
            response.spec.ParseFromString(instance.spec)
        return response

    async def platform(self, call: Call, request: api.ControllerPlatformRequest) -> api.ControllerPlatformResponse:
        namespace = namespaces.validate(call.namespace)
        found = await self._named(request.sandboxer).platform(namespace, request.sandbox_id)
        response = api.ControllerPlatformResponse()
        response.platform.os = found.os
        response.platform.architecture = found.architecture
        response.platform.variant = found.variant
        return response

    async def stop(self, call: Call, request: api.ControllerStopRequest) -> api.ControllerStopResponse:
        namespace = namespaces.validate(call.namespace)
        await self._named(request.sandboxer).stop(namespace, request.sandbox_id, timeout_s=request.timeout_secs)
        return api.ControllerStopResponse()

    async def wait(self, call: Call, request: api.ControllerWaitRequest) -> api.ControllerWaitResponse:
        namespace = namespaces.validate(call.namespace)
        ended = await self._named(request.sandboxer).wait(namespace, request.sandbox_id)
        at = to_timestamp(ended.exited_at)
        event = events.SandboxExit(sandbox_id=request.sandbox_id, exit_status=ended.status, exited_at=at)
        self._exchange.publish(namespace, "/sandboxes/exit", event)
        return api.ControllerWaitResponse(exit_status=ended.status, exited_at=at)

    async def status(self, call: Call, request: api.ControllerStatusRequest) -> api.ControllerStatusResponse:
        namespace = namespaces.validate(call.namespace)
        found = await self._named(request.sandboxer).status(namespace, request.sandbox_id, verbose=request.verbose)
        response = api.ControllerStatusResponse(
            sandbox_id=found.id,
            pid=found.pid,
            state=found.state,
            info=found.info,
            created_at=_timestamp(found.created_at),
            exited_at=_timestamp(found.exited_at),
            address=found.address,
            version=found.version,
        )
        response.extra.ParseFromString(found.extra or b"")
        return response

    async def shutdown(self, call: Call, request: api.ControllerShutdownRequest) -> api.ControllerShutdownResponse:
        namespace = namespaces.validate(call.namespace)
        await self._named(request.sandboxer).shutdown(namespace, request.sandbox_id)
        return api.ControllerShutdownResponse()

    async def metrics(self, call: Call, request: api.ControllerMetricsRequest) -> api.ControllerMetricsResponse:
        namespace = namespaces.validate(call.namespace)
        metric = await self._named(request.sandboxer).metrics(namespace, request.sandbox_id)
        response = api.ControllerMetricsResponse()
        if metric:
            response.metrics.ParseFromString(metric)
        return response

    async def update(self, call: Call, request: api.ControllerUpdateRequest) -> api.ControllerUpdateResponse:
        namespace = namespaces.validate(call.namespace)
        sandboxer = self._named(request.sandboxer)
        if not request.HasField("sandbox"):
            raise UnknownError("sandbox can not be nil")
        await sandboxer.update(namespace, request.sandbox_id, decode(request.sandbox), tuple(request.fields))
        return api.ControllerUpdateResponse()

    def _named(self, name: str) -> Sandboxer:
        """The controller of that name; the errors' texts begin with their class, as containerd's do."""
        if not name:
            raise from_status(
                InvalidArgumentError.code,
                f"{InvalidArgumentError.suffix}: sandbox controller name can not be empty",
            )
        found = self._sandboxers.get(name)
        if found is None:
            text = f"{NotFoundError.suffix}: failed to get sandbox controller by {name}"
            raise from_status(NotFoundError.code, text)
        return found

    def _sandbox(self, namespace: str, request: api.ControllerCreateRequest) -> Sandbox:
        """What the request says, or for clients of containerd 1.7, whose requests name it only, what is stored."""
        if request.HasField("sandbox"):
            return decode(request.sandbox)
        try:
            return self._store.get(namespace, request.sandbox_id)
        except NotFoundError:
            return Sandbox(id=request.sandbox_id)


def _timestamp(nanoseconds: int | None) -> Timestamp:
    return _ZERO if nanoseconds is None else to_timestamp(nanoseconds)


def _init(context: Context) -> Service:
    controller = Controller(context.get(SANDBOX_STORE), context.get(EVENT), context.all(SANDBOX_CONTROLLER))
    return bind(api.DESCRIPTOR.services_by_name["Controller"], controller)


REGISTRATION: Final = Registration(
    kind=GRPC, id="sandbox-controllers", requires=(SANDBOX_STORE, EVENT, SANDBOX_CONTROLLER), init=_init
)
