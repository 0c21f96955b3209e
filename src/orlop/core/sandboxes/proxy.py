"""Sandboxes on the wire, and a controller of them behind somebody's Controller service.

Source: containerd's core/sandbox/proxy/controller.go and core/sandbox/helpers.go.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from orlop.api.services.sandbox.v1 import sandbox_pb2 as pb
from orlop.api.types import mount_pb2
from orlop.api.types import sandbox_pb2 as types
from orlop.core.mount import Mount
from orlop.core.sandboxes import Exit, Instance, Platform, Runtime, Sandbox, Status

_SECOND: Final = 1_000_000_000


def encode(sandbox: Sandbox) -> types.Sandbox:
    """The message of a value."""
    message = types.Sandbox(
        sandbox_id=sandbox.id,
        labels=sandbox.labels,
        sandboxer=sandbox.sandboxer,
        created_at=_timestamp(sandbox.created_at),
        updated_at=_timestamp(sandbox.updated_at),
    )
    message.runtime.name = sandbox.runtime.name
    if sandbox.runtime.options is not None:
        message.runtime.options.ParseFromString(sandbox.runtime.options)
    if sandbox.spec is not None:
        message.spec.ParseFromString(sandbox.spec)
    for name, value in sandbox.extensions.items():
        message.extensions[name].ParseFromString(value)
    return message


def decode(message: types.Sandbox) -> Sandbox:
    """The value of a message."""
    runtime = message.runtime
    return Sandbox(
        id=message.sandbox_id,
        labels=dict(message.labels),
        runtime=Runtime(
            name=runtime.name, options=runtime.options.SerializeToString() if runtime.HasField("options") else None
        ),
        spec=message.spec.SerializeToString() if message.HasField("spec") else None,
        sandboxer=message.sandboxer,
        created_at=_nanoseconds(message.created_at),
        updated_at=_nanoseconds(message.updated_at),
        extensions={name: value.SerializeToString() for name, value in message.extensions.items()},
    )


class Channel(Protocol):
    """Calls of the Controller service, by the names of its methods. Any: the answer's class depends on it."""

    async def unary(self, name: str, request: Message, *, namespace: str) -> Any: ...

    async def endless(self, name: str, request: Message, *, namespace: str) -> Any: ...


class ProxyController:
    """See `orlop.core.sandboxes.Controller`. Errors are those that the service answers with.

    Args:
        name: what the controller is called on the other side.
    """

    def __init__(self, channel: Channel, *, name: str) -> None:
        self._channel = channel
        self._name = name

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
        request = pb.ControllerCreateRequest(
            sandbox_id=sandbox.id,
            sandboxer=self._name,
            sandbox=encode(sandbox),
            options=None if options is None else AnyMessage.FromString(options),
            rootfs=[mount_pb2.Mount(type=m.type, source=m.source, target=m.target, options=m.options) for m in rootfs],
            netns_path=netns,
            annotations=annotations,
        )
        await self._channel.endless("Create", request, namespace=namespace)

    async def start(self, namespace: str, sandbox_id: str) -> Instance:
        request = pb.ControllerStartRequest(sandbox_id=sandbox_id, sandboxer=self._name)
        answer = await self._channel.endless("Start", request, namespace=namespace)
        return Instance(
            id=answer.sandbox_id,
            pid=answer.pid,
            address=answer.address,
            version=answer.version,
            created_at=_nanoseconds(answer.created_at),
            labels=dict(answer.labels),
            spec=answer.spec.SerializeToString() if answer.HasField("spec") else None,
        )

    async def platform(self, namespace: str, sandbox_id: str) -> Platform:
        request = pb.ControllerPlatformRequest(sandbox_id=sandbox_id, sandboxer=self._name)
        found = (await self._channel.unary("Platform", request, namespace=namespace)).platform
        return Platform(os=found.os, architecture=found.architecture, variant=found.variant)

    async def stop(self, namespace: str, sandbox_id: str, *, timeout_s: int = 0) -> None:
        request = pb.ControllerStopRequest(sandbox_id=sandbox_id, sandboxer=self._name, timeout_secs=timeout_s)
        await self._channel.endless("Stop", request, namespace=namespace)

    async def wait(self, namespace: str, sandbox_id: str) -> Exit:
        request = pb.ControllerWaitRequest(sandbox_id=sandbox_id, sandboxer=self._name)
        answer = await self._channel.endless("Wait", request, namespace=namespace)
        return Exit(status=answer.exit_status, exited_at=_nanoseconds(answer.exited_at))

    async def status(self, namespace: str, sandbox_id: str, *, verbose: bool = False) -> Status:
        request = pb.ControllerStatusRequest(sandbox_id=sandbox_id, sandboxer=self._name, verbose=verbose)
        answer = await self._channel.unary("Status", request, namespace=namespace)
        return Status(
            id=answer.sandbox_id,
            pid=answer.pid,
            state=answer.state,
            info=dict(answer.info),
            created_at=_nanoseconds(answer.created_at),
            exited_at=_nanoseconds(answer.exited_at),
            extra=answer.extra.SerializeToString() if answer.HasField("extra") else None,
            address=answer.address,
            version=answer.version,
        )

    async def shutdown(self, namespace: str, sandbox_id: str) -> None:
        request = pb.ControllerShutdownRequest(sandbox_id=sandbox_id, sandboxer=self._name)
        await self._channel.endless("Shutdown", request, namespace=namespace)

    async def metrics(self, namespace: str, sandbox_id: str) -> bytes:
        request = pb.ControllerMetricsRequest(sandbox_id=sandbox_id, sandboxer=self._name)
        metrics: bytes = (
            await self._channel.unary("Metrics", request, namespace=namespace)
        ).metrics.SerializeToString()
        return metrics

    async def update(self, namespace: str, sandbox_id: str, sandbox: Sandbox, fields: Sequence[str]) -> None:
        request = pb.ControllerUpdateRequest(
            sandbox_id=sandbox_id, sandboxer=self._name, sandbox=encode(sandbox), fields=fields
        )
        await self._channel.unary("Update", request, namespace=namespace)


def _timestamp(nanoseconds: int) -> Timestamp:
    return Timestamp(seconds=nanoseconds // _SECOND, nanos=nanoseconds % _SECOND)


def _nanoseconds(stamp: Timestamp) -> int:
    """As our rows hold times; not `ToNanoseconds`, which refuses Go's zero time."""
    return stamp.seconds * _SECOND + stamp.nanos
