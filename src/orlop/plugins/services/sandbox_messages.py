"""Sandboxes between our values and protobuf. Source: containerd's core/sandbox/helpers.go."""

from orlop.api.types import sandbox_pb2 as pb
from orlop.core.sandboxes import Runtime, Sandbox
from orlop.plugins.services.timestamps import from_timestamp, to_timestamp


def decode(message: pb.Sandbox) -> Sandbox:
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
        created_at=from_timestamp(message.created_at),
        updated_at=from_timestamp(message.updated_at),
        extensions={name: value.SerializeToString() for name, value in message.extensions.items()},
    )


def encode(sandbox: Sandbox) -> pb.Sandbox:
    """The message of a value."""
    message = pb.Sandbox(
        sandbox_id=sandbox.id,
        labels=sandbox.labels,
        sandboxer=sandbox.sandboxer,
        created_at=to_timestamp(sandbox.created_at),
        updated_at=to_timestamp(sandbox.updated_at),
    )
    message.runtime.name = sandbox.runtime.name
    if sandbox.runtime.options is not None:
        message.runtime.options.ParseFromString(sandbox.runtime.options)
    if sandbox.spec is not None:
        message.spec.ParseFromString(sandbox.spec)
    for name, value in sandbox.extensions.items():
        message.extensions[name].ParseFromString(value)
    return message
