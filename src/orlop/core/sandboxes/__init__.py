"""Sandboxes: what containers are grouped in, such as a pod. The record here, the running thing with its controller.

Source: containerd's core/sandbox/store.go and core/sandbox/controller.go.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from orlop.core.containers import Runtime

__all__ = ["Runtime", "Sandbox"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """One sandbox of a namespace.

    Attributes:
        runtime: the shim that runs it, and its options.
        spec: what the shim is to make, as a serialised `google.protobuf.Any`.
        sandboxer: the controller that it belongs to.
        extensions: serialised `google.protobuf.Any` by name, for clients.
        created_at, updated_at: nanoseconds since the epoch, UTC.
    """

    id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    runtime: Runtime = field(default_factory=Runtime)
    spec: bytes | None = None
    sandboxer: str = ""
    created_at: int = 0
    updated_at: int = 0
    extensions: Mapping[str, bytes] = field(default_factory=dict)
