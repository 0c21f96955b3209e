"""Containers: metadata of what can be run. A container holds no lock and no process; the running thing is its task.

Source: containerd's core/containers/containers.go.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Container", "Runtime"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The runtime's name, such as `io.containerd.runc.v2`, and its options: a serialised `google.protobuf.Any`."""

    name: str = ""
    options: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One container of a namespace.

    Attributes:
        spec: the OCI runtime-spec, as a serialised `google.protobuf.Any`.
        image: name of the image it was made from; a note, not a reference that keeps the image.
        snapshotter, snapshot_key: the snapshot that is its root file system, which it keeps alive.
        sandbox: id of the sandbox it runs in.
        extensions: serialised `google.protobuf.Any` by name, for clients.
        created_at, updated_at: nanoseconds since the epoch, UTC.
    """

    id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    runtime: Runtime = field(default_factory=Runtime)
    spec: bytes | None = None
    snapshotter: str = ""
    snapshot_key: str = ""
    created_at: int = 0
    updated_at: int = 0
    extensions: Mapping[str, bytes] = field(default_factory=dict)
    sandbox: str = ""
